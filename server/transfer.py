"""A whole zone as a sequence of messages (AXFR, RFC 5936): which names, in which order, how they are written. Pure.

The SOA comes first and last. What is beneath a cut goes along (glue, and occluded data as it was loaded). Another zone
of ours beneath this one is to it what it is to the world: a delegation, made of that zone's NS, DS and the addresses
they need.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from server.message import RR_HEAD, rr_offsets
from server.query import AA, HEADER, QR, RD, Query
from server.resolve import AAAA, DS, NS, A, TableView
from server.resolve import _name_at as name_at
from server.tsig import LARGEST
from shm.errors import TableDamaged
from shm.layout import NEGATIVE_SOA, NODE_HEADER, NodeFlag
from shm.node import Node, RRset, unpack

SOA, AXFR = 6, 252
#: A message is closed before it grows beyond this: compression pointers reach so far (RFC 1035 section 4.1.4), and a
#: client need not wait long for a whole one.
MESSAGE_SIZE = 0x4000
#: What a single record may grow a message to: a stream's limit, less the room for a signature and an OPT.
LARGEST_MESSAGE = 0xFFFF - LARGEST - 11
#: Where in a node block the flags' low byte is.
APEX_AT = 6 if sys.byteorder == "little" else 7


class Untransferable(ValueError):
    """The zone holds a record that no message has room for."""


@dataclass(frozen=True, slots=True)
class Part:
    """A message without header and question: `count` answer records that expect the question before them."""

    count: int
    body: bytes


class WholeTable(TableView, Protocol):
    """What is needed of a table that does not change."""

    def blocks(self) -> Iterator[bytes]: ...


def zone_parts(apex: bytes, table: WholeTable) -> Iterator[Part]:
    """The messages of a zone. The first has the apex's records only: it is ready before the names are gathered.

    Raises Untransferable, TableDamaged.
    """
    block = table.find(apex)
    node = None if block is None else unpack(block)
    soa = None if node is None or not node.flags & NodeFlag.APEX else node.rrsets.get(SOA)
    if node is None or soa is None:
        raise TableDamaged("a zone without a SOA")
    others = [rrset for type_, rrset in node.rrsets.items() if type_ not in (SOA, NEGATIVE_SOA)]
    yield from _pack(apex, iter([Node(apex, 0, {SOA: soa}), *(Node(apex, 0, {r.type: r}) for r in others)]))
    yield from _pack(apex, chain(_beneath(apex, table), [Node(apex, 0, {SOA: soa})]))


def _beneath(apex: bytes, table: WholeTable) -> Iterator[Node]:
    """The zone's nodes but for its apex, in the order of their names' wire forms: the same in every table."""
    names, inner = _names_beneath(apex, table.blocks())
    names.sort()
    if inner:
        yield from _cut_out(apex, names, inner, table)
        return
    for name in names:
        yield _node(table, name)


def _names_beneath(apex: bytes, blocks: Iterable[bytes]) -> tuple[list[bytes], set[bytes]]:
    """All names beneath the apex, and those that are apexes themselves. Names only: a zone may have millions."""
    names: list[bytes] = []
    inner: set[bytes] = set()
    start, suffix = NODE_HEADER.size, len(apex)
    for block in blocks:
        name = block[start : start + block[4]]
        end = len(name) - suffix
        if not name.endswith(apex) or not end or (name[0] + 1 != end and not _on_a_label(name, end)):
            continue
        names.append(name)
        if block[APEX_AT] & NodeFlag.APEX:
            inner.add(name)
    return names, inner


def _node(table: WholeTable, name: bytes) -> Node:
    block = table.find(name)
    if block is None:
        raise TableDamaged("a name that is in the table cannot be found in it")
    return unpack(block)


def _cut_out(apex: bytes, names: list[bytes], inner: set[bytes], table: WholeTable) -> Iterator[Node]:
    """Leave of other zones beneath only what delegates to them."""
    tops = {name for name in inner if _top(name, apex, inner) == name}
    needed = {
        name_at(rrset.wire, at + RR_HEAD).lower()
        for top in tops
        if (rrset := _node(table, top).rrsets.get(NS)) is not None
        for at in rr_offsets(rrset.wire)
    }
    for name in names:
        top = _top(name, apex, inner)
        if top is None:
            yield _node(table, name)
            continue
        kept = ({NS, DS} if name == top else set()) | ({A, AAAA} if name in needed else set())
        if kept:
            rrsets = _node(table, name).rrsets
            yield Node(name, 0, {type_: rrset for type_, rrset in rrsets.items() if type_ in kept})


def _top(name: bytes, apex: bytes, inner: set[bytes]) -> bytes | None:
    """The highest apex at or above `name` that lies beneath our own."""
    top = None
    at = 0
    while len(name) - at > len(apex):
        if name[at:] in inner:
            top = name[at:]
        at += 1 + name[at]
    return top


def _on_a_label(name: bytes, end: int) -> bool:
    at = 0
    while at < end:
        at += 1 + name[at]
    return at == end


def _pack(apex: bytes, nodes: Iterator[Node]) -> Iterator[Part]:
    """Records into messages. Every message has a question, so that its name is a pointer away."""
    base = HEADER.size + len(apex) + 4
    count, body = 0, bytearray()
    pointer = HEADER.size.to_bytes(2, "big")
    apex_pointer = bytes([0xC0 | pointer[0], pointer[1]])
    for node in nodes:
        spelled = node.name[: len(node.name) - len(apex)] + apex_pointer
        owner = spelled
        for type_, rrset in node.rrsets.items():
            if type_ == NEGATIVE_SOA:
                continue
            for record in _records(rrset):
                if base + len(body) + len(owner) + len(record) > MESSAGE_SIZE and count:
                    yield Part(count, bytes(body))
                    count, body, owner = 0, bytearray(), spelled
                at = base + len(body)
                if at + len(owner) + len(record) > LARGEST_MESSAGE:
                    raise Untransferable(f"a record of {len(record)} bytes does not fit into a message")
                body += owner
                body += record
                count += 1
                if len(owner) > 2:
                    owner = (0xC000 | at).to_bytes(2, "big")  # to the spelled one: readers limit chains of pointers
    if count:
        yield Part(count, bytes(body))


def _records(rrset: RRset) -> Iterator[bytes]:
    """Each RR without its owner."""
    for at in rr_offsets(rrset.wire):
        end = at + RR_HEAD + int.from_bytes(rrset.wire[at + 10 : at + 12], "big")
        yield rrset.wire[at + 2 : end]


def message(query: Query, part: Part, opt: bytes = b"") -> bytes:
    """A part as an answer to a query."""
    flags = QR | AA | query.flags & RD
    header = HEADER.pack(query.identifier, flags, 1, part.count, 0, 1 if opt else 0)
    return header + query.question + part.body + opt


def soa_part(apex_block: bytes) -> Part:
    """The SOA alone: there is nothing newer than what the client has (RFC 1995 section 2)."""
    soa = unpack(apex_block).rrsets.get(SOA)
    if soa is None:
        raise TableDamaged("a zone without a SOA")
    return Part(1, soa.wire)


def serial_of(apex_block: bytes) -> int | None:
    """The zone's serial; None if the node is no apex."""
    node = unpack(apex_block)
    soa = node.rrsets.get(SOA)
    if soa is None or not node.flags & NodeFlag.APEX:
        return None
    return int.from_bytes(soa.wire[-20:-16], "big")


def is_newer(serial: int, than: int) -> bool:
    """Serial arithmetic (RFC 1982 section 3.2); two serials half the circle apart count as different."""
    return serial != than and (serial - than) % 2**32 <= 2**31


def asks_for_transfer(packet: bytes) -> bool:
    """Whether the packet looks like a query for AXFR or IXFR: enough to look closer."""
    if len(packet) < HEADER.size + 5 or packet[2] & 0xF8 or packet[4:6] != b"\0\1":
        return False
    at = HEADER.size
    while at < len(packet) and 0 < packet[at] < 64:
        at += 1 + packet[at]
    return packet[at + 1 : at + 2] == b"\0" and packet[at + 2 : at + 3] in (b"\xfb", b"\xfc")
