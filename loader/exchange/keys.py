"""Record sets -> keys and values of the records schema (loader/records.py), and what must change in etcd for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from loader import names, rdata, records
from loader.exchange.sets import RecordSet, Remark
from loader.exchange.text import item
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
    return msgspec.json.encode(value | {"data": [item(one.type, data) for data in one.data]})


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
) -> list[Change]:
    """What makes `present` hold what is wanted, sorted by key. A key that is there in another spelling (`WWW`, a dot
    at the zone's end) keeps it; a value that means the same stays. Keys of `zones` that are not wanted go away, but for
    those of the names that are spared."""
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
        elif old != value and not _same(prefix, key, old, value):
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


def _same(prefix: str, key: str, old: bytes, new: bytes) -> bool:
    """Whether two values give the same records."""
    before, after = _parse(prefix, key, old), _parse(prefix, key, new)
    return bool(before) and _content(before) == _content(after)


def _content(found: list[Record]) -> list[tuple[int, int, bytes]]:
    return sorted((one.type, one.ttl, one.rdata) for one in found)


def _parse(prefix: str, key: str, value: bytes) -> list[Record]:
    try:
        return records.parse(prefix, Put(key, value, 0))
    except Reject:
        return []
