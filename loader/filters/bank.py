"""Between the sources and the zone model: keeps what keys gave where filters look at it, and passes on what they leave.

A name is *watched* while a record that has attributes is given to it. All keys that give to a watched name are *held*:
what they gave is kept here, what the filters leave of it is in the zone model. Whatever else comes is passed on at
once, and nothing of it is kept.

What is in the zone model depends on what the keys gave last, on the health that is known and on the time, not on the
way there.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Protocol

from loader.attributes import NONE, Conditional
from loader.compiler import Gift
from loader.filters import RR, Context, RRsets
from loader.filters.chain import Passage
from loader.model import Record
from loader.rdata import SOA
from loader.targets import Target

log = logging.getLogger(__name__)

#: Names filtered, or keys passed on, between two looks at the event loop: some 20 ms.
STEP = 500
#: What a filter took away: (filter, key, type, data).
Taken = tuple[str, str, int, bytes]
Breathe = Callable[[], Awaitable[None]]


class Model(Protocol):
    """What the bank needs of the zone model (loader/zone.py)."""

    @property
    def default_ttl(self) -> int: ...
    def apply(self, key: str, records: Sequence[Record], revision: int, cause: int = 0) -> None: ...
    def hold(self, apex: bytes, revision: int) -> None: ...
    def let_go(self, apex: bytes, revision: int) -> None: ...
    def zone_of(self, name: bytes) -> bytes | None: ...
    def gifts_of(self, name: bytes) -> list[Gift]: ...
    def records_of(self, key: str) -> list[Record]: ...
    def revision_of(self, key: str) -> int | None: ...


class Filters(Protocol):
    """What it needs of the chain (chain.py). suspects: names at which a filter has crashed or taken too long."""

    @property
    def suspects(self) -> Container[bytes]: ...
    async def run(self, passages: Sequence[Passage]) -> None: ...


class HealthBook(Protocol):
    """What it needs of the health checks (loader/health.py)."""

    def watch(self, added: Collection[Target], removed: Collection[str]) -> None: ...
    def is_up(self, text: str) -> bool | None: ...


class _Held:
    """What one key gave, to all its names."""

    __slots__ = ("apexes", "records", "revision")

    def __init__(self, records: Sequence[Record], revision: int) -> None:
        self.records = records
        self.revision = revision
        self.apexes = {record.zone for record in records if record.zone is not None}


class _Name:
    """A name that held keys give to. kept: what the filters left of each key; None: the name is not watched."""

    __slots__ = ("conditions", "due", "kept", "keys", "taken")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.conditions = 0  # keys that give it a record with attributes
        self.kept: dict[str, list[Record]] | None = None
        self.due = math.inf
        self.taken: list[Taken] = []


class Bank:
    """See above. `apply` as the zone model has it; `settle` before anything is published."""

    def __init__(self, zones: Model, chain: Filters, health: HealthBook, seed: bytes = b"") -> None:
        self._zones, self._chain, self._health, self._seed = zones, chain, health, seed
        self._held: dict[str, _Held] = {}
        self._names: dict[bytes, _Name] = {}
        self._watched: set[bytes] = set()
        self._staged: dict[str, tuple[int, int]] = {}  # held keys that have changed -> revision, cause
        self._dirty: set[bytes] = set()
        self._due: list[tuple[float, bytes]] = []
        self._looked_at: dict[str, dict[bytes, int]] = {}  # target -> name -> how many of its records ask for it
        self._targets: dict[str, Target] = {}  # that came since the last settle
        self._left: set[str] = set()  # targets that may not be needed any more
        self._bypassed: dict[bytes, dict[str, str]] = {}

    # ------------------------------------------------------------ in

    def apply(self, key: str, records: Sequence[Record], revision: int, cause: int = 0) -> None:
        """See Zones.apply."""
        if key not in self._held:
            watched = self._watched
            for record in records:
                if type(record) is not Record or record.owner in watched:
                    break
            else:
                self._zones.apply(key, records, revision, cause)
                return
        self._stage(key, records, revision, cause)

    def flipped(self, texts: Iterable[str]) -> None:
        """What is known of these targets is different now."""
        for text in texts:
            self._dirty.update(self._looked_at.get(text, ()))

    def ask_again(self) -> None:
        """A filter that could not be asked can be now. What it has said before stands."""
        self._dirty.update(self._bypassed)

    def ask_all(self) -> None:
        """The time is another one."""
        self._dirty |= self._watched

    # ------------------------------------------------------------ out

    @property
    def due(self) -> float:
        """When to settle next if nothing happens: seconds since the epoch, or infinity."""
        while self._due and not self._is_due(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else math.inf

    @property
    def bypassed(self) -> Mapping[bytes, dict[str, str]]:
        """Name -> filter -> why it was left out."""
        return self._bypassed

    @property
    def watched(self) -> int:
        """Names."""
        return len(self._watched)

    @property
    def watched_names(self) -> Container[bytes]:
        """Names whose keys have to come through `apply`, as of now and from now on."""
        return self._names

    def holds(self, key: str) -> bool:
        """Whether what the key gives has to come through `apply`."""
        return key in self._held

    def taken(self, owner: bytes) -> list[Taken]:
        """What the filters took away from a name."""
        return self._names[owner].taken if owner in self._names else []

    def passage(self, owner: bytes, now: float) -> Passage | None:
        """A name as it comes before the filters; None if they do not look at it."""
        return self._passage(owner, now) if owner in self._watched else None

    def names_at(self, text: str) -> list[bytes]:
        """The names that a target is looked at for."""
        return sorted(self._looked_at.get(text, ()))

    def revision_of(self, key: str) -> int | None:
        """See Zones.revision_of; of a key of which the filters leave nothing, too."""
        held = self._held.get(key)
        return self._zones.revision_of(key) if held is None else held.revision

    async def settle(self, now: float, breathe: Breathe) -> None:
        """Bring the zone model in line with the keys, the health and the time (seconds since the epoch)."""
        while self.due <= now:
            self._dirty.add(heapq.heappop(self._due)[1])
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        staged, self._staged = self._staged, {}
        self._tell_targets()
        changed = set(staged)
        # Those that a filter has failed at come last: what it does there costs none of the others.
        suspects = self._chain.suspects
        watched = sorted(dirty & self._watched, key=lambda owner: (owner in suspects, owner))
        for begin in range(0, len(watched), STEP):
            passages = [self._passage(owner, now) for owner in watched[begin : begin + STEP]]
            await self._chain.run(passages)
            for passage in passages:
                changed |= self._passed(passage)
            await breathe()
        changed |= self._loosened(owner for owner in dirty if owner in self._names and owner not in self._watched)
        latest = max((max(pair) for pair in staged.values()), default=0)
        for number, key in enumerate(sorted(changed), 1):
            held = self._held[key]
            self._zones.apply(key, self._left_of(key, held), held.revision, staged.get(key, (0, latest))[1])
            if number % STEP == 0:
                await breathe()
        self._release(changed)

    # ------------------------------------------------------------ keys come and go

    def _stage(self, key: str, records: Sequence[Record], revision: int, cause: int) -> None:
        before = self._held.pop(key, None)
        if before is not None:
            self._count(key, before, -1)
        if not records:
            self._staged.pop(key, None)
            self._zones.apply(key, (), revision, cause)
        else:
            held = self._held[key] = _Held(records, revision)
            for apex in held.apexes:
                self._zones.hold(apex, revision)
            self._staged[key] = revision, cause
            self._count(key, held, 1)
        for apex in before.apexes if before is not None else ():
            self._zones.let_go(apex, revision)

    def _count(self, key: str, held: _Held, by: int) -> None:
        """A key is held from now on (by = 1), or not any more (-1)."""
        owners = dict.fromkeys(record.owner for record in held.records)
        conditional = {record.owner for record in held.records if isinstance(record, Conditional)}
        for record in held.records:
            if isinstance(record, Conditional) and record.attributes.check is not None:
                self._look_at(record.attributes.check, record.owner, by)
        for owner in owners:
            self._dirty.add(owner)
            name = self._names.setdefault(owner, _Name())
            (name.keys.add if by > 0 else name.keys.discard)(key)
            if owner in conditional:
                name.conditions += by
                self._watch(owner, name)
            if not name.keys:
                del self._names[owner]

    def _watch(self, owner: bytes, name: _Name) -> None:
        """Whether the name is watched may be different now."""
        if not name.conditions:
            self._watched.discard(owner)
            self._bypassed.pop(owner, None)
        elif owner not in self._watched:
            self._watched.add(owner)
            for gift in self._zones.gifts_of(owner):
                if gift[0] not in self._held:
                    self._hold_plain(gift[0], gift[1])

    def _hold_plain(self, key: str, revision: int) -> None:
        """A key without attributes, which gives to a name that is watched now; the zone model has all of it."""
        held = self._held[key] = _Held(self._zones.records_of(key), revision)
        for apex in held.apexes:
            self._zones.hold(apex, revision)
        for owner in {record.owner for record in held.records}:
            self._names.setdefault(owner, _Name()).keys.add(key)

    def _look_at(self, target: Target, owner: bytes, by: int) -> None:
        counts = self._looked_at.setdefault(target.text, {})
        counts[owner] = counts.get(owner, 0) + by
        if by > 0:
            self._targets[target.text] = target
            return
        if not counts[owner]:
            del counts[owner]
        if not counts:
            del self._looked_at[target.text]
            self._left.add(target.text)

    def _tell_targets(self) -> None:
        added = [target for text, target in self._targets.items() if text in self._looked_at]
        removed = [text for text in self._left if text not in self._looked_at]
        self._targets, self._left = {}, set()
        if added or removed:
            self._health.watch(added, removed)

    # ------------------------------------------------------------ through the filters

    def _passage(self, owner: bytes, now: float) -> Passage:
        rrsets: RRsets = {}
        health: dict[str, bool] = {}
        for key in sorted(self._names[owner].keys):
            for record in self._held[key].records:
                if record.owner != owner or record.type == SOA:
                    continue
                attributes = record.attributes if isinstance(record, Conditional) else NONE
                ttl = record.ttl if record.ttl >= 0 else self._zones.default_ttl
                rrsets.setdefault(record.type, []).append(RR(record.type, ttl, record.rdata, key, attributes))
                if attributes.check is not None and (up := self._health.is_up(attributes.check.text)) is not None:
                    health[attributes.check.text] = up
        zone = self._zones.zone_of(owner) or b""
        return Passage(Context(now, owner, zone, self._seed, health), rrsets)

    def _passed(self, passage: Passage) -> set[str]:
        """Notes what is left of a name; the keys that give it something else than before."""
        owner = passage.context.owner
        name = self._names[owner]
        kept: dict[str, list[Record]] = {key: [] for key in name.keys}
        for key, records in kept.items():
            records += [one for one in self._held[key].records if one.owner == owner and one.type == SOA]
        for type_, rrs in passage.left.items():
            for rr in rrs:
                kept[rr.key].append(Record(self._zone_given(rr.key, owner), owner, type_, rr.ttl, rr.data))
        before, name.kept = name.kept, kept
        name.taken = passage.taken
        if passage.bypassed:
            self._bypassed[owner] = passage.bypassed
        else:
            self._bypassed.pop(owner, None)
        name.due = math.inf if passage.again is None else max(passage.again, passage.context.now)
        if name.due != math.inf:
            heapq.heappush(self._due, (name.due, owner))
        return {key for key, records in kept.items() if before is None or before.get(key) != records}

    def _zone_given(self, key: str, owner: bytes) -> bytes | None:
        return next(record.zone for record in self._held[key].records if record.owner == owner)

    def _loosened(self, owners: Iterable[bytes]) -> set[str]:
        """These names are not watched any more, or never were: the keys that give to them."""
        found: set[str] = set()
        for owner in owners:
            name = self._names[owner]
            found |= name.keys
            name.kept, name.taken, name.due = None, [], math.inf
        return found

    def _left_of(self, key: str, held: _Held) -> list[Record]:
        """What the filters left of a key."""
        left: list[Record] = []
        done: set[bytes] = set()
        for record in held.records:
            kept = self._names[record.owner].kept
            if kept is None:
                left.append(record)
            elif record.owner not in done:
                done.add(record.owner)
                left += kept.get(key, ())
        return left

    def _release(self, keys: Iterable[str]) -> None:
        """Forget those of the keys that give to no watched name: the zone model has all of them now."""
        for key in keys:
            held = self._held[key]
            owners = {record.owner for record in held.records}
            if owners & self._watched:
                continue
            del self._held[key]
            for owner in owners:
                self._names[owner].keys.discard(key)
                if not self._names[owner].keys:
                    del self._names[owner]
            for apex in held.apexes:
                self._zones.let_go(apex, held.revision)

    def _is_due(self, at: float, owner: bytes) -> bool:
        name = self._names.get(owner)
        return name is not None and name.due == at
