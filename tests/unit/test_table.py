"""One table against a dict: put, replace, delete, find, blocks, over sizes from nothing to 60 KB."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shm import layout
from shm._table import Table
from shm.errors import TableDamaged, TableFull
from shm.node import pack, unpack
from tests.support.tables import block, make_table, rrset

NAMES = [b"\x02n" + bytes([48 + i]) + b"\x04test\x00" for i in range(40)] + [b"\x00", b"\x01a" * 127 + b"\x00"]
SIZES = st.one_of(
    st.integers(0, 64), st.integers(0, 1100), st.sampled_from([1000, 1024, 1025, 2048, 4097, 30_000, 60_000])
)


def content(table: Table) -> dict[bytes, bytes]:
    """Name -> what its node says, without the padding of its place."""
    return {unpack(one).name: canonical(one) for one in table.blocks()}


def canonical(one: bytes | None) -> bytes:
    assert one is not None
    node = unpack(one)
    return pack(node.name, node.flags, node.rrsets.values())


class TableAgainstDict(RuleBasedStateMachine):
    """A table small enough to fill up, so that TableFull is one of the things that happen."""

    @initialize(
        seed=st.integers(0, 2**64 - 1), size=st.sampled_from([200_000, 400_000]), names=st.sampled_from([10, 60])
    )
    def start(self, seed: int, size: int, names: int) -> None:
        self.table = make_table([], size=size, names=names, seed=seed)
        self.model: dict[bytes, bytes] = {}

    @rule(name=st.sampled_from(NAMES), size=SIZES, fill=st.binary(min_size=1, max_size=1), flags=st.integers(0, 63))
    def put(self, name: bytes, size: int, fill: bytes, flags: int) -> None:
        one = block(name, size, fill, flags)
        before = self.table.used
        try:
            self.table.put(one)
        except TableFull:
            assert self.table.used == before
            return
        self.model[name] = one

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: bytes) -> None:
        assert self.table.delete(name) == (name in self.model)
        self.model.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def find(self, name: bytes) -> None:
        found = self.table.find(name)
        if name in self.model:
            assert canonical(found) == self.model[name]
        else:
            assert found is None

    @precondition(lambda self: len(self.model) > 0)
    @rule()
    def empty_it(self) -> None:
        for name in list(self.model):
            assert self.table.delete(name)
        self.model.clear()
        assert list(self.table.blocks()) == []

    @rule()
    def copy(self) -> None:
        other = make_table([], size=800_000, names=100, seed=99)
        other.copy_from(self.table)
        assert content(other) == self.model

    @invariant()
    def same(self) -> None:
        if hasattr(self, "table"):
            assert self.table.names == len(self.model)
            assert content(self.table) == self.model


TestTable = TableAgainstDict.TestCase
TestTable.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


def index_entries(raw: bytearray) -> list[tuple[int, int]]:
    """(tag, offset) of every entry."""
    at = layout.header_offsets()
    (start,) = struct.unpack_from("=Q", raw, at["index_offset"])
    (slots,) = struct.unpack_from("=Q", raw, at["index_slots"])
    return [layout.INDEX_ENTRY.unpack_from(raw, start + 8 * i) for i in range(slots)]


@pytest.mark.parametrize("seed", range(8))
def test_deletion_shifts_back_among_colliding_homes(seed: int) -> None:
    """At the index's fullest, in a small index: runs that wrap around its end, deleted in any order."""
    chance = random.Random(seed)
    buffer = bytearray(300_000)
    Table.format(buffer, 1, seed, 1, {})  # 64 index entries, the fewest there are
    table = Table(buffer, writable=True)
    names = [b"\x04%04d\x00" % i for i in range(48)]
    for name in names:
        table.put(block(name, 8))
    with pytest.raises(TableFull, match="index"):
        table.put(block(b"\x04more\x00", 8))
    entries = index_entries(buffer)
    homes = [(tag * len(entries)) >> 32 for tag, offset in entries if offset]
    assert len(set(homes)) < len(homes), "no two names share a home: this test tests nothing"
    chance.shuffle(names)
    while names:
        gone = names.pop()
        assert table.delete(gone)
        assert table.find(gone) is None
        assert all(table.find(name) is not None for name in names)
    assert not any(offset for _, offset in index_entries(buffer))


def test_a_freed_place_is_used_again() -> None:
    table = make_table([])
    for size in (0, 40, 1000, 1100, 5000, 60_000):
        one = block(b"\x01a\x00", size)
        table.put(one)
        used = table.used
        for _ in range(100):
            table.put(one)  # replaced: two places in turn, never a third
        assert table.used == used
        assert table.delete(b"\x01a\x00")


def test_full_heap_leaves_the_table_as_it_was() -> None:
    table = make_table([], size=200_000, names=60)
    kept = {b"\x02%02d\x00" % i: block(b"\x02%02d\x00" % i, 20_000) for i in range(4)}
    for one in kept.values():
        table.put(one)
    for name in (b"\x03new\x00", b"\x0200\x00"):
        with pytest.raises(TableFull, match="heap"):
            table.put(block(name, 60_000, b"\x02"))
    assert content(table) == kept
    assert table.names == 4


@pytest.mark.parametrize("spare", [0, 8, 16, 24, 56])
def test_the_heap_is_used_to_its_last_byte_and_no_further(spare: int) -> None:
    """A block may end where the segment ends."""
    one = block(b"\x02aa\x00", 40)
    heap = layout.TABLE_HEADER_SIZE + layout.META_SIZE + 8 * 64
    buffer = bytearray(heap + 10 * len(one) + spare)
    Table.format(buffer, 1, 1, 1, {})
    table = Table(buffer, writable=True)
    for i in range(10):
        table.put(block(b"\x02%02d\x00" % i, 40))
    with pytest.raises(TableFull, match="heap"):
        table.put(one)
    (end,) = struct.unpack_from("=Q", buffer, layout.header_offsets()["heap_end"])
    assert end == len(buffer) - spare
    assert table.names == 10


def test_copy_into_a_table_that_is_too_small() -> None:
    source = make_table([block(b"\x02%02d\x00" % i, 20_000) for i in range(10)])
    with pytest.raises(TableFull):
        make_table([], size=150_000, names=20).copy_from(source)
    assert source.names == 10


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"1234567",
        bytes(8),
        bytes(16),
        block(b"\x01a\x00") + bytes(8),
        block(b"\x01a\x00")[:-8],
        block(b"\x01a\x00", 100)[:-8],
    ],
)
def test_what_is_not_a_node_block_is_refused(junk: bytes) -> None:
    table = make_table([block(b"\x01a\x00")])
    with pytest.raises(ValueError, match="not a"):
        table.put(junk)
    assert table.names == 1


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"a",
        b"\x01a",
        b"\x01a\x00\x00",
        b"\x40" + b"a" * 64 + b"\x00",
        b"\xc0\x0c",
        b"\x01a" * 128 + b"\x00",
        (b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\x00",
    ],
)
def test_what_is_not_a_name_is_refused(name: bytes) -> None:
    table = make_table([])
    with pytest.raises(ValueError, match="name in wire form"):
        table.find(name)
    with pytest.raises(ValueError, match="name in wire form"):
        table.delete(name)


def test_description() -> None:
    table = make_table([])
    table.describe({"zones": ["example.test."], "n": 1})
    assert table.meta == {"zones": ["example.test."], "n": 1}
    with pytest.raises(TableFull, match="description"):
        table.describe({"x": "y" * layout.META_SIZE})
    assert table.meta["n"] == 1


def test_stamps() -> None:
    table = make_table([])
    table.stamp(7, 8, 9)
    assert (table.generation, table.revision, table.serial) == (7, 8, 9)
    table.stamp(10, 11)
    assert (table.generation, table.revision, table.serial) == (10, 11, 9)


def test_a_buffer_that_is_too_small_for_the_index() -> None:
    with pytest.raises(TableFull, match="index"):
        Table.format(bytearray(100_000), 1, 1, 1_000_000, {})


def test_read_only() -> None:
    buffer = bytearray(200_000)
    Table.format(buffer, 1, 1, 10, {})
    Table(buffer, writable=True).put(block(b"\x01a\x00", 8))
    table = Table(bytes(buffer))
    assert table.find(b"\x01a\x00") is not None
    with pytest.raises(TypeError, match="read-only"):
        table.put(block(b"\x01b\x00"))
    with pytest.raises(TypeError, match="read-only"):
        table.delete(b"\x01a\x00")
    with pytest.raises(TypeError, match="read-only"):
        table.stamp(1, 1)
    with pytest.raises(BufferError):
        Table(bytes(buffer), writable=True)


def test_closed() -> None:
    table = make_table([block(b"\x01a\x00")])
    table.close()
    table.close()
    for use in (
        lambda: table.find(b"\x01a\x00"),
        lambda: table.names,
        lambda: list(table.blocks()),
        lambda: table.used,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_half_read_listing_of_a_closed_table_ends() -> None:
    """The generator holds no memory of a table that is gone."""
    table = make_table([block(b"\x01a\x00"), block(b"\x01b\x00")])
    listing = table.blocks()
    next(listing)
    table.close()
    with pytest.raises((ValueError, TableDamaged)):
        list(listing)


def test_small_sets_cost_little() -> None:
    """One A record and a 20-byte name: at most 100 bytes a name, the index included (docs/design)."""
    buffer = bytearray(2_000_000)
    Table.format(buffer, 1, 1, 10_000, {})
    table = Table(buffer, writable=True)
    start = table.used
    for i in range(10_000):
        table.put(pack(b"\x08%08d\x04zone\x04test\x00" % i, 0, [rrset(1, 60, b"\1\2\3\4")]))
    index = 8 * layout.INDEX_FACTOR
    assert (table.used - start) / 10_000 + index <= 100


@pytest.mark.parametrize("size", [0, 40, 1000, 1100, 30_000])
def test_the_same_node(size: int) -> None:
    """The place of a large node is larger than its block; every octet of the block counts."""
    one = block(NAMES[0], size)
    table = make_table([one, block(NAMES[1], 40)])
    assert table.same(one)
    assert not table.same(block(NAMES[2], size))
    spoiled = bytearray(one)
    used = len(pack(unpack(one).name, 0, unpack(one).rrsets.values()).rstrip(b"\0"))
    for at in {8 + len(NAMES[0]), 6, used - 1, len(one) // 2}:
        spoiled[at] ^= 1
        assert not table.same(bytes(spoiled))
        spoiled[at] ^= 1
    assert table.same(bytes(spoiled))
    for wrong in (b"", one[:-8], one + bytes(8)):
        with pytest.raises(ValueError, match="not a node block"):
            table.same(wrong)
