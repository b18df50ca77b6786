"""The control segment: who is there, what each has done, which table is live. Every shared word has one writer.

A board is mapped read-only; a process gets a writable mapping only of the page that it owns: the loader page 0, the
supervisor page 1, a reader its slot's page.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping

from shm import layout
from shm._atomic import Words
from shm.errors import LayoutMismatch, NoFreeSlot, NotRunning, SegmentError
from shm.layout import SlotKind
from shm.segment import SHARED_MODE, LockFile, Names, Segment, how_to_remove, is_held, segment_bytes, unlink

_PREFIX = struct.Struct("=8sIIII")
#: How long a claimant of a slot waits out probes of its lock file, each of microseconds.
CLAIM_PATIENCE_S = 0.25


class WordView:
    """Named words of a page. `set` needs a board that maps the page writable."""

    def __init__(self, words: Words, offsets: Mapping[str, int], base: int = 0) -> None:
        self._words = words
        self._offsets = offsets
        self._base = base

    def get(self, name: str) -> int:
        return self._words.load(self._base + self._offsets[name])

    def set(self, name: str, value: int) -> None:
        self._words.store(self._base + self._offsets[name], value)

    def add(self, name: str, n: int = 1) -> None:
        self._words.add(self._base + self._offsets[name], n)

    def maximum(self, name: str, value: int) -> None:
        """Keep the largest value seen."""
        if value > self.get(name):
            self.set(name, value)

    def as_dict(self) -> dict[str, int]:
        return {name: self.get(name) for name in self._offsets}


class SlotView(WordView):
    """A reader's page."""

    def __init__(self, words: Words, number: int, base: int) -> None:
        super().__init__(words, layout.SLOT_WORDS, base)
        self.number = number
        self.words = words

    def counters(self, start: int = layout.COUNTERS) -> dict[str, list[int]]:
        """The answering code's counters, by layout.COUNTER_ARRAYS; from ENCRYPTED_COUNTERS on, those of TLS."""
        load, base = self._words.load, self._base
        return {
            name: [load(base + offset + 8 * i) for i in range(length)]
            for name, (offset, length) in layout.counter_offsets(start).items()
        }

    def histogram(self, offset: int) -> list[int]:
        """Buckets of a log2 histogram (layout.GATE_WAIT_HISTOGRAM or HOLD_HISTOGRAM)."""
        return [self._words.load(self._base + offset + 8 * i) for i in range(layout.HISTOGRAM_BUCKETS)]


class ClaimedSlot(SlotView):
    """A slot that this process holds: its page writable, its lock file locked."""

    def __init__(self, board: Board, number: int, lock: LockFile) -> None:
        self.page = Segment.attach(board.names.control, writable=True, page=layout.slot_page(number))
        super().__init__(Words(self.page.map, writable=True), number, 0)
        self.names = board.names
        self._lock = lock

    def release(self) -> None:
        """Leave the slot: nothing of it is in use any more."""
        self.set("kind", SlotKind.FREE)
        self.words.close()
        self.page.close()
        self._lock.release()


class Board:
    """An attached control segment. Use `create_or_attach` (loader, server) or `attach` (tools)."""

    def __init__(self, names: Names, segment: Segment) -> None:
        self.names = names
        self._segment = segment
        self._words = Words(segment.map)
        self._writable: dict[int, Segment] = {}
        self.loader = WordView(self._words, layout.LOADER_WORDS)
        self.supervisor = WordView(self._words, layout.SUPERVISOR_WORDS, layout.PAGE * layout.SUPERVISOR_PAGE)
        self.slots = range(layout.SLOTS)

    @classmethod
    def attach(cls, instance: str) -> Board:
        """The board of a running instance. Raises NotRunning, LayoutMismatch, SegmentError."""
        names = Names(instance)
        segment = Segment.attach(names.control)
        if segment.size < _PREFIX.size or segment.map[:8] != layout.CONTROL_MAGIC:
            raise SegmentError(f"segment {names.control} is not a control segment; {how_to_remove(names.control)}")
        _, version, check, slots, page = _PREFIX.unpack_from(segment.map)
        if (version, check, slots, page) != (layout.LAYOUT_VERSION, layout.LAYOUT_CHECK, layout.SLOTS, layout.PAGE):
            raise LayoutMismatch(
                f"segment {names.control} has layout {version}/{check:08x}, this build has "
                f"{layout.LAYOUT_VERSION}/{layout.LAYOUT_CHECK:08x}: run the same version of loader and server, "
                f"or {how_to_remove(names.control)}"
            )
        if segment.size != layout.control_size():
            raise SegmentError(
                f"segment {names.control} is truncated ({segment.size} of {layout.control_size()} bytes); "
                f"{how_to_remove(names.control)}"
            )
        return cls(names, segment)

    @classmethod
    def create_or_attach(cls, instance: str) -> Board:
        """The instance's board, made if this process is the first. Raises as `attach`."""
        names = Names(instance)
        creation = LockFile(names.lock("create"))
        if not creation.try_acquire(patience_s=5.0):
            raise SegmentError(f"another process has been creating {names.control} for 5 s; is it stopped?")
        try:
            _create_control(names)
            return cls.attach(instance)
        finally:
            creation.release()

    @property
    def live(self) -> int:
        """generation << 1 | side; 0 = nothing published yet."""
        return self._words.load(layout.LIVE)

    def side_serial(self, side: int) -> int:
        """Serial of the segment on side 0 or 1; 0 = none."""
        return self._words.load(layout.SIDE_SERIAL + 8 * side)

    @property
    def words(self) -> Words:
        return self._words

    @property
    def loader_note(self) -> str:
        """What the loader says, a line for each thing (shm/notes.py)."""
        raw = bytes(self._segment.map[layout.LOADER_NOTE : layout.LOADER_NOTE + layout.LOADER_NOTE_SIZE])
        return raw.split(b"\0", 1)[0].decode(errors="replace")

    def slot(self, number: int) -> SlotView:
        return SlotView(self._words, number, layout.slot_page(number))

    def is_alive(self, number: int) -> bool:
        """Whether a live process holds the slot."""
        return is_held(self.names.lock(f"slot{number}"))

    def live_slots(self) -> list[int]:
        """Slots held by a live process."""
        return [n for n in self.slots if self.slot(n).get("kind") and self.is_alive(n)]

    def workers(self) -> Iterator[SlotView]:
        """Live slots of UDP and stream workers."""
        slots = (self.slot(n) for n in self.live_slots())
        return (slot for slot in slots if slot.get("kind") != SlotKind.OTHER)

    def own_page(self, page: int) -> Words:
        """Page 0 or 1, writable: for the one loader (it has the writer lock), the one supervisor, and its exporter."""
        self._writable[page] = Segment.attach(self.names.control, writable=True, page=page * layout.PAGE)
        return Words(self._writable[page].map, writable=True)

    def claim(self, kind: SlotKind, worker: int = 0, preferred: int | None = None) -> ClaimedSlot:
        """A slot for this process, `preferred` if it is free. Raises NoFreeSlot.

        Call it in the process that the slot stands for, after the fork: its lock must die with that process.
        """
        order = list(self.slots)
        if preferred is not None:
            order.remove(preferred)
            order.insert(0, preferred)
        for number in order:
            lock = LockFile(self.names.lock(f"slot{number}"))
            if lock.try_acquire(CLAIM_PATIENCE_S if number == preferred else 0.0):
                return _take_over(ClaimedSlot(self, number, lock), kind, worker)
        raise NoFreeSlot(f"all {layout.SLOTS} slots of instance {self.names.instance} are taken; run fewer workers")

    def close(self) -> None:
        self._words.close()
        for segment in (self._segment, *self._writable.values()):
            segment.close()


def _take_over(slot: ClaimedSlot, kind: SlotKind, worker: int) -> ClaimedSlot:
    """Continue the previous holder's words: it may have died inside a section, which the writer waits on."""
    section = slot.get("section")
    slot.set("section", section + (section & 1) + 2)
    slot.set("since_ns", 0)
    for word in ("mapped_serial_0", "mapped_serial_1", "generation", "revision"):
        slot.set(word, 0)
    slot.set("pid", os.getpid())
    slot.set("worker", worker)
    slot.set("counted_kind", kind)
    slot.set("started_ns", time.time_ns())
    slot.set("heartbeat_ns", time.monotonic_ns())
    slot.set("kind", kind)
    return slot


def _create_control(names: Names) -> None:
    """Make the control segment unless it is there. The caller holds the creation lock."""
    try:
        if segment_bytes(names.control) == 0:
            unlink(names.control)  # its creator died before it gave it a size
        segment = Segment.attach(names.control)
    except NotRunning:
        pass
    else:
        unfinished = segment.map[:8] == bytes(8)
        segment.close()
        if not unfinished:
            return
        segment.unlink()  # its creator died before it wrote the magic: nobody can have used it
    segment = Segment.create(names.control, layout.control_size(), SHARED_MODE)
    _PREFIX.pack_into(segment.map, 0, bytes(8), layout.LAYOUT_VERSION, layout.LAYOUT_CHECK, layout.SLOTS, layout.PAGE)
    segment.map[:8] = layout.CONTROL_MAGIC
    segment.close()
