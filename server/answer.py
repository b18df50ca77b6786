"""The reference answerer: (packet, table, policy, moment) -> packet or nothing. Pure, and complete; the hot path
(server/_answer.pyx) gives the same bytes or declines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from server import edns, tsig
from server.chaos import answer_chaos
from server.message import ANSWER, Reply
from server.policy import DEFAULT_MOMENT, DEFAULT_POLICY, Moment, Policy
from server.query import (
    AA,
    CLASS_ANY,
    CLASS_CHAOS,
    CLASS_IN,
    HEADER,
    IXFR,
    OPCODE_MASK,
    QR,
    RD,
    TC,
    Edns,
    FormatError,
    Option,
    Query,
    Rcode,
    parse,
)
from server.resolve import Resolution, TableView
from shm.errors import TableDamaged
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import unpack

__all__ = ["Moment", "Policy", "answer"]

SOA, AXFR = 6, 252
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
    except FormatError as error:
        return _bare(packet, Rcode.FORMERR, error.edns, policy)
    if query.signed_at and not moment.prohibited:
        return _answer_signed(packet, query, table, policy, moment, on_damage)
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
    if query.class_ == CLASS_CHAOS:
        answer_chaos(reply, policy, moment)
    elif query.type == IXFR and not moment.stream and policy.transfers.permits(moment.address, moment.key):
        _answer_ixfr(reply, table)
    elif query.class_ not in (CLASS_IN, CLASS_ANY) or query.type in (AXFR, IXFR):
        reply.rcode = Rcode.REFUSED
    elif table is None:
        reply.rcode = Rcode.SERVFAIL
        return NOT_READY
    else:
        resolution = Resolution(reply, table, policy, moment)
        resolution.run()
        if query.class_ == CLASS_ANY:
            reply.flags &= ~AA  # we cannot speak for all classes (RFC 1035 section 6.2)
        if not resolution.ours:
            return NOT_AUTHORITATIVE
        version = b""
        if query.edns is not None and Option.ZONEVERSION in query.edns.options:
            apex = resolution.apex()
            version = edns.zone_version(apex.name, _serial(apex.rrsets[NEGATIVE_SOA].wire))
        return version + (STALE if moment.stale else b"")
    return b""


def _answer_signed(
    packet: bytes, query: Query, table: TableView | None, policy: Policy, moment: Moment, on_damage: Callable[[], None]
) -> bytes | None:
    """To a query with a TSIG: as without one, signed. Without a good signature: NOTAUTH (RFC 8945 section 5.2)."""
    try:
        verdict = tsig.check(packet, query.signed_at, policy.keys, moment.now_s)
    except FormatError:
        return _bare(packet, Rcode.FORMERR)
    signer = tsig.Signer(verdict)
    if verdict.error:
        opt = edns.opt_record(query, policy, Rcode.NOTAUTH, edns.base_options(query, policy, moment))
        return signer.sign(Reply(query, 0xFFFF, rcode=Rcode.NOTAUTH).message(opt), moment.now_s)
    signed_by = replace(moment, key=verdict.owner.to_digestable())
    reply = answer(verdict.packet, table, policy, signed_by, on_damage)
    if reply is None:
        return None
    signed = signer.sign(reply, moment.now_s)
    if len(signed) <= _limit(query, policy, moment):
        return signed
    flags = int.from_bytes(reply[2:4], "big") & ~0xF | TC  # RFC 8945 section 5.3: the question, TC, no error
    questions = 1 if query.question else 0
    return signer.sign(HEADER.pack(query.identifier, flags, questions, 0, 0, 0) + query.question, moment.now_s)


def _answer_ixfr(reply: Reply, table: TableView | None) -> None:
    """Over UDP: our SOA alone. A client that finds it newer comes by TCP (RFC 1995 section 4)."""
    block = None if table is None else table.find(reply.query.name)
    node = None if block is None else unpack(block)
    if table is None:
        reply.rcode = Rcode.SERVFAIL
    elif reply.query.class_ != CLASS_IN or node is None or not node.flags & NodeFlag.APEX:
        reply.rcode = Rcode.NOTAUTH
    else:
        reply.flags |= AA
        reply.truncated = reply.add(ANSWER, node.rrsets[SOA], HEADER.size) is None


def _serial(soa: bytes) -> int:
    """Of a stored SOA: its data ends with five 32-bit numbers, the serial first (RFC 1035 section 3.3.13)."""
    return int.from_bytes(soa[-20:-16], "big")


def _bare(packet: bytes, rcode: Rcode, asked: Edns | None = None, policy: Policy = DEFAULT_POLICY) -> bytes:
    """A reply of a header only: nothing behind it can be trusted, but for an OPT that is known to be good."""
    identifier, flags, *_ = HEADER.unpack_from(packet)
    opt = edns.opt_for(asked, policy, rcode, b"")
    return HEADER.pack(identifier, QR | flags & (OPCODE_MASK | RD) | rcode, 0, 0, 0, bool(opt)) + opt


def _room(query: Query, policy: Policy, moment: Moment, options: int) -> int:
    """How large the reply may be without its OPT. Room for an option is kept whether or not it comes."""
    limit = _limit(query, policy, moment)
    if query.edns is None:
        return limit
    if Option.ZONEVERSION in query.edns.options:
        options += ZONE_VERSION_SIZE
    if moment.stale:
        options += len(STALE)
    if moment.encrypted and Option.PADDING in query.edns.options:
        options += edns.PADDING_BLOCK + 4
    return limit - edns.OPT_SIZE - options


def _limit(query: Query, policy: Policy, moment: Moment) -> int:
    """How large the message may be."""
    if moment.stream:
        return 0xFFFF
    if query.edns is None:
        return PLAIN_UDP_SIZE
    return min(max(query.edns.udp_size, PLAIN_UDP_SIZE), policy.max_udp_size)
