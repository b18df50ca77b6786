"""What becomes of SkyDNS keys: names whose answer differs between the two semantics, and what cannot be served."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import dns.rdata
import dns.rdataclass
import dns.rdatatype

from loader import names, rdata, skydns
from loader.model import Listing, Put
from loader.skydns import HOST, NOTHING, Semantics, Service
from loader.skydns_feed import full_update
from loader.skydns_tree import MOST, ServiceTree
from loader.zone import Zones
from shm.node import Node, unpack

#: Of an RRset so many RRs are shown.
_SHOWN = 3
_RR_HEAD = 12
#: SOA and its negative form carry revisions: no difference between semantics.
_IGNORED = (0, rdata.SOA)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    kind   difference: a name answers one thing as CoreDNS does, another thing if it stands for itself
           reject: a key that gives nothing, or not to all of its names
           note: something that deserves a look
    what   the name, or the key
    """

    kind: str
    what: str
    type: str
    coredns: str
    strict: str
    text: str


def lint(prefix: str, puts: Collection[Put], zones: Collection[bytes], default_ttl: int = 300) -> list[Finding]:
    """Everything there is to say, in the order of names and keys."""
    sides = [_Side(prefix, puts, zones, semantics, default_ttl) for semantics in ("coredns", "strict")]
    coredns, strict = sides
    found = [*_differences(coredns.nodes, strict.nodes)]
    rejects = {**strict.zones.problems, **coredns.zones.problems, **coredns.tree.problems}
    found += [Finding("reject", key, "", "", "", text) for key, text in sorted(rejects.items())]
    found += [
        Finding("note", names.to_text(name), "", "", "", f"{count} services beneath it: answers with {MOST} of them")
        for name, count in sorted(coredns.tree.crowded().items())
    ]
    for key, put in sorted({put.key: put for put in puts}.items()):
        service = None if key in rejects else skydns.decode(prefix, put, lambda lease: 0)
        if service is not None:
            notes = _notes(service, coredns.given(service))
            found += [Finding("note", key, "", "", "", text) for text in notes]
    return found


class _Side:
    """The keys in one of the semantics."""

    def __init__(
        self, prefix: str, puts: Iterable[Put], zones: Collection[bytes], semantics: Semantics, default_ttl: int
    ) -> None:
        self.tree = ServiceTree(prefix, zones, semantics, default_ttl=default_ttl)
        self.zones = Zones(zones, default_ttl)
        update = full_update(self.tree, Listing(list(puts), 1))
        for key, records in update.records.items():
            self.zones.apply(key, records or (), update.revisions.get(key, 1))
        self.nodes = {node.name: node for node in map(unpack, self.zones.all_nodes())}

    def given(self, service: Service) -> dict[bytes, set[int]]:
        """Name -> the types that a service gives to it."""
        given: dict[bytes, set[int]] = {name: set() for name in self.tree.names_of(service.key)}
        for record in self.tree.records_of(service.key):
            given[record.owner].add(record.type)
        return given


def _differences(coredns: dict[bytes, Node], strict: dict[bytes, Node]) -> Iterable[Finding]:
    for name in sorted(coredns.keys() | strict.keys(), key=_order):
        one, other = _answers(coredns.get(name)), _answers(strict.get(name))
        for type_ in sorted(one.keys() | other.keys()):
            if one.get(type_) != other.get(type_):
                what = names.to_text(name)
                text = _shown(type_, one.get(type_)), _shown(type_, other.get(type_))
                yield Finding("difference", what, rdata.type_name(type_), *text, "")


def _order(name: bytes) -> list[bytes]:
    return list(names.labels(name))[::-1]


def _answers(node: Node | None) -> dict[int, list[bytes]]:
    """Type -> data of its RRs in order."""
    if node is None:
        return {}
    return {type_: sorted(_data(rrset.wire)) for type_, rrset in node.rrsets.items() if type_ not in _IGNORED}


def _data(wire: bytes) -> Iterable[bytes]:
    at = 0
    while at < len(wire):
        end = at + _RR_HEAD + int.from_bytes(wire[at + 10 : at + 12], "big")
        yield wire[at + _RR_HEAD : end]
        at = end


def _shown(type_: int, data: list[bytes] | None) -> str:
    if not data:
        return "nothing"
    kind = dns.rdatatype.RdataType.make(type_)
    texts = [str(dns.rdata.from_wire(dns.rdataclass.IN, kind, one, 0, len(one))) for one in data[:_SHOWN]]
    return ", ".join(texts) + (f" and {len(data) - _SHOWN} more" if len(data) > _SHOWN else "")


def _notes(service: Service, given: dict[bytes, set[int]]) -> Iterable[str]:
    """What CoreDNS makes of a key differently from Standoff's `coredns`, or what is lost in both."""
    if any("A" <= char <= "Z" for char in service.key):
        yield "has capitals: CoreDNS never finds it; served in lower case"
    if service.kind == NOTHING:
        yield "has neither host nor text: gives nothing"
    for condition, text in _LOST:
        if condition(service):
            yield text
    own = given.get(service.name)
    if service.kind == HOST and own is not None and not own and not {b"*", b"any"} & set(names.labels(service.name)):
        yield "is hidden: there are keys beneath it, and a name answers with those"
    if service.kind == HOST and service.type == rdata.CNAME and not service.explicit:
        lost = [names.to_text(name) for name, types in given.items() if not types and name != service.name]
        if lost:
            yield f"no CNAME at {lost[0]}: an apex, or there is other data, or an older CNAME"


_LOST: list[tuple[Callable[[Service], bool], str]] = [
    (
        lambda one: bool(one.kind == HOST and one.type == rdata.CNAME and one.text),
        "has a name and a text: CoreDNS then has no addresses for it; served as a CNAME, without the text",
    ),
    (
        lambda one: bool(one.kind == HOST and one.type != rdata.CNAME and one.text),
        "has an address and a text: the text is served by strict only",
    ),
    (
        lambda one: bool(one.kind == HOST and one.type == rdata.CNAME and one.explicit),
        "has a name with port, priority, weight or mail: SRV and MX are served, addresses are not",
    ),
]
