"""Node blocks as Python values: the loader packs them, the reference answerer unpacks them. Format: shm/layout.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shm.layout import DIRECTORY_ENTRY, NODE_HEADER

#: An RRset's wire form may not outgrow a DNS message; the directory's length field is 16 bits wide.
MAX_RRSET = 0xFFFF


class NodeError(ValueError):
    """A name or RRset that the format cannot hold."""


@dataclass(frozen=True, slots=True)
class RRset:
    """`count` RRs of one type, in wire form behind owner pointers 0xC00C."""

    type: int
    count: int
    wire: bytes


@dataclass(frozen=True, slots=True)
class Node:
    """All that the table knows of one owner name."""

    name: bytes
    flags: int
    rrsets: dict[int, RRset] = field(default_factory=dict)


def pack(name: bytes, flags: int, rrsets: Iterable[RRset]) -> bytes:
    """A node block for `name` (wire form, lower case). Raises NodeError for a name or an RRset that is too long."""
    sets = list(rrsets)
    if not 1 <= len(name) <= 255:
        raise NodeError(f"a name has 1 to 255 bytes in wire form, not {len(name)}")
    if len(sets) > 255:
        raise NodeError(f"a name holds at most 255 types, not {len(sets)}")
    parts = [name]
    for rrset in sets:
        if len(rrset.wire) > MAX_RRSET:
            raise NodeError(f"an RRset has at most {MAX_RRSET} bytes in wire form, not {len(rrset.wire)}")
        parts.append(DIRECTORY_ENTRY.pack(rrset.type, rrset.count, len(rrset.wire)))
    parts += [rrset.wire for rrset in sets]
    body = b"".join(parts)
    size = NODE_HEADER.size + len(body)
    units = -(-size // 8)
    return NODE_HEADER.pack(units, len(name), len(sets), flags) + body + bytes(units * 8 - size)


def unpack(block: bytes) -> Node:
    """The inverse of `pack`. Raises NodeError if name, directory or RRsets reach beyond the block."""
    try:
        _, name_length, types, flags = NODE_HEADER.unpack_from(block)
        start = NODE_HEADER.size + name_length
        at = start + types * DIRECTORY_ENTRY.size
        rrsets = {}
        for i in range(types):
            type_, count, length = DIRECTORY_ENTRY.unpack_from(block, start + i * DIRECTORY_ENTRY.size)
            rrsets[type_] = RRset(type_, count, bytes(block[at : at + length]))
            at += length
    except Exception as error:
        raise NodeError(f"not a node block: {error}") from error
    if at > len(block):
        raise NodeError("a node block's RRsets reach beyond it")
    return Node(bytes(block[NODE_HEADER.size : start]), flags, rrsets)


def name_of(block: bytes) -> bytes:
    """The name of a node block, which is not checked."""
    return block[NODE_HEADER.size : NODE_HEADER.size + block[4]]


def flags_of(block: bytes) -> int:
    """Its NodeFlags."""
    flags: int = NODE_HEADER.unpack_from(block)[3]
    return flags


def types_of(block: bytes) -> list[int]:
    """The types of its RRsets; none for an empty non-terminal."""
    start = NODE_HEADER.size + block[4]
    return [
        type_ for type_, _, _ in DIRECTORY_ENTRY.iter_unpack(block[start : start + block[5] * DIRECTORY_ENTRY.size])
    ]
