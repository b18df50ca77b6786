"""Record sets -> keys and values of the records schema (loader/records.py), and what must change in etcd for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from loader import names, rdata, records
from loader.attributes import NONE, Attributes, Conditional
from loader.exchange import conditions
from loader.exchange.sets import Gathered, RecordSet, Remark
from loader.model import DEFAULT_TTL, Put, Record, Reject


def key_of(prefix: str, one: RecordSet) -> str:
    """PREFIX/ZONE/OWNER/TYPE. Raises Reject for a type that no zone holds."""
    if not rdata.storable(one.type):
        raise Reject(f"{rdata.type_name(one.type)} is not a type that a zone can hold")
    owner = names.to_text(one.owner[: len(one.owner) - len(one.zone)] + names.ROOT)[:-1] or "@"
    return f"{prefix.rstrip('/')}/{zone_segment(one.zone)}/{owner}/{rdata.type_name(one.type)}"


def zone_segment(zone: bytes) -> str:
    """The zone in a key: no dot at its end, and no slash, for the first one ends it."""
    return (names.to_text(zone)[:-1] or ".").replace("/", "\\047")


def value_of(one: RecordSet) -> bytes:
    """The value as JSON. Raises Reject for data that cannot be written."""
    value: dict[str, object] = {} if one.ttl == DEFAULT_TTL else {"ttl": one.ttl}
    return msgspec.json.encode(value | conditions.content(one))


def entries(prefix: str, sets: Iterable[RecordSet]) -> tuple[dict[str, bytes], list[Remark]]:
    """Key -> value, and the sets that have none. Each is read back as the loader will: what it would reject is told
    now."""
    found: dict[str, bytes] = {}
    problems: list[Remark] = []
    for one in sets:
        try:
            key, value = key_of(prefix, one), value_of(one)
            records.parse(prefix, Put(key, value, 0))
            found[key] = value
        except Reject as reject:
            problems.append(Remark(one.title, str(reject), one.owner))
    return found, problems


@dataclass(frozen=True, slots=True)
class Change:
    """sign is `+` (new), `~` (another value) or `-` (goes away); old and new are values."""

    sign: str
    key: str
    old: bytes | None
    new: bytes | None


def plan(
    prefix: str,
    present: Mapping[str, bytes],
    wanted: Mapping[str, bytes],
    zones: Collection[bytes] = (),
    spared: Collection[bytes] = (),
    mute: Collection[str] = (),
) -> list[Change]:
    """What makes `present` hold what is wanted, sorted by key. A key that is there in another spelling (`WWW`, a dot
    at the zone's end) keeps it; a value that means the same stays. Keys of `zones` that are not wanted go away, but for
    those of the names that are spared. What is wanted of the `mute` keys says nothing of attributes."""
    spelling: dict[str, str] = {}
    for key in present:
        if key not in wanted and (canonical := _canonical(prefix, key, present[key])) in wanted:
            spelling.setdefault(canonical, key)
    changes: list[Change] = []
    kept: set[str] = set()
    for canonical, value in wanted.items():
        key = canonical if canonical in present else spelling.get(canonical, canonical)
        kept.add(key)
        old = present.get(key)
        if old is None:
            changes.append(Change("+", key, None, value))
        elif old != value and not _same(prefix, key, (old, value), canonical in mute):
            changes.append(Change("~", key, old, value))
    gone = (
        key
        for key in present
        if key not in kept and zone_of(prefix, key) in zones and not (spared and owner_of(prefix, key) in spared)
    )
    changes += [Change("-", key, present[key], None) for key in gone]
    return sorted(changes, key=lambda change: change.key)


def batches(changes: list[Change], size: int) -> Iterator[list[Change]]:
    """What to write at once. What comes is written before what goes, so that no name is away in between."""
    ordered = sorted(changes, key=lambda change: change.sign == "-")
    for at in range(0, len(ordered), size):
        yield ordered[at : at + size]


def zone_of(prefix: str, key: str) -> bytes | None:
    """The zone that a key is in, whatever its value; None if it names none."""
    try:
        return names.from_text(key[len(prefix.rstrip("/")) + 1 :].partition("/")[0])
    except names.BadName:
        return None


def owner_of(prefix: str, key: str) -> bytes | None:
    """The name that a key is about, whatever its value; None if it names none."""
    zone = zone_of(prefix, key)
    _, _, rest = key[len(prefix.rstrip("/")) + 1 :].partition("/")
    try:
        return None if zone is None else names.from_text(rest.rpartition("/")[0], zone)
    except names.BadName:
        return None


def _canonical(prefix: str, key: str, value: bytes) -> str:
    """How we write the key; empty if it is not ours to say."""
    made = _parse(prefix, key, value)
    if not made or made[0].zone is None or key.upper().endswith("/IP"):
        return ""
    first = made[0]
    return key_of(prefix, RecordSet(made[0].zone, first.owner, first.type, 0, ()))


def muted(prefix: str, found: Gathered, wanted: Collection[str]) -> set[str]:
    """The wanted keys whose attributes the input could not say."""
    mute = (one for one in found.sets if (one.owner, one.type) in found.mute and rdata.storable(one.type))
    return {key for key in (key_of(prefix, one) for one in mute) if key in wanted}


def bared(prefix: str, changes: Iterable[Change]) -> int:
    """How many of the changes take away attributes, and bring none."""
    return sum(
        change.old is not None and change.new is not None
        and _has_attributes(prefix, change.key, change.old) and not _has_attributes(prefix, change.key, change.new)
        for change in changes
    )  # fmt: skip


def _has_attributes(prefix: str, key: str, value: bytes) -> bool:
    return any(isinstance(one, Conditional) for one in _parse(prefix, key, value))


def _same(prefix: str, key: str, values: tuple[bytes, bytes], mute: bool) -> bool:
    """Whether two values give the same records; mute: whatever their attributes."""
    before, after = (_content(_parse(prefix, key, value), mute) for value in values)
    return bool(before) and before == after


def _content(found: list[Record], mute: bool) -> Counter[tuple[int, int, bytes, Attributes]]:
    given = (one.attributes if isinstance(one, Conditional) and not mute else NONE for one in found)
    return Counter((one.type, one.ttl, one.rdata, each) for one, each in zip(found, given, strict=True))


def _parse(prefix: str, key: str, value: bytes) -> list[Record]:
    try:
        return records.parse(prefix, Put(key, value, 0))
    except Reject:
        return []
