"""loader/records.py: the `records` schema."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import records
from loader.model import DEFAULT_TTL, Put, Record, Reject

ZONE = b"\x07example\x04test\0"
WWW = b"\x03www" + ZONE
ONE, TWO = b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02"


def parse(key: str, value: bytes | str) -> list[Record]:
    raw = value.encode() if isinstance(value, str) else value
    return records.parse("/standoff", Put("/standoff/" + key, raw, 7))


@pytest.mark.parametrize(
    "value",
    [
        '{"data":["192.0.2.1"]}',
        '{"data":"192.0.2.1"}',
        '{"ttl":null,"data":["192.0.2.1"]}',
        '["192.0.2.1"]',
        '"192.0.2.1"',
        "192.0.2.1",
        " 192.0.2.1\n",
        '\n "192.0.2.1" \n',
    ],
)
def test_forms_of_one_value(value: str) -> None:
    assert parse("example.test/www/A", value) == [Record(ZONE, WWW, 1, DEFAULT_TTL, ONE)]


def test_ttl_and_list() -> None:
    found = parse("example.test/www/A", '{"ttl":60,"data":["192.0.2.1","192.0.2.2"]}')
    assert found == [Record(ZONE, WWW, 1, 60, ONE), Record(ZONE, WWW, 1, 60, TWO)]
    assert parse("example.test/www/A", '{"ttl":0,"data":"192.0.2.1"}')[0].ttl == 0


def test_ip_is_both_families() -> None:
    found = parse("example.test/www/IP", '["192.0.2.1","2001:db8::1","192.0.2.2"]')
    assert [(record.type, len(record.rdata)) for record in found] == [(1, 4), (28, 16), (1, 4)]


@pytest.mark.parametrize(
    ("key", "zone", "owner"),
    [
        ("example.test/@/A", ZONE, ZONE),
        ("Example.TEST./WWW/a", ZONE, WWW),
        ("example.test/a.b/A", ZONE, b"\x01a\x01b" + ZONE),
        ("example.test/*/A", ZONE, b"\x01*" + ZONE),
        ("example.test/www.example.test./A", ZONE, WWW),
        ("example.test/0/25/A", ZONE, b"\x040/25" + ZONE),
        ("./test/A", b"\0", b"\x04test\0"),
    ],
)
def test_keys(key: str, zone: bytes, owner: bytes) -> None:
    assert [(record.zone, record.owner) for record in parse(key, "192.0.2.1")] == [(zone, owner)]


@pytest.mark.parametrize("prefix", ["/standoff", "/standoff/", "", "/"])
def test_prefix_with_and_without_slash(prefix: str) -> None:
    base = prefix.rstrip("/")
    assert records.parse(prefix, Put(f"{base}/example.test/www/A", b"192.0.2.1", 1))[0].owner == WWW


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ('"v=spf1 -all"', b"\x0bv=spf1 -all"),
        ("v=spf1 -all", b"\x0bv=spf1 -all"),
        ('{"data":["a \\\\ b"]}', b"\x05a \\ b"),
        (r'"\"one\" \"two\""', b"\x03one\x03two"),
        ('[["one","two"]]', b"\x03one\x03two"),
    ],
)
def test_txt(value: str, data: bytes) -> None:
    assert [record.rdata for record in parse("example.test/www/TXT", value)] == [data]


def test_a_list_of_strings_is_a_list_of_txt_records() -> None:
    assert [record.rdata for record in parse("example.test/www/TXT", '["one","two"]')] == [b"\x03one", b"\x03two"]


def test_names_in_data_are_relative_to_the_zone() -> None:
    assert parse("example.test/www/CNAME", "web1")[0].rdata == b"\x04web1" + ZONE
    assert parse("example.test/a.b/MX", "10 mail")[0].rdata == b"\x00\x0a\x04mail" + ZONE


def test_soa_serial_is_left_to_the_zone() -> None:
    soa = parse("example.test/@/SOA", "ns1 hostmaster 2024010101 7200 1800 86400 30")[0]
    assert soa.rdata[-20:] == b"".join(number.to_bytes(4, "big") for number in (0, 7200, 1800, 86400, 30))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("example.test/www", "x", "not PREFIX/ZONE/OWNER/TYPE"),
        ("example.test/", "x", "not PREFIX/ZONE/OWNER/TYPE"),
        ("example.test/www/NOPE", "x", "'NOPE' is not a record type"),
        ("example.test//A", "192.0.2.1", "in the key"),
        ("exa..mple/www/A", "192.0.2.1", "label is empty"),
        ("@/www/A", "192.0.2.1", "'@' is not a zone"),
        ("example.test/www.other.test./A", "192.0.2.1", "is not in zone example.test."),
        ("example.test/" + "x" * 64 + "/A", "192.0.2.1", "1 to 63 octets"),
        ("example.test/www/A", "", "value is empty"),
        ("example.test/www/A", " \n", "value is empty"),
        ("example.test/www/A", b"\xff\xfe", "not UTF-8: octet 1 is 0xff"),
        ("example.test/www/A", b'{"data":"\xff"}', "not UTF-8"),
        ("example.test/www/A", '{"data":"192.0.2.1"', "not understood"),
        ("example.test/www/A", '{"data":"192.0.2.1","tll":60}', "no field tll"),
        ("example.test/www/A", '{"ttl":60}', "the field data is missing"),
        ("example.test/www/A", '{"ttl":"60","data":"192.0.2.1"}', "ttl is to be a whole number"),
        ("example.test/www/A", '{"ttl":60.5,"data":"192.0.2.1"}', "ttl is to be a whole number"),
        ("example.test/www/A", '{"ttl":-1,"data":"192.0.2.1"}', "ttl is 0 to 2147483647 seconds, not -1"),
        ("example.test/www/A", '{"ttl":2147483648,"data":"192.0.2.1"}', "ttl is 0 to"),
        ("example.test/www/A", '{"ttl":99999999999999999999,"data":"192.0.2.1"}', "ttl"),
        ("example.test/www/A", "[1]", "item 1 is to be"),
        ("example.test/www/A", "[]", "empty list"),
        ("example.test/www/A", '{"data":[]}', "empty list"),
        ("example.test/www/A", '[["192.0.2.1"]]', "A data is a string"),
        ("example.test/www/A", "2001:db8::1", "not an IPv4 address"),
        ("example.test/www/A", "[" * 100_000, "not understood"),
        ("example.test/www/IP", '["192.0.2.1","x"]', "neither an IPv4 nor an IPv6"),
        ("example.test/www/CNAME", '["a","b"]', "one CNAME, not 2"),
        ("example.test/@/CNAME", "a", "apex"),
        ("example.test/www/SOA", "a b 1 2 3 4 5", "apex only"),
        ("example.test/www/TXT", r'"\ud800"', "not understood"),
        ("example.test/www/TXT", "[[]]", "at least one string"),
    ],
)
def test_rejects_say_why_in_one_line(key: str, value: bytes | str, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        parse(key, value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_outside_the_prefix() -> None:
    with pytest.raises(Reject):
        records.parse("/standoff", Put("/elsewhere/example.test/www/A", b"192.0.2.1", 1))


@given(st.text(max_size=30), st.binary(max_size=60))
def test_any_key_and_value_gives_records_or_a_reject(key: str, value: bytes) -> None:
    reason = ""
    try:
        parse(key, value)
    except Reject as reject:
        reason = str(reject)
    assert "\n" not in reason


@given(st.sampled_from(["A", "TXT", "MX", "IP", "SOA", "CNAME"]), st.recursive(st.none() | st.text(max_size=5) |
       st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "ttl", "x"]),
       inner, max_size=3)))  # fmt: skip
def test_any_json_gives_records_or_a_reject(type_name: str, value: object) -> None:
    reason = ""
    try:
        parse(f"example.test/www/{type_name}", json.dumps(value))
    except Reject as reject:
        reason = str(reject)
    assert "\n" not in reason
