"""What values may say about their records, in each schema, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loader import jsonlines, names, records, skydns, targets
from loader.attributes import Attributes, Conditional
from loader.model import Put, Record, Reject
from loader.skydns_tree import ServiceTree
from loader.targets import BadTarget

WWW = "/names/example.test/www/A"


def given(value: Any, key: str = WWW) -> list[Record]:
    return records.parse("/names", Put(key, json.dumps(value).encode(), 1))


def one(value: Any, key: str = WWW) -> Attributes:
    (record,) = given(value, key)
    assert isinstance(record, Conditional)
    return record.attributes


def test_records_without_attributes_are_plain() -> None:
    for value in ("192.0.2.1", ["192.0.2.1"], {"data": ["192.0.2.1"], "ttl": 5}, {"data": [{"data": "192.0.2.1"}]}):
        assert [type(record) for record in given(value)] == [Record]


def test_all_fields() -> None:
    found = one(
        {
            "data": "192.0.2.1", "not_before": "2031-01-01T00:00:00Z", "not_after": 2**31, "weight": 7, "pick": 2,
            "period": 30, "check": "tcp://{address}:443", "labels": {"site": "ams"},
        }
    )  # fmt: skip
    assert found.check is not None
    assert (found.not_before, found.not_after, found.weight, found.pick, found.period, found.check.text) == (
        1924992000.0, 2.0**31, 7, 2, 30, "tcp://192.0.2.1:443",
    )  # fmt: skip
    assert found.label("site") == "ams"
    assert found.label("rack") == ""


def test_items_have_attributes_of_their_own_and_for_the_rest_those_of_the_value() -> None:
    made = given(
        {
            "data": [{"data": "192.0.2.1", "weight": 3}, "192.0.2.2", {"data": "192.0.2.3", "check": "tcp://[::1]:1"}],
            "weight": 1, "check": "http://{address}:8080/up", "ttl": 9,
        }
    )  # fmt: skip
    conditions = [record.attributes for record in made if isinstance(record, Conditional)]
    assert [one.weight for one in conditions] == [3, 1, 1]
    assert [one.check and one.check.text for one in conditions] == [
        "http://192.0.2.1:8080/up", "http://192.0.2.2:8080/up", "tcp://[::1]:1",
    ]  # fmt: skip
    assert {record.ttl for record in made} == {9}


def test_a_bare_list_may_have_items_with_attributes() -> None:
    plain, weighty = given(["192.0.2.1", {"data": "192.0.2.2", "weight": 0}])
    assert type(plain) is Record
    assert isinstance(weighty, Conditional)


def test_addresses_of_both_families() -> None:
    made = given(
        {"data": ["192.0.2.1", "2001:db8::1"], "check": "https://{address}/", "ttl": 5}, "/names/example.test/www/IP"
    )
    texts = [record.attributes.check.text for record in made if isinstance(record, Conditional)]  # type: ignore[union-attr]
    assert texts == ["https://192.0.2.1/", "https://[2001:db8::1]/"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"not_before": "tomorrow"}, "not_before is a time"),
        ({"not_before": "2031-01-01T00:00:00"}, "not_before is a time"),  # which midnight?
        ({"not_before": "2031-02-30T00:00:00Z"}, "not_before is a time"),
        ({"not_after": -1}, "not_after is seconds"),
        ({"not_after": 1e300}, "not_after is seconds"),
        ({"not_before": 5, "not_after": 5}, "not before not_after"),
        ({"weight": 65536}, "weight is 0 to 65535"),
        ({"weight": -1}, "weight is 0 to 65535"),
        ({"weight": "7"}, "not understood"),
        ({"pick": 0}, "pick is 1"),
        ({"period": 4}, "period is 5"),
        ({"labels": {"a": 1}}, "not understood"),
        ({"labels": {str(i): "" for i in range(17)}}, "labels are at most 16"),
        ({"wieght": 1}, "wieght"),
        ({"check": "tcp://www.example.test:80"}, "ADDR being an address"),
        ({"check": "tcp://192.0.2.1"}, "tcp has a port"),
        ({"check": "tcp://192.0.2.1:80/x"}, "tcp has a port and no path"),
        ({"check": "http://192.0.2.1:99999/"}, "a port is"),
        ({"check": "http://192.0.2.1/a b"}, "ADDR being"),
        ({"check": "http://192.0.2.1/\r\nX: y"}, "ADDR being"),
        ({"check": "http://2001:db8::1/"}, "ADDR being"),
        ({"check": "http://[192.0.2.1]/"}, "brackets"),
        ({"check": "http://300.0.2.1/"}, "is not an address"),
        ({"check": {"url": "http://{address}/", "timeout": 3, "interval": 2}}, "longer than interval"),
        ({"check": {"url": "http://{address}/", "interval": 0}}, "interval of a check"),
        ({"check": {"url": "http://{address}/", "rise": 0}}, "rise of a check"),
        ({"check": {"url": "http://{address}/", "status": [200, 99]}}, "status of a check"),
        ({"check": {"url": "http://{address}/", "host": "a\r\nb"}}, "host"),
        ({"check": {"url": "tcp://{address}:1", "host": "a"}}, "status and host"),
        ({"check": {"url": "http://{address}/", "sni": "a"}}, "sni and verify"),
        ({"check": {"url": "https://{address}/", "sni": "www..example.test"}}, "is not a host's name"),
        ({"check": {"url": "https://{address}/", "sni": "x" * 64 + ".test"}}, "is not a host's name"),
        ({"check": {"url": "http://{address}/", "retries": 1}}, "retries"),
    ],
)
def test_what_is_wrong_rejects_the_key_with_a_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject, match=reason.replace("(", r"\(")) as caught:
        given({"data": "192.0.2.1", **fields})
    assert "\n" not in str(caught.value)


def test_a_placeholder_needs_an_address() -> None:
    with pytest.raises(Reject, match="stands for the address"):
        given({"data": "www.example.net.", "check": "tcp://{address}:80"}, "/names/example.test/www/CNAME")
    assert one({"data": "x.example.", "check": "tcp://192.0.2.9:80"}, "/names/example.test/www/CNAME").check


def test_a_zone_is_not_conditional() -> None:
    with pytest.raises(Reject, match="SOA has no conditions"):
        given({"data": "ns1 host 0 1 1 1 1", "weight": 1}, "/names/example.test/@/SOA")


def test_json_lines() -> None:
    lines = [
        b'{"name":"www.example.test","type":"A","data":"192.0.2.1","weight":9}',
        b'{"name":"www.example.test","type":"A","data":"192.0.2.2"}',
        b'{"name":"www.example.test","type":"A","data":"192.0.2.3","weight":-9}',
        b'{"name":"www.example.test","type":"A","data":"192.0.2.3","color":1}',
    ]
    found, wrong = jsonlines.read(lines)
    first, second = jsonlines.as_list(found["www.example.test./A"])
    assert isinstance(first, Conditional)
    assert first.attributes.weight == 9
    assert type(second) is Record
    assert wrong[3] == "weight is 0 to 65535, not -9"
    assert "color" in wrong[4]


def test_skydns_values() -> None:
    tree = ServiceTree("/skydns", [names.from_text("example.test")])
    value = b'{"host":"192.0.2.1","weight":50,"check":"tcp://{address}:80","not_after":"2031-01-01T00:00:00+01:00"}'
    tree.replace([Put("/skydns/test/example/www/a", value, 1)])
    made = tree.records_of("/skydns/test/example/www/a")
    assert {record.type for record in made} == {1, 33}  # the SRV is about the same address
    assert len({record.owner for record in made}) == 3
    for record in made:
        assert isinstance(record, Conditional)
        assert record.attributes.check is not None
        assert record.attributes.check.text == "tcp://192.0.2.1:80"
        assert record.attributes.weight == -1  # the field is SRV's
    tree.replace([Put("/skydns/test/example/www/a", b'{"host":"w.example.net","check":"tcp://{address}:80"}', 1)])
    assert "stands for the address" in tree.problems["/skydns/test/example/www/a"]
    tree.replace([Put("/skydns/test/example/www/a", b'{"host":"192.0.2.1"}', 1)])
    assert {type(record) for record in tree.records_of("/skydns/test/example/www/a")} == {Record}
    assert type(skydns.decode("/skydns", Put("/skydns/a", b'{"host":"192.0.2.1"}', 1), lambda _: 0)) is skydns.Service


def test_a_target_is_named_by_all_that_makes_it_one() -> None:
    plain = targets.parse("https://192.0.2.1/up")
    assert (plain.scheme, plain.address, plain.port, plain.path) == ("https", "192.0.2.1", 443, "/up")
    made = targets.parse(
        targets.Options("https://192.0.2.1/up", interval=2, status=[200, 204], host="www.example.test", verify=True)
    )
    assert made.text == "https://192.0.2.1/up interval=2 status=200,204 host=www.example.test verify=yes"
    assert (made.timeout, made.sni, made.statuses) == (2, "www.example.test", (200, 204))
    assert targets.parse("tcp://[2001:DB8::1]:53").address == "2001:db8::1"
    with pytest.raises(BadTarget):
        targets.parse("udp://192.0.2.1:53")


def test_attributes_do_not_change_what_a_key_gives() -> None:
    plain = given({"data": "192.0.2.1", "ttl": 3})[0]
    conditional = given({"data": "192.0.2.1", "ttl": 3, "weight": 1})[0]
    assert (plain.owner, plain.type, plain.ttl, plain.rdata) == (
        conditional.owner, conditional.type, conditional.ttl, conditional.rdata,
    )  # fmt: skip
    assert plain != conditional  # a file source notices what has changed
