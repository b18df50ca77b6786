"""The C view of the shared memory is the Python view; two builds that differ refuse each other."""

from __future__ import annotations

import ast
import enum
import inspect
import re
import struct
from pathlib import Path

import pytest

from shm import layout
from shm._table import c_layout

PXD = Path(layout.__file__).with_suffix(".pxd").read_text()


def constants() -> dict[str, int]:
    """What the .pxd's enums say."""
    found = re.findall(r"^    ([A-Z_]+) = ([0-9A-Z_ *+]+)$", PXD, re.MULTILINE)
    values: dict[str, int] = {}
    for name, expression in found:
        values[name] = eval(compile(ast.parse(expression, mode="eval"), "layout.pxd", "eval"), {}, dict(values))
    return values


def test_header_offsets_agree() -> None:
    view = c_layout()
    assert view["header"] == layout.header_offsets()
    assert view["header_size"] == layout.TABLE_HEADER.size <= layout.TABLE_HEADER_SIZE
    assert view["free_lists"] == layout.FREE_LISTS


def test_small_structs_agree() -> None:
    view = c_layout()
    assert view["node_header"] == layout.NODE_HEADER.size
    assert view["directory_entry"] == layout.DIRECTORY_ENTRY.size
    assert view["index_entry"] == layout.INDEX_ENTRY.size


def test_constants_agree() -> None:
    values = constants()
    expected = {
        "EXACT_CLASSES": layout.EXACT_CLASSES,
        "LARGE_CLASSES": layout.LARGE_CLASSES,
        "FREE_LISTS": layout.FREE_LISTS,
        "TABLE_HEADER_SIZE": layout.TABLE_HEADER_SIZE,
        "NODE_HEADER_SIZE": layout.NODE_HEADER.size,
        "DIRECTORY_ENTRY_SIZE": layout.DIRECTORY_ENTRY.size,
        "NEGATIVE_SOA": layout.NEGATIVE_SOA,
        **{f"FLAG_{flag.name}": flag.value for flag in layout.NodeFlag},
    }
    assert values == expected


def test_struct_members_agree_in_type() -> None:
    """Same offsets could hide a swapped pair of equal size; names and widths are compared too."""
    code = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "uint64_t": "Q", "char": "s"}
    body = re.search(r"struct table_header:\n((?:    .*\n)+)", PXD)
    assert body is not None
    members = []
    for kind, name, count in re.findall(r"^    (\w+) (\w+)(?:\[(\w+)\])?$", body[1], re.MULTILINE):
        number = "" if not count else str(constants().get(count, count))
        members.append((name, number + code[kind]))
    assert tuple(members) == layout.HEADER_FIELDS


def test_shared_words_have_a_place_of_their_own() -> None:
    """Aligned words that do not overlap, in their page."""
    for words, start, end in (
        (layout.LOADER_WORDS, 192, layout.LOADER_NOTE),
        (layout.SUPERVISOR_WORDS, 0, layout.PAGE),
        (layout.SLOT_WORDS, 0, layout.COUNTERS),
    ):
        offsets = list(words.values())
        assert len(set(offsets)) == len(offsets)
        assert all(offset % 8 == 0 and start <= offset <= end - 8 for offset in offsets)
    taken: set[int] = set()
    plain, encrypted = layout.counter_offsets(), layout.counter_offsets(layout.ENCRYPTED_COUNTERS)
    for offset, length in [*plain.values(), *encrypted.values()]:
        words_ = set(range(offset, offset + 8 * length, 8))
        assert not words_ & taken
        taken |= words_
    assert max(taken) < layout.GATE_WAIT_HISTOGRAM < layout.HOLD_HISTOGRAM
    assert layout.LIVE % 64 == 0
    assert layout.LIVE // 64 != layout.SIDE_SERIAL // 64
    assert layout.SLOT_WORDS["section"] // 64 != layout.SLOT_WORDS["heartbeat_ns"] // 64


def test_pages_do_not_overlap() -> None:
    pages = [0, layout.PAGE * layout.SUPERVISOR_PAGE, *map(layout.slot_page, range(layout.SLOTS))]
    assert pages == sorted(set(pages))
    assert pages[-1] + layout.PAGE == layout.control_size()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LAYOUT_VERSION", layout.LAYOUT_VERSION + 1),
        ("PAGE", 16384),
        ("LIVE", 72),
        ("SIDE_SERIAL", 136),
        ("LOADER_WORDS", layout.LOADER_WORDS | {"more": 800}),
        ("SUPERVISOR_WORDS", layout.SUPERVISOR_WORDS | {"more": 800}),
        ("SLOT_WORDS", layout.SLOT_WORDS | {"section": 80}),
        ("COUNTER_ARRAYS", layout.COUNTER_ARRAYS | {"dropped": 5}),
        ("COUNTED_TYPES", layout.COUNTED_TYPES[::-1]),
        ("HISTOGRAM_BUCKETS", 33),
        ("HOLD_HISTOGRAM", layout.HOLD_HISTOGRAM + 8),
        ("HEADER_FIELDS", layout.HEADER_FIELDS[:-1]),
        ("TABLE_HEADER_SIZE", 4096),
        ("META_SIZE", 4096),
        ("FREE_LISTS", layout.FREE_LISTS + 1),
        ("NODE_HEADER", struct.Struct("=IHHH")),
        ("DIRECTORY_ENTRY", struct.Struct("=HHI")),
        ("INDEX_ENTRY", struct.Struct("=QQ")),
        ("GATE_WAIT_HISTOGRAM", layout.GATE_WAIT_HISTOGRAM + 8),
        ("SLOTS", 128),
        ("COUNTERS", layout.COUNTERS + 8),
        ("ENCRYPTED_COUNTERS", layout.ENCRYPTED_COUNTERS + 8),
        ("LOADER_NOTE", 2048),
        ("LOADER_NOTE_SIZE", 512),
        ("SUPERVISOR_PAGE", 2),
        ("FIRST_SLOT_PAGE", 3),
    ],
)
def test_another_format_has_another_check(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    monkeypatch.setattr(layout, name, value)
    assert layout._check() != layout.LAYOUT_CHECK


@pytest.mark.parametrize("name", ["SlotKind", "LoaderState", "DropReason", "NodeFlag"])
def test_numbers_with_a_meaning_are_checked_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind = getattr(layout, name)
    renumbered = enum.IntEnum("Renumbered", [member.name for member in kind], start=7)  # type: ignore[misc]
    monkeypatch.setattr(layout, name, renumbered)
    assert layout._check() != layout.LAYOUT_CHECK


def test_the_docstring_names_every_condition() -> None:
    text = inspect.getdoc(layout) or ""
    assert re.findall(r"^ +(\d)\. ", text, re.MULTILINE) == list("123456")
