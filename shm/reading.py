"""The tables as their readers map them: a worker both, a tool the active one, a new loader what an earlier one left."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from shm import layout
from shm._table import Table
from shm.board import Board, ClaimedSlot
from shm.errors import NotRunning, SegmentError, StandoffError, TableDamaged
from shm.segment import Segment

log = logging.getLogger(__name__)


class NotMapped(StandoffError):
    """The active table's segment is not mapped yet."""


class TableReader:
    """A worker's read-only mappings of both tables. `active` may be used inside the read lock only."""

    def __init__(self, board: Board, slot: ClaimedSlot | None = None) -> None:
        self._board = board
        self._load = board.words.load
        self._slot = slot
        self._serials = [0, 0]
        self._tables: list[Table | None] = [None, None]
        self._segments: list[Segment | None] = [None, None]

    def refresh(self) -> None:
        """Map what was announced, and prefault it; outside the lock, for it takes milliseconds at a million names."""
        for side in (0, 1):
            serial = self._load(layout.SIDE_SERIAL + 8 * side)
            if serial != self._serials[side]:
                self._map(side, serial)

    def active(self, live: int) -> Table | None:
        """The table that the live word names; None if nothing is published or it is damaged (SERVFAIL).

        Raises NotMapped for a segment announced since: leave the section, `refresh`, and enter again.
        """
        if not live:
            return None
        side = live & 1
        if self._load(layout.SIDE_SERIAL + 8 * side) != self._serials[side]:
            raise NotMapped
        return self._tables[side]

    def revision(self, live: int) -> int:
        """The source's revision in the table that the live word names; 0 if there is none."""
        table = self._tables[live & 1]
        return table.revision if live and table is not None else 0

    def _map(self, side: int, serial: int) -> None:
        self._unmap(side)
        if serial:
            try:
                segment = Segment.attach(self._board.names.table(serial), prefault=True)
            except NotRunning:
                return  # replaced again since we looked: the next refresh finds the new one
            except (SegmentError, OSError) as error:
                self._unusable(serial, error)
            else:
                try:
                    self._tables[side] = Table(segment.map)
                    self._segments[side] = segment
                except (TableDamaged, SegmentError) as error:
                    self._unusable(serial, error)
                    segment.close()
        self._serials[side] = serial
        if self._slot is not None:
            self._slot.set(f"mapped_serial_{side}", serial)

    def _unusable(self, serial: int, error: Exception) -> None:
        """SERVFAIL if it becomes active, and an alarm; no end of the worker, which still has the other table."""
        log.error("table %d: %s", serial, error)
        if self._slot is not None:
            self._slot.add("table_damaged")

    def _unmap(self, side: int) -> None:
        table, segment = self._tables[side], self._segments[side]
        self._tables[side] = self._segments[side] = None
        self._serials[side] = 0
        if table is not None:
            table.close()
        if segment is not None:
            segment.close()

    def close(self) -> None:
        for side in (0, 1):
            self._unmap(side)


class TableObserver:
    """Reads the active table without a slot, for tools: look, then check that no swap came between.

    While `live` keeps its value its table is not edited (the writer edits the other), so a look between two equal
    loads saw a whole table.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._reader = TableReader(board)

    def look(self, function: Callable[[Table], Any], attempts: int = 1000) -> Any:
        """`function(table)` on one whole version. Raises NotRunning if nothing is published, TableDamaged."""
        for attempt in range(attempts):
            live = self._board.live
            if not live:
                raise NotRunning("nothing is published yet: is a loader running?")
            self._reader.refresh()
            try:
                table = self._reader.active(live)
            except NotMapped:
                table = None
            damage: Exception | None = None
            result = None
            if table is not None:
                try:
                    result = function(table)
                except Exception as error:  # of a table that was edited meanwhile: tells nothing
                    damage = error
            self._board.words.fence()
            if table is not None and self._board.live == live:
                if damage is not None:
                    raise damage
                return result
            if attempt > 10:
                os.sched_yield()
        raise NotRunning("the table changes faster than it can be read; try again")

    def find(self, name: bytes) -> bytes | None:
        """The packed node block of a name (lower-case wire form), or None."""
        result: bytes | None = self.look(lambda table: table.find(name))
        return result

    def close(self) -> None:
        self._reader.close()


class Adopted:
    """The table that is active, mapped read-only by the loader that did not write it, for as long as it is active.

    Raises NotRunning, SegmentError, LayoutMismatch, TableDamaged.
    """

    def __init__(self, board: Board) -> None:
        self.serial = board.side_serial(board.live & 1)
        self._segment = Segment.attach(board.names.table(self.serial), prefault=True)
        try:
            self.table = Table(self._segment.map)
        except BaseException:
            self._segment.close()
            raise

    def close(self) -> None:
        self.table.close()
        self._segment.close()
