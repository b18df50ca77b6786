"""The reference answerer: (packet, table, policy) -> packet or nothing. Pure, and complete; the hot path
(server/_batch.pyx) gives the same bytes or declines. Followed: RFC 1034 section 4.3.2, 2308, 4592, 6604, 8020, 8482.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from server.query import AA, CD, CLASS_IN, HEADER, OPCODE_MASK, QR, RD, TC, FormatError, Query, Rcode, parse
from shm.errors import TableDamaged
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import Node, RRset, unpack

A, NS, CNAME, AAAA, DS = 1, 2, 5, 28, 43
IXFR, AXFR, MAILB, MAILA, ANY = 251, 252, 253, 254, 255

#: RFC 1035 section 4.2.1: what a client without EDNS takes.
PLAIN_UDP_SIZE = 512
#: A chain of aliases longer than this is cut; the resolver asks on from there. Bounds the work one query can cause.
MOST_ALIASES = 16
_POINTER_REACH = 0x4000
_OPT_SIZE = 11


class TableView(Protocol):
    """What the answerer needs of a table."""

    def find(self, name: bytes) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator may choose. Sizes in bytes."""

    max_udp_size: int = 1232


@dataclass(slots=True)
class Reply:
    """A message being written: RRsets behind the question, whole or not at all."""

    query: Query
    limit: int
    flags: int = 0
    rcode: int = Rcode.NOERROR
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    body: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    @property
    def size(self) -> int:
        return HEADER.size + len(self.body)

    def add(self, section: int, rrset: RRset, owner_at: int) -> int | None:
        """Append an RRset whose owner stands at `owner_at`. Where its first RR begins; None if it does not fit."""
        if self.size + len(rrset.wire) > self.limit:
            return None
        start = self.size
        self.body += rrset.wire
        self.counts[section] += rrset.count
        if owner_at != HEADER.size:
            pointer = (0xC000 | owner_at).to_bytes(2, "big")
            for at in rr_offsets(rrset.wire):
                self.body[start - HEADER.size + at : start - HEADER.size + at + 2] = pointer
        return start


def rr_offsets(wire: bytes) -> Iterator[int]:
    """Where each RR of a stored RRset begins. Raises TableDamaged if they do not fill it."""
    at = 0
    while at < len(wire):
        if at + 12 > len(wire):
            raise TableDamaged("an RR reaches beyond its RRset")
        yield at
        at += 12 + int.from_bytes(wire[at + 10 : at + 12], "big")


def answer(
    packet: bytes,
    table: TableView | None,
    policy: Policy,
    *,
    stream: bool = False,
    on_damage: Callable[[], None] = lambda: None,
) -> bytes | None:
    """The reply to a packet; None where silence is right. Without a table, or with a damaged one: SERVFAIL."""
    if len(packet) < HEADER.size or packet[2] & 0x80:
        return None  # too short to be answered, or a response itself: never answer those (loops)
    if packet[2] & OPCODE_MASK >> 8:
        return _bare(packet, Rcode.NOTIMP)
    try:
        query = parse(packet)
    except FormatError:
        return _bare(packet, Rcode.FORMERR)
    reply = Reply(query, _limit(query, policy, stream), body=bytearray(query.question))
    if query.edns is not None and query.edns.version > 0:
        reply.rcode = Rcode.BADVERS
    elif query.class_ != CLASS_IN or query.type in (AXFR, IXFR):
        reply.rcode = Rcode.REFUSED
    elif query.type in (MAILA, MAILB):
        reply.rcode = Rcode.NOTIMP
    elif table is None:
        reply.rcode = Rcode.SERVFAIL
    else:
        try:
            _resolve(reply, table)
        except (TableDamaged, LookupError, ValueError):  # a node that says what no loader writes
            on_damage()
            return _finish(Reply(query, reply.limit, rcode=Rcode.SERVFAIL, body=bytearray(query.question)), policy)
    return _finish(reply, policy)


def _bare(packet: bytes, rcode: Rcode) -> bytes:
    """A reply of a header only: nothing behind it can be trusted."""
    identifier, flags, *_ = HEADER.unpack_from(packet)
    return HEADER.pack(identifier, QR | flags & (OPCODE_MASK | RD | CD) | rcode, 0, 0, 0, 0)


def _limit(query: Query, policy: Policy, stream: bool) -> int:
    """How large the reply may be, without its OPT."""
    if stream:
        limit = 0xFFFF
    elif query.edns is None:
        limit = PLAIN_UDP_SIZE
    else:
        limit = min(max(query.edns.udp_size, PLAIN_UDP_SIZE), policy.max_udp_size)
    return limit - (_OPT_SIZE if query.edns is not None else 0)


def _finish(reply: Reply, policy: Policy) -> bytes:
    """Header, sections, OPT (RFC 6891 section 7)."""
    query = reply.query
    flags = QR | reply.flags | query.flags & (RD | CD) | reply.rcode & 0xF
    if reply.truncated:
        flags |= TC
    opt = b""
    if query.edns is not None:
        flags_be = (0x8000 if query.edns.dnssec_ok else 0).to_bytes(2, "big")
        opt = b"\0\0\x29" + policy.max_udp_size.to_bytes(2, "big") + bytes([reply.rcode >> 4, 0]) + flags_be + b"\0\0"
    answers, authorities, additionals = reply.counts
    header = HEADER.pack(query.identifier, flags, 1, answers, authorities, additionals + bool(opt))
    return header + bytes(reply.body) + opt


# ---------------------------------------------------------------- RFC 1034 section 4.3.2


def _resolve(reply: Reply, table: TableView) -> None:
    """Answer, follow aliases inside our zones, refer, or deny."""
    name, name_at = reply.query.name, HEADER.size
    type_ = reply.query.type
    seen: set[bytes] = set()
    for _ in range(MOST_ALIASES):
        encloser, labels_up = _closest_encloser(table, name)
        if encloser is None:
            if not seen:
                reply.rcode = Rcode.REFUSED
            return  # an alias out of our zones: the resolver goes on
        if not seen and not _is_referral(encloser, labels_up, type_):
            reply.flags |= AA
        if _is_referral(encloser, labels_up, type_):
            _refer(reply, table, name, name_at)
            return
        node = encloser
        if labels_up:
            wildcard = table.find(b"\x01*" + encloser.name) if encloser.flags & NodeFlag.WILDCARD_CHILD else None
            if wildcard is None:
                reply.rcode = Rcode.NXDOMAIN
                _deny(reply, table, name, name_at)
                return
            node = unpack(wildcard)
        alias = _answer_from(reply, table, node, name, name_at)
        if alias is None:
            return
        seen.add(name)
        target, name_at = alias
        name = target.lower()
        if name in seen:
            return


def _closest_encloser(table: TableView, name: bytes) -> tuple[Node | None, int]:
    """The nearest existing name at or above `name`, and how many labels above."""
    for labels_up, suffix in enumerate(suffixes(name)):
        block = table.find(suffix)
        if block is not None:
            return unpack(block), labels_up
    return None, 0


def suffixes(name: bytes) -> Iterator[bytes]:
    """The name, its parent, and so on to the root."""
    at = 0
    while True:
        yield name[at:]
        if name[at] == 0:
            return
        at += 1 + name[at]


def _is_referral(encloser: Node, labels_up: int, type_: int) -> bool:
    """Whether the name lies at or beneath a zone cut. The DS at the cut is the parent's (RFC 4035 section 3.1.4.1)."""
    if encloser.flags & NodeFlag.BELOW_CUT:
        return True
    return bool(encloser.flags & NodeFlag.DELEGATION) and not (labels_up == 0 and type_ == DS)


def _answer_from(reply: Reply, table: TableView, node: Node, name: bytes, name_at: int) -> tuple[bytes, int] | None:
    """Add what `node` has for the question. The alias to follow: its target and where that stands in the reply."""
    type_ = reply.query.type
    rrset = _first(node) if type_ == ANY else node.rrsets.get(type_) if type_ != NEGATIVE_SOA else None
    if rrset is not None:
        if reply.add(0, rrset, name_at) is None:
            reply.truncated = True
        return None
    alias = node.rrsets.get(CNAME)
    if alias is None:
        _deny(reply, table, name, name_at)
        return None
    start = reply.add(0, alias, name_at)
    if start is None:
        reply.truncated = True
        return None
    return alias.wire[12:], start + 12


def _first(node: Node) -> RRset | None:
    """One RRset stands for ANY (RFC 8482 section 4.1)."""
    return next((rrset for type_, rrset in node.rrsets.items() if type_ != NEGATIVE_SOA), None)


def _deny(reply: Reply, table: TableView, name: bytes, name_at: int) -> None:
    """The zone's SOA goes with NXDOMAIN and NODATA (RFC 2308 sections 2.1, 2.2)."""
    for suffix in suffixes(name):
        block = table.find(suffix)
        if block is not None:
            node = unpack(block)
            if node.flags & NodeFlag.APEX:
                if reply.add(1, node.rrsets[NEGATIVE_SOA], name_at + len(name) - len(suffix)) is None:
                    reply.truncated = True
                return
    raise TableDamaged("a name without a zone")


def _refer(reply: Reply, table: TableView, name: bytes, name_at: int) -> None:
    """The NS RRset of the cut, and the addresses that the table has for its targets, as far as they fit.

    Without the addresses of a target beneath the cut the referral leads nowhere: TC then (RFC 9471 section 3.1).
    """
    for suffix in suffixes(name):
        block = table.find(suffix)
        node = unpack(block) if block is not None else None
        if node is not None and node.flags & NodeFlag.DELEGATION and not node.flags & NodeFlag.BELOW_CUT:
            break
    else:
        raise TableDamaged("a name below a cut without the cut")
    start = reply.add(1, node.rrsets[NS], name_at + len(name) - len(suffix))
    if start is None:
        reply.truncated = True
        return
    wire = node.rrsets[NS].wire
    for at in rr_offsets(wire):
        if start + at + 12 >= _POINTER_REACH:
            return
        target = wire[at + 12 : at + 12 + int.from_bytes(wire[at + 10 : at + 12], "big")]
        block = table.find(target.lower())
        glue = unpack(block) if block is not None else None
        for type_ in (A, AAAA):
            rrset = glue.rrsets.get(type_) if glue is not None else None
            if (
                rrset is not None
                and reply.add(2, rrset, start + at + 12) is None
                and suffix in suffixes(target.lower())
            ):
                reply.truncated = True
