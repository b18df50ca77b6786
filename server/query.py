"""Packets as the reference answerer sees them: pure parsing, RFC 1035 section 4, RFC 6891."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEADER = struct.Struct("!HHHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RR_FIXED = struct.Struct("!HHIH")

QR = 0x8000
AA = 0x0400
TC = 0x0200
RD = 0x0100
OPCODE_MASK = 0x7800

CLASS_IN = 1
CLASS_CHAOS = 3
CLASS_ANY = 255
TYPE_OPT = 41
TYPE_TSIG = 250
IXFR = 251


class Rcode(enum.IntEnum):
    """RFC 1035 section 4.1.1, RFC 6891 section 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    NOTAUTH = 9
    BADVERS = 16


class Option(enum.IntEnum):
    """EDNS options that we know."""

    NSID = 3  # RFC 5001
    COOKIE = 10  # RFC 7873, 9018
    KEEPALIVE = 11  # RFC 7828
    PADDING = 12  # RFC 7830
    EXTENDED_ERROR = 15  # RFC 8914
    ZONEVERSION = 19  # RFC 9660


class FormatError(ValueError):
    """The packet breaks the message format: FORMERR. `edns`: what its OPT said, if everything else was in order."""

    edns: Edns | None = None


@dataclass(frozen=True, slots=True)
class Edns:
    """What the query's OPT says. Of an option that comes twice the first counts."""

    udp_size: int
    version: int
    dnssec_ok: bool
    options: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Query:
    """A well-formed question. `name` is lower case, `question` the section's bytes as received.

    A query without a question has an empty name: only a COOKIE makes sense of it (RFC 7873 section 5.4).
    """

    identifier: int
    flags: int
    name: bytes
    type: int
    class_: int
    question: bytes
    edns: Edns | None
    signed_at: int = 0  # where a TSIG, its last record, begins; 0 = it has none
    serial: int | None = None  # of an IXFR's SOA


def parse(packet: bytes) -> Query:
    """A standard query with one question at most. Raises FormatError."""
    identifier, flags, questions, answers, authorities, additionals = HEADER.unpack_from(packet)
    if questions > 1:
        raise FormatError("one question is what we answer (RFC 9619)")
    if answers:
        raise FormatError("a query has no answer section")
    name, type_, class_, at = b"", 0, CLASS_IN, HEADER.size
    if questions:
        end = _skip_name(packet, at, pointers=False)
        if end + 4 > len(packet):
            raise FormatError("the question ends early")
        name = packet[at:end].lower()
        type_, class_ = _TYPE_CLASS.unpack_from(packet, end)
        at = end + 4
    question = packet[HEADER.size : at]
    if authorities and (type_ != IXFR or authorities > 1):
        raise FormatError("a query has no authority section, but for an IXFR's SOA")
    serial = None
    if authorities:
        at, _, data = _record(packet, at)
        serial = int.from_bytes(data[-20:-16], "big")
    edns, signed_at = None, 0
    for i in range(additionals):
        start = at
        root = at < len(packet) and packet[at] == 0
        at, fixed, data = _record(packet, at)
        signed_at = start if fixed[0] == TYPE_TSIG else 0
        if signed_at and i != additionals - 1:
            raise FormatError("a TSIG record is the last one (RFC 8945 section 5.1)")
        if fixed[0] != TYPE_OPT:
            continue
        if edns is not None:
            raise FormatError("two OPT records (RFC 6891 section 6.1.1)")
        if not root:
            raise FormatError("an OPT record's owner is the root (RFC 6891 section 6.1.2)")
        edns = _edns(fixed[1], fixed[2], data)
    if at != len(packet):
        raise FormatError("bytes after the last record")
    if not questions and (edns is None or Option.COOKIE not in edns.options):
        error = FormatError("no question, and no cookie to ask about")
        error.edns = edns
        raise error
    return Query(identifier, flags, name, type_, class_, question, edns, signed_at, serial)


def _skip_name(packet: bytes, at: int, *, pointers: bool) -> int:
    """Offset behind the name at `at`."""
    start = at
    while True:
        if at >= len(packet):
            raise FormatError("a name ends early")
        length = packet[at]
        if length == 0:
            break
        if length >= 0xC0 and pointers:
            if at + 1 >= len(packet):
                raise FormatError("a name ends early")
            return at + 2
        if length > 63:
            raise FormatError("a label is too long, or a pointer where none may be")
        at += 1 + length
        if at - start > 254:
            raise FormatError("a name is longer than 255 bytes")
    return at + 1


def _record(packet: bytes, at: int) -> tuple[int, tuple[int, int, int], bytes]:
    """Offset behind a record; its type, class and TTL; its data."""
    at = _skip_name(packet, at, pointers=True)
    if at + _RR_FIXED.size > len(packet):
        raise FormatError("a record ends early")
    type_, class_, ttl, length = _RR_FIXED.unpack_from(packet, at)
    at += _RR_FIXED.size
    if at + length > len(packet):
        raise FormatError("a record's data ends early")
    return at + length, (type_, class_, ttl), packet[at : at + length]


def _edns(class_: int, ttl: int, data: bytes) -> Edns:
    options: dict[int, bytes] = {}
    for code, value in _options(data):
        options.setdefault(code, value)
    edns = Edns(class_, ttl >> 16 & 0xFF, bool(ttl & 0x8000), options)
    if edns.version == 0:
        _check_known(options)
    return edns


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Options are code, length, data (RFC 6891 section 6.1.2)."""
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 4 > len(data) or end > len(data):
            raise FormatError("an EDNS option ends early")
        yield int.from_bytes(data[at : at + 2], "big"), data[at + 4 : end]
        at = end


def _check_known(options: dict[int, bytes]) -> None:
    """Known options have the length that a query may give them; unknown ones are ignored."""
    cookie = options.get(Option.COOKIE)
    if cookie is not None and len(cookie) != 8 and not 16 <= len(cookie) <= 40:
        raise FormatError("a cookie of a length that none has (RFC 7873 section 5.2.2)")
    if options.get(Option.ZONEVERSION):
        raise FormatError("a ZONEVERSION request has no data (RFC 9660 section 3.1)")
