"""From the sources into the tables: apply to the zone model, compile what changed, swap once for all of a burst."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from loader import bulk, compiler, takeover
from loader._short import Plain
from loader.chronicle import Chronicle
from loader.compiler import Gift
from loader.feed import ByName, Update, Usual
from loader.filters.service import FilterService
from loader.gate import Flow, Gate
from loader.guard import Limits, dumb
from loader.model import Record
from loader.zone import Zones
from shm._table import Table
from shm.errors import StandoffError, TableDamaged
from shm.tables import TableWriter

log = logging.getLogger(__name__)

#: Keys applied between two looks at the event loop: some 50 ms of work, so that keepalives and signals are not starved.
STEP = 5000
#: A source that begins with an old copy of itself may take so long to catch up with what readers have.
CATCH_UP_S = 5.0
#: Problems logged one by one at a time; of more, only the number.
LOGGED_PROBLEMS = 20


class ProgressBar(Protocol):
    """Shows how far a long load is."""

    def start(self, total: int | None) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def done(self) -> None: ...


class Publisher:
    """Owns the zone model and the tables' writer. Every source has a number, so that equal keys do not meet."""

    def __init__(
        self,
        writer: TableWriter,
        zones: Zones,
        sources: int,
        progress: ProgressBar | None = None,
        serials: Mapping[bytes, int] | None = None,
        chronicle: Chronicle | None = None,
        filters: FilterService | None = None,
        gate: Gate | None = None,
    ) -> None:
        """serials: apex -> what is answered now; the first table goes on from there. filters: what the sources give
        goes through them. chronicle: is told of it all. gate: holds back what is not to be published."""
        self._writer = writer
        self._gate = gate or Gate(Limits(on=False), zones, time.monotonic, time.time)
        #: What was held when an earlier loader ended.
        self.held: takeover.Saved | None = None
        #: Whether the source's revisions only grow, as those of one etcd do, and whether it will tell no more, though
        #: it was at this revision once.
        self.revisions_grow = False
        self.confirmed: Callable[[int], bool] = lambda wanted: True
        #: Since when the first table waits for the source to catch up; CLOCK_MONOTONIC, 0 = it does not.
        self.waiting_since = 0.0
        self._why = ""  # of a break in the source's history since the last publish
        self._unsent: Flow = {}  # let through by the gate, but not published yet: that has failed
        self._unreadable = False  # whether what readers have cannot be read
        self._chronicle = chronicle or Chronicle(writer, None)
        self._zones = zones
        self._filters = filters
        self._model = zones if filters is None else filters.bank  # what takes records, and knows keys
        self._serials = serials or {}
        self._progress = progress
        self._keys: list[set[str]] = [set() for _ in range(sources)]
        self._aggregates: list[set[bytes]] = [set() for _ in range(sources)]  # of one source alone: not kept
        self._listed = [False] * sources
        self._revisions = [0] * sources
        self._source_problems: dict[str, str] = {}
        self._problem_revisions: dict[str, int] = {}  # of the keys in _source_problems
        self._kept: set[str] = set()  # of these, those that go on with their last good value
        self._rejects: dict[str, str] = {}  # what `tell` has found last
        self._told: set[str] = set()
        self._published_revision = -1
        self._meta: dict[str, Any] = {}
        self.published = False
        self._untold = False

    @property
    def complete(self) -> bool:
        """Whether every source has told its whole content at least once. Nothing is published before: a table without
        one source's names would deny that they exist."""
        return all(self._listed)

    @property
    def revision(self) -> int:
        """The source revision that the zone model stands for: the first source's."""
        return self._revisions[0]

    async def take(self, source: int, update: Update) -> None:
        """Apply an update to the zone model."""
        if self._progress is not None:
            self._progress.start(len(update.records))
        if update.usual is not None and not self._keys[source]:
            await self._take_usual(source, update.usual, len(update.records))
        elif update.by_name is not None and not source and not self._keys[source] and not self._watched:
            await self._take_names(update, update.by_name)
            if len(self._keys) > 1:
                self._aggregates[0].update(update.marks)
        else:
            for plain, owners in update.swaps:
                self._swap(source, plain, owners)
            await self._take_each(source, update)
            for marked, on in update.marks.items():
                self._mark(source, marked, on)
        self._listed[source] |= update.full
        self._revisions[source] = update.revision
        self._why = update.why or self._why
        if self._progress is not None:
            self._progress.done()

    async def _take_each(self, source: int, update: Update) -> None:
        gone = self._keys[source] - update.records.keys() if update.full else set()
        for done, (key, records) in enumerate(_all(update, gone), 1):
            self._apply(source, key, records, update)
            if done % STEP == 0:
                if self._progress is not None:
                    self._progress.advance(STEP)
                await self._breathe()

    async def _take_usual(self, source: int, usual: Usual, count: int) -> None:
        prefix = f"{source}:" if source else ""
        apart = frozenset() if self._filters is None else self._filters.bank.watched_names
        for start in range(0, count, STEP):
            stop = min(start + STEP, count)
            left = bulk.give_all(self._zones, usual.gifts(start, stop, prefix, self._zones.default_ttl), apart)
            self._keys[source].update(usual.keys(start, stop))
            if left:
                rest = usual.rest([start + number for number in left])
                for key, records in rest.records.items():
                    self._apply(source, key, records, rest)
            if self._progress is not None:
                self._progress.advance(stop - start)
            await self._breathe()

    async def _take_names(self, update: Update, by_name: ByName) -> None:
        """All of the first source."""
        left = len(update.records)
        for _ in bulk.fill(self._zones, by_name, STEP):
            if self._progress is not None:
                self._progress.advance(min(STEP, left))
            left = max(0, left - STEP)
            await self._breathe()
        known = self._zones.keys()
        self._keys[0].update(known if len(self._keys) == 1 else filter(update.records.__contains__, known))
        for key in [*by_name.left, *update.problems]:
            self._apply(0, key, update.records[key], update)

    @property
    def _watched(self) -> int:
        """Names whose keys the filters have to see."""
        return 0 if self._filters is None else self._filters.bank.watched

    def _mark(self, source: int, name: bytes, on: bool) -> None:
        """A name is an aggregate for a source, or not: it is one if it is one for any."""
        if len(self._keys) > 1:
            (self._aggregates[source].add if on else self._aggregates[source].discard)(name)
            on = any(name in aggregates for aggregates in self._aggregates)
        self._zones.mark(name, on)

    def _swap(self, source: int, plain: Plain, owners: Sequence[bytes]) -> None:
        """A key gives this to these names, to which it gave before, alone."""
        key = plain.key
        held = self._filters is not None and self._filters.bank.holds(key)
        if source or held or not bulk.give_plain(self._zones, plain, owners):
            records = [Record(None, owner, *rr) for owner in owners for rr in compiler.rrs(plain.gift())]
            self._model.apply(f"{source}:{key}" if source else key, records, plain.revision)

    def _apply(self, source: int, key: str, records: list[Record] | None, update: Update) -> None:
        name = f"{source}:{key}" if source else key
        revision = update.revisions.get(key, update.revision)
        refused = update.kept.get(key)
        if refused is None or records is not None:
            self._model.apply(name, records or (), revision, update.causes.get(key, 0))
        problem = update.problems.get(key)
        good = None if refused is None else self._model.revision_of(name)
        (self._kept.discard if good is None else self._kept.add)(name)
        if problem is not None:
            note = "" if good is None else f"; last good value of revision {good} kept"
            self._source_problems[name] = problem + note
            self._problem_revisions[name] = revision if refused is None else refused
        elif self._source_problems.pop(name, None) is not None:
            del self._problem_revisions[name]
        if records or problem is not None:
            self._keys[source].add(key)
        else:
            self._keys[source].discard(key)

    async def publish(self) -> None:
        """Bring what has been taken since the last time before the workers. Raises SegmentError if memory is short."""
        if not self.complete:
            return
        if self._filters is not None:
            await self._filters.settle(self._breathe)
        if not self.published:
            if self._waits():
                return
            await self._publish_all()
        else:
            if self._unsent:
                self._gate.unsent(self._unsent, self._writer.find)
            self._unsent |= self._gate.sift(self._zones.take_changes(), self._seen, self.revision, self._why)
            self._why = ""
            if not self._unsent and (self._published_revision == self.revision or self._gate.stands):
                return
            with self._chronicle.telling(self._unsent, self._gate.deed, self._gate.note):
                await _drive(self._writer.apply(self._unsent, self.revision, self._describe()))
            self._unsent = {}
        self._published_revision = self.revision
        self._untold = True

    def _seen(self, name: bytes) -> bytes | None:
        return self._unsent[name] if name in self._unsent else self._writer.find(name)

    def start_over(self) -> None:
        """The next publish makes both tables anew, in fresh segments: what is in the old ones cannot be trusted."""
        self._gate.free(self._unsent)
        self.published = False

    async def _publish_all(self) -> None:
        self._zones.continue_serials(self._serials)
        self._zones.forget_changes()
        self._meta = {"zones": sorted(self._zones.apexes())}
        names = len(self._zones)
        if self._progress is not None:
            self._progress.start(names)
        shown = 0

        def advance(done: int) -> None:
            nonlocal shown
            if self._progress is not None:
                self._progress.advance(done - shown)
            shown = done

        started = time.monotonic()
        try:
            with self._chronicle.telling(None, "first"):
                await _drive(self._writer.replace(self._blocks(), self.revision, self._meta, names, advance))
        except TableDamaged:
            self._unreadable = True
            raise
        self._why, self._unsent, self._unreadable = "", {}, False
        if self._progress is not None:
            self._progress.done()
        # A million names are some millions of objects: a collection that looks at them all would hold up a change for a
        # second. They are set aside; what changes from here on is collected as ever.
        gc.freeze()
        gc.enable()
        served = self._writer.words.get("names")  # what is held or pinned makes it differ from the model
        log.info("published %d names at revision %d (%.1f s)", served, self.revision, time.monotonic() - started)
        for canary in dumb(self._gate.limits, self._writer.find) if self._published_revision < 0 else ():
            log.warning("canary %s is not answered so: it guards nothing until it is", canary.text)
        self.published = True

    def _blocks(self) -> Iterator[bytes]:
        """Of the first table: what the sources say, but for what is held. Completes the meta block."""
        table = self._before()
        why = self._why
        if not why and table is not None and self.revisions_grow and self.revision < table.revision:
            why = f"the source is at revision {self.revision}, behind what readers have ({table.revision})"
        tell = self._chronicle.found
        yield from takeover.first(self._gate, self._zones.all_nodes(), table, self.revision, why, self.held, tell)
        self._meta["zones"] = sorted(self._gate.zones)

    def _waits(self) -> bool:
        """Whether readers have more than the source has told yet: a snapshot is a second old."""
        table = self._before() if self.revisions_grow and not self._why else None
        if table is None or self.revision >= table.revision or self.confirmed(table.revision):
            self.waiting_since = 0.0
            return False
        self.waiting_since = self.waiting_since or time.monotonic()
        if time.monotonic() - self.waiting_since < CATCH_UP_S:
            return True
        self.waiting_since = 0.0
        return False

    def _before(self) -> Table | None:
        """What readers have; None: nothing, or nothing that can be read."""
        try:
            return None if self._unreadable else self._writer.published()
        except StandoffError as error:
            log.warning("the table before cannot be read (%s): what changed meanwhile is not looked at", error)
            return None

    def _describe(self) -> dict[str, Any]:
        """The table's meta block; the same object as long as nothing in it changes."""
        zones = sorted(self._gate.zones)
        if self._meta.get("zones") != zones:
            self._meta = {"zones": zones}
        return self._meta

    def tell(self) -> None:
        """Count and log what is wrong with keys. Looks through all problems: for every second, not for every swap."""
        if not self._untold:
            return
        self._untold = False
        words = self._writer.words
        problems = {**self._source_problems, **self._zones.problems}
        words.set("keys", sum(map(len, self._keys)))
        words.set("rejects", len(problems))
        words.set("kept", len(self._kept))
        if problems != self._rejects:
            self._rejects = problems
        fresh = [(key, reason) for key, reason in problems.items() if f"{key} {reason}" not in self._told]
        for key, reason in fresh[:LOGGED_PROBLEMS]:
            log.warning("key %s: %s", key, reason)
        if len(fresh) > LOGGED_PROBLEMS:
            log.warning("and %d more keys with problems", len(fresh) - LOGGED_PROBLEMS)
        for key, reason in self._zones.warnings.items():
            if f"{key} {reason}" not in self._told:
                log.info("key %s: %s", key, reason)
        self._told = {f"{key} {reason}" for book in (problems, self._zones.warnings) for key, reason in book.items()}

    # ------------------------------------------------------------ for the control socket (loader/control.py)

    def rejects(self) -> Mapping[str, str]:
        """Key -> why it gives nothing, a second old at most; another object once that has changed."""
        return self._rejects

    def revision_of(self, name: str) -> int:
        """The revision of a key's last change, 0 if it is not known."""
        return self._problem_revisions.get(name) or self._model.revision_of(name) or 0

    def about(self, name: bytes) -> tuple[list[Gift], Mapping[str, str], Mapping[str, str]]:
        """Of a name: what which key gives, and key -> what was refused, what was changed there."""
        return (self._zones.gifts_of(name), *self._zones.said_of(name))

    async def _breathe(self) -> None:
        self._writer.words.set("loader_heartbeat_ns", time.monotonic_ns())
        await asyncio.sleep(0)


def _all(update: Update, gone: set[str]) -> Iterator[tuple[str, list[Record] | None]]:
    yield from update.records.items()
    for key in gone:
        yield key, None


async def _drive(steps: Iterator[float]) -> None:
    """Run the writer's steps, sleeping where it wants to."""
    for pause in steps:
        await asyncio.sleep(pause)
