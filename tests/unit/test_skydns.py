"""loader/skydns.py: one key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import skydns
from loader.model import DEFAULT_TTL, MAX_TTL, Put, Reject
from loader.skydns import HOST, NOTHING, POINTER, TEXT, Service

WWW = b"\x03www\x07example\x04test\0"
ADDRESS = b"\xc0\x00\x02\x01"


def decode(path: str, value: str, lease: int = 0, granted: int = 0) -> Service:
    service = skydns.decode("/skydns", Put("/skydns/" + path, value.encode(), 7, lease), lambda _: granted)
    assert service is not None
    return service


@pytest.mark.parametrize(
    ("value", "kind", "type_", "data"),
    [
        ('{"host":"192.0.2.1"}', HOST, 1, ADDRESS),
        ('{"host":"2001:db8::1"}', HOST, 28, b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ('{"host":"::ffff:192.0.2.1"}', HOST, 1, ADDRESS),
        ('{"host":"Web.other.test"}', HOST, 5, b"\x03Web\x05other\x04test\0"),
        ('{"host":"web.other.test."}', HOST, 5, b"\x03web\x05other\x04test\0"),
        ('{"text":"hello"}', TEXT, 0, b""),
        ('{"host":"192.0.2.1","text":"heritage=external-dns"}', HOST, 1, ADDRESS),
        ('{"host":"192.0.2.1","port":null,"owner":"me","setIdentifier":["x"],"priority":5}', HOST, 1, ADDRESS),
        ("{}", NOTHING, 0, b""),
        ('{"host":"","text":""}', NOTHING, 0, b""),
        ('{"port":80}', NOTHING, 0, b""),
    ],
)
def test_value(value: str, kind: int, type_: int, data: bytes) -> None:
    service = decode("test/example/www", value)
    assert (service.name, service.kind, service.type, service.data) == (WWW, kind, type_, data)


def test_defaults() -> None:
    service = decode("test/example/www", "{}")
    assert (service.port, service.priority, service.weight) == (0, 10, 100)
    assert (service.ttl, service.mail) == (DEFAULT_TTL, False)
    assert (service.text, service.group, service.strip, service.target, service.explicit) == (b"", "", 0, WWW, False)


@pytest.mark.parametrize(
    ("ttl", "expected"), [("0", DEFAULT_TTL), ("null", DEFAULT_TTL), ("60", 60), ("4294967295", MAX_TTL)]
)
def test_ttl(ttl: str, expected: int) -> None:
    assert decode("test/example/www", f'{{"host":"192.0.2.1","ttl":{ttl}}}').ttl == expected


def test_fields_count_in_any_case() -> None:
    """As Go reads them."""
    value = '{"Host":"192.0.2.1","TTL":60,"PORT":80,"Priority":5,"weighT":7,"Mail":true,"TargetStrip":1,"GROUP":"g"}'
    service = decode("test/example/www/a", value)
    assert (service.type, service.data, service.ttl, service.port) == (1, ADDRESS, 60, 80)
    assert (service.priority, service.weight, service.mail, service.group) == (5, 7, True, "g")
    assert service.target == WWW
    assert decode("test/example/www", '{"Text":"x"}').kind == TEXT
    assert decode("test/example/www", '{"host":"192.0.2.2","Host":"192.0.2.1","HOST":null}').data == ADDRESS
    assert decode("test/example/www", r'{"text":"\"Host\":","Owner":{"Port":"x"}}').kind == TEXT
    with pytest.raises(Reject, match="port is to be a whole number"):
        decode("test/example/www", '{"host":"192.0.2.1","Port":"80"}')


def test_a_slash_at_the_end_of_a_key_does_not_count() -> None:
    assert decode("test/example/www/", '{"host":"192.0.2.1"}').name == WWW


def test_long_text_is_split() -> None:
    text = decode("test/a", f'{{"text":"{"x" * 300}"}}').text
    assert (text[0], text[256], len(text)) == (255, 45, 302)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("arpa/in-addr/10/0/0/127", POINTER), ("arpa/ip6/1/2", POINTER), ("arpa/e164/1", HOST), ("arpax/in-addr/1", HOST)],
)
def test_names_in_reverse_zones(path: str, kind: int) -> None:
    assert decode(path, '{"host":"a.example.test"}').kind == kind
    assert decode(path, '{"host":"192.0.2.1"}').kind == HOST


@pytest.mark.parametrize(
    ("strip", "target"),
    [(0, b"\x01a" + WWW), (1, WWW), (3, b"\x04test\0"), (4, b"\x01a" + WWW), (100, b"\x01a" + WWW)],
)
def test_targetstrip(strip: int, target: bytes) -> None:
    assert decode("test/example/www/a", f'{{"host":"192.0.2.1","targetstrip":{strip}}}').target == target
    assert decode("test/example/www/a", f'{{"host":"b.c","targetstrip":{strip}}}').target == b"\x01b\x01c\0"


@pytest.mark.parametrize("host", ["1.0/25.2.0.192.in-addr.arpa", "3com", "1.2.3.4.example.", "_x._tcp.a", "."])
def test_hosts_that_are_names_all_the_same(host: str) -> None:
    assert decode("test/example/www", f'{{"host":"{host}"}}').type == 5


def test_reverse_names() -> None:
    assert decode("arpa/in-addr/10/0/0/127", "{}").name == b"\x03127\x010\x010\x0210\x07in-addr\x04arpa\0"


def test_keys_are_folded() -> None:
    assert decode("Test/Example/WWW", "{}").name == WWW


def test_skydns_settings_are_no_service() -> None:
    assert skydns.decode("/skydns", Put("/skydns/config", b"whatever", 7), lambda _: 0) is None


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("test/example/www", "x", "not understood"),
        ("test/example/www", '{"host":5}', "host is to be a string"),
        ("test/example/www", '["192.0.2.1"]', "not understood"),
        ("test/example/www", '{"host":"192.0.2.1","ttl":-1}', "ttl is 0 to"),
        ("test/example/www", '{"host":"192.0.2.1","ttl":4294967296}', "ttl is 0 to"),
        ("test/example/www", '{"host":"192.0.2.1","port":65536}', "port is -1 to 65535"),
        ("test/example/www", '{"host":"192.0.2.1","priority":-1}', "priority is 0 to 65535"),
        ("test/example/www", '{"host":"192.0.2.1","weight":-1}', "weight is 0 to"),
        ("test/example/www", '{"host":"192.0.2.1","targetstrip":-1}', "targetstrip is 0 to"),
        ("test/example/www", '{"host":"two words"}', "neither an address nor a name"),
        ("test/example/www", '{"host":"a..b"}', "neither an address nor a name"),
        *(
            ("test/example/www", f'{{"host":"{host}"}}', "neither an address nor a name")
            for host in (
                "192.0.2.300",
                "192.0.2.1.",
                "192.0.2.1:80",
                "192.0.2.1/24",
                "2001:db8::1:",
                "[2001:db8::1]",
                "fe80::1%eth0",
                "http://a.example.test",
                "a.example.test:80",
                "a.example.test/",
                "80",
                "1.2",
            )
        ),
        ("test/example/www//", '{"host":"192.0.2.1"}', "in the key"),
        ("test//www", '{"host":"192.0.2.1"}', "in the key"),
        ("test/" + "x" * 64, '{"host":"192.0.2.1"}', "in the key"),
        ("", '{"host":"192.0.2.1"}', "in the key"),
        ("test/b\u00fccher", '{"host":"192.0.2.1"}', "xn--"),
        ("test/www", r'{"text":"\ud800"}', "not understood"),
    ],
)
def test_rejects(path: str, value: str, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        decode(path, value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_utf8() -> None:
    with pytest.raises(Reject):
        skydns.decode("/skydns", Put("/skydns/test/a", b'{"host":"\xff"}', 1), lambda _: 0)


@given(st.text(max_size=20), st.binary(max_size=40))
def test_any_key_and_value_gives_a_service_or_a_reject(path: str, value: bytes) -> None:
    reason = ""
    try:
        skydns.decode("/skydns", Put("/skydns/" + path, value, 1), lambda _: 0)
    except Reject as reject:
        reason = str(reject)
    assert "\n" not in reason
