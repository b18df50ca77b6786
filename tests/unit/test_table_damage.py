"""A damaged table is found out, condition by condition, and never read beyond its end.

The flips at the end prove the most in the sanitized build: tests/fuzz runs this file there.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import pytest

from server.answer import answer
from server.policy import Policy
from shm import layout
from shm._table import Table
from shm.errors import LayoutMismatch, TableDamaged
from shm.node import NodeError, unpack
from tests.support.answerers import hot_path
from tests.support.packets import query
from tests.support.tables import compile_zone, make_table, wire

AT = layout.header_offsets()
CODES = dict(layout.HEADER_FIELDS)
ZONE = """
@       300 SOA ns1 hostmaster 7 7200 1800 86400 30
@       300 NS  ns1
ns1     300 A   192.0.2.53
a        60 A   192.0.2.1
a        60 TXT "some text"
alias    60 CNAME a
*.wild   60 A   192.0.2.42
sub     300 NS  ns1.sub
ns1.sub 300 A   192.0.2.61
x.y      60 A   192.0.2.45
"""
NAMES = [
    "a", "alias", "ns1", "nowhere", "foo.wild", "wild", "sub", "www.sub", "y", "x.y", "",
]  # fmt: skip
QUERIES = [
    query(f"{name}.example.test.".removeprefix("."), type_, edns=edns)
    for name in NAMES
    for type_ in ("A", "TXT", "NS", "SOA", "ANY")
    for edns in (None, 1232)
]


def image(size: int = 100_000) -> bytearray:
    """The bytes of a whole table."""
    buffer = bytearray(size)
    Table.format(buffer, 1, 1, 20, {"zones": ["example.test."]})
    table = Table(buffer, writable=True)
    for block in compile_zone("example.test.", ZONE):
        table.put(block)
    table.close()
    return buffer


def get(buffer: bytearray, name: str) -> int:
    value: int = struct.unpack_from("=" + CODES[name], buffer, AT[name])[0]
    return value


def put(buffer: bytearray, name: str, value: int | bytes) -> None:
    struct.pack_into("=" + CODES[name], buffer, AT[name], value)


def index_entries(buffer: bytearray) -> list[tuple[int, int]]:
    """(where the entry is, where its block is)."""
    start = get(buffer, "index_offset")
    entries = range(start, start + 8 * get(buffer, "index_slots"), 8)
    return [(at, 8 * layout.INDEX_ENTRY.unpack_from(buffer, at)[1]) for at in entries]


def node_at(buffer: bytearray, name: str) -> int:
    """Where a name's block begins."""
    for _, block in index_entries(buffer):
        start = block + layout.NODE_HEADER.size
        if block and buffer[start : start + buffer[block + 4]] == wire(name):
            return block
    raise AssertionError("no such name")


def entry_of(buffer: bytearray, block: int) -> int:
    """Where the index entry of a block is."""
    return next(at for at, place in index_entries(buffer) if place == block)


def test_whole() -> None:
    table = Table(image())
    assert len(list(table.blocks())) == table.names
    assert table.meta == {"zones": ["example.test."]}


# ---------------------------------------------------------------- conditions 1 to 4: the header

HEADERS: dict[str, tuple[Callable[[bytearray], object], type[Exception]]] = {
    "1 magic": (lambda b: put(b, "magic", b"STNDTBX\0"), TableDamaged),
    "1 control segment": (lambda b: put(b, "magic", layout.CONTROL_MAGIC), TableDamaged),
    "2 version": (lambda b: put(b, "layout_version", layout.LAYOUT_VERSION + 1), LayoutMismatch),
    "2 check": (lambda b: put(b, "layout_check", layout.LAYOUT_CHECK ^ 1), LayoutMismatch),
    "3 larger": (lambda b: put(b, "segment_size", len(b) + 1), TableDamaged),
    "3 smaller": (lambda b: put(b, "segment_size", len(b) - 8), TableDamaged),
    "4 meta in the header": (lambda b: put(b, "meta_offset", layout.TABLE_HEADER_SIZE - 8), TableDamaged),
    "4 meta outside": (lambda b: put(b, "meta_offset", len(b) + 1), TableDamaged),
    "4 meta over the index": (lambda b: put(b, "meta_length", layout.META_SIZE + 1), TableDamaged),
    "4 meta wraps around": (lambda b: put(b, "meta_length", 2**64 - 1), TableDamaged),
    "4 index outside": (lambda b: put(b, "index_offset", len(b) + 8), TableDamaged),
    "4 index wraps around": (lambda b: put(b, "index_offset", 2**64 - 8), TableDamaged),
    "4 index not aligned": (lambda b: put(b, "index_offset", get(b, "index_offset") + 4), TableDamaged),
    "4 no index": (lambda b: put(b, "index_slots", 0), TableDamaged),
    "4 index over the heap": (lambda b: put(b, "index_slots", get(b, "index_slots") + 1), TableDamaged),
    "4 index slots wrap around": (lambda b: put(b, "index_slots", 2**61 + 1), TableDamaged),
    "4 index slots all ones": (lambda b: put(b, "index_slots", 2**64 - 1), TableDamaged),
    "4 heap in the index": (lambda b: put(b, "heap_offset", get(b, "index_offset")), TableDamaged),
    "4 heap outside": (lambda b: put(b, "heap_offset", len(b) + 8), TableDamaged),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_header_is_refused(case: str) -> None:
    damage, error = HEADERS[case]
    buffer = image()
    damage(buffer)
    with pytest.raises(error):
        Table(buffer)


@pytest.mark.parametrize("size", [0, 1, 8, layout.TABLE_HEADER.size, layout.TABLE_HEADER_SIZE - 1])
def test_condition_1_too_short(size: int) -> None:
    with pytest.raises(TableDamaged, match="too short"):
        Table(bytes(image()[:size]))


@pytest.mark.parametrize("size", [layout.TABLE_HEADER_SIZE, 50_000, 99_999])
def test_condition_3_cut_off(size: int) -> None:
    with pytest.raises(TableDamaged, match="bytes"):
        Table(bytes(image()[:size]))


# ---------------------------------------------------------------- conditions 5 and 6: a node


def move_entry(offset_units: Callable[[bytearray], int]) -> Callable[[bytearray, int], None]:
    def damage(buffer: bytearray, block: int) -> None:
        struct.pack_into("=I", buffer, entry_of(buffer, block) + 4, offset_units(buffer))

    return damage


def set_in_block(at: int, code: str, value: int) -> Callable[[bytearray, int], None]:
    return lambda buffer, block: struct.pack_into("=" + code, buffer, block + at, value)


def set_directory(entry: int, value: tuple[int, int, int]) -> Callable[[bytearray, int], None]:
    def damage(buffer: bytearray, block: int) -> None:
        at = block + layout.NODE_HEADER.size + len(wire("a.example.test.")) + entry * layout.DIRECTORY_ENTRY.size
        layout.DIRECTORY_ENTRY.pack_into(buffer, at, *value)

    return damage


def one_byte_too_long(buffer: bytearray, block: int) -> None:
    """The last RRset ends one byte behind its block."""
    entries = block + layout.NODE_HEADER.size + buffer[block + 4]
    _, _, first = layout.DIRECTORY_ENTRY.unpack_from(buffer, entries)
    size = 8 * layout.NODE_HEADER.unpack_from(buffer, block)[0]
    before = entries + buffer[block + 5] * layout.DIRECTORY_ENTRY.size + first - block
    set_directory(1, (16, 1, size - before + 1))(buffer, block)


NODES: dict[str, Callable[[bytearray, int], None]] = {
    "5 before the heap": move_entry(lambda b: get(b, "heap_offset") // 8 - 1),
    "5 in the header": move_entry(lambda b: 1),
    "5 beyond the segment": move_entry(lambda b: len(b) // 8),
    "5 far beyond": move_entry(lambda b: 2**32 - 1),
    "5 ends outside": set_in_block(0, "I", 2**32 - 1),
    "5 no room for its header": move_entry(lambda b: (len(b) - 1) // 8),
    "6 no units": set_in_block(0, "I", 0),
    "6 too few units for the name": set_in_block(0, "I", 2),
    "6 directory beyond the block": set_in_block(5, "B", 255),
}
RRSETS: dict[str, Callable[[bytearray, int], None]] = {
    "6 RRset beyond the block": set_directory(0, (1, 1, 0xFFFF)),
    "6 one byte beyond the block": one_byte_too_long,
    "6 second RRset beyond the block": set_directory(1, (16, 1, 0xFFFF)),
}


@pytest.mark.parametrize("case", NODES)
def test_a_broken_node_is_refused(case: str) -> None:
    buffer = image()
    NODES[case](buffer, node_at(buffer, "a.example.test."))
    table = Table(buffer)
    with pytest.raises(TableDamaged):
        table.find(wire("a.example.test."))
    with pytest.raises(TableDamaged):
        list(table.blocks())
    expect_servfail(table)
    assert table.find(wire("ns1.example.test.")) is not None, "one bad node costs one name"


@pytest.mark.parametrize("case", RRSETS)
def test_a_broken_rrset_is_refused(case: str) -> None:
    buffer = image()
    RRSETS[case](buffer, node_at(buffer, "a.example.test."))
    table = Table(buffer)
    found = table.find(wire("a.example.test."))
    assert found is not None
    with pytest.raises(NodeError):
        unpack(found)
    expect_servfail(table)


def expect_servfail(table: Table) -> None:
    """For a name whose node is broken; the alarm goes off, and the hot path leaves it to the reference."""
    alarms: list[int] = []
    packet = query("a.example.test.", "TXT")
    reply = answer(packet, table, Policy(), on_damage=lambda: alarms.append(1))
    assert reply is not None
    assert reply[3] & 15 == 2
    assert alarms == [1]
    assert hot_path(packet, table) is None


def test_a_full_index_ends_the_search() -> None:
    """No empty entry anywhere: a search for what is not there must end."""
    buffer = image()
    for at, block in index_entries(buffer):
        if not block:
            layout.INDEX_ENTRY.pack_into(buffer, at, 0xFFFFFFFF, get(buffer, "heap_offset") // 8)
    table = Table(buffer)
    with pytest.raises(TableDamaged):
        table.find(wire("nowhere.example.test."))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: put(b, "meta_offset", 2**63),
        lambda b: put(b, "meta_length", 2**63),
        lambda b: put(b, "meta_length", len(b)),
        lambda b: put(b, "meta_length", 3),
        lambda b: b.__setitem__(layout.TABLE_HEADER_SIZE, 0xC1),
    ],
)
def test_a_description_damaged_after_the_table_was_opened(damage: Callable[[bytearray], object]) -> None:
    buffer = image()
    table = Table(buffer)
    damage(buffer)
    with pytest.raises(TableDamaged):
        _ = table.meta


# ---------------------------------------------------------------- anywhere

SEED = int(os.environ.get("STANDOFF_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
ROUNDS = int(os.environ.get("STANDOFF_DAMAGE_ROUNDS", "150"))


def look_everywhere(table: Table) -> None:
    """Whatever a process does with a table: a right result, none, or one of the errors that say it is damaged."""
    policy = Policy()
    for packet in QUERIES:
        hot = hot_path(packet, table)
        assert hot is None or 12 <= len(hot) <= 1232
        reply = answer(packet, table, policy)
        assert reply is not None
        assert 12 <= len(reply) <= 1232
    try:
        for block in table.blocks():
            unpack(block)
    except (TableDamaged, NodeError):
        pass
    try:
        _ = table.meta
    except TableDamaged:
        pass


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_random_damage(when: str) -> None:
    """Flips where it hurts most: the header, the index, the blocks in use; half of them one bit only."""
    chance = random.Random(SEED)
    whole = bytes(image())
    parts = [(0, 128), (get(bytearray(whole), "index_offset"), get(bytearray(whole), "heap_end"))]
    places = [at for start, end in parts for at in range(start, end)]
    for _ in range(ROUNDS):
        buffer = bytearray(whole)
        table = Table(buffer) if when == "while it is open" else None
        for _ in range(chance.choice((1, 1, 2, 5, 50))):
            at = chance.choice(places)
            buffer[at] = chance.choice(
                (0, 1, 0xFF, 0x7F, 0x80, chance.randrange(256), buffer[at] ^ 1 << chance.randrange(8))
            )
        try:
            look_everywhere(table or Table(buffer))
        except (TableDamaged, LayoutMismatch):
            continue
        except Exception:
            print(f"STANDOFF_SEED={SEED}")
            raise


def test_every_byte_of_a_node_and_of_the_header() -> None:
    """Each byte alone, to the values that break most."""
    whole = bytes(image())
    block = node_at(bytearray(whole), "sub.example.test.")
    size = 8 * layout.NODE_HEADER.unpack_from(whole, block)[0]
    for at in (*range(128), *range(block, block + size)):
        for value in (0, 0xFF, whole[at] ^ 0x40):
            buffer = bytearray(whole)
            buffer[at] = value
            try:
                table = Table(buffer)
            except (TableDamaged, LayoutMismatch):
                continue
            for packet in QUERIES[-40:-20]:
                assert answer(packet, table, Policy()) is not None
                hot_path(packet, table)


def test_the_table_that_is_damaged_is_otherwise_fine() -> None:
    """The queries above are real ones: on the whole table both answerers answer them alike."""
    table = make_table(compile_zone("example.test.", ZONE))
    replies = [answer(packet, table, Policy()) for packet in QUERIES]
    assert {reply[3] & 15 for reply in replies if reply} == {0, 3}
    assert sum(hot_path(packet, table) == reply for packet, reply in zip(QUERIES, replies, strict=True)) > 40
