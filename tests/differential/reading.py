"""A reply as what can be compared: flags, rcode, sections as sets of RRs with names written out in lower case, EDNS."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields

_RR = struct.Struct("!HHIH")
_OPT, _COOKIE = 41, 10
#: Offsets of the names in data that may be compressed (RFC 1035, RFC 3597 section 4), or differ in case.
_NAMES_AT = {2: (0, 1), 5: (0, 1), 6: (0, 2), 12: (0, 1), 15: (2, 1), 39: (0, 1), 33: (6, 1), 17: (0, 2), 18: (2, 1)}


@dataclass(frozen=True, slots=True)
class Reading:
    """What servers are compared by, part by part. A section is a set of `owner type class ttl data`, in hexadecimal."""

    answered: bool = False
    opcode: int = 0
    rcode: int = 0
    aa: bool = False
    tc: bool = False
    rd: bool = False
    ra: bool = False
    ad: bool = False
    cd: bool = False
    z: bool = False
    question: bytes = b""
    answer: frozenset[str] = frozenset()
    authority: frozenset[str] = frozenset()
    additional: frozenset[str] = frozenset()
    edns: int = -1
    dnssec_ok: bool = False
    size: int = 0
    options: frozenset[str] = frozenset()
    broken: bool = False  # it does not hold what its header counts


FIELDS = tuple(field.name for field in fields(Reading))
SILENCE = Reading()


def read(reply: bytes | None) -> Reading:
    if reply is None:
        return SILENCE
    try:
        return _read(reply)
    except (ValueError, IndexError, struct.error):
        return Reading(True, reply[2] >> 3 & 15, reply[3] & 15, broken=True)


def _read(reply: bytes) -> Reading:
    _, flags, questions, *counts = struct.unpack_from("!HHHHHH", reply)
    at = 12
    for _ in range(questions):
        _, at = _name(reply, at)
        at += 4
    question = reply[12:at]
    sections: list[set[str]] = []
    edns, size, extended, dnssec_ok, options = -1, 0, 0, False, frozenset[str]()
    for count in counts:
        section: set[str] = set()
        for _ in range(count):
            owner, at = _name(reply, at)
            type_, class_, ttl, length = _RR.unpack_from(reply, at)
            at += _RR.size
            if type_ == _OPT:
                edns, size, extended, dnssec_ok = ttl >> 16 & 0xFF, class_, ttl >> 24, bool(ttl & 0x8000)
                options = _options(reply[at : at + length])
            else:
                section.add(f"{owner.hex()} {type_} {class_} {ttl} {_data(reply, at, type_, length).hex()}")
            at += length
        sections.append(section)
    if at != len(reply):
        raise ValueError("bytes behind the last record")
    answer, authority, additional = map(frozenset, sections)
    return Reading(
        True, flags >> 11 & 15, extended << 4 | flags & 15,
        bool(flags & 0x400), bool(flags & 0x200), bool(flags & 0x100), bool(flags & 0x80), bool(flags & 0x20),
        bool(flags & 0x10), bool(flags & 0x40),
        question, answer, authority, additional, edns, dnssec_ok, size, options,
    )  # fmt: skip


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name in lower case, written out, and the offset behind it."""
    parts: list[bytes] = []
    behind = 0
    for _ in range(256):
        length = message[at]
        if length >= 0xC0:
            behind = behind or at + 2
            at = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            continue
        parts.append(message[at : at + 1 + length].lower())
        at += 1 + length
        if not length:
            return b"".join(parts), behind or at
    raise ValueError("a name without end")


def _data(message: bytes, at: int, type_: int, length: int) -> bytes:
    before, names = _NAMES_AT.get(type_, (0, 0))
    end = at + length
    parts = [message[at : at + before]]
    at += before
    for _ in range(names):
        name, at = _name(message, at)
        parts.append(name)
    return b"".join(parts) + message[at:end]


def _options(data: bytes) -> frozenset[str]:
    """Code and data; of a cookie the client's part only: the rest has a time in it."""
    options, at = set(), 0
    while at < len(data):
        code, length = struct.unpack_from("!HH", data, at)
        value = data[at + 4 : at + 4 + length]
        options.add(f"{code} {value[:8].hex() if code == _COOKIE else value.hex()}")
        at += 4 + length
    return frozenset(options)
