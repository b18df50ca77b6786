"""The reference answerer: (packet, table, policy, moment) -> packet or nothing. Pure, and complete; the hot path
(server/_answer.pyx) gives the same bytes or declines.
"""

from __future__ import annotations

from collections.abc import Callable

from server import edns
from server.chaos import answer_chaos
from server.message import Reply
from server.policy import DEFAULT_MOMENT, DEFAULT_POLICY, Moment, Policy
from server.query import (
    CD,
    CLASS_CHAOS,
    CLASS_IN,
    HEADER,
    IXFR,
    OPCODE_MASK,
    QR,
    RD,
    FormatError,
    Option,
    Query,
    Rcode,
    parse,
)
from server.resolve import Resolution, TableView
from shm.errors import TableDamaged
from shm.layout import NEGATIVE_SOA

__all__ = ["Moment", "Policy", "answer"]

AXFR, MAILB, MAILA = 252, 253, 254
#: RFC 1035 section 4.2.1: what a client without EDNS takes.
PLAIN_UDP_SIZE = 512

#: RFC 8914 codes that we send, with the text for people.
STALE = edns.extended_error(3, "the source is away")
NOT_READY = edns.extended_error(14, "no table is published yet")
PROHIBITED = edns.extended_error(18)
NOT_AUTHORITATIVE = edns.extended_error(20)
ZONE_VERSION_SIZE = len(edns.zone_version(b"\0", 0))


def answer(
    packet: bytes,
    table: TableView | None,
    policy: Policy = DEFAULT_POLICY,
    moment: Moment = DEFAULT_MOMENT,
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
    options = edns.base_options(query, policy, moment)
    reply = Reply(query, _room(query, policy, moment, len(options)))
    if query.edns is not None and query.edns.version > 0:
        reply.rcode = Rcode.BADVERS
        return reply.message(edns.opt_record(query, policy, Rcode.BADVERS, b""))
    try:
        options += _decide(reply, table, policy, moment)
    except (TableDamaged, LookupError, ValueError):  # a node that says what no loader writes
        on_damage()
        reply = Reply(query, reply.limit, rcode=Rcode.SERVFAIL)
    opt = edns.opt_record(query, policy, reply.rcode, options)
    if moment.encrypted and query.edns is not None and Option.PADDING in query.edns.options:
        options += edns.padding(reply.size + len(opt))
        opt = edns.opt_record(query, policy, reply.rcode, options)
    return reply.message(opt)


def _decide(reply: Reply, table: TableView | None, policy: Policy, moment: Moment) -> bytes:
    """Fill the reply; the options that depend on how that went."""
    query = reply.query
    if not query.question:
        return b""  # asked for a cookie only (RFC 7873 section 5.4)
    if moment.prohibited:
        reply.rcode = Rcode.REFUSED
        return PROHIBITED
    if query.signed:
        reply.rcode = Rcode.NOTAUTH  # we know no key for plain queries
    elif query.class_ == CLASS_CHAOS:
        answer_chaos(reply, policy, moment)
    elif query.class_ != CLASS_IN or query.type in (AXFR, IXFR):
        reply.rcode = Rcode.REFUSED
    elif query.type in (MAILA, MAILB):
        reply.rcode = Rcode.NOTIMP
    elif table is None:
        reply.rcode = Rcode.SERVFAIL
        return NOT_READY
    else:
        resolution = Resolution(reply, table, policy, moment)
        resolution.run()
        if not resolution.ours:
            return NOT_AUTHORITATIVE
        version = b""
        if query.edns is not None and Option.ZONEVERSION in query.edns.options:
            apex = resolution.apex()
            version = edns.zone_version(apex.name, _serial(apex.rrsets[NEGATIVE_SOA].wire))
        return version + (STALE if moment.stale else b"")
    return b""


def _serial(soa: bytes) -> int:
    """Of a stored SOA: its data ends with five 32-bit numbers, the serial first (RFC 1035 section 3.3.13)."""
    return int.from_bytes(soa[-20:-16], "big")


def _bare(packet: bytes, rcode: Rcode) -> bytes:
    """A reply of a header only: nothing behind it can be trusted."""
    identifier, flags, *_ = HEADER.unpack_from(packet)
    return HEADER.pack(identifier, QR | flags & (OPCODE_MASK | RD | CD) | rcode, 0, 0, 0, 0)


def _room(query: Query, policy: Policy, moment: Moment, options: int) -> int:
    """How large the reply may be without its OPT. Room for an option is kept whether or not it comes."""
    if moment.stream:
        limit = 0xFFFF
    elif query.edns is None:
        limit = PLAIN_UDP_SIZE
    else:
        limit = min(max(query.edns.udp_size, PLAIN_UDP_SIZE), policy.max_udp_size)
    if query.edns is None:
        return limit
    if Option.ZONEVERSION in query.edns.options:
        options += ZONE_VERSION_SIZE
    if moment.stale:
        options += len(STALE)
    if moment.encrypted and Option.PADDING in query.edns.options:
        options += edns.PADDING_BLOCK + 4
    return limit - edns.OPT_SIZE - options
