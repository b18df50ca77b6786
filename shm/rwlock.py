"""The cross-process RW lock: a gate per reader, a section counter per reader, one live word. Rules R1 to R6.

    R1  A reader takes its own gate, waiting at most GATE_PATIENCE_S. If that fails it goes past the gate, counts it, and
        gives its slot a fresh gate afterwards. No writer, dead or stopped or slow, holds a reader up for longer, or twice.
    R2  A reader makes its section odd (sequentially consistent), then reads `live`; it makes it even when it leaves.
    R3  The writer takes the gates of all live slots with a budget of ATTEMPT_BUDGET_S for the attempt. If one is busy it
        lets all go, backs off, and tries again: a leaked read lock never makes other readers wait behind a writer.
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
middle of a batch, and they are what makes a waiting writer visible and polite. Semaphores are used here and in the compiled half (shm/_section.pyx) only.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import posix_ipc

from shm import layout
from shm._atomic import Words
from shm._section import Section
from shm.board import Board, ClaimedSlot
from shm.errors import LockError
from shm.segment import SHARED_MODE

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


def _new_gate(name: str) -> None:
    """A free gate under a name that was not used before; a leftover of that name is removed."""
    old_umask = os.umask(0)  # sem_open applies it, and there is no fchmod for semaphores
    try:
        for _ in range(2):
            try:
                posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=SHARED_MODE, initial_value=1).close()
            except posix_ipc.ExistentialError:
                posix_ipc.unlink_semaphore(name)
            else:
                return
        raise LockError(f"another process keeps making {name}: is the slot taken twice?")
    finally:
        os.umask(old_umask)


def _unlink_gate(name: str) -> None:
    try:
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.ExistentialError:
        pass


class ReadLock(Section):
    """The reading side for one slot: `with lock.read() as live:`. One process, one thread, never nested.

    Raises LockError when it is taken twice, released untaken, or used after close.
    """

    def __init__(self, board: Board, slot: ClaimedSlot) -> None:
        super().__init__(board.words, slot.words)
        self._names = board.names
        self._slot = slot
        self._renew_gate()

    def _wait(self) -> bool:
        """R1: wait for the gate on the monotonic clock (sem_timedwait counts on the wall clock). True if we have it."""
        start = time.monotonic_ns()
        deadline = start + int(GATE_PATIENCE_S * 1e9)
        self._slot.add("gate_waits")
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
        _record(self._slot.words, layout.GATE_WAIT_HISTOGRAM, waited)
        self._slot.maximum("gate_wait_max_ns", waited)
        return had

    def _renew_gate(self) -> None:
        """A gate of its own under a new name; whoever still holds the old one holds nothing."""
        old = self._slot.get("gate")
        name = self._names.gate(self._slot.number, old + 1)
        _new_gate(name)
        self._open_gate(name)
        self._slot.set("gate", old + 1)
        _unlink_gate(self._names.gate(self._slot.number, old))

    def close(self) -> None:
        if self.held:
            raise LockError("read lock closed while it is held")
        self._close_gate()
        _unlink_gate(self._names.gate(self._slot.number, self._slot.get("gate")))


def _record(words: Words, histogram: int, nanoseconds: int) -> None:
    bucket = min(nanoseconds.bit_length() - 1, layout.HISTOGRAM_BUCKETS - 1) if nanoseconds > 0 else 0
    words.add(histogram + 8 * bucket)


class WriteLock:
    """The writing side, for the one process that holds the `writer` lock file.

    `swap` and `grace` are generators of seconds to sleep, so that a caller with an event loop goes on living:
    `for pause in lock.swap(value): time.sleep(pause)`, or `await asyncio.sleep(pause)`.
    """

    def __init__(self, board: Board, header: Words) -> None:
        self._board = board
        self._header = header
        self._random = random.Random()
        self._gates: dict[int, tuple[int, posix_ipc.Semaphore]] = {}

    def swap(self, live: int) -> Iterator[float]:
        """Store the live word under the write lock (R3, R4)."""
        start = time.monotonic_ns()
        pause, longest = BACK_OFF_S
        while not self._attempt(live):
            self._count("write_retries")
            yield self._random.uniform(pause / 2, pause)
            pause = min(2 * pause, longest)
        self._maximum("write_wait_max_ns", time.monotonic_ns() - start)

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
            for slot, section in list(inside.items()):
                if words.load(layout.slot_page(slot) + _SECTION) != section:
                    del inside[slot]
                elif time.monotonic_ns() - start > GRACE_SPIN_NS and not self._board.is_alive(slot):
                    self._count("dead_skipped")
                    del inside[slot]
            if inside and time.monotonic_ns() - start > GRACE_SPIN_NS:
                yield GRACE_SLEEP_S
            else:
                os.sched_yield()
        self._maximum("grace_max_ns", time.monotonic_ns() - start)

    def _attempt(self, live: int) -> bool:
        """Take every gate, store, let go. False, with nothing taken, if a gate stayed busy."""
        start = time.monotonic_ns()
        deadline = start + int(ATTEMPT_BUDGET_S * 1e9)
        taken: list[posix_ipc.Semaphore] = []
        self._header.store(layout.LOADER_WORDS["write_hold_since_ns"], start)
        try:
            for slot in self._board.slots:
                if self._board.words.load(layout.slot_page(slot)) and not self._take(slot, deadline, taken):
                    return False
            self._header.store(layout.LIVE, live)
        finally:
            for gate in reversed(taken):
                gate.release()
            self._header.store(layout.LOADER_WORDS["write_hold_since_ns"], 0)
        self._maximum("write_hold_max_ns", time.monotonic_ns() - start)
        return True

    def _take(self, slot: int, deadline: int, taken: list[posix_ipc.Semaphore]) -> bool:
        """Take one slot's gate; True as well if the slot needs none, because its process is dead."""
        while True:
            gate = self._gate(slot)
            if gate is not None:
                try:
                    gate.acquire(0)
                except posix_ipc.BusyError:
                    pass
                else:
                    taken.append(gate)
                    return True
            if time.monotonic_ns() >= deadline:
                return not self._board.is_alive(slot)
            os.sched_yield()

    def _gate(self, slot: int) -> posix_ipc.Semaphore | None:
        """The slot's present gate; None while it is being renewed."""
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

    def _count(self, word: str) -> None:
        self._header.add(layout.LOADER_WORDS[word])

    def _maximum(self, word: str, value: int) -> None:
        if value > self._header.load(layout.LOADER_WORDS[word]):
            self._header.store(layout.LOADER_WORDS[word], value)

    def close(self) -> None:
        for _, gate in self._gates.values():
            gate.close()
        self._gates.clear()
