"""Left and right: the loader edits the inactive table, swaps, waits for the readers, and edits the other the same way.

A reader never sees half a change, and a loader killed at any instruction leaves the active table whole.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from shm import layout
from shm._table import Table
from shm.board import Board, WordView
from shm.errors import SegmentError, TableFull
from shm.reading import Adopted
from shm.rwlock import WriteLock
from shm.segment import TABLE_MODE, Segment, unlink

#: A rebuilt table gets room for this many times its present bytes and names.
GROWTH = 1.25
SMALLEST_TABLE = 1 << 20
#: So many node blocks tell how large the others will be, up to so many octets: no memory is taken that nobody needs.
SAMPLE = 1000
LARGEST_GUESS = 256
#: How long the writer waits for the workers to map an announced segment before it swaps all the same: a worker that is
#: late maps it on its first query after the swap.
MAP_PATIENCE_S = 0.5
MAP_POLL_S = 0.001
#: Blocks put between two signs of life on a long rebuild.
PROGRESS_STEP = 20000

Changes = Mapping[bytes, bytes | None]


class Side:
    """One of the two tables, as the loader holds it: writable."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.table = Table(segment.map, writable=True)
        self._meta: dict[str, Any] | None = None

    def apply(self, changes: Changes, meta: dict[str, Any]) -> None:
        """Raises TableFull, half done; putting everything again into a larger table repairs it."""
        if self._meta is not meta:
            self.table.describe(meta)
            self._meta = meta
        for name, block in changes.items():
            if block is None:
                self.table.delete(name)
            else:
                self.table.put(block)

    def discard(self) -> None:
        self.table.close()
        self.segment.close()
        self.segment.unlink()


class TableWriter:
    """Writes both tables. For the process that holds the `writer` lock file only.

    `replace` and `apply` are generators of seconds to sleep (see shm/rwlock.py); both return when every worker that
    starts a batch sees the new version and no reader is left in the old one.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._header = board.own_page(0)
        self._words = WordView(self._header, layout.LOADER_WORDS)
        self._lock = WriteLock(board, self._header)
        self._sides: list[Side | None] = [None, None]
        #: What the inactive side lacks of the active one. None: nobody knows, and it has to be made anew. So it stands
        #: while a side is edited, for a change can be given up half done (an error, no room, a cancelled task).
        self._owed: Changes | None = {}
        self._meta: dict[str, Any] = {}
        self._adopted: Adopted | None = None

    @property
    def words(self) -> WordView:
        """The loader's words on the board."""
        return self._words

    @property
    def lock(self) -> WriteLock:
        """The write lock, for loader/faults.py."""
        return self._lock

    def note(self, text: str) -> None:
        """Set the note (shm/notes.py) that `standoff status` shows; cut at its size."""
        raw = text.encode()[: layout.LOADER_NOTE_SIZE - 8]
        raw += bytes(-len(raw) % 8 + 8)
        for i in range(0, len(raw), 8):
            self._header.store(layout.LOADER_NOTE + i, int.from_bytes(raw[i : i + 8], sys.byteorder))

    def published(self) -> Table | None:
        """What readers see now, to be read until the next `replace` or `apply`; None if nothing is published.

        It may be an earlier loader's. Raises SegmentError, LayoutMismatch, TableDamaged if that one cannot be read.
        """
        live = self._board.live
        if not live:
            return None
        held = self._sides[live & 1]
        if held is not None:
            return held.table
        if self._adopted is None:
            self._adopted = Adopted(self._board)
        return self._adopted.table

    def find(self, name: bytes) -> bytes | None:
        """The node block that readers see of a name (lower-case wire form), or None. Raises as `published` does."""
        table = self.published()
        return None if table is None else table.find(name)

    def blocks(self) -> Iterator[bytes]:
        """All node blocks that readers see, in no order. Raises as `published` does."""
        table = self.published()
        return iter(()) if table is None else table.blocks()

    def replace(
        self,
        blocks: Iterable[bytes],
        revision: int,
        meta: dict[str, Any],
        names_hint: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[float]:
        """Publish a table of these node blocks, in fresh segments; of several for a name the last one counts.

        meta may change until the last block has been taken. Raises SegmentError if memory is short.
        """
        yield from self._lock.grace()
        self._meta = meta
        self._owed = None
        side = self._inactive()
        self._drop(side)
        yield from self._build(side, blocks, max(names_hint, 64), progress)
        held = self._sides[side]
        assert held is not None
        held.table.describe(meta)
        yield from self._publish(side, revision)
        self._forget_adopted()
        yield from self._settle()

    def restore(self, size: int, fill: Callable[[memoryview], None]) -> Iterator[float]:
        """Publish a table that was kept elsewhere: `fill` writes it into a fresh, zeroed segment of `size` bytes.

        It brings its revision along. Raises what `fill` does, TableDamaged, LayoutMismatch, SegmentError: then nothing
        has been published.
        """
        yield from self._lock.grace()
        side = self._inactive()
        self._drop(side)
        self._owed = None
        serial = self._next_serial()
        segment = Segment.create(self._board.names.table(serial), size, TABLE_MODE)
        try:
            with memoryview(segment.map) as view:
                fill(view)
            self._sides[side] = held = Side(segment)
            self._meta = held.table.meta
        except BaseException:
            self._sides[side] = None
            segment.close()
            segment.unlink()
            raise
        held.table.stamp(0, held.table.revision, serial)
        yield from self._publish(side, held.table.revision)

    @property
    def live(self) -> int:
        """The live word: another value with each publish, 0 = nothing published yet."""
        return self._board.live

    def live_bytes(self) -> tuple[int, memoryview] | None:
        """(the live word, the bytes of its table), to be read until the next `replace` or `apply`; None if what is
        published is not this loader's."""
        live = self._board.live
        held = self._sides[live & 1] if live else None
        return None if held is None else (live, memoryview(held.segment.map).toreadonly())

    def apply(self, changes: Changes, revision: int, meta: dict[str, Any] | None = None) -> Iterator[float]:
        """Publish the tables with these names put (a node block) or deleted (None). `replace` must have come before."""
        yield from self._settle()
        if meta is not None:
            self._meta = meta
        side = self._inactive()
        self._owed = None
        yield from self._edit(side, changes)
        yield from self._publish(side, revision)
        self._owed = changes
        yield from self._settle()

    def close(self) -> None:
        """Let go of everything; the tables stay for the workers."""
        self._lock.close()
        self._forget_adopted()
        for side in self._sides:
            if side is not None:
                side.table.close()
                side.segment.close()
        self._header.close()

    # ---- steps

    def _forget_adopted(self) -> None:
        if self._adopted is not None:
            self._adopted.close()
            self._adopted = None

    def _inactive(self) -> int:
        return 1 - (self._board.live & 1) if self._board.live else 0

    def _settle(self) -> Iterator[float]:
        """Bring the side that was active before the last swap up to date."""
        if self._owed == {}:
            return
        yield from self._lock.grace()
        held, owed = self._sides[self._inactive()], self._owed
        self._owed = None
        try:
            if held is None or owed is None:
                self._mirror_live()
            else:
                held.apply(owed, self._meta)
        except TableFull:
            self._mirror_live()
        self._owed = {}

    def _edit(self, side: int, changes: Changes) -> Iterator[float]:
        held = self._sides[side]
        if held is None:
            raise SegmentError("apply before replace: no table of this loader's is published")
        try:
            held.apply(changes, self._meta)
        except TableFull:
            self._words.add("grown")
            # Not from the half-edited table: from the active one, which nobody writes.
            live = self._sides[1 - side]
            assert live is not None
            kept = (block for block in live.table.blocks() if _name(block) not in changes)
            added = [block for block in changes.values() if block is not None]
            names, used = live.table.names, live.table.used
            self._drop(side)
            yield from self._build(side, chain(kept, added), names + len(added), None, used + sum(map(len, added)))

    def _build(
        self,
        side: int,
        blocks: Iterable[bytes],
        names: int,
        progress: Callable[[int], None] | None,
        used: int = 0,
    ) -> Iterator[float]:
        """Fill a fresh segment for `side`, doubling it as often as needed. used: octets of the blocks, 0: not known."""
        blocks = iter(blocks)
        head = list(islice(blocks, SAMPLE))
        expected = min(sum(map(len, head)) // max(len(head), 1), LARGEST_GUESS) * names
        target = self._fresh(max(SMALLEST_TABLE, int(GROWTH * (used or expected))), names)
        try:
            for done, block in enumerate(chain(head, blocks), 1):
                while not _taken(target.table, block):
                    target = self._larger(target, names)
                if done % PROGRESS_STEP == 0:
                    if progress is not None:
                        progress(done)
                    self._words.set("loader_heartbeat_ns", time.monotonic_ns())
                    yield 0.0
        except BaseException:
            target.discard()  # or it would fill the memory whose lack may be the error
            raise
        self._sides[side] = target

    def _larger(self, target: Side, names: int) -> Side:
        """The same table with twice the room; the smaller one is gone then."""
        larger = self._fresh(2 * target.segment.size, max(2 * names, int(GROWTH * target.table.names)))
        try:
            larger.table.copy_from(target.table)
        except BaseException:
            larger.discard()
            raise
        target.discard()
        return larger

    def _fresh(self, size: int, names: int) -> Side:
        """An empty table in a new segment under the next serial."""
        serial = self._next_serial()
        size = (size + int(8 * layout.INDEX_FACTOR * names) + layout.META_SIZE + layout.PAGE) & -layout.PAGE
        segment = Segment.create(self._board.names.table(serial), size, TABLE_MODE)
        try:
            Table.format(segment.map, serial, secrets.randbits(64), int(GROWTH * names), self._meta)
        except BaseException:
            segment.close()
            segment.unlink()
            raise
        return Side(segment)

    def _next_serial(self) -> int:
        """Above every serial that this instance has in use; a dead loader's leftover under it is removed."""
        held = [side.table.serial for side in self._sides if side is not None]
        serial = 1 + max(self._board.side_serial(0), self._board.side_serial(1), self._serial, *held, 0)
        self._serial = serial
        unlink(self._board.names.table(serial))
        return serial

    _serial = 0

    def _publish(self, side: int, revision: int) -> Iterator[float]:
        """Announce, wait for the mapping, swap, wait for the readers."""
        held = self._sides[side]
        assert held is not None
        generation = (self._board.live >> 1) + 1
        held.table.stamp(generation, revision)
        if self._board.side_serial(side) != held.table.serial:
            yield from self._announce(side, held.table.serial)
        yield from self._lock.swap(generation << 1 | side)
        words = self._words
        words.set("revision", revision)
        words.set("published_ns", time.time_ns())
        words.set("names", held.table.names)
        words.set("table_bytes", held.segment.size)
        words.set("loader_heartbeat_ns", time.monotonic_ns())
        words.add("publishes")
        yield from self._lock.grace()

    def _announce(self, side: int, serial: int) -> Iterator[float]:
        """Store the side's serial and wait a little until every live worker has mapped it."""
        self._header.store(layout.SIDE_SERIAL + 8 * side, serial)
        word = f"mapped_serial_{side}"
        deadline = time.monotonic() + MAP_PATIENCE_S
        waiting = self._board.live_slots()
        while waiting and time.monotonic() < deadline:
            waiting = [n for n in waiting if self._board.slot(n).get(word) != serial and self._board.is_alive(n)]
            if waiting:
                yield MAP_POLL_S

    def _mirror_live(self) -> None:
        """Make the inactive side a byte copy of the active one, in a fresh segment."""
        side = self._inactive()
        live = self._sides[1 - side]
        if live is None:
            raise SegmentError("apply before replace: no table of this loader's is published")
        self._drop(side)
        serial = self._next_serial()
        segment = Segment.create(self._board.names.table(serial), live.segment.size, TABLE_MODE)
        live.table.clone_into(segment.map)
        copy = Side(segment)
        copy.table.stamp(live.table.generation, live.table.revision, serial)
        self._sides[side] = copy
        self._header.store(layout.SIDE_SERIAL + 8 * side, serial)

    def _drop(self, side: int) -> None:
        """Unlink the inactive side's segment; workers that map it keep their mapping until they see a new serial."""
        held = self._sides[side]
        if held is not None:
            held.discard()
            self._sides[side] = None
        elif self._board.side_serial(side):
            unlink(self._board.names.table(self._board.side_serial(side)))


def remove_leftovers(board: Board) -> int:
    """Unlink table segments that no side uses: a loader killed while it built one leaves it. How many."""
    used = {board.names.table(board.side_serial(side)).lstrip("/") for side in (0, 1)}
    count = 0
    for path in board.names.existing():
        if ".table." in path.name and path.name not in used:
            unlink(f"/{path.name}")
            count += 1
    return count


def _taken(table: Table, block: bytes) -> bool:
    """False: there is no room for it."""
    try:
        table.put(block)
    except TableFull:
        return False
    return True


def _name(block: bytes) -> bytes:
    return block[layout.NODE_HEADER.size : layout.NODE_HEADER.size + block[4]]
