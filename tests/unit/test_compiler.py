"""loader/compiler.py: the rules about one name, and the wire form of nodes."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import compiler, names
from loader._nodes import block
from loader.compiler import Gift, Merged
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import RRset, pack, unpack

A, NS, CNAME, SOA, TXT, DNAME, DS = 1, 2, 5, 6, 16, 39, 43
ZONE = names.from_text("example.test")
WWW = names.from_text("www.example.test")
X, Y = b"\x01x\0", b"\x01y\0"
ONE, TWO, THREE = b"\x01\x01\x01\x01", b"\x02\x02\x02\x02", b"\x03\x03\x03\x03"


def gift(key: str, *content: tuple[int, int, bytes], revision: int = 1, zone: bytes | None = ZONE) -> Gift:
    return (key, revision, zone, *itertools.chain(*content))


def merge(*gifts: Gift, name: bytes = WWW, zone: bytes | None = ZONE) -> Merged:
    return compiler.merge(name, gifts, zone)


def test_several_keys_give_to_one_rrset_in_the_order_of_keys() -> None:
    merged = merge(gift("b", (A, 60, TWO), revision=1), gift("a", (A, 60, THREE), (A, 60, ONE), revision=2))
    assert merged == Merged({A: (60, [THREE, ONE, TWO])})


def test_duplicates_are_removed() -> None:
    assert merge(gift("a", (A, 60, ONE), (A, 60, ONE)), gift("b", (A, 60, ONE))).rrsets == {A: (60, [ONE])}


def test_the_lowest_ttl_is_for_all_and_the_others_are_warned() -> None:
    merged = merge(gift("a", (A, 300, ONE)), gift("b", (A, 60, TWO)), gift("c", (TXT, 300, b"\x01x")))
    assert merged.rrsets == {A: (60, [ONE, TWO]), TXT: (300, [b"\x01x"])}
    assert merged.warnings == {"a": "TTL 300 of A at www.example.test. is lowered to 60, as in b"}


@pytest.mark.parametrize(
    ("older", "newer", "kept", "words"),
    [
        ((CNAME, 60, X), (A, 60, ONE), CNAME, "other data beside a CNAME"),
        ((A, 60, ONE), (CNAME, 60, X), A, "a CNAME beside other data"),
        ((CNAME, 60, X), (CNAME, 60, Y), CNAME, "a second CNAME"),
        ((DNAME, 60, X), (DNAME, 60, Y), DNAME, "a second DNAME"),
        ((CNAME, 60, X), (DNAME, 60, Y), CNAME, "other data beside a CNAME"),
    ],
)
def test_the_newer_key_loses(
    older: tuple[int, int, bytes], newer: tuple[int, int, bytes], kept: int, words: str
) -> None:
    # The older key sorts last, so that its age is what counts.
    pair = [gift("z-old", older, revision=5), gift("a-new", newer, revision=6)]
    for gifts in (pair, pair[::-1]):
        merged = merge(*gifts)
        assert merged.rrsets == {kept: (60, [older[2]])}
        assert set(merged.problems) == {"a-new"}
        assert words in merged.problems["a-new"]
        assert "z-old" in merged.problems["a-new"]
        assert "www.example.test." in merged.problems["a-new"]


def test_within_one_revision_the_key_that_sorts_last_loses() -> None:
    assert set(merge(gift("b", (CNAME, 60, X)), gift("a", (A, 60, ONE))).problems) == {"b"}


def test_the_same_cname_twice_is_one() -> None:
    merged = merge(gift("a", (CNAME, 60, X)), gift("b", (CNAME, 60, X)))
    assert merged == Merged({CNAME: (60, [X])})


def test_a_key_that_contradicts_itself_gives_nothing() -> None:
    merged = merge(gift("a", (CNAME, 60, X), (TXT, 60, b"\x01x")), gift("b", (A, 60, ONE), revision=2))
    assert merged.rrsets == {A: (60, [ONE])}
    assert "in one key" in merged.problems["a"]
    assert "two CNAME" in merge(gift("a", (CNAME, 60, X), (CNAME, 60, Y))).problems["a"]


def test_a_loser_does_not_take_others_with_it() -> None:
    merged = merge(
        gift("a", (CNAME, 60, X), revision=1),
        gift("b", (A, 60, ONE), revision=2),
        gift("c", (CNAME, 60, X), revision=3),
    )
    assert set(merged.problems) == {"b"}


def test_cname_at_the_apex_and_soa_elsewhere() -> None:
    assert "apex" in merge(gift("a", (CNAME, 60, X)), name=ZONE).problems["a"]
    assert "not a zone's apex" in merge(gift("a", (SOA, 60, X + X + bytes(20)))).problems["a"]


def test_an_rrset_stops_growing_at_what_a_message_holds() -> None:
    gifts = [gift(f"{i:04d}", (A, 60, struct.pack(">I", i)), revision=i + 1) for i in range(4100)]
    merged = merge(*gifts)
    assert len(merged.rrsets[A][1]) == 65535 // 16
    assert sorted(merged.problems) == ["4095", "4096", "4097", "4098", "4099"]
    compiler.node(WWW, 0, merged.rrsets)


def test_types_stop_growing_at_what_a_node_holds() -> None:
    merged = merge(*[gift(f"{i:03d}", (1000 + i, 60, b"x"), revision=i + 1) for i in range(260)], name=ZONE)
    assert len(merged.rrsets) == 252
    compiler.apex_node(ZONE, 0, merged.rrsets, 1)


def test_outside_every_zone() -> None:
    assert "outside every zone" in merge(gift("a", (A, 60, ONE), zone=None), zone=None).problems["a"]


def test_the_parent_side_of_an_apex() -> None:
    parent = names.from_text("test")
    above = gift("up", (NS, 60, X), (DS, 60, b"d" * 36), (A, 60, ONE), zone=parent)
    alone = merge(above, name=ZONE)
    assert alone.rrsets == {NS: (60, [X]), DS: (60, [b"d" * 36])}
    own = merge(above, gift("own", (NS, 60, Y)), name=ZONE)
    assert own.rrsets == {NS: (60, [Y]), DS: (60, [b"d" * 36])}
    assert merge(above).rrsets == {}


# ---------------------------------------------------------------- wire form


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=4),
    st.integers(0, 63),
    st.integers(1, 65535),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=60),
)
def test_single_is_node_of_one_rr(labels: list[bytes], flags: int, type_: int, ttl: int, data: bytes) -> None:
    name = names.from_labels(labels)
    wire = b"\xc0\x0c" + struct.pack(">HHIH", type_, 1, ttl, len(data)) + data
    expected = pack(name, flags, [RRset(type_, 1, wire)])
    assert compiler.single(name, flags, type_, ttl, data) == expected
    assert block(name, flags, ("key", 1, None, type_, ttl, data)) == expected
    assert compiler.node(name, flags, {type_: (ttl, [data])}) == expected


def test_rrsets_are_in_the_order_of_types() -> None:
    node = unpack(compiler.node(WWW, 0, {TXT: (1, [b"\x00"]), A: (1, [ONE, TWO])}))
    assert [(type_, rrset.count) for type_, rrset in node.rrsets.items()] == [(A, 2), (TXT, 1)]


def test_apex_node_starts_with_the_negative_soa() -> None:
    node = unpack(compiler.apex_node(ZONE, NodeFlag.WILDCARD_CHILD, {A: (1, [ONE])}, 7))
    assert list(node.rrsets) == [NEGATIVE_SOA, A, NS, SOA]
    assert node.flags == NodeFlag.APEX | NodeFlag.WILDCARD_CHILD
