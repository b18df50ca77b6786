"""loader/skydns.py: the SkyDNS schema, plain hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import skydns
from loader.model import DEFAULT_TTL, MAX_TTL, Put, Record, Reject

ZONE = b"\x07example\x04test\0"
WWW = b"\x03www" + ZONE
ADDRESS = b"\xc0\x00\x02\x01"


def parse(path: str, value: str, zones: tuple[bytes, ...] = (ZONE,)) -> list[Record]:
    return skydns.parse("/skydns", Put("/skydns/" + path, value.encode(), 7), zones)


@pytest.mark.parametrize(
    ("value", "type_", "data"),
    [
        ('{"host":"192.0.2.1"}', 1, ADDRESS),
        ('{"host":"2001:db8::1"}', 28, b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ('{"host":"::ffff:192.0.2.1"}', 1, ADDRESS),
        ('{"host":"Web.other.test"}', 5, b"\x03Web\x05other\x04test\0"),
        ('{"host":"web.other.test."}', 5, b"\x03web\x05other\x04test\0"),
        ('{"text":"hello"}', 16, b"\x05hello"),
        ('{"host":"192.0.2.1","text":"heritage=external-dns"}', 1, ADDRESS),
        ('{"host":"web.","text":"heritage=external-dns"}', 5, b"\x03web\0"),
        ('{"host":"192.0.2.1","port":null,"owner":"me","priority":5}', 1, ADDRESS),
    ],
)
def test_value(value: str, type_: int, data: bytes) -> None:
    assert parse("test/example/www", value) == [Record(None, WWW, type_, DEFAULT_TTL, data)]


@pytest.mark.parametrize(
    ("ttl", "expected"), [("0", DEFAULT_TTL), ("null", DEFAULT_TTL), ("60", 60), ("4294967295", MAX_TTL)]
)
def test_ttl(ttl: str, expected: int) -> None:
    assert parse("test/example/www", f'{{"host":"192.0.2.1","ttl":{ttl}}}')[0].ttl == expected


@pytest.mark.parametrize("value", ["{}", '{"host":""}', '{"host":"","text":""}', '{"port":80}'])
def test_a_value_without_host_and_text_gives_nothing(value: str) -> None:
    assert parse("test/example/www", value) == []


def owners(path: str, zones: tuple[bytes, ...]) -> list[bytes]:
    return [record.owner for record in parse(path, '{"host":"192.0.2.1"}', zones)]


def test_ancestors_below_the_apex_answer_too() -> None:
    assert owners("test/example/www/1acbad7e", (ZONE,)) == [b"\x081acbad7e" + WWW, WWW]


def test_aggregation_stops_at_the_nearest_apex() -> None:
    assert owners("test/example/www/x", (ZONE, WWW)) == [b"\x01x" + WWW]


def test_the_apex_itself() -> None:
    assert owners("test/example", (ZONE,)) == [ZONE]


def test_outside_every_zone_the_name_stands_alone() -> None:
    assert owners("org/a/b", (ZONE,)) == [b"\x01b\x01a\x03org\0"]


def test_reverse_names() -> None:
    assert owners("arpa/in-addr/10/0/0/127", ()) == [b"\x03127\x010\x010\x0210\x07in-addr\x04arpa\0"]


def test_keys_are_folded() -> None:
    assert owners("Test/Example/WWW", (ZONE,)) == [WWW]


def test_skydns_settings_are_no_records() -> None:
    assert parse("config", "whatever") == []


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("test/example/www", "x", "not understood"),
        ("test/example/www", '{"host":5}', "$.host"),
        ("test/example/www", '["192.0.2.1"]', "not understood"),
        ("test/example/www", '{"host":"192.0.2.1","ttl":-1}', "ttl is 0 to"),
        ("test/example/www", '{"host":"192.0.2.1","ttl":4294967296}', "ttl is 0 to"),
        ("test/example/www", '{"host":"two words"}', "neither an address nor a name"),
        ("test/example/www", '{"host":"a..b"}', "neither an address nor a name"),
        ("test//www", '{"host":"192.0.2.1"}', "in the key"),
        ("test/" + "x" * 64, '{"host":"192.0.2.1"}', "in the key"),
        ("", '{"host":"192.0.2.1"}', "in the key"),
        ("test/b\u00fccher", '{"host":"192.0.2.1"}', "xn--"),
        ("test/www", r'{"text":"\ud800"}', "not understood"),
    ],
)
def test_rejects(path: str, value: str, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        parse(path, value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_utf8() -> None:
    with pytest.raises(Reject):
        skydns.parse("/skydns", Put("/skydns/test/a", b'{"host":"\xff"}', 1))


@given(st.text(max_size=20), st.binary(max_size=40))
def test_any_key_and_value_gives_records_or_a_reject(path: str, value: bytes) -> None:
    reason = ""
    try:
        skydns.parse("/skydns", Put("/skydns/" + path, value, 1), (ZONE,))
    except Reject as reject:
        reason = str(reject)
    assert "\n" not in reason
