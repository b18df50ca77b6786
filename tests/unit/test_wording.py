"""Why a JSON value is not understood, in our words: the field, what it is to be, what was found."""

from __future__ import annotations

import pytest

from loader import jsonlines, records, skydns
from loader.model import Put, Reject

#: A word of the JSON library's messages; none is to reach people.
FOREIGN = ("`", "Expected", "Object ", "truncated", "malformed", "$")


def parse(schema: str, value: bytes) -> None:
    if schema == "records":
        records.parse("/n", Put("/n/example.test/www/A", value, 1))
    elif schema == "skydns":
        skydns.decode("/n", Put("/n/test/example/www", value, 1), lambda lease: lease)
    else:
        raise Reject(jsonlines.read([value])[1][1])


def reason(schema: str, value: bytes) -> str:
    with pytest.raises(Reject) as caught:
        parse(schema, value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("schema", "value", "wanted"),
    [
        ("records", b'{"data":1}', "data is to be a string or a list, not a whole number"),
        ("records", b'{"data":"192.0.2.1","ttl":"60"}', "ttl is to be a whole number, not a string"),
        ("records", b'{"data":"192.0.2.1","ttl":1.5}', "ttl is to be a whole number, not a fraction"),
        ("records", b'{"data":"192.0.2.1","not_before":true}', "not_before is to be a number or a string, not true"),
        ("records", b'{"ttl":1}', "the field data is missing"),
        ("records", b'{"tll":1,"data":"192.0.2.1"}', "there is no field tll"),
        ("records", b'{"data":["192.0.2.1",{"wieght":1}]}', "there is no field wieght in item 2 of data"),
        ("records", b'{"data":[{"weight":1}]}', "the field data is missing in item 1 of data"),
        ("records", b'[{"data":"192.0.2.1","weight":[]}]', "weight of item 1 is to be a whole number, not a list"),
        ("records", b'{"data":"192.0.2.1","labels":{"a":1}}', "a value of labels is to be a string, not"),
        ("records", b'{"data":"192.0.2.1","check":{"urll":"x"}}', "there is no field urll in check"),
        ("records", b'["192.0.2.1",]', "no JSON at octet 14: trailing comma"),
        ("records", b'{"host":"192.0.2.1"}', "there is no field host; SkyDNS keys are read with schema=skydns"),
        ("records", b'{"data":', "the JSON ends too early"),
        ("skydns", b'{"host":1}', "host is to be a string, not a whole number"),
        ("skydns", b'{"Host":1}', "host is to be a string, not a whole number"),
        ("skydns", b'{"host":"192.0.2.1","mail":1}', "mail is to be true or false, not a whole number"),
        ("skydns", b'{"host":"192.0.2.1"', "the JSON ends too early"),
        ("skydns", b"192.0.2.1", 'it is to be an object, {"host":"192.0.2.1"}'),
        ("skydns", b"[]", 'it is to be an object, {"host":"192.0.2.1"}'),
        ("skydns", b"", 'it is to be an object, {"host":"192.0.2.1"}'),
        ("jsonlines", b'{"name":"a.example.test.","type":"A"}', "the field data is missing"),
        ("jsonlines", b"[]", "it is to be an object, not a list"),
    ],
)
def test_the_reason_names_field_expectation_and_find(schema: str, value: bytes, wanted: str) -> None:
    told = reason(schema, value)
    assert "is not understood: " + wanted in told
    assert not any(word in told for word in FOREIGN)


def test_a_name_with_a_back_quote_is_told_as_it_is() -> None:
    assert reason("records", b'{"data":"192.0.2.1","a`b":1}').endswith("there is no field a`b")
