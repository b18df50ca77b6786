"""Record data: a type's name and text as in a zone file -> wire form, uncompressed.

A, AAAA, CNAME, NS, PTR, DNAME and TXT are done here, for speed; every other type is dnspython's. Types without an
implementation take RFC 3597 syntax: the type `TYPE65280`, the data `\\# 4 0a000001`.

Names in data are relative to the zone unless they end in a dot, as in a zone file: `web1` in zone example.test is
web1.example.test. They keep their case.
"""

from __future__ import annotations

import re
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton  # two parsers; no sockets here

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from loader import names
from loader.model import Reject
from shm.node import MAX_RRSET

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, DNAME, DS = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39, 43

#: With the 12 octets in front of it, it fits into an RRset as the table has it: one that does not is cut nowhere.
MAX_RDATA = MAX_RRSET - 12
#: One character-string of TXT (RFC 1035 section 3.3).
MAX_STRING = 255

#: What stands for one octet of it in a zone file.
_UNIT = re.compile(r"\\[0-9]{3}|\\?.", re.DOTALL)

#: Not data of a zone: OPT (41), and the range of query and meta types (RFC 6895 section 3.1).
_META = frozenset((41, *range(128, 256)))

_NAME_ONLY = frozenset((NS, CNAME, PTR, DNAME))


@lru_cache(maxsize=1024)
def type_number(name: str) -> int:
    """The number of a type's name, in either case, or of `TYPE123`. Raises Reject if it cannot stand in a zone."""
    try:
        # dnspython takes `-` for the `_` of its enum's members; no type's name has an underscore.
        number = int(dns.rdatatype.from_text(name)) if "_" not in name else 0
    except (dns.exception.DNSException, ValueError):
        number = 0
    if not 1 <= number <= 0xFFFF:
        raise Reject(f"{names.shown(name)} is not a record type")
    if not storable(number):
        raise Reject(f"{names.shown(name)} is not a type that a zone can hold")
    return number


def storable(number: int) -> bool:
    """Whether a type is data at all."""
    return 1 <= number <= 0xFFFF and number not in _META


@lru_cache(maxsize=1024)
def type_name(number: int) -> str:
    """The name of a type, `TYPE123` if it has none."""
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(number))


def from_text(type_: int, text: str, zone: bytes) -> bytes:
    """The wire form of `text` as data of this type; `zone` is the origin of relative names. Raises Reject."""
    if type_ == A:
        return ipv4(text)
    if type_ == AAAA:
        return ipv6(text)
    if text.startswith("\\#"):
        return _general(type_, text, zone)
    if type_ == TXT:
        return _general(TXT, text, zone) if text.startswith('"') else txt([text])
    if type_ in _NAME_ONLY:
        try:
            return names.from_text(text, zone, fold=False)
        except names.BadName as error:
            raise Reject(f"{type_name(type_)} {error}") from None
    return _general(type_, text, zone)


def ipv4(text: str) -> bytes:
    """The four octets of an address in dotted decimal. Raises Reject."""
    try:
        return inet_pton(AF_INET, text)
    except (OSError, ValueError):  # ValueError: a NUL inside
        raise Reject(f"{names.shown(text)} is not an IPv4 address") from None


def ipv6(text: str) -> bytes:
    """The sixteen octets of an address (RFC 4291 section 2.2). Raises Reject."""
    try:
        return inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        raise Reject(f"{names.shown(text)} is not an IPv6 address") from None


def address(text: str) -> tuple[int, bytes]:
    """(A or AAAA, octets) of an address of either family. Raises Reject."""
    try:
        return (AAAA, inet_pton(AF_INET6, text)) if ":" in text else (A, inet_pton(AF_INET, text))
    except (OSError, ValueError):
        raise Reject(f"{names.shown(text)} is neither an IPv4 nor an IPv6 address") from None


def txt(strings: list[str]) -> bytes:
    """TXT data of these strings, taken literally, in UTF-8; a longer one is split every 255 octets. Raises Reject."""
    parts: list[bytes] = []
    for string in strings:
        raw = string.encode()
        for at in range(0, len(raw) or 1, MAX_STRING):
            piece = raw[at : at + MAX_STRING]
            parts += (bytes((len(piece),)), piece)
    if not parts:
        raise Reject("TXT needs at least one string")
    return _bounded(TXT, b"".join(parts))


def cut(text: str) -> list[str]:
    """A character-string as a zone file has it, without its quotes, in pieces of 255 octets: CoreDNS and PowerDNS take
    longer ones. At least one."""
    if not text.isascii():
        octets = text.encode("utf-8", "surrogateescape")
        text = "".join(chr(octet) if octet < 0x80 else f"\\{octet:03d}" for octet in octets)
    units = _UNIT.findall(text)
    return ["".join(units[at : at + MAX_STRING]) for at in range(0, len(units) or 1, MAX_STRING)]


def _general(type_: int, text: str, zone: bytes) -> bytes:
    if "\n" in text or "\r" in text:
        raise Reject(f"{type_name(type_)} data is one line, not several")
    try:
        parsed = dns.rdata.from_text(
            dns.rdataclass.IN,
            dns.rdatatype.RdataType.make(type_),
            text,
            origin=_origin(zone),
            relativize=False,
        )
        wire = parsed.to_wire()
    except Exception as error:
        # dnspython's parsers raise whatever their conversions do (ValueError, binascii.Error, struct.error, ...).
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Reject(f"{type_name(type_)} {names.shown(text)}: {reason}") from None
    assert wire is not None  # it is None only when written to a file
    return _bounded(type_, wire)


@lru_cache(maxsize=256)
def _origin(zone: bytes) -> dns.name.Name:
    return dns.name.Name([*names.labels(zone), b""])


def _bounded(type_: int, wire: bytes) -> bytes:
    if len(wire) > MAX_RDATA:
        raise Reject(f"{type_name(type_)} data has at most {MAX_RDATA} octets, not {len(wire)}")
    return wire
