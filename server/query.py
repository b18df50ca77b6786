"""Packets as the reference answerer sees them: pure parsing, RFC 1035 section 4, RFC 6891."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER = struct.Struct("!HHHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RR_FIXED = struct.Struct("!HHIH")

QR = 0x8000
AA = 0x0400
TC = 0x0200
RD = 0x0100
CD = 0x0010
OPCODE_MASK = 0x7800

CLASS_IN = 1
TYPE_OPT = 41


class Rcode(enum.IntEnum):
    """RFC 1035 section 4.1.1, RFC 6891 section 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class FormatError(ValueError):
    """The packet breaks the message format: FORMERR."""


@dataclass(frozen=True, slots=True)
class Edns:
    """What the query's OPT says."""

    udp_size: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A well-formed question. `name` is lower case, `question` the section's bytes as received."""

    identifier: int
    flags: int
    name: bytes
    type: int
    class_: int
    question: bytes
    edns: Edns | None


def parse(packet: bytes) -> Query:
    """A standard query with one question. Raises FormatError."""
    identifier, flags, questions, answers, authorities, additionals = HEADER.unpack_from(packet)
    if questions != 1:
        raise FormatError("one question is what we answer")
    if answers or authorities:
        raise FormatError("a query has no answer and no authority section")
    end = _skip_name(packet, HEADER.size, pointers=False)
    if end + 4 > len(packet):
        raise FormatError("the question ends early")
    name = packet[HEADER.size : end].lower()
    type_, class_ = _TYPE_CLASS.unpack_from(packet, end)
    at = end + 4
    edns = None
    for _ in range(additionals):
        at, opt = _additional(packet, at)
        if opt is not None:
            if edns is not None:
                raise FormatError("two OPT records (RFC 6891 section 6.1.1)")
            edns = opt
    if at != len(packet):
        raise FormatError("bytes after the last record")
    return Query(identifier, flags, name, type_, class_, packet[HEADER.size : end + 4], edns)


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


def _additional(packet: bytes, at: int) -> tuple[int, Edns | None]:
    """Offset behind a record of the additional section, and what it says if it is an OPT."""
    root = at < len(packet) and packet[at] == 0
    at = _skip_name(packet, at, pointers=True)
    if at + _RR_FIXED.size > len(packet):
        raise FormatError("a record ends early")
    type_, class_, ttl, length = _RR_FIXED.unpack_from(packet, at)
    at += _RR_FIXED.size
    if at + length > len(packet):
        raise FormatError("a record's data ends early")
    if type_ != TYPE_OPT:
        return at + length, None
    if not root:
        raise FormatError("an OPT record's owner is the root (RFC 6891 section 6.1.2)")
    _check_options(packet[at : at + length])
    return at + length, Edns(udp_size=class_, version=ttl >> 16 & 0xFF, dnssec_ok=bool(ttl & 0x8000))


def _check_options(data: bytes) -> None:
    """Options are code, length, data (RFC 6891 section 6.1.2); unknown ones are ignored."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise FormatError("an EDNS option ends early")
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    if at != len(data):
        raise FormatError("an EDNS option's data ends early")
