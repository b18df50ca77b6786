"""loader/names.py: presentation format <-> wire form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import names
from loader.names import BadName

ZONE = b"\x07example\x04test\0"


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (".", b"\0"),
        ("www.example.test.", b"\x03www" + ZONE),
        ("WWW.Example.TEST.", b"\x03www" + ZONE),
        ("www", b"\x03www" + ZONE),
        ("@", ZONE),
        ("a.@", b"\x01a\x01@" + ZONE),
        ("A.", b"\x01a\0"),
        ("*.a", b"\x01*\x01a" + ZONE),
        ("0/25", b"\x040/25" + ZONE),
        (r"a\.b", b"\x03a.b" + ZONE),
        (r"a\046b", b"\x03a.b" + ZONE),
        (r"A\066.", b"\x02ab\0"),
        (r"\@", b"\x01@" + ZONE),
        (r"\000\255.", b"\x02\x00\xff\0"),
        (r"two\032words", b"\x09two words" + ZONE),
    ],
)
def test_from_text(text: str, wire: bytes) -> None:
    assert names.from_text(text, ZONE) == wire


def test_case_is_kept_when_asked() -> None:
    assert names.from_text("MiXed.", fold=False) == b"\x05MiXed\0"
    assert names.from_text(r"MiX\101d.", fold=False) == b"\x05MiXed\0"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "1 to 63 octets"),
        ("a..b", "empty"),
        (".a", "1 to 63 octets"),
        ("..", "1 to 63 octets"),
        ("a..", "empty"),
        ("a.b..", "empty"),
        (r"a\032..b", "1 to 63 octets"),
        ("x" * 64, "1 to 63 octets, not 64"),
        ("x" * 64 + ".", "1 to 63 octets, not 64"),
        ("a." + "x" * 64, "at most 63"),
        ("\\120" + "x" * 63, "1 to 63 octets, not 64"),
        (".".join(["x" * 63] * 4), "a name 255"),
        (r"\120." + ".".join(["x" * 62] * 4), "at most 255 octets"),
        ("a b", r"must be written \\032"),
        ("a\tb", r"must be written \\009"),
        ("bücher", "xn--"),
        ("a\\", "follows a backslash"),
        (r"a\25", "three digits"),
        (r"a\256", "three digits"),
        ("a\\\u0663", "follows a backslash"),
    ],
)
def test_what_is_no_name(text: str, reason: str) -> None:
    with pytest.raises(BadName, match=reason) as caught:
        names.from_text(text, ZONE)
    assert "\n" not in str(caught.value)


def test_the_longest_name() -> None:
    text = ".".join(["x" * 63] * 3 + ["y" * 61]) + "."
    assert len(names.from_text(text)) == 255
    with pytest.raises(BadName):
        names.from_text("z" + text)


def test_to_text_escapes() -> None:
    assert names.to_text(b"\x03a.b\x04\x00 \xff\\\0") == r"a\.b.\000\032\255\\."
    assert names.to_text(b"\0") == "."


label = st.binary(min_size=1, max_size=12).map(bytes.lower)


@given(st.lists(label, max_size=8))
def test_text_and_back(parts: list[bytes]) -> None:
    wire = names.from_labels(parts)
    assert names.from_text(names.to_text(wire)) == wire
    assert list(names.labels(wire)) == parts


@given(st.lists(st.from_regex(r"[a-z0-9_-]{1,5}", fullmatch=True), min_size=1, max_size=6))
def test_the_fast_path_gives_what_the_slow_one_gives(parts: list[str]) -> None:
    text = ".".join(parts)
    assert names.from_text(text, ZONE) == names._from_escaped(text, ZONE, True)


def test_walking() -> None:
    name = b"\x01a\x01b\0"
    assert names.parent(name) == b"\x01b\0"
    assert names.parent(b"\0") == b"\0"
    assert list(names.ancestors(name)) == [name, b"\x01b\0", b"\0"]


def test_is_under_respects_labels() -> None:
    assert names.is_under(ZONE, ZONE)
    assert names.is_under(b"\x01a" + ZONE, ZONE)
    assert names.is_under(ZONE, b"\0")
    assert not names.is_under(b"\0", ZONE)
    assert not names.is_under(b"\x03x\x01a\0", b"\x01a\0")
    assert not names.is_under(b"\x09myexample\x04test\0", ZONE)
