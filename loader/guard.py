"""Which changes are too dangerous to be published without a person's word. Pure: burst in, what speaks against it out.

A burst is what the model gives between two publishes: name -> (the node block that readers have, the one to be). What
becomes of a burst that is judged dangerous is loader/gate.py's matter.

A name is lost if it had records and has none any more, or had addresses and has neither addresses nor an alias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from loader import names, rdata
from loader.rdata import AAAA, CNAME, A
from shm.node import types_of, unpack

Burst = Mapping[bytes, tuple[bytes | None, bytes | None]]
Find = Callable[[bytes], bytes | None]

#: Names told in a reason; of more, only the number.
_TOLD = 3
#: Aliases followed from a canary to its records.
_MOST_ALIASES = 8
_RR_HEAD = 12


@dataclass(frozen=True, slots=True)
class Canary:
    """A name that must go on having records of a type; data: and this one among them."""

    text: str
    name: bytes
    type: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What may pass (the settings guard_*).

    removed       share of all names that may be lost, 0 to 1
    floor         so many lost names are never too many
    last_address  whether a name that has other records may not lose its last address
    window_s      names lost within so many seconds count together
    strict        while a change is held every later one is, too
    hold_for_s    a held change is decided after so long, as `then` says; 0: only by a person
    """

    on: bool = True
    removed: float = 0.3
    floor: int = 100
    last_address: bool = False
    canaries: tuple[Canary, ...] = ()
    window_s: float = 60.0
    strict: bool = False
    hold_for_s: float = 0.0
    then: Literal["approve", "reject"] = "reject"


@dataclass(frozen=True, slots=True)
class Verdict:
    """reasons: against the burst, for people; none: it may pass. lost: the names that it loses. drip: earlier losses
    made them too many."""

    reasons: list[str]
    lost: list[bytes]
    drip: bool = False


class Recent:
    """The names lost within the last while, each until it is back, with their zones."""

    def __init__(self) -> None:
        self.by_zone: Counter[bytes] = Counter()
        self._names: dict[bytes, tuple[float, bytes]] = {}  # name -> when, from which zone; the oldest first

    def __len__(self) -> int:
        return len(self._names)

    def add(self, lost: Collection[bytes], zones: Container[bytes], now: float) -> None:
        """zones: their apexes, before the names were lost."""
        for name in lost:
            zone = zone_of(name, zones)
            self.forget(name)
            self._names[name] = (now, zone)
            self.by_zone[zone] += 1

    def forget(self, name: bytes) -> None:
        """The name is back."""
        found = self._names.pop(name, None)
        if found is not None:
            self.by_zone[found[1]] -= 1

    def expire(self, before: float) -> None:
        """Forget what was lost earlier."""
        while self._names and next(iter(self._names.values()))[0] < before:
            self.forget(next(iter(self._names)))

    def clear(self) -> None:
        self._names.clear()
        self.by_zone.clear()


@dataclass(frozen=True, slots=True)
class Before:
    """What is published, and what the model says.

    names      that have records
    recent     lost of late, and published as lost
    dripped    how many losses are held because of those
    zones      apexes
    find       the node block of a name
    populated  whether the model has names beneath an apex
    """

    names: int
    recent: Recent
    dripped: int
    zones: Container[bytes]
    find: Find
    populated: Callable[[bytes], bool]


def parse_canary(text: str) -> Canary:
    """NAME TYPE [DATA], names absolute, DATA as in a zone file. Raises ValueError."""
    parts = text.split(None, 2)
    if len(parts) < 2:
        raise ValueError("a canary is NAME TYPE, and DATA if it matters")
    type_ = rdata.type_number(parts[1])
    data = rdata.from_text(type_, parts[2], names.ROOT) if len(parts) == 3 else None
    return Canary(text, names.from_text(parts[0]), type_, data)


def judge(burst: Burst, limits: Limits, before: Before) -> Verdict:
    """What speaks against a burst."""
    lost = [name for name, (old, new) in burst.items() if is_lost(old, new)]
    if not limits.on:
        return Verdict([], lost)
    reasons = list(_canaries(burst, limits, before))
    reasons += _last_addresses(burst, limits)
    if not lost:
        return Verdict(reasons, lost)
    by_zone = _count_zones(lost, before.zones)
    own = _too_many(len(lost), before.names, limits) or any(
        count >= limits.floor and not before.populated(zone) for zone, count in by_zone.items()
    )
    found = [*_emptied(by_zone, limits, before), *_share(len(lost), limits, before)]
    return Verdict(reasons + found, lost, drip=bool(found) and not own and not reasons)


def is_lost(old: bytes | None, new: bytes | None) -> bool:
    """Whether a change from one node block to another loses the name."""
    if old is None or not old[5]:
        return False
    if new is None or not new[5]:
        return True
    return _has_address(old) and not _leads_somewhere(new)


def zone_of(name: bytes, zones: Container[bytes]) -> bytes:
    """The longest zone that encloses a name; the root if there is none."""
    return next((one for one in names.ancestors(name) if one in zones), names.ROOT)


def _count_zones(lost: list[bytes], zones: Container[bytes]) -> Counter[bytes]:
    """Zone -> how many of these names are in it. Most have their parent in common with others."""
    found: Counter[bytes] = Counter()
    of_parent: dict[bytes, bytes] = {}
    for name in lost:
        parent = name[name[0] + 1 :]
        zone = name if name in zones else of_parent.get(parent)
        if zone is None:
            zone = of_parent[parent] = zone_of(parent or names.ROOT, zones)
        found[zone] += 1
    return found


def _has_address(block: bytes) -> bool:
    return any(type_ in (A, AAAA) for type_ in types_of(block))


def _leads_somewhere(block: bytes) -> bool:
    return any(type_ in (A, AAAA, CNAME) for type_ in types_of(block))


def _too_many(lost: int, names: int, limits: Limits) -> bool:
    return lost >= limits.floor and lost > limits.removed * names


def _share(lost: int, limits: Limits, before: Before) -> Iterator[str]:
    count, total = lost + len(before.recent) + before.dripped, before.names + len(before.recent)
    if _too_many(count, total, limits):
        within = f" within {limits.window_s:g} s" if len(before.recent) else ""
        yield (
            f"{count} of {names.counted(total)} would be lost{within}: {count / max(total, 1):.0%}, "
            f"guard_removed allows {limits.removed:.0%}"
        )


def _emptied(by_zone: Counter[bytes], limits: Limits, before: Before) -> Iterator[str]:
    for zone, count in by_zone.items():
        count += before.recent.by_zone[zone]
        if count >= limits.floor and not before.populated(zone):
            yield f"zone {names.to_text(zone)} would be empty: it loses {names.counted(count)}"


def _last_addresses(burst: Burst, limits: Limits) -> Iterator[str]:
    if not limits.last_address:
        return
    bare = [
        name
        for name, (old, new) in burst.items()
        if old is not None and new is not None and new[5] and _has_address(old) and not _leads_somewhere(new)
    ]
    if bare:
        yield f"{_listed(bare)} would lose the last address and keep other records"


def _listed(found: list[bytes]) -> str:
    left = len(found) - _TOLD
    more = f" and {left} more name{'s' * (left > 1)}" if left > 0 else ""
    return ", ".join(names.to_text(name) for name in found[:_TOLD]) + more


# ---------------------------------------------------------------- canaries


def _canaries(burst: Burst, limits: Limits, before: Before) -> Iterator[str]:
    if not burst:
        return

    def after(name: bytes) -> bytes | None:
        return burst[name][1] if name in burst else before.find(name)

    for canary in limits.canaries:
        if not sings(canary, after) and sings(canary, before.find):
            yield f"canary {canary.text} would be answered otherwise"


def dumb(limits: Limits, find: Find) -> list[Canary]:
    """The canaries that are not answered as they should be, and so cannot tell when that changes."""
    return [canary for canary in limits.canaries if not sings(canary, find)] if limits.on else []


def sings(canary: Canary, find: Find) -> bool:
    """Whether the canary is answered as it should be: exact names, wildcards, aliases; not across DNAMEs and cuts."""
    name = canary.name
    for _ in range(_MOST_ALIASES):
        block = _exact_or_wildcard(name, find)
        rrsets = {} if block is None else unpack(block).rrsets
        if canary.type in rrsets:
            return canary.data is None or canary.data in _data(rrsets[canary.type].wire)
        if CNAME not in rrsets:
            return False
        name = rrsets[CNAME].wire[_RR_HEAD:].lower()
    return False


def _exact_or_wildcard(name: bytes, find: Find) -> bytes | None:
    for ancestor in names.ancestors(name):
        block = find(ancestor)
        if block is not None:
            return block if ancestor == name else find(names.STAR + ancestor)
    return None


def _data(wire: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(wire):
        length = int.from_bytes(wire[at + 10 : at + 12], "big")
        yield wire[at + _RR_HEAD : at + _RR_HEAD + length]
        at += _RR_HEAD + length
