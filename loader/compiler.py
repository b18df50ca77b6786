"""RRs -> RRsets -> node blocks: the rules about one name, pure. Which names exist is zone.py's matter.

A *gift* is what one key gives to one name, as a flat tuple, because a million of them are kept:

    (key, revision, zone | None, type, ttl, rdata, type, ttl, rdata, ...)

zone is the apex that the source named (None: whichever zone encloses the name). revision orders keys that contradict
each other: the older one keeps the name. Within one revision the key that sorts first counts as older.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from loader import names
from loader.rdata import AAAA, CNAME, DNAME, DS, NS, SOA, A, type_name
from shm.layout import DIRECTORY_ENTRY, NEGATIVE_SOA, NODE_HEADER, OWNER_POINTER, NodeFlag
from shm.node import MAX_RRSET, RRset, pack

Gift = tuple[Any, ...]
#: Type -> (ttl, data in order, without duplicates).
RRsets = dict[int, tuple[int, list[bytes]]]
#: A name, gifts to it, and whether it is an aggregate (loader/zone.py: Zones.mark).
Given = tuple[bytes, Sequence[Gift], bool]
FIRST_RR = 3

_RR = struct.Struct(">HHHIH")
_POINTER = int.from_bytes(OWNER_POINTER, "big")
_CLASS_IN = 1
_RR_HEAD = _RR.size

#: A node's directory holds 255 types; an apex may get three made for it.
_MAX_TYPES = 252

#: SOA of a zone that brings none; seconds. The minimum is also the TTL of negative answers (RFC 2308 section 4): short,
#: because data from a key-value store appears at any moment.
_MADE_TTL = 300
_MADE_TIMERS = struct.pack(">IIII", 7200, 1800, 86400, 30)
_SOA_NUMBERS = struct.Struct(">IIIII")  # serial, refresh, retry, expire, minimum

_LONE = {CNAME: "CNAME", DNAME: "DNAME", SOA: "SOA"}
#: What a parent zone holds of a child zone: its delegation, its glue.
_PARENT_SIDE = frozenset((NS, DS, A, AAAA))


@dataclass(slots=True)
class Merged:
    """The RRsets of one name and what is to be said about them.

    rrsets    what is served
    problems  key -> why it gives nothing here
    warnings  key -> what was changed
    """

    rrsets: RRsets = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)


def rrs(gift: Gift) -> Iterator[tuple[int, int, bytes]]:
    """(type, ttl, rdata) of a gift."""
    for at in range(FIRST_RR, len(gift), 3):
        yield gift[at], gift[at + 1], gift[at + 2]


# ---------------------------------------------------------------- merging


def merge(name: bytes, gifts: Collection[Gift], zone: bytes | None) -> Merged:
    """What the gifts to `name` come to in `zone`, the longest that encloses it. Their order does not matter."""
    merged = Merged()
    if zone is not None and len(gifts) == 1 and _is_plain(gift := next(iter(gifts)), name, zone):
        merged.rrsets = {type_: (ttl, [data]) for type_, ttl, data in rrs(gift)}
        return merged
    where = names.to_text(name)
    if zone is None:
        for gift in gifts:
            merged.problems[gift[0]] = f"{where} is outside every zone: name its zone with --zone, or give it a SOA"
        return merged
    contest = _Contest(where, name == zone)
    above: list[Gift] = []
    for gift in sorted(gifts, key=lambda gift: (gift[1], gift[0])):
        if gift[2] is None or gift[2] == zone:
            reason = contest.refuse(gift)
        elif names.is_under(name, gift[2]):
            above.append(gift)
            continue
        else:
            reason = f"{where} is outside its zone {names.to_text(gift[2])}"
        if reason:
            merged.problems[gift[0]] = reason
    _collect(merged, where, sorted(contest.kept, key=lambda gift: str(gift[0])))
    _collect_parent_side(merged, where, sorted(above, key=lambda gift: str(gift[0])), zone if name == zone else None)
    return merged


def _is_plain(gift: Gift, name: bytes, zone: bytes) -> bool:
    """Whether nothing needs to be said about a gift that is the only one of its name: no two RRs of a type, no SOA, no
    CNAME beside others. For speed: most gifts are so."""
    if (gift[2] is not None and gift[2] != zone) or max(map(len, gift[FIRST_RR + 2 :: 3])) > MAX_RRSET - _RR_HEAD:
        return False
    types = gift[FIRST_RR::3]
    if len(types) > 1:
        return len(set(types)) == len(types) <= _MAX_TYPES and not any(type_ in _LONE for type_ in types)
    return types[0] not in _LONE or (types[0] != SOA and name != zone)


class _Contest:
    """Takes gifts from the oldest to the newest and refuses those that contradict what it has."""

    def __init__(self, where: str, apex: bool) -> None:
        self.where, self.apex = where, apex
        self.kept: list[Gift] = []
        self._lone: dict[int, tuple[bytes, str]] = {}  # type -> (data, key)
        self._other: str | None = None  # a key that gives something else than a CNAME
        self._sizes: dict[int, int] = {}

    def refuse(self, gift: Gift) -> str:
        """Why the gift is refused; empty if it is kept."""
        content = list(rrs(gift))
        reason = self._misplaced(content) or self._contradiction(content) or self._outgrown(content)
        if not reason:
            self._keep(gift, content)
        return reason

    def _misplaced(self, content: list[tuple[int, int, bytes]]) -> str:
        for type_, _, _ in content:
            if type_ == SOA and not self.apex:
                return f"a SOA at {self.where}, which is not a zone's apex"
            if type_ == CNAME and self.apex:
                return f"a CNAME at {self.where}, the zone's apex, beside SOA and NS"
        return ""

    def _contradiction(self, content: list[tuple[int, int, bytes]]) -> str:
        own: dict[int, bytes] = {}
        for type_, _, data in content:
            if type_ in _LONE and own.setdefault(type_, data) != data:
                return f"two {_LONE[type_]} records at {self.where} in one key"
        if CNAME in own and any(type_ != CNAME for type_, _, _ in content):
            return f"a CNAME beside other data at {self.where} in one key"
        for type_, data in own.items():
            held = self._lone.get(type_)
            if held and held[0] != data:
                return f"a second {_LONE[type_]} at {self.where}: the older key {held[1]} keeps the name"
        if CNAME in own and self._other is not None:
            return f"a CNAME beside other data at {self.where}: the older key {self._other} keeps the name"
        if CNAME in self._lone and any(type_ != CNAME for type_, _, _ in content):
            return f"other data beside a CNAME at {self.where}: the older key {self._lone[CNAME][1]} keeps the name"
        return ""

    def _outgrown(self, content: list[tuple[int, int, bytes]]) -> str:
        sizes = dict(self._sizes)
        for type_, _, data in content:
            sizes[type_] = sizes.get(type_, 0) + _RR_HEAD + len(data)
            if sizes[type_] > MAX_RRSET:
                return f"the {type_name(type_)} records at {self.where} outgrow {MAX_RRSET} octets"
        if len(sizes) > _MAX_TYPES:
            return f"more than {_MAX_TYPES} record types at {self.where}"
        return ""

    def _keep(self, gift: Gift, content: list[tuple[int, int, bytes]]) -> None:
        self.kept.append(gift)
        for type_, _, data in content:
            if type_ in _LONE:
                self._lone.setdefault(type_, (data, gift[0]))
            if type_ != CNAME and self._other is None:
                self._other = gift[0]
            self._sizes[type_] = self._sizes.get(type_, 0) + _RR_HEAD + len(data)


def _collect(merged: Merged, where: str, gifts: list[Gift]) -> None:
    """Puts the gifts' RRs into RRsets: duplicates out, the lowest TTL for all (RFC 2181 section 5.2)."""
    lowest: dict[int, tuple[int, str]] = {}
    for gift in gifts:
        for type_, ttl, _ in rrs(gift):
            if type_ not in lowest or ttl < lowest[type_][0]:
                lowest[type_] = (ttl, gift[0])
    data_of: dict[int, dict[bytes, None]] = {}
    for gift in gifts:
        for type_, ttl, data in rrs(gift):
            data_of.setdefault(type_, {})[data] = None
            low, by = lowest[type_]
            if ttl != low:
                said = f"TTL {ttl} of {type_name(type_)} at {where} is lowered to {low}, as in {by}"
                merged.warnings.setdefault(gift[0], said)
    for type_, data_set in data_of.items():
        merged.rrsets[type_] = (lowest[type_][0], list(data_set))


def _collect_parent_side(merged: Merged, where: str, gifts: list[Gift], apex: bytes | None) -> None:
    """What another zone says about a name that this zone, beneath it, has taken over.

    At the apex the parent's DS is the only one there is (RFC 4034 section 5), and its NS stand in if the zone has none.
    Everything else is hidden. Glue and delegations belong there; anything else deserves a warning.
    """
    usable: list[Gift] = []
    for gift in gifts:
        if any(type_ not in _PARENT_SIDE for type_, _, _ in rrs(gift)):
            merged.warnings[gift[0]] = f"{where} is hidden: another zone beneath {names.to_text(gift[2])} holds it"
        wanted = [rr for rr in rrs(gift) if rr[0] in (DS, NS)]
        if apex is not None and wanted:
            usable.append((*gift[:FIRST_RR], *(part for rr in wanted for part in rr)))
    if usable:
        side = Merged()
        _collect(side, where, usable)
        for type_, rrset in side.rrsets.items():
            merged.rrsets.setdefault(type_, rrset)


# ---------------------------------------------------------------- wire form


def single(name: bytes, flags: int, type_: int, ttl: int, data: bytes) -> bytes:
    """node() of one RR, the most frequent of all nodes: a third of the time."""
    length = _RR_HEAD + len(data)
    size = NODE_HEADER.size + len(name) + DIRECTORY_ENTRY.size + length
    units = (size + 7) >> 3
    return b"".join((
        NODE_HEADER.pack(units, len(name), 1, flags),
        name,
        DIRECTORY_ENTRY.pack(type_, 1, length),
        _RR.pack(_POINTER, type_, _CLASS_IN, ttl, len(data)),
        data,
        bytes((units << 3) - size),
    ))  # fmt: skip


def node(name: bytes, flags: int, rrsets: RRsets) -> bytes:
    """The block of a name, its RRsets in the order of their types."""
    return pack(name, flags, [_rrset(type_, type_, *rrsets[type_]) for type_ in sorted(rrsets)])


def apex_node(apex: bytes, flags: int, rrsets: RRsets, serial: int) -> bytes:
    """The block of an apex, with SOA and NS made if there are none, and the SOA of negative answers.

    serial is put into a SOA that has 0 there; any other was given by the operator and stays.
    """
    full = dict(rrsets)
    soa_ttl, (soa,) = full.get(SOA) or (_MADE_TTL, [_made_soa(apex)])
    numbers = _SOA_NUMBERS.unpack(soa[-_SOA_NUMBERS.size :])
    if numbers[0] == 0:
        soa = soa[: -_SOA_NUMBERS.size] + _SOA_NUMBERS.pack(serial & 0xFFFFFFFF, *numbers[1:])
    full[SOA] = (soa_ttl, [soa])
    full.setdefault(NS, (_MADE_TTL, [_beneath(b"\x03ns1", apex)]))
    negative = _rrset(NEGATIVE_SOA, SOA, min(soa_ttl, numbers[4]), [soa])
    sets = [negative, *(_rrset(type_, type_, *full[type_]) for type_ in sorted(full))]
    return pack(apex, flags | NodeFlag.APEX, sets)


def _rrset(entry: int, type_: int, ttl: int, data: Iterable[bytes]) -> RRset:
    parts = [_RR.pack(_POINTER, type_, _CLASS_IN, ttl, len(one)) + one for one in data]
    return RRset(entry, len(parts), b"".join(parts))


def _made_soa(apex: bytes) -> bytes:
    return _beneath(b"\x03ns1", apex) + _beneath(b"\x0ahostmaster", apex) + bytes(4) + _MADE_TIMERS


def _beneath(label: bytes, apex: bytes) -> bytes:
    """label.apex, or the apex itself where that would be too long for a name."""
    name = label + apex
    return name if len(name) <= names.MAX_NAME else apex
