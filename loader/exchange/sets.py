"""Record sets: what every format is read into and written from, and how single records become sets."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from loader import names, rdata
from loader.attributes import NONE, Attributes, Conditional, with_attributes
from loader.model import DEFAULT_TTL, Record
from shm import node
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import Node, RRset

#: A SOA's data ends in serial, refresh, retry, expire, minimum, four octets each.
_SOA_NUMBERS = 20
_RR = struct.Struct("!HHHIH")  # owner pointer, type, class, TTL, RDLENGTH


@dataclass(frozen=True, slots=True)
class RecordSet:
    """An RRset. zone and owner as in loader.model.Record; ttl in seconds, or DEFAULT_TTL; data in wire form.

    attributes: of each record, or empty if none has any. Data may stand there twice, with different ones.
    """

    zone: bytes
    owner: bytes
    type: int
    ttl: int
    data: tuple[bytes, ...]
    attributes: tuple[Attributes, ...] = ()

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{names.to_text(self.owner)} {rdata.type_name(self.type)}"


@dataclass(frozen=True, slots=True)
class Remark:
    """What could not be taken over, or not as it stood. `where` is a name and type, a line, or a key; owner is the name
    that it is about, None if nobody knows."""

    where: str
    reason: str
    owner: bytes | None = None


@dataclass(slots=True)
class Gathered:
    """Everything that one input gives.

    sets      in canonical order: by zone, then by name, SOA and NS first
    problems  what was left out
    notes     what was changed on the way
    mute      (owner, type) of sets of which the input could not say attributes: they may have some
    """

    sets: list[RecordSet] = field(default_factory=list)
    problems: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    mute: set[tuple[bytes, int]] = field(default_factory=set)

    @property
    def zones(self) -> set[bytes]:
        return {one.zone for one in self.sets}


def gather(records: Iterable[Record], zones: Collection[bytes], problems: Iterable[Remark] = ()) -> Gathered:
    """Sets of single records. A record that names no zone is in the longest of `zones`, and of those that records name
    or bring a SOA of, that encloses it. Duplicates go; of several TTLs the lowest counts (RFC 2181 section 5.2)."""
    held = list(records)
    known = {*zones, *(one.zone for one in held if one.zone is not None)}
    known |= {one.owner for one in held if one.type == rdata.SOA}
    found: dict[tuple[bytes, bytes, int], tuple[set[int], dict[tuple[bytes, Attributes | None], None]]] = {}
    result = Gathered(problems=list(problems))
    outside: set[bytes] = set()
    for one in held:
        zone = one.zone or next((up for up in names.ancestors(one.owner) if up in known), None)
        if zone is None:
            outside.add(one.owner)
            continue
        ttls, data = found.setdefault((zone, one.owner, one.type), (set(), {}))
        ttls.add(one.ttl)
        data[one.rdata, one.attributes if isinstance(one, Conditional) else None] = None
    for owner in sorted(outside, key=order):
        result.problems.append(Remark(names.to_text(owner), "is outside every zone: give its zone with --zone", owner))
    for (zone, owner, type_), (ttls, data) in found.items():
        given = tuple(each or NONE for _, each in data) if any(each for _, each in data) else ()
        rdatas = tuple(one for one, _ in data)
        if type_ == rdata.SOA and len({(one[:-_SOA_NUMBERS], one[4 - _SOA_NUMBERS :]) for one in rdatas}) == 1:
            rdatas, given = rdatas[:1], given[:1]  # the same at several times: serials do not count here
        made = RecordSet(zone, owner, type_, min(ttls, key=_unsigned), rdatas, given)
        if len(ttls) > 1:
            result.notes.append(Remark(made.title, f"several TTLs: {made.ttl}, the lowest, is taken"))
        result.sets.append(made)
    result.sets.sort(key=set_order)
    return result


def join(parts: Sequence[Gathered], zones: Collection[bytes], problems: Iterable[Remark] = ()) -> Gathered:
    """Several inputs as one."""
    records = [record for part in parts for record in records_of(part.sets)]
    whole = gather(records, zones, [*problems, *(one for part in parts for one in part.problems)])
    whole.notes[:0] = [one for part in parts for one in part.notes]
    told = {(one.owner, one.type) for part in parts for one in part.sets if (one.owner, one.type) not in part.mute}
    whole.mute = {one for part in parts for one in part.mute} - told
    return whole


def _unsigned(ttl: int) -> float:
    return float("inf") if ttl == DEFAULT_TTL else ttl


def order(name: bytes) -> list[bytes]:
    """Sort key of the canonical order of names (RFC 4034 section 6.1)."""
    return list(names.labels(name))[::-1]


def set_order(one: RecordSet) -> tuple[list[bytes], list[bytes], int]:
    first = {rdata.SOA: 0, rdata.NS: 1}
    return order(one.zone), order(one.owner), first.get(one.type, one.type + 1)


def records_of(sets: Iterable[RecordSet]) -> Iterator[Record]:
    """Single records again, each with its zone."""
    for one in sets:
        for data, given in zip(one.data, one.attributes or repeat(NONE), strict=False):
            yield with_attributes(Record(one.zone, one.owner, one.type, one.ttl, data), given)


# ---------------------------------------------------------------- from a table


def from_nodes(blocks: Iterable[bytes], only: Collection[bytes] = ()) -> list[RecordSet]:
    """The sets of a table's node blocks, as they are answered, in canonical order. `only`: of these zones."""
    nodes = [node.unpack(block) for block in blocks]
    apexes = {one.name for one in nodes if one.flags & NodeFlag.APEX}
    sets = [made for one in nodes for made in _sets_of(one, apexes)]
    if only:
        sets = [one for one in sets if one.zone in only]
    sets.sort(key=set_order)
    return sets


def _sets_of(found: Node, apexes: set[bytes]) -> Iterator[RecordSet]:
    zone = next((up for up in names.ancestors(found.name) if up in apexes), None)
    if zone is None:
        return
    for type_, rrset in found.rrsets.items():
        if type_ != NEGATIVE_SOA:
            ttl, data = unwire(rrset)
            yield RecordSet(zone, found.name, type_, ttl, data)


def unwire(rrset: RRset) -> tuple[int, tuple[bytes, ...]]:
    """TTL and data of a stored RRset."""
    data: list[bytes] = []
    at = ttl = 0
    while at < len(rrset.wire):
        _, _, _, ttl, length = _RR.unpack_from(rrset.wire, at)
        at += _RR.size
        data.append(rrset.wire[at : at + length])
        at += length
    return ttl, tuple(data)
