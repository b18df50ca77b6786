"""loader/_short.pyx, loader/_nodes.pyx: the short ways come to what the long ways do, or decline."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loader import compiler, names, skydns
from loader import skydns_views as views
from loader._nodes import block
from loader._short import SRV_HEAD, Plain, fold, name_of, plain, spelled
from loader.model import Put, Reject
from loader.skydns import Semantics
from tests.support.skydns import PREFIX

BASE = PREFIX + "/"
DEFAULT_TTL = 300
SEMANTICS: tuple[Semantics, ...] = ("coredns", "strict")


def long_way(key: str, value: bytes, semantics: Semantics) -> tuple[bytes, tuple[Any, ...]] | None:
    """The name and the gift of a service that the schema decodes, if it is plain, from its records."""
    try:
        service = skydns.decode(PREFIX, Put(key, value, 7), lambda lease: 0, DEFAULT_TTL)
    except Reject:
        return None
    if service is None or skydns.folded(service, BASE, semantics) is None:
        return None
    hosts = [service] if service.kind == skydns.HOST else []
    texts = [service] if service.kind == skydns.TEXT or semantics == "strict" else []
    view = views.joined([views.hosts_view(hosts, service.name, semantics, apex=False), views.texts_view(texts)])
    return service.name, (key, 7, None, *(part for record in view[key] for part in record))


def gift_of(kept: Plain | tuple[Any, ...]) -> tuple[Any, ...]:
    return kept.gift() if isinstance(kept, Plain) else kept


def check(key: str, value: bytes) -> bool:
    """Whether the short way took it, in one of the two semantics at least."""
    took = [_check(key, value, semantics) for semantics in SEMANTICS]
    return any(took)


def _check(key: str, value: bytes, semantics: Semantics) -> bool:
    found = plain(BASE, key, value, 7, DEFAULT_TTL, semantics == "strict")
    if found is None:
        return False
    name, kept = found
    gift = gift_of(kept)
    assert (name, gift) == long_way(key, value, semantics)
    rrsets = {gift[at]: (gift[at + 1], [gift[at + 2]]) for at in range(compiler.FIRST_RR, len(gift), 3)}
    assert block(name, 3, kept) == compiler.node(name, 3, rrsets)
    return True


TEXT = '"heritage=external-dns,external-dns/owner=default,external-dns/resource=service/default/nginx"'


@pytest.mark.parametrize(
    "value",
    [
        '{"host":"192.0.2.1"}',
        '{"host":"192.0.2.1","ttl":60}',
        '{"host":"2001:db8::1","targetstrip":1}',
        '{"host":"::1.2.3.4"}',
        json.dumps({"host": "192.0.2.1", "text": TEXT, "targetstrip": 1}),
        json.dumps({"text": TEXT, "targetstrip": 1}),
        json.dumps({"text": "x" * 255}),
        json.dumps({"text": "x" * 256}),
        json.dumps({"host": "", "text": "\\" * 600, "ttl": 5}),
        ' { "host" : "192.0.2.1" , "ttl" : 0 }\n',
        '{"targetstrip":128,"host":"192.0.2.1"}',
    ],
)
def test_what_most_keys_are_takes_the_short_way(value: str) -> None:
    assert check("/skydns/test/example/www/1acbad7e", value.encode())


KEYS = [
    "/skydns/test/example/www", "/skydns/test", "/skydns/config", "/skydns/", "/skydns", "/skydnsx/test", "/other/a",
    "/skydns/test//www", "/skydns/test/example/", "/skydns/Test/www", "/skydns/test/é", "/skydns/test/*", "/skydns/a b",
    "/skydns/" + "x" * 63 + "/a", "/skydns/" + "x" * 64 + "/a", "/skydns/" + "/".join(["x" * 49] * 5),
    "/skydns/" + "/".join(["x" * 50] * 5), "/skydns/" + "/".join("abcdefghij" * 13),
]  # fmt: skip
HOSTS = [
    "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "192.0.2.01", "192.0.2", "192.0.2.256", "1.2.3.4 ", "", "web", "::",
    "fe80::1%eth0", "0:0:0:0:0:0:0:0:0", "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", "1" * 60, "a\u00e9",
    "1.2.3.4\0",
]  # fmt: skip
FIELDS = {
    "host": st.one_of(st.sampled_from(HOSTS), st.none(), st.integers()),
    "ttl": st.one_of(
        st.integers(-2, 2**33), st.floats(allow_nan=False, allow_infinity=False), st.just("60"), st.none()
    ),
    "targetstrip": st.one_of(st.integers(-1, 130), st.none()),
    "text": st.one_of(
        st.text(max_size=8),
        st.just(TEXT),
        st.none(),
        st.integers(0, 2750).map(lambda count: "a/b" * count),
        st.integers(250, 520).map(lambda count: '"' * count),
    ),
    "port": st.sampled_from([-1, 0, 80]),
    "priority": st.sampled_from([0, 10]),
    "weight": st.sampled_from([0, 100]),
    "mail": st.booleans(),
    "group": st.sampled_from(["", "g"]),
    "owner": st.just("me"),
    "check": st.just("tcp://:80"),
}


@given(
    st.sampled_from(KEYS),
    st.fixed_dictionaries({}, optional=FIELDS),
    st.sampled_from([(",", ":"), (", ", ": "), ("\n,\t", " :\r\n")]),
    st.booleans(),
)
def test_it_gives_what_the_long_way_gives(key: str, value: dict[str, Any], marks: tuple[str, str], plain: bool) -> None:
    check(key, json.dumps(value, separators=marks, ensure_ascii=plain).encode("utf-8", "surrogatepass"))


USUAL = b'{"host":"192.0.2.1","text":"a\\"b","ttl":60,"targetstrip":1}'


@given(st.integers(0, len(USUAL)), st.integers(0, 3), st.binary(max_size=3))
@example(0, 0, b"")
@example(len(USUAL) - 1, 0, b',"ttl":1')
@example(len(USUAL) - 1, 0, b',"host":"192.0.2.9"')
@example(len(USUAL) - 1, 0, b",")
@example(len(USUAL), 0, b"}")
@example(len(USUAL), 0, b"\0")
def test_values_that_are_cut_or_damaged(at: int, cut: int, put: bytes) -> None:
    """Whatever the short way takes, the long way takes, too, and for the same."""
    check("/skydns/test/example/www", USUAL[:at] + put + USUAL[at + cut :])


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{", b"{}", b"[]", b'{"host"', b'{"host":', b'{"host":"', b'{"host":"192.0.2.1"', b'{"host":"1.2.3.4"} x',
        b'{"host":"192.0.2.1","ttl":060}', b'{"host":"192.0.2.1","text":"\\', b'{"host":"1.2.3.4","text":"\\u0041"}',
    ],
)  # fmt: skip
def test_what_is_unusual_or_wrong_is_left_to_the_long_way(value: bytes) -> None:
    assert not check("/skydns/test/example/www", value)


LABELS = st.lists(st.from_regex(r"[a-z0-9_*-]{1,63}", fullmatch=True), min_size=1, max_size=3)


@given(LABELS)
def test_a_name_and_its_key(labels: list[str]) -> None:
    name = names.from_labels([label.encode() for label in labels])
    key = BASE + "/".join(reversed(labels))
    assert spelled(BASE, name) == key
    assert name_of(BASE, key) == name == skydns.name_of(PREFIX, key)


@pytest.mark.parametrize("key", ["/skydns/", "/skydns/a//b", "/skydns/A", "/s", "/skydns/" + "x" * 64])
def test_what_is_no_plain_key(key: str) -> None:
    with pytest.raises(ValueError, match="not a plain key"):
        name_of(BASE, key)


@given(LABELS, st.integers(0, 127), st.integers(0, 2**31 - 1), st.binary(max_size=40), st.binary(max_size=70))
def test_a_block_of_two_rrsets(labels: list[str], flags: int, ttl: int, first: bytes, second: bytes) -> None:
    name = names.from_labels([label.encode() for label in labels])
    expected = compiler.node(name, flags, {1: (ttl, [first]), 33: (ttl, [second])})
    assert block(name, flags, ("key", 1, None, 1, ttl, first, 33, ttl, second)) == expected


FIELDS_KEPT = (
    "key", "revision", "name", "target", "kind", "type", "data", "text", "port", "priority", "weight", "ttl", "group",
)  # fmt: skip


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    "value",
    [
        b'{"host":"192.0.2.1","ttl":60,"targetstrip":1}', b'{"host":"2001:db8::1"}', b'{"text":"x"}',
        b'{"host":"192.0.2.1","targetstrip":9}',
    ],
)  # fmt: skip
def test_unfolded_is_what_was_folded(value: bytes, semantics: Semantics) -> None:
    put = Put("/skydns/test/example/www/x", value, 7)
    service = skydns.decode(PREFIX, put, lambda lease: 0, 60)
    assert service is not None
    kept = skydns.folded(service, BASE, semantics)
    assert kept is not None
    again = skydns.unfolded(service.name, kept)
    if semantics == "strict" and service.target != service.name:
        assert again.strip == service.strip
    assert {f: getattr(again, f) for f in FIELDS_KEPT} == {f: getattr(service, f) for f in FIELDS_KEPT}


def test_a_plain_one_is_small() -> None:
    found = plain(BASE, "/skydns/test/example/www", b'{"host":"192.0.2.1","targetstrip":1}', 7, 60)
    assert found is not None
    assert sys.getsizeof(found[1]) <= 64
    assert not gc.is_tracked(found[1])
    assert gift_of(found[1])[8] == SRV_HEAD + names.from_text("example.test")


@pytest.mark.parametrize(
    ("key", "address"), [("/other/test", b"1234"), ("/skydns/test", b"123"), ("/skydns/test", b"")]
)
def test_what_cannot_be_folded(key: str, address: bytes) -> None:
    with pytest.raises(ValueError, match="not a plain key"):
        fold(BASE, key, 7, 60, address, 0)
