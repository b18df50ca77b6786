"""RWLock, the lock for other programs: time-outs, try-variants, and a named error for each misuse.

That readers and writers exclude each other as far as the rules say (R1 to R6) is tests/unit/test_rwlock.py's.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shm.board import Board
from shm.errors import (
    ClosedLock,
    ForkedLock,
    LockError,
    LockTimeout,
    NestedRead,
    NoFreeSlot,
    NotHeld,
    SegmentError,
    StandoffError,
    UpgradeError,
    WouldBlock,
)
from shm.rwlock import GATE_PATIENCE_S, RWLock
from tests.support.processes import Body, Child, child, wait_for

pytestmark = pytest.mark.lock_left_ok("its readers and writers leak, stop and are killed inside")

Connection = multiprocessing.connection.Connection
#: For what takes microseconds, on a busy machine.
SOON_S = 1.0


@pytest.fixture
def lock(instance: str) -> Iterator[RWLock]:
    lock = RWLock(instance)
    yield lock
    with contextlib.suppress(LockError):
        lock.close()


@contextlib.contextmanager
def elsewhere(body: Body) -> Iterator[Child]:
    """Another process, once it has said that it is there."""
    with child(body) as process:
        assert process.hear() == "there"
        yield process


def reading(name: str) -> Body:
    """A process that is inside for reading until it hears a word."""

    def body(pipe: Connection) -> None:
        lock = RWLock(name)
        with lock.read():
            pipe.send("there")
            pipe.recv()
        pipe.send("left")

    return body


def writing(name: str, value: int = 1) -> Body:
    """A process that holds the write lock until it hears a word."""

    def body(pipe: Connection) -> None:
        lock = RWLock(name)
        with lock.write() as w:
            w.value = value
            pipe.send("there")
            pipe.recv()
        pipe.send("left")

    return body


def timed(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


# ---------------------------------------------------------------- what it is for


def test_what_one_process_writes_another_reads(instance: str, lock: RWLock) -> None:
    with lock.read() as value:
        assert value == 0
    with elsewhere(writing(instance, 2**64 - 1)) as process:
        process.tell()
        assert process.hear() == "left"
    with lock.read() as value:
        assert value == 2**64 - 1


def test_a_writer_sees_what_was_written(lock: RWLock) -> None:
    with lock.write() as w:
        assert w.value == 0
        w.value = 41
        w.value += 1
        assert w.value == 42


def test_a_value_survives_its_writer(instance: str) -> None:
    first = RWLock(instance)
    with first.write() as w:
        w.value = 7
    first.close()
    second = RWLock(instance)
    with second.read() as value:
        assert value == 7
    second.close()


def test_many_readers_are_inside_together(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)) as one, elsewhere(reading(instance)) as two, lock.read():
        inside = dict(lock.inside())
        assert set(inside) == {one.pid, two.pid, os.getpid()}
        assert all(0 <= age < 20 for age in inside.values())
    assert lock.inside() == []


def test_quiesce_waits_for_those_who_are_inside(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)) as process:
        threading.Timer(0.1, process.tell).start()
        assert timed(lock.quiesce) >= 0.09
    lock.quiesce()


def test_quiesce_does_not_wait_for_the_dead(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)) as process:
        process.kill()
        assert timed(lock.quiesce) < SOON_S


def test_an_error_inside_leaves_the_lock_free(lock: RWLock) -> None:
    with pytest.raises(KeyError), lock.read():
        raise KeyError
    with pytest.raises(KeyError), lock.write():
        raise KeyError
    with pytest.raises(KeyError), lock.try_write():
        raise KeyError
    with lock.try_write(), pytest.raises(UpgradeError):
        lock.read()
    with lock.read():
        pass


# ---------------------------------------------------------------- who waits for whom, and for how long


def test_a_reader_waits_for_a_writer_ten_milliseconds_at_most(instance: str, lock: RWLock) -> None:
    """R1: then it goes past, and has seen the old or the new value, whole."""

    def read() -> None:
        with lock.read() as value:
            assert value == 1

    with lock.read():
        pass  # a slot, so that the writer takes our gate
    with elsewhere(writing(instance)):
        assert GATE_PATIENCE_S <= timed(read) < SOON_S
        assert timed(read) < SOON_S, "its new gate is not the writer's"


def test_write_times_out_when_a_reader_stays(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)) as process:
        start = time.monotonic()
        with pytest.raises(LockTimeout, match=r"for 0.15 s: see who is inside") as error, lock.write(timeout=0.15):
            pytest.fail("inside")
        assert 0.05 <= time.monotonic() - start < 0.15 + SOON_S
        assert not isinstance(error.value, WouldBlock)
        process.tell()
        assert process.hear() == "left"
        with lock.write(timeout=5) as w:
            w.value = 1


def test_write_times_out_when_another_writes(instance: str, lock: RWLock) -> None:
    with elsewhere(writing(instance)):
        start = time.monotonic()
        with pytest.raises(LockTimeout, match="another writer is at work"), lock.write(timeout=0.15):
            pytest.fail("inside")
        assert 0.15 <= time.monotonic() - start < 0.15 + SOON_S


def test_write_without_a_time_out_waits(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)) as process:
        threading.Timer(0.15, process.tell).start()

        def write() -> None:
            with lock.write() as w:
                w.value = 1

        assert timed(write) >= 0.1


def test_a_writer_that_waits_keeps_nobody_out(instance: str, lock: RWLock) -> None:
    """The standoff of 2015: one reader stays, a writer waits, and others go in and out as before."""
    with elsewhere(reading(instance)):

        def wait_to_write(pipe: Connection) -> None:
            theirs = RWLock(instance)
            pipe.send("there")
            with theirs.write():
                pass

        with elsewhere(wait_to_write):
            board = Board.attach(instance)
            wait_for("it waits", lambda: board.loader.get("write_wait_since_ns"))
            slowest, end, rounds = 0.0, time.monotonic() + 0.5, 0
            while time.monotonic() < end:
                start = time.monotonic()
                with lock.read():
                    pass
                slowest = max(slowest, time.monotonic() - start)
                rounds += 1
            assert board.loader.get("write_wait_since_ns"), "it still waits"
            board.close()
        print(f"MEASURED {rounds} reads beside a writer that waits, the slowest {slowest * 1e3:.2f} ms")
        assert rounds > 100
        assert slowest < 0.25


def test_try_write(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)):
        start = time.monotonic()
        with pytest.raises(WouldBlock, match="a reader is inside"), lock.try_write():
            pytest.fail("inside")
        assert time.monotonic() - start < SOON_S
    with elsewhere(writing(instance)), pytest.raises(WouldBlock, match="another writer"), lock.try_write():
        pytest.fail("inside")
    with lock.try_write() as w:
        w.value = 3
    with lock.read() as value:
        assert value == 3


def test_try_read(instance: str, lock: RWLock) -> None:
    with lock.try_read() as value:
        assert value == 0
    with elsewhere(writing(instance)) as process:
        with pytest.raises(WouldBlock, match="a writer holds the gate"), lock.try_read():
            pytest.fail("inside")
        process.tell()
        assert process.hear() == "left"
    with lock.try_read() as value:
        assert value == 1


def test_quiesce_times_out(instance: str, lock: RWLock) -> None:
    with elsewhere(reading(instance)):
        start = time.monotonic()
        with pytest.raises(LockTimeout, match=r"inside for 0.1 s: see `inside\(\)`"):
            lock.quiesce(timeout=0.1)
        assert time.monotonic() - start < 0.1 + SOON_S


def test_a_writer_that_dies_leaves_the_lock_to_the_next(instance: str, lock: RWLock) -> None:
    with lock.read():
        pass
    with elsewhere(writing(instance)) as process:
        process.kill()
    with lock.read() as value:
        assert value == 1, "what it had stored is whole"
    with lock.write(timeout=5) as w:
        w.value = 2


def test_a_stopped_writer_makes_a_writer_wait_and_a_reader_not(instance: str, lock: RWLock) -> None:
    with lock.read():
        pass
    with elsewhere(writing(instance)) as process:
        process.stop()

        def read() -> None:
            with lock.read():
                pass

        assert timed(read) < SOON_S
        with pytest.raises(LockTimeout), lock.write(timeout=0.05):
            pytest.fail("inside")
        process.signal(signal.SIGCONT)
        process.tell()
        assert process.hear() == "left"
    with lock.write(timeout=5):
        pass


# ---------------------------------------------------------------- misuse: a named error each, at once


def use(lock: RWLock, kind: str) -> None:
    """In and out again, in one of the ways there are."""
    result = getattr(lock, kind)()
    if kind not in ("quiesce", "inside"):
        with result:
            pass


def test_every_misuse_is_a_lock_error() -> None:
    for error in (NotHeld, NestedRead, UpgradeError, ClosedLock, ForkedLock, LockTimeout, WouldBlock):
        assert issubclass(error, LockError)
        assert issubclass(error, StandoffError)


def test_release_without_acquire(lock: RWLock) -> None:
    with pytest.raises(NotHeld, match="without having been acquired"):
        lock.read().__exit__(None, None, None)
    reader = lock.read()
    with reader:
        pass
    with pytest.raises(NotHeld):
        reader.__exit__(None, None, None)


def test_read_inside_read(lock: RWLock) -> None:
    with lock.read():
        with pytest.raises(NestedRead, match="acquired twice: the first section was never left"), lock.read():
            pytest.fail("inside")
        with pytest.raises(NestedRead), lock.try_read():
            pytest.fail("inside")
    with lock.read():
        pass


def test_a_leak_is_told_at_the_next_read(lock: RWLock) -> None:
    """The code path of 2015: it returned without giving the lock back."""
    lock.read().__enter__()
    with pytest.raises(NestedRead), lock.read():
        pytest.fail("inside")
    lock.read().__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["write", "try_write"])
def test_write_inside_read(lock: RWLock, kind: str) -> None:
    """An upgrade would wait for itself."""
    with lock.read():
        start = time.monotonic()
        with pytest.raises(UpgradeError, match="leave it first"), getattr(lock, kind)():
            pytest.fail("inside")
        assert time.monotonic() - start < SOON_S


@pytest.mark.parametrize("kind", ["read", "try_read", "write", "try_write", "quiesce"])
def test_anything_inside_write(lock: RWLock, kind: str) -> None:
    with lock.write() as w:
        with pytest.raises(UpgradeError, match="it would wait for itself"):
            use(lock, kind)
        w.value = 5
    with lock.read() as value:
        assert value == 5


def test_set_after_the_section(lock: RWLock) -> None:
    with lock.write() as w:
        w.value = 1
    with pytest.raises(LockError, match=r"inside `with lock\.write"):
        w.value = 2
    assert w.value == 1


def in_fork(body: Callable[[], object]) -> str:
    """The name of the error that `body` ends with in a forked child."""

    def run(pipe: Connection) -> None:
        try:
            body()
        except StandoffError as error:
            pipe.send(type(error).__name__)
        else:
            pipe.send("no error")

    with child(run) as process:
        result: str = process.hear()
        assert process.wait() == 0
        return result


@pytest.mark.parametrize("kind", ["read", "try_read", "write", "try_write", "quiesce", "inside"])
def test_use_in_a_forked_child(lock: RWLock, kind: str) -> None:
    with lock.read():
        pass
    assert in_fork(lambda: use(lock, kind)) == "ForkedLock"
    use(lock, kind)


def test_fork_while_inside(lock: RWLock) -> None:
    """The section is the parent's: the child can neither leave it nor make it look left."""
    reader = lock.read()
    with reader:
        assert in_fork(lambda: reader.__exit__(None, None, None)) == "ForkedLock"
        ((pid, _),) = lock.inside()
        assert pid == os.getpid()
    assert lock.inside() == []
    with lock.write(timeout=5):
        pass


def test_fork_while_writing(lock: RWLock) -> None:
    """A child that leaves the section would give back gates that the parent holds."""
    with lock.read():
        pass
    parent, pid = os.getpid(), 0
    with contextlib.suppress(ForkedLock), lock.write() as w:
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 7
            board = Board.attach(lock._board.names.instance)
            assert board.loader.get("write_hold_since_ns"), "the parent still holds it"
            board.close()
            w.value = 3
    if os.getpid() != parent:
        os._exit(7)
    with lock.read() as value:
        assert value == 3


def test_close_in_a_forked_child(lock: RWLock) -> None:
    """A child that cleans up: what the parent has is left alone."""
    with lock.read():
        assert in_fork(lock.close) == "no error"
        ((pid, _),) = lock.inside()
        assert pid == os.getpid()
    with lock.write(timeout=5) as w:
        w.value = 1
    with lock.read() as value:
        assert value == 1


def test_a_child_opens_the_lock_again(instance: str, lock: RWLock) -> None:
    with lock.write() as w:
        w.value = 9

    def use_own() -> None:
        own = RWLock(instance)
        with own.read() as value:
            assert value == 9
        with own.write(timeout=5) as w:
            w.value = 10
        own.close()

    assert in_fork(use_own) == "no error"
    with lock.read() as value:
        assert value == 10


@pytest.mark.parametrize("kind", ["read", "try_read", "write", "try_write", "quiesce", "inside"])
def test_use_after_close(lock: RWLock, kind: str) -> None:
    with lock.read():
        pass
    reader = lock.read()
    lock.close()
    with pytest.raises(ClosedLock):
        use(lock, kind)
    with pytest.raises(ClosedLock), reader:
        pytest.fail("inside")


def test_close_while_reading(lock: RWLock) -> None:
    with lock.read(), pytest.raises(LockError, match="closed while it is held"):
        lock.close()
    lock.close()


def test_close_while_writing(lock: RWLock) -> None:
    with lock.write() as w:
        with pytest.raises(LockError, match="closed while it is held for writing"):
            lock.close()
        w.value = 1
    lock.close()


def test_close_twice(lock: RWLock) -> None:
    with lock.read():
        pass
    lock.close()
    lock.close()


def test_close_gives_the_slot_back(instance: str) -> None:
    for _ in range(70):  # more than there are slots
        lock = RWLock(instance)
        with lock.read():
            pass
        lock.close()


def test_more_readers_than_slots(instance: str) -> None:
    locks = [RWLock(instance) for _ in range(65)]
    try:
        for lock in locks[:64]:
            with lock.read():
                pass
        with pytest.raises(NoFreeSlot, match="slots of instance"), locks[64].read():
            pytest.fail("inside")
        locks[0].close()
        with locks[64].read():
            pass
    finally:
        for lock in locks:
            lock.close()


@pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a" * 33])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SegmentError, match="use 1 to 32 characters"):
        RWLock(name)
