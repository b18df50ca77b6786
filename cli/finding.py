"""What the table says about a name and type, and why: the answer's logic, told in words (RFC 1034 4.3.2, RFC 4592).

Pure: it gets a `find` function, so that it works on any table and in tests on a dict.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from shm import node
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import Node, RRset

ANY, NS, CNAME, DS, DNAME = 255, 2, 5, 43, 39
WILDCARD = b"\x01*"

Find = Callable[[bytes], bytes | None]


class Kind(enum.StrEnum):
    """How a query for the name and type ends."""

    ANSWER = "answer"
    WILDCARD = "wildcard"
    CNAME = "cname"
    DNAME = "dname"
    DELEGATION = "delegation"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """`owner` is the name that the RRsets belong to in the table; `zone` the apex of the zone that decides."""

    kind: Kind
    why: str
    zone: bytes | None = None
    owner: bytes | None = None
    rrsets: tuple[RRset, ...] = ()


def resolve(find: Find, name: bytes, type: int, text: Callable[[bytes], str]) -> Finding:
    """What a server answers to `name` (lower-case wire form) and `type` (255: all types). `text` shows a name."""
    nodes = [node.unpack(block) for suffix in suffixes(name) if (block := find(suffix)) is not None]
    # A DS query at the apex is the parent's to answer (RFC 4035 section 3.1.4.1), if we have the parent.
    apexes = [i for i, found in enumerate(nodes) if found.flags & NodeFlag.APEX]
    if type == DS and len(apexes) > 1 and nodes[apexes[0]].name == name:
        apexes = apexes[1:]
    if not apexes:
        return Finding(Kind.REFUSED, f"no zone here holds {text(name)}")
    apex = nodes[apexes[0]]
    # From the apex down: the first zone cut or redirection on the way decides.
    for found in reversed(nodes[: apexes[0]]):
        if found.flags & NodeFlag.DELEGATION and not (found.name == name and type == DS):
            why = f"{text(found.name)} is delegated: other servers answer for it"
            return Finding(Kind.DELEGATION, why, apex.name, found.name, _some(found, NS))
    for found in nodes[: apexes[0] + 1]:
        if DNAME in found.rrsets and found.name != name:
            why = f"names beneath {text(found.name)} are redirected"
            return Finding(Kind.DNAME, why, apex.name, found.name, _some(found, DNAME))
    if nodes[0].name == name:
        return _at(nodes[0], apex, type, Kind.ANSWER, "", text)
    encloser = nodes[0]
    from server.resolve import asks_for_all  # and with it dnspython, which --help has no use for

    if asks_for_all(encloser, name):
        why = f"{text(name)} asks for all beneath {text(encloser.name)}, which is that name's own answer"
        return _at(encloser, apex, type, Kind.ANSWER, why, text)
    star = find(WILDCARD + encloser.name) if encloser.flags & NodeFlag.WILDCARD_CHILD else None
    if star is None:
        why = f"{text(name)} does not exist; the nearest name that does is {text(encloser.name)}"
        return Finding(Kind.NXDOMAIN, why, apex.name, encloser.name)
    wildcard = node.unpack(star)
    why = f"made from the wildcard {text(wildcard.name)}"
    return _at(wildcard, apex, type, Kind.WILDCARD, why, text)


def suffixes(name: bytes) -> list[bytes]:
    """The name and all its ancestors, the root last."""
    found, at = [], 0
    while name[at]:
        found.append(name[at:])
        at += 1 + name[at]
    return [*found, b"\0"]


def _at(found: Node, apex: Node, type: int, kind: Kind, why: str, text: Callable[[bytes], str]) -> Finding:
    rrsets = _some(found, type)
    if rrsets:
        return Finding(kind, why, apex.name, found.name, rrsets)
    if CNAME in found.rrsets:
        alias = f"{text(found.name)} is an alias" + (f", {why}" if why else "")
        return Finding(Kind.CNAME, alias, apex.name, found.name, _some(found, CNAME))
    if found.flags & NodeFlag.EMPTY or not found.rrsets:
        reason = f"{text(found.name)} has no records, only names beneath it"
    else:
        reason = f"{text(found.name)} has other types"
    return Finding(Kind.NODATA, reason + (f"; {why}" if why else ""), apex.name, found.name)


def _some(found: Node, type: int) -> tuple[RRset, ...]:
    if type == ANY:
        return tuple(rrset for number, rrset in found.rrsets.items() if number != NEGATIVE_SOA)
    return (found.rrsets[type],) if type in found.rrsets else ()
