"""Serials inside the node blocks of apexes. Pure.

An apex has its SOA twice: as type SOA, and as NEGATIVE_SOA for negative answers. The data of both ends with five 32-bit
numbers, the serial first (RFC 1035 section 3.3.13).
"""

from __future__ import annotations

import sys
from typing import TypeGuard

from loader.rdata import SOA
from shm.layout import DIRECTORY_ENTRY, NEGATIVE_SOA, NODE_HEADER, NodeFlag

#: Where in a node block the low byte of the flags is.
_FLAGS_AT = 6 if sys.byteorder == "little" else 7
#: A member of NodeFlag costs a microsecond for each `&`, and every change is asked.
_APEX = int(NodeFlag.APEX)


def is_apex(block: bytes | None) -> TypeGuard[bytes]:
    """Whether a name is a zone's apex."""
    return block is not None and bool(block[_FLAGS_AT] & _APEX)


def serial(block: bytes) -> int:
    """The serial of the zone of this apex; 0 if it has no SOA."""
    for end in _soa_ends(block):
        return int.from_bytes(block[end - 20 : end - 16], "big")
    return 0


def with_serial(block: bytes, number: int) -> bytes:
    """The apex with another serial, 0..2**32-1."""
    changed = bytearray(block)
    for end in _soa_ends(block):
        changed[end - 20 : end - 16] = number.to_bytes(4, "big")
    return bytes(changed)


def same_but_serial(one: bytes, other: bytes) -> bool:
    """Whether two apexes differ in nothing but the serial."""
    return len(one) == len(other) and with_serial(one, serial(other)) == other


def _soa_ends(block: bytes) -> list[int]:
    start = NODE_HEADER.size + block[4]
    end = start + block[5] * DIRECTORY_ENTRY.size
    ends = []
    for type_, _, length in DIRECTORY_ENTRY.iter_unpack(block[start:end]):
        end += length
        if type_ in (SOA, NEGATIVE_SOA):
            ends.append(end)
    return ends
