"""Node blocks: what is packed comes back, and what cannot be packed or unpacked is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.layout import DIRECTORY_ENTRY, NODE_HEADER
from shm.node import MAX_RRSET, NodeError, RRset, pack, unpack

rrsets = st.dictionaries(
    st.integers(0, 0xFFFF), st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=300)), max_size=20
).map(lambda sets: [RRset(type_, count, wire) for type_, (count, wire) in sets.items()])


@given(st.binary(min_size=1, max_size=255), st.integers(0, 0xFFFF), rrsets)
def test_round_trip(name: bytes, flags: int, sets: list[RRset]) -> None:
    block = pack(name, flags, sets)
    assert len(block) % 8 == 0
    assert len(block) == 8 * NODE_HEADER.unpack_from(block)[0]
    node = unpack(block)
    assert (node.name, node.flags) == (name, flags)
    assert list(node.rrsets.values()) == sets
    assert list(node.rrsets) == [rrset.type for rrset in sets]


@given(st.binary(max_size=200))
def test_junk_is_refused_or_lies_inside(junk: bytes) -> None:
    try:
        node = unpack(junk)
    except NodeError:
        return
    assert len(node.name) + sum(len(rrset.wire) for rrset in node.rrsets.values()) <= len(junk)


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 9, 20])
def test_a_block_cut_short_is_refused(cut: int) -> None:
    block = pack(b"\x01a\x00", 0, [RRset(1, 1, bytes(16))])
    with pytest.raises(NodeError):
        unpack(block[:cut])


def test_the_largest_rrset() -> None:
    wire = bytes(MAX_RRSET)
    assert unpack(pack(b"\x00", 0, [RRset(16, 4000, wire)])).rrsets[16].wire == wire
    with pytest.raises(NodeError, match="65535"):
        pack(b"\x00", 0, [RRset(16, 1, wire + b"\0")])


@pytest.mark.parametrize("name", [b"", bytes(256)])
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(NodeError, match="1 to 255"):
        pack(name, 0, [])


def test_too_many_types() -> None:
    pack(b"\x00", 0, [RRset(type_, 1, b"") for type_ in range(255)])
    with pytest.raises(NodeError, match="255 types"):
        pack(b"\x00", 0, [RRset(type_, 1, b"") for type_ in range(256)])


def test_a_directory_that_reaches_beyond_the_block() -> None:
    block = bytearray(pack(b"\x00", 0, [RRset(1, 1, bytes(7))]))
    at = NODE_HEADER.size + 1
    block[at : at + DIRECTORY_ENTRY.size] = DIRECTORY_ENTRY.pack(1, 1, 5000)
    with pytest.raises(NodeError, match="beyond"):
        unpack(bytes(block))
