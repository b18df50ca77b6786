"""The lock's rules R1 to R5, each with a second process that dies, stops or leaks at the worst moment."""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Generator, Iterator
from functools import partial
from multiprocessing.connection import Connection

import posix_ipc
import pytest

from shm import layout, rwlock
from shm.board import Board, ClaimedSlot
from shm.errors import LockError
from shm.layout import SlotKind
from shm.rwlock import GATE_PATIENCE_S, ReadLock, WriteLock
from tests.support.processes import child, drive, wait_for

pytestmark = pytest.mark.lock_left_ok("its readers and writers leak, stop and are killed inside")

#: A bound for what takes GATE_PATIENCE_S, on a machine that is busy.
GENEROUS_S = 2.0


@pytest.fixture
def board(instance: str) -> Iterator[Board]:
    board = Board.create_or_attach(instance)
    yield board
    board.close()


@pytest.fixture
def slot(board: Board) -> ClaimedSlot:
    return board.claim(SlotKind.WORKER)


@pytest.fixture
def lock(board: Board, slot: ClaimedSlot) -> ReadLock:
    return ReadLock(board, slot)


@pytest.fixture
def writer(board: Board) -> WriteLock:
    return WriteLock(board, board.own_page(0))


def take_gates_and_wait(instance: str, pipe: Connection) -> None:
    """A writer that has every gate, and then does nothing."""
    board = Board.attach(instance)
    for number in board.live_slots():
        gate = posix_ipc.Semaphore(board.names.gate(number, board.slot(number).get("gate")))
        gate.acquire(5)
    pipe.send("has them")
    pipe.recv()


def read_forever(instance: str, pipe: Connection) -> None:
    board = Board.attach(instance)
    lock = ReadLock(board, board.claim(SlotKind.WORKER))
    pipe.send("ready")
    while True:
        with lock.read():
            pass
        time.sleep(0.0002)


def stay_inside(instance: str, pipe: Connection) -> None:
    """A reader that takes the lock and never gives it back."""
    board = Board.attach(instance)
    slot = board.claim(SlotKind.WORKER)
    lock = ReadLock(board, slot)
    lock.read().__enter__()
    pipe.send(slot.number)
    pipe.recv()
    lock.__exit__(None, None, None)
    pipe.send("left")
    pipe.recv()


# ---------------------------------------------------------------- ordinary life


def test_enter_and_leave(board: Board, slot: ClaimedSlot, lock: ReadLock, writer: WriteLock) -> None:
    before = slot.get("section")
    with lock.read() as live:
        assert live == 0
        assert slot.get("section") == before + 1
        assert slot.get("since_ns") > 0
        assert lock.held
    assert slot.get("section") == before + 2
    assert not lock.held
    drive(writer.swap(3))
    assert board.live == 3
    with lock.read() as live:
        assert live == 3
    assert sum(slot.histogram(layout.HOLD_HISTOGRAM)) == 2


def test_left_by_an_error(slot: ClaimedSlot, lock: ReadLock, writer: WriteLock) -> None:
    with pytest.raises(KeyError), lock.read():
        raise KeyError
    assert slot.get("section") % 2 == 0
    drive(writer.swap(2))


def test_misuse_is_loud(lock: ReadLock) -> None:
    with pytest.raises(LockError, match="without having been"):
        lock.__exit__(None, None, None)
    with lock.read():
        with pytest.raises(LockError, match="twice"):
            lock.read().__enter__()
        with pytest.raises(LockError, match="while it is held"):
            lock.close()
    with lock.read():
        pass
    lock.close()
    with pytest.raises(LockError, match="after close"):
        lock.read().__enter__()


def test_no_semaphore_is_left_behind(board: Board, slot: ClaimedSlot, lock: ReadLock) -> None:
    def gates() -> list[str]:
        return [path.name for path in board.names.existing() if path.name.startswith("sem.")]

    assert len(gates()) == 1
    for _ in range(3):
        lock._renew_gate()
    assert len(gates()) == 1
    lock.close()
    assert gates() == []
    slot.release()


# ---------------------------------------------------------------- R1


@pytest.mark.parametrize("fate", ["stopped", "killed"])
def test_r1_a_writer_that_holds_the_gates_costs_one_wait(
    instance: str, slot: ClaimedSlot, lock: ReadLock, fate: str
) -> None:
    with child(lambda pipe: take_gates_and_wait(instance, pipe)) as thief:
        thief.hear()
        thief.stop() if fate == "stopped" else thief.kill()
        gate = slot.get("gate")
        start = time.monotonic()
        with lock.read():
            waited = time.monotonic() - start
            assert slot.get("section") % 2 == 1
        assert GATE_PATIENCE_S <= waited < GENEROUS_S
        assert slot.get("past_gate") == 1
        assert slot.get("gate") == gate + 1, "a fresh gate"
        for _ in range(20):
            with lock.read():
                pass
        assert slot.get("past_gate") == 1, "once, and never again"
        assert slot.get("gate_waits") == 1


def test_r1_the_fresh_gate_is_the_writers_too(instance: str, board: Board, lock: ReadLock, writer: WriteLock) -> None:
    drive(writer.swap(2))  # it knows the old gate now
    with child(lambda pipe: take_gates_and_wait(instance, pipe)) as thief:
        thief.hear()
        thief.kill()
        with lock.read():
            pass
    drive(writer.swap(5))
    assert board.live == 5
    with lock.read() as live:
        assert live == 5


def test_r1_no_memory_for_a_fresh_gate(
    instance: str, slot: ClaimedSlot, lock: ReadLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With /dev/shm full, answers cost a wait each; they do not stop."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with child(lambda pipe: take_gates_and_wait(instance, pipe)) as thief:
        thief.hear()
        thief.kill()
        monkeypatch.setattr(posix_ipc, "Semaphore", full)
        for _ in range(3):
            with lock.read():
                pass
        assert slot.get("past_gate") == 3
        monkeypatch.undo()
        for _ in range(3):
            with lock.read():
                pass
        assert slot.get("past_gate") == 4


def test_r1_waits_on_the_monotonic_clock() -> None:
    """A step of the wall clock cannot matter: no semaphore is waited for by the kernel, no other clock is read."""
    tree = ast.parse(inspect.getsource(rwlock))
    clocks = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time"
    }
    assert clocks <= {"monotonic_ns", "monotonic", "sleep"}
    waits = [
        ast.unparse(call)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "acquire"
    ]
    assert all("acquire(0)" in wait or "lock.acquire" in wait or "self.acquire" in wait for wait in waits), waits


# ---------------------------------------------------------------- R3


def test_r3_a_leaked_read_lock_delays_nobody_but_the_writer(instance: str, board: Board, writer: WriteLock) -> None:
    """The standoff of 2015: one reader never leaves, a writer waits; the other reads on, past no gate."""
    with (
        child(lambda pipe: stay_inside(instance, pipe)) as leaker,
        child(lambda pipe: read_forever(instance, pipe)) as healthy,
    ):
        leaker.hear()
        healthy.hear()
        number = next(n for n in board.live_slots() if board.slot(n).get("pid") == healthy.pid)

        def moved(before: int) -> bool:
            return board.slot(number).get("section") > before + 1

        swap = writer.swap(2)
        for _ in range(20):
            before = board.slot(number).get("section")
            time.sleep(next(swap))
            wait_for("the healthy reader goes on", partial(moved, before))
        assert board.live == 0
        assert board.loader.get("write_retries") >= 20
        leaker.tell()
        assert leaker.hear() == "left"
        drive(swap)
        assert board.live == 2


def test_r3_an_attempt_that_fails_holds_nothing(
    instance: str, board: Board, slot: ClaimedSlot, lock: ReadLock, writer: WriteLock
) -> None:
    with child(lambda pipe: stay_inside(instance, pipe)) as leaker:
        leaker.hear()
        swap = writer.swap(2)
        next(swap)
        gate = posix_ipc.Semaphore(board.names.gate(slot.number, slot.get("gate")))
        assert gate.value == 1
        gate.close()
        assert board.loader.get("write_hold_since_ns") == 0
        assert isinstance(swap, Generator)
        swap.close()


@pytest.mark.parametrize("dead", [1, 10])
def test_r3_dead_readers_gates_are_not_waited_for(instance: str, board: Board, writer: WriteLock, dead: int) -> None:
    """Killed inside, their gates stay taken for ever; a busy, healthy reader must not be shut out meanwhile."""
    for _ in range(dead):
        with child(lambda pipe: stay_inside(instance, pipe)) as leaker:
            leaker.hear()
    with child(lambda pipe: read_forever(instance, pipe)) as healthy:
        healthy.hear()
        drive(writer.swap(2))
        assert board.live == 2


# ---------------------------------------------------------------- R5


def test_r5_grace_waits_for_who_is_inside(instance: str, board: Board, writer: WriteLock) -> None:
    with child(lambda pipe: stay_inside(instance, pipe)) as reader:
        reader.hear()
        grace = writer.grace()
        for _ in range(30):
            next(grace)
        reader.tell()
        assert reader.hear() == "left"
        assert sum(1 for _ in grace) <= 2


def test_r5_a_stopped_reader_is_waited_for(instance: str, writer: WriteLock) -> None:
    """It would go on reading when it is resumed: stopped is not dead."""
    with child(lambda pipe: stay_inside(instance, pipe)) as reader:
        reader.hear()
        reader.stop()
        grace = writer.grace()
        for _ in range(50):
            time.sleep(next(grace))


def test_r5_a_dead_reader_is_skipped(instance: str, board: Board, writer: WriteLock) -> None:
    with child(lambda pipe: stay_inside(instance, pipe)) as reader:
        number = reader.hear()
        reader.kill()
    assert board.slot(number).get("section") % 2 == 1
    drive(writer.grace())
    assert board.loader.get("dead_skipped") == 1


def test_r5_a_reader_that_comes_later_is_not_waited_for(board: Board, lock: ReadLock, writer: WriteLock) -> None:
    grace = writer.grace()
    with lock.read():
        pass
    drive(grace)


def test_r5_a_successor_in_the_slot_ends_the_wait(instance: str, board: Board, writer: WriteLock) -> None:
    with child(lambda pipe: stay_inside(instance, pipe)) as reader:
        number = reader.hear()
        grace = writer.grace()
        next(grace)
        reader.kill()
    slot = board.claim(SlotKind.WORKER, preferred=number)
    lock = ReadLock(board, slot)
    with lock.read():
        drive(grace)
    lock.close()
    slot.release()


def test_a_killed_writer_does_not_hold_up_its_successor(
    instance: str, board: Board, lock: ReadLock, writer: WriteLock
) -> None:
    """It takes over as soon as the readers have fresh gates."""
    with child(lambda pipe: take_gates_and_wait(instance, pipe)) as thief:
        thief.hear()
        thief.kill()
    with lock.read():
        pass
    drive(writer.swap(2))
    drive(writer.grace())
    assert board.live == 2
