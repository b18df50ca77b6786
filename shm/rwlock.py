"""The cross-process RW lock: a gate per reader, a section counter per reader, one live word. Rules R1 to R6.

    R1  A reader takes its own gate, waiting at most GATE_PATIENCE_S. If that fails it goes past the gate, counts it,
        and gives its slot a fresh gate afterwards. No writer, dead or stopped or slow, holds a reader up for longer,
        or twice.
    R2  A reader makes its section odd (sequentially consistent), then reads `live`; it makes it even when it leaves.
    R3  The writer takes the gates of all live slots with a budget of ATTEMPT_BUDGET_S for the attempt. If one is busy
        it lets all go, backs off, and tries again: a leaked read lock never makes other readers wait behind a writer.
    R4  The write lock guards one aligned 8-byte store of `live`, nothing else.
    R5  Before it edits a table the writer waits until every slot that was inside has left: its section changed, or its
        process is dead. A new writer does this first of all.
    R6  Who is inside, since when, is in the slot's words for everyone to see.

Protects        the live word: generation and side of the active table. The tables' bytes are protected by R5 alone.
Held for        reading: one batch of answers, tens of microseconds. Writing: one store, microseconds.
Order           innermost; nothing else is acquired while it is held. One writer at a time, by the `writer` lock file.
While held      no I/O, no logging, no allocation to speak of, no callback.
Holder dies     a reader: its gate stays taken and its section odd; the writer sees by the slot's lock file that it is
                dead and skips it. The writer: gates stay taken; each reader waits GATE_PATIENCE_S once, goes past, and
                has a fresh gate from then on. The live word is whole at every instruction.
Proof           shm/rwlock.pml (tests/model), tests/incident, tests/torture

Safety does not rest on the semaphores (R5 and the live word give it); they keep a writer's swap from falling into the
middle of a batch, and they are what makes a waiting writer visible and polite. Semaphores are used here, in
shm/gates.py and in the compiled half, shm/_section.pyx.
"""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import posix_ipc

from shm import gates, layout, lockdebug
from shm._atomic import Words
from shm._section import Section, TryRead
from shm.board import Board, ClaimedSlot, WordView
from shm.errors import ClosedLock, ForkedLock, LockError, LockTimeout, UpgradeError, WouldBlock
from shm.gates import record
from shm.layout import SlotKind
from shm.segment import LockFile

#: R1: the longest a reader waits for its gate. Bounds what a dead or stopped writer can cost a client, once.
GATE_PATIENCE_S = 0.010
#: R3: the longest one attempt of the writer holds any gate. Half of the readers' patience, so that a polite writer
#: never drives a reader past its gate.
ATTEMPT_BUDGET_S = 0.005
#: R3: pauses between attempts, doubled from the first to the last and drawn at random, so that two tries do not meet
#: the same batch again.
BACK_OFF_S = (0.0005, 0.020)
#: R5: how long the writer spins before it sleeps; longer than an ordinary batch takes.
GRACE_SPIN_NS = 200_000
GRACE_SLEEP_S = 0.001

_SECTION = layout.SLOT_WORDS["section"]
_GATE = layout.SLOT_WORDS["gate"]


class ReadLock(Section):
    """The reading side for one slot: `with lock.read() as live:`. One process, one thread, never nested.

    Raises NestedRead, NotHeld, ClosedLock, ForkedLock at once when it is misused; waiting never fails (R1).
    """

    def __new__(cls, board: Board, slot: ClaimedSlot) -> Self:
        made: Self = super().__new__(lockdebug.variant(cls, "read"))
        return made

    def __init__(self, board: Board, slot: ClaimedSlot) -> None:
        super().__init__(board.words, slot.words)
        self._names = board.names
        self._slot = slot
        self._renew_gate()
        _open_locks.add(self)

    def _acquired_at(self) -> str:
        """Where this reader went in, if that is known: lock debugging says so (shm/lockdebug.py)."""
        return ""

    def _wait(self) -> bool:
        """R1: wait for the gate on the monotonic clock (sem_timedwait counts on the wall clock). True if we have it."""
        start = time.monotonic_ns()
        deadline = start + int(GATE_PATIENCE_S * 1e9)
        self._slot.add("gate_waits")
        self._slot.set("waiting_since_ns", start)
        spins = 0
        had = False
        while not had and time.monotonic_ns() < deadline:
            if spins < 50:
                os.sched_yield()  # the writer holds it for microseconds, if it gets the core
            else:
                time.sleep(0.0002)
            spins += 1
            had = self._try_gate()
        if not had:
            self._slot.add("past_gate")
        waited = time.monotonic_ns() - start
        self._slot.set("waiting_since_ns", 0)
        record(self._slot.words, layout.GATE_WAIT_HISTOGRAM, waited)
        self._slot.maximum("gate_wait_max_ns", waited)
        return had

    def _renew_gate(self) -> None:
        """A gate of its own under a new name; whoever still holds the old one holds nothing.

        Raises LockError if there can be none at all; one that cannot be renewed stays.
        """
        old = self._slot.get("gate")
        name = self._names.gate(self._slot.number, old + 1)
        try:
            gates.create(name)
            self._open_gate(name)
        except (OSError, posix_ipc.Error) as error:
            if self.gated:
                return  # /dev/shm is full, most likely: each read costs a wait until there is room, and answers go on
            raise LockError(f"cannot make semaphore {name}: {error}; free some of /dev/shm") from error
        self._slot.set("gate", old + 1)
        gates.unlink(self._names.gate(self._slot.number, old))

    def close(self) -> None:
        if self.held:
            raise LockError("read lock closed while it is held")
        _open_locks.discard(self)
        self._close_gate()
        gates.unlink(self._names.gate(self._slot.number, self._slot.get("gate")))


class WriteLock:
    """The writing side, for the one process that holds the `writer` lock file.

    `acquire`, `swap` and `grace` are generators of seconds to sleep, so that a caller with an event loop goes on
    living: `for pause in lock.swap(value): time.sleep(pause)`, or `await asyncio.sleep(pause)`.
    """

    def __new__(cls, board: Board, header: Words) -> Self:
        made: Self = super().__new__(lockdebug.variant(cls, "write"))
        return made

    def __init__(self, board: Board, header: Words) -> None:
        self._board = board
        self._header = header
        self._words = WordView(header, layout.LOADER_WORDS)
        self._random = random.Random()
        self._gates: dict[int, tuple[int, posix_ipc.Semaphore]] = {}
        self._taken: list[posix_ipc.Semaphore] = []
        self._since = 0
        self.held = False

    def swap(self, live: int) -> Iterator[float]:
        """Store the live word under the write lock (R3, R4)."""
        yield from self.acquire()
        try:
            self.store(live)
        finally:
            self.release()

    def acquire(self) -> Iterator[float]:
        """Take every gate, however many attempts that takes (R3)."""
        start = time.monotonic_ns()
        self._words.set("write_wait_since_ns", start)
        pause, longest = BACK_OFF_S
        try:
            while not self.try_acquire():
                self._words.add("write_retries")
                yield self._random.uniform(pause / 2, pause)
                pause = min(2 * pause, longest)
        finally:
            self._words.set("write_wait_since_ns", 0)
        self._note("write_wait_max_ns", layout.WRITE_WAIT_HISTOGRAM, time.monotonic_ns() - start)

    def try_acquire(self) -> bool:
        """One attempt: every gate, or none and False if one stayed busy for ATTEMPT_BUDGET_S."""
        # Who has a gate is looked up before the first is taken: the fewer steps with gates in hand, the rarer the
        # scheduler stops the writer there. One who comes in between is harmless (R5).
        gates = [(slot, gate) for slot, gate in map(self._slot_gate, self._board.slots) if gate is not None]
        self._since = time.monotonic_ns()
        self._words.set("write_hold_since_ns", self._since)
        for slot, gate in gates:
            try:
                gate.acquire(0)
            except posix_ipc.BusyError:
                if not self._take(slot, self._since + int(ATTEMPT_BUDGET_S * 1e9)):
                    self._let_go()
                    return False
            else:
                self._taken.append(gate)
        self.held = True
        return True

    def _slot_gate(self, slot: int) -> tuple[int, posix_ipc.Semaphore | None]:
        """A slot with its gate, None if nobody holds the slot."""
        return slot, self._gate(slot) if self._board.words.load(layout.slot_page(slot)) else None

    def store(self, live: int) -> None:
        """R4: what the lock is held for."""
        self._header.store(layout.LIVE, live)

    def release(self) -> None:
        self.held = False
        self._let_go()
        self._note("write_hold_max_ns", layout.WRITE_HOLD_HISTOGRAM, time.monotonic_ns() - self._since)

    def grace(self) -> Iterator[float]:
        """R5: wait until everyone who is inside now has left or is dead."""
        self._header.fence()
        words = self._board.words
        inside = {}
        for slot in self._board.slots:
            section = words.load(layout.slot_page(slot) + _SECTION)
            if section & 1:
                inside[slot] = section
        start = time.monotonic_ns()
        while inside:
            patient = time.monotonic_ns() - start > GRACE_SPIN_NS
            for slot, section in list(inside.items()):
                if words.load(layout.slot_page(slot) + _SECTION) != section:
                    del inside[slot]
                elif patient and not self._board.is_alive(slot):
                    self._words.add("dead_skipped")
                    del inside[slot]
            if inside and patient:
                yield GRACE_SLEEP_S
            else:
                os.sched_yield()
        self._note("grace_max_ns", layout.GRACE_HISTOGRAM, time.monotonic_ns() - start)

    def _take(self, slot: int, deadline: int) -> bool:
        """Wait for one slot's gate; True as well if the slot needs none, because its process is dead.

        A slot without a gate has just been claimed, or is past its gate and renewing it: R5 covers both, and its
        process may be stopped right there, so nothing is waited for.
        """
        asked = False
        while True:
            gate = self._gate(slot)
            if gate is None:
                return True
            try:
                gate.acquire(0)
            except posix_ipc.BusyError:
                pass
            else:
                self._taken.append(gate)
                return True
            # Asked at once: a gate that a dead process kept would cost the whole budget, with the others' gates held.
            if not asked and not self._board.is_alive(slot):
                return True
            asked = True
            if time.monotonic_ns() >= deadline:
                return False
            os.sched_yield()

    def _let_go(self) -> None:
        while self._taken:
            self._taken.pop().release()
        self._words.set("write_hold_since_ns", 0)

    def _gate(self, slot: int) -> posix_ipc.Semaphore | None:
        """The slot's present gate; None if it has none yet, or is renewing it."""
        incarnation = self._board.words.load(layout.slot_page(slot) + _GATE)
        known = self._gates.get(slot)
        if known is not None and known[0] == incarnation:
            return known[1]
        if known is not None:
            del self._gates[slot]
            known[1].close()
        try:
            gate = posix_ipc.Semaphore(self._board.names.gate(slot, incarnation))
        except posix_ipc.ExistentialError:
            return None
        self._gates[slot] = (incarnation, gate)
        return gate

    def _note(self, longest: str, histogram: int, nanoseconds: int) -> None:
        self._words.maximum(longest, nanoseconds)
        record(self._header, histogram, nanoseconds)

    def close(self) -> None:
        for _, gate in self._gates.values():
            gate.close()
        self._gates.clear()


class Writing:
    """What `with RWLock.write() as w` gives: set `w.value`; readers see it from their next section on."""

    def __init__(self, board: Board, lock: WriteLock) -> None:
        self._board = board
        self._lock = lock

    @property
    def value(self) -> int:
        return self._board.live

    @value.setter
    def value(self, value: int) -> None:
        """0 to 2**64 - 1. Raises LockError outside the `with`."""
        if not self._lock.held:
            raise LockError("the value may be set inside `with lock.write()` only")
        self._lock.store(value)


class RWLock:
    """The lock for other programs: one 64-bit value in shared memory, read by many processes, written by one at a time.

        lock = RWLock("colours")
        with lock.read() as value: ...                       # any process; never waits longer than 10 ms
        with lock.write(timeout=1.0) as w: w.value = 7       # one writer at a time, by flock
        lock.quiesce()                                       # everyone who saw an older value has left

    The value says which version of your data is current: a generation, an offset, a file's number. Lay the next version
    beside the current one, publish it with `write`, and reuse the old one's room after `quiesce`: readers may go past a
    writer that is stuck (R1), so what they read must never be edited in place.

    A lock object belongs to one process and one thread. Errors of misuse are raised at once: NestedRead, UpgradeError,
    NotHeld, ClosedLock, ForkedLock. Time-outs are in seconds on the monotonic clock.
    """

    def __init__(self, name: str) -> None:
        """Open the lock of this name ([a-z0-9-], 32 at most), or make it. Raises SegmentError."""
        self._board = Board.create_or_attach(name)
        self._reader: ReadLock | None = None
        self._slot: ClaimedSlot | None = None
        self._writer: WriteLock | None = None
        self._turn = LockFile(self._board.names.lock("writer"))
        self._pid = os.getpid()
        self._closed = False

    def read(self) -> ReadLock:
        """For `with`: gives the value. Waits for a writer at most GATE_PATIENCE_S."""
        self._check()
        return self._reading().read()

    def try_read(self) -> TryRead:
        """For `with`: raises WouldBlock if a writer is at work."""
        self._check()
        return self._reading().try_read()

    @contextmanager
    def write(self, timeout: float | None = None) -> Iterator[Writing]:
        """For `with`: the write lock, however long that takes, or LockTimeout after so many seconds."""
        with self._turn_taken(timeout) as (lock, deadline):
            for pause in lock.acquire():
                if deadline is not None and time.monotonic() + pause > deadline:
                    raise LockTimeout(f"readers kept the lock for {timeout} s: see who is inside with `inside()`")
                time.sleep(pause)
            try:
                yield Writing(self._board, lock)
            finally:
                self._leave(lock)

    @contextmanager
    def try_write(self) -> Iterator[Writing]:
        """For `with`: one attempt of 5 ms at most; raises WouldBlock."""
        with self._turn_taken(0.0) as (lock, _):
            if not lock.try_acquire():
                raise WouldBlock("a reader is inside")
            try:
                yield Writing(self._board, lock)
            finally:
                self._leave(lock)

    def quiesce(self, timeout: float | None = None) -> None:
        """Wait until every reader that is inside now has left or is dead. Raises LockTimeout."""
        self._check()
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in self._writing().grace():
            if deadline is not None and time.monotonic() + pause > deadline:
                raise LockTimeout(f"a reader has been inside for {timeout} s: see `inside()`")
            time.sleep(pause)

    def inside(self) -> list[tuple[int, float]]:
        """(pid, seconds since it went in) of every live reader that is inside."""
        self._check()
        now = time.monotonic_ns()
        slots = [self._board.slot(number) for number in self._board.live_slots()]
        return [(s.get("pid"), (now - s.get("since_ns")) / 1e9) for s in slots if s.get("section") & 1]

    def close(self) -> None:
        """Leave the lock to the others. Raises LockError while it is held. In a forked child: only forget it."""
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._closed = True  # slot, gate and section are the parent's
            return
        if self._writer is not None and self._writer.held:
            raise LockError("lock closed while it is held for writing")
        if self._reader is not None:
            self._reader.close()
        if self._slot is not None:
            self._slot.release()
        if self._writer is not None:
            self._writer.close()
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise ClosedLock("lock used after close")
        if os.getpid() != self._pid:
            raise ForkedLock("lock used in a child forked after it was opened: open it again in the child")
        if self._writer is not None and self._writer.held:
            raise UpgradeError("lock acquired by the process that is writing: it would wait for itself")

    def _leave(self, lock: WriteLock) -> None:
        if os.getpid() != self._pid:
            raise ForkedLock("write lock released in a child forked while it was held: the parent is the writer")
        lock.release()

    def _reading(self) -> ReadLock:
        if self._reader is None:
            self._slot = self._board.claim(SlotKind.OTHER)
            self._reader = ReadLock(self._board, self._slot)
        return self._reader

    def _writing(self) -> WriteLock:
        if self._writer is None:
            self._writer = WriteLock(self._board, self._board.own_page(0))
        return self._writer

    @contextmanager
    def _turn_taken(self, timeout: float | None) -> Iterator[tuple[WriteLock, float | None]]:
        """One writer at a time."""
        self._check()
        if self._reader is not None and self._reader.held:
            raise UpgradeError("write lock wanted inside a read section: leave it first")
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._turn.try_acquire():
            if deadline is not None and time.monotonic() >= deadline:
                error = LockTimeout if timeout else WouldBlock
                raise error("another writer is at work")
            time.sleep(0.001)
        try:
            yield self._writing(), deadline
        finally:
            self._turn.release()


#: Open read locks of this process: a forked child must not use them.
_open_locks: weakref.WeakSet[ReadLock] = weakref.WeakSet()


def _disown_all() -> None:
    for lock in list(_open_locks):
        lock._disown()


os.register_at_fork(after_in_child=_disown_all)
