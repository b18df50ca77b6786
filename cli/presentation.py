"""Names and RRsets as text (RFC 1035 section 5.1). Imports dnspython: for commands that show records, when they do."""

from __future__ import annotations

import struct

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from shm.layout import OWNER_POINTER
from shm.node import RRset

_FIXED = struct.Struct("!2sHHIH")  # owner pointer, type, class, TTL, RDLENGTH


def parse_name(text: str) -> bytes:
    """Lower-case wire form of a name as people write it, absolute or not. Raises ValueError."""
    try:
        return dns.name.from_text(text, dns.name.root).canonicalize().to_wire() or b""
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} is not a domain name: {error}") from None


def parse_type(text: str) -> int:
    """Number of a type: a mnemonic, TYPE123, or ANY. Raises ValueError."""
    try:
        return int(dns.rdatatype.from_text(text))
    except (dns.exception.DNSException, ValueError):
        raise ValueError(f"{text!r} is not a record type, as A, AAAA, SRV or TYPE65 are") from None


def type_text(number: int) -> str:
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(number))


def name_text(name: bytes) -> str:
    """The name with its final dot."""
    return dns.name.from_wire(name, 0)[0].to_text()


def records(rrset: RRset) -> list[tuple[int, str]]:
    """TTL and RDATA text of each RR. Raises ValueError if the wire form is broken."""
    found, at = [], 0
    try:
        while at < len(rrset.wire):
            owner, type, rdclass, ttl, length = _FIXED.unpack_from(rrset.wire, at)
            if owner != OWNER_POINTER:
                raise ValueError(f"RR at {at} has no owner pointer")
            at += _FIXED.size
            data = dns.rdata.from_wire(rdclass, type, rrset.wire, at, length)
            found.append((ttl, data.to_text()))
            at += length
    except (struct.error, dns.exception.DNSException) as error:
        raise ValueError(f"RRset of type {type_text(rrset.type)} is broken at byte {at}: {error}") from error
    return found
