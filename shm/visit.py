"""A visit: the active table copied out, by a process that is no worker and wants all of it. Whole, of one generation.

A visitor takes a slot for the length of the copy and publishes its section (R2), so that the writer edits nothing that
is being read (R5). It has no gate: a swap goes on beside it, and no other reader ever waits for a writer that waits for
a visitor. What it costs is that the next edit waits until the visitor has left: LONGEST_STAY_S at a time.

A table that takes longer is copied in several stays. A swap between two of them means to begin again; after
MOST_RESTARTS of those one last stay of LAST_STAY_S has to do, which is still too short to be reported as a leak (R6).

Things that don't work: mapping the segment MAP_PRIVATE (pages that nobody wrote yet show the writer's later stores);
copying without a section and comparing `live` before and after, as shm.reading.TableObserver does for single looks (at
fifty swaps a second a large table never comes out whole); holding a gate (each of the writer's attempts would keep the
workers' gates for ATTEMPT_BUDGET_S).
"""

from __future__ import annotations

import mmap
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from shm import gates, layout
from shm._table import Table
from shm.board import Board, ClaimedSlot
from shm.errors import NotRunning, StandoffError
from shm.layout import SlotKind
from shm.segment import Segment

#: How long the writer may have to wait for a visitor at a time: some 200 MiB on an idle machine. Far below
#: leak_after (250 ms), and about what the growing of a table costs a change, too.
LONGEST_STAY_S = 0.1
#: The last attempt's.
LAST_STAY_S = 0.2
MOST_RESTARTS = 3
#: Between two looks at the clock: about a millisecond.
SLICE = 4 << 20
#: Workers take the lowest slots, the stream worker the last.
PREFERRED_SLOT = layout.SLOTS - 2

_SECTION = layout.SLOT_WORDS["section"]
_HEAP_END = layout.header_offsets()["heap_end"]


class Crowded(StandoffError):
    """The table is too large, and changes too often, to be copied whole."""


@dataclass(slots=True, weakref_slot=True)
class Copy:
    """A table in memory of this process's own, and the live word that it was found under."""

    table: Table
    live: int
    _memory: mmap.mmap

    def close(self) -> None:
        self.table.close()
        with suppress(BufferError):
            self._memory.close()


def copy_active(board: Board) -> Copy:
    """The active table, whole. One at a time in a process. Raises NotRunning, Crowded, NoFreeSlot, TableDamaged."""
    slot = board.claim(SlotKind.OTHER, preferred=PREFERRED_SLOT)
    try:
        _do_without_gate(board, slot)
        return _Visit(board, slot).copy()
    finally:
        slot.release()


def _do_without_gate(board: Board, slot: ClaimedSlot) -> None:
    """Point the slot at a gate that does not exist: the writer passes it by, and takes none that a dead holder kept."""
    old = slot.get("gate")
    slot.set("gate", old + 1)
    gates.unlink(board.names.gate(slot.number, old))


class _Visit:
    """One copy being made."""

    def __init__(self, board: Board, slot: ClaimedSlot) -> None:
        self._board = board
        self._slot = slot
        self._section = slot.get("section")
        self._live = self._serial = 0
        self._done = 0
        self._memory: mmap.mmap | None = None

    def copy(self) -> Copy:
        restarts = 0
        while True:
            before = self._live
            segment = self._map()
            view = memoryview(segment.map)
            try:
                whole = self._stay(view, LONGEST_STAY_S if restarts < MOST_RESTARTS else LAST_STAY_S)
            finally:
                view.release()
                segment.close()
            memory = self._memory
            if whole and memory is not None:
                return Copy(Table(memory), self._live, memory)
            if before and before != self._live:
                restarts += 1
            if restarts > MOST_RESTARTS:
                raise Crowded("the table is too large to be copied between two of its changes; try again later")

    def _map(self) -> Segment:
        """The active side's segment, prefaulted; and room for what is in it."""
        while True:
            live = self._board.live
            if not live:
                raise NotRunning("nothing is published yet: is a loader running?")
            serial = self._board.side_serial(live & 1)
            for side in (0, 1):  # what has been announced so far does not concern us: nobody shall wait
                self._slot.set(f"mapped_serial_{side}", self._board.side_serial(side))
            try:
                segment = Segment.attach(self._board.names.table(serial), prefault=True)
            except NotRunning:
                continue  # replaced since we looked
            if live != self._live or self._memory is None:
                self._live, self._serial, self._done = live, serial, 0
                self._make_room(segment)
            return segment

    def _make_room(self, segment: Segment) -> None:
        """Private memory of the segment's size, its pages there before the stay begins."""
        if self._memory is None or len(self._memory) != segment.size:
            self._memory = mmap.mmap(-1, segment.size)
        for at in range(0, min(_heap_end(segment), segment.size), mmap.PAGESIZE):
            self._memory[at] = 0

    def _stay(self, source: memoryview, longest_s: float) -> bool:
        """Copy on, inside the section. Whether the copy is whole; False as well if a swap has come between."""
        memory = self._memory
        assert memory is not None
        slot = self._slot
        slot.set("heartbeat_ns", time.monotonic_ns())
        since = time.monotonic_ns()
        slot.set("since_ns", since)
        slot.words.store_fenced(_SECTION, self._section + 1)  # R2: before `live` is read
        try:
            if self._board.live != self._live or self._board.side_serial(self._live & 1) != self._serial:
                return False
            leave_at = time.monotonic() + longest_s
            end = min(int.from_bytes(source[_HEAP_END : _HEAP_END + 8], sys.byteorder), len(source))
            while self._done < end:
                step = min(SLICE, end - self._done)
                memory[self._done : self._done + step] = source[self._done : self._done + step]
                self._done += step
                if self._done < end and time.monotonic() >= leave_at:
                    return False
            return True
        finally:
            self._section += 2
            slot.set("section", self._section)
            slot.maximum("hold_max_ns", time.monotonic_ns() - since)


def _heap_end(segment: Segment) -> int:
    return int.from_bytes(segment.map[_HEAP_END : _HEAP_END + 8], sys.byteorder)
