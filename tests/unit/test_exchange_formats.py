"""Other servers' formats, example by example; and what is said of records that a loader would refuse or hide."""

from __future__ import annotations

import msgspec
import pytest

from loader import importing, names, rdata
from loader.exchange import keys, powerdns, route53, served
from loader.exchange.sets import Gathered, RecordSet
from loader.model import Put, Reject

ZONE = names.from_text("example.test.")


def whole(found: Gathered) -> list[RecordSet]:
    assert not found.problems
    assert not found.notes
    return found.sets


# ---------------------------------------------------------------- PowerDNS

PDNS = """\
$ORIGIN .
example.test\t3600\tIN\tSOA\tns1.example.test hostmaster.example.test 5 10800 3600 604800 3600
example.test\t3600\tIN\tNS\tns1.example.test.
example.test\t3600\tIN\tALIAS\tweb.example.net
example.test\t60\tIN\tTXT\t"v=spf1 a:mail -all"
www.example.test\t60\tIN\tLUA\tA "ifportup(443, {'192.0.2.1'})"
www.example.test\t60\tIN\tAAAA\t2001:db8::1
mail.example.test\t60\tIN\tMX\t10 mx.example.net
bad.example.test\t60\tIN\tA\tnonsense
what is this?
$ORIGIN .
second.test\t3600\tIN\tSOA\tns1.second.test. hostmaster.second.test. 5 10800 3600 604800 3600
All zonecount:2
"""


def test_powerdns() -> None:
    found = powerdns.read(PDNS)
    assert found.zones == {ZONE, names.from_text("second.test.")}
    assert [one.title for one in found.sets] == [
        "example.test. SOA", "example.test. NS", "example.test. TXT", "mail.example.test. MX",
        "www.example.test. AAAA", "second.test. SOA",
    ]  # fmt: skip
    told = {one.where: one.reason for one in found.problems}
    assert set(told) == {
        "example.test ALIAS (line 4)", "www.example.test LUA (line 6)", "bad.example.test A (line 9)", "line 10",
    }  # fmt: skip
    owners = {one.owner for one in found.problems}
    assert owners == {ZONE, None, *(names.from_text(name, ZONE) for name in ("www", "bad"))}


@pytest.mark.parametrize(
    ("content", "strings"),
    [
        (f'"{"k" * 300}"', [b"k" * 255, b"k" * 45]),
        (f'"{"k" * 254}\\"\\200e" "end"', [b"k" * 254 + b'"', b"\xc8e", b"end"]),
        ('"" "\\\\"', [b"", b"\\"]),
        ("v=spf1 -all", [b"v=spf1 -all"]),
        ('"\u2028 \x85"', ["\u2028 \x85".encode()]),
        (f'"{"ü" * 128}"', [("ü" * 127).encode() + b"\xc3", b"\xbc"]),
    ],
)
def test_powerdns_cuts_texts_itself(content: str, strings: list[bytes]) -> None:
    for type_text in ("TXT", "SPF"):
        (one,) = whole(powerdns.read(f"t.example.test\t60\tIN\t{type_text}\t{content}\n", [ZONE]))
        if content.startswith('"') or type_text == "TXT":
            assert one.data == (b"".join(bytes([len(string)]) + string for string in strings),)


def test_powerdns_zone_names_alone() -> None:
    found = powerdns.read("example.test\nwww.example.test 60 IN A 192.0.2.1\n")
    assert [one.zone for one in found.sets] == [ZONE]


# ---------------------------------------------------------------- Route 53


def aws(*sets: dict[str, object], **more: object) -> bytes:
    return msgspec.json.encode({"ResourceRecordSets": sets, **more})


def plain_set(name: str, type_text: str, *values: str, ttl: int = 300, **more: object) -> dict[str, object]:
    return {"Name": name, "Type": type_text, "TTL": ttl, "ResourceRecords": [{"Value": v} for v in values], **more}


SOA53 = plain_set("example.test.", "SOA", "ns.aws.test. hostmaster.aws.test. 1 7200 900 1209600 86400")


def test_route53() -> None:
    raw = aws(
        SOA53,
        plain_set("\\052.example.test.", "A", "192.0.2.1", "192.0.2.2"),
        plain_set("t.example.test.", "TXT", '"one \\"two\\" \\303\\244"'),
        plain_set("spf.example.test.", "SPF", '"v=spf1 -all"'),
        {"Name": "example.test.", "Type": "A", "AliasTarget": {"DNSName": "lb.aws.test.", "HostedZoneId": "Z"}},
        plain_set("w.example.test.", "A", "192.0.2.3", SetIdentifier="blue", Weight=0),
        plain_set("g.example.test.", "A", "192.0.2.3", SetIdentifier="eu", GeoLocation={"ContinentCode": "EU"}),
        plain_set("p.example.test.", "A", "192.0.2.3", TrafficPolicyInstanceId="x"),
        plain_set("bad.example.test.", "A", "nonsense"),
        {"Name": "none.example.test.", "Type": "A"},
    )
    found = route53.read(raw)
    sets = {one.title: one for one in found.sets}
    assert set(sets) == {"example.test. SOA", "*.example.test. A", "t.example.test. TXT", "spf.example.test. TXT"}
    assert sets["*.example.test. A"].data == (b"\xc0\0\2\1", b"\xc0\0\2\2")
    assert sets["t.example.test. TXT"].data == (rdata.txt(['one "two" ä']),)
    told = {one.where: one.reason for one in found.problems}
    assert "an alias of lb.aws.test." in told["example.test. A"]
    assert "weighted routing (set 'blue')" in told["w.example.test. A"]
    assert "geolocation" in told["g.example.test. A"]
    assert set(told) >= {"p.example.test. A", "bad.example.test. A", "none.example.test. A"}


def test_route53_in_pieces() -> None:
    pages = aws(SOA53) + b"\n" + aws(plain_set("www.example.test.", "A", "192.0.2.1"))
    assert len(whole(route53.read(pages))) == 2
    cut = aws(SOA53, IsTruncated=True, NextRecordName="www.example.test.", NextRecordType="A")
    assert route53.read(cut).problems[0].where == "the listing"
    www = plain_set("www.example.test.", "A", "192.0.2.1")
    assert len(whole(route53.read(cut + aws(www)))) == 2
    assert len(whole(route53.read(b"[" + cut + b"," + aws(www) + b"]"))) == 2
    for gap in (aws(plain_set("www.example.test.", "TXT", '"x"')), aws(), cut):
        assert "the listing" in {one.where for one in route53.read(cut + gap).problems}
    assert route53.read(aws(SOA53, NextToken="x") + aws(www)).problems[0].where == "the listing"


def test_texts_with_braces_are_no_seam_of_listings() -> None:
    text = plain_set("t.example.test.", "TXT", '"{a} {b}"')
    assert whole(route53.read(aws(SOA53, text) + b"\n" + aws()))[1].data == (rdata.txt(["{a} {b}"]),)


def test_route53_health_checks_are_told() -> None:
    found = route53.read(aws(SOA53, plain_set("www.example.test.", "A", "192.0.2.1", HealthCheckId="c0ffee")))
    assert len(found.sets) == 2
    assert [(one.where, "c0ffee" in one.reason) for one in found.notes] == [("www.example.test. A", True)]


@pytest.mark.parametrize("raw", [b"[1,2", b"", b" ", b"[]", b"[1]", b"{}", b'{"ResourceRecordSets":5}', b"\xff\xfe"])
def test_what_is_no_listing(raw: bytes) -> None:
    with pytest.raises(Reject, match="no listing of Route 53"):
        route53.read(raw)


# ---------------------------------------------------------------- signed zones

SIGNED = """\
$ORIGIN example.test.
$TTL 60
@ SOA ns1 hostmaster 7 7200 1800 86400 30
@ DNSKEY 257 3 13 mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxILfDLUT0rAK9iUzy1L53eKGQ==
@ RRSIG SOA 13 2 60 20261230000000 20261201000000 1234 example.test. AAAA
@ RRSIG NS 13 2 60 20261230000000 20261201000000 1234 example.test. AAAA
@ NSEC www SOA DNSKEY RRSIG NSEC
@ NSEC3PARAM 1 0 0 -
www A 192.0.2.1
"""


def test_signatures_are_left_out_and_told() -> None:
    found = importing.read("-", "zone", (), SIGNED.encode)
    assert [one.title for one in found.sets] == [
        "example.test. SOA", "example.test. DNSKEY", "www.example.test. A",
    ]  # fmt: skip
    assert not found.problems
    assert [one.where for one in found.notes] == ["example.test."]
    assert "take the zone's DS out" in found.notes[0].reason
    assert found.notes[0].reason.endswith("left out: 1 NSEC, 1 NSEC3PARAM, 2 RRSIG")


# ---------------------------------------------------------------- what a loader would say

A, TEXT = b'"192.0.2.1"', b'"x"'


def test_what_stands_beside_a_cname_is_refused() -> None:
    wanted = {"/n/example.test/c/A": A, "/n/example.test/c/CNAME": b"www", "/n/example.test/c/TXT": TEXT}
    said = served.alone("/n", wanted)
    assert set(said.refused) == {"/n/example.test/c/A", "/n/example.test/c/TXT"}
    told = served.remarks("/n", said.refused)
    assert {one.where for one in told} == {"c.example.test. A", "c.example.test. TXT"}
    assert {one.owner for one in told} == {names.from_text("c", ZONE)}
    assert "the key /n/example.test/c/CNAME keeps the name" in told[0].reason


def test_what_is_beneath_a_dname_is_told() -> None:
    wanted = {"/n/example.test/d/DNAME": b"other.test.", "/n/example.test/x.d/A": A}
    said = served.alone("/n", wanted)
    assert not said.refused
    assert set(said.changed) == {"/n/example.test/x.d/A"}


def test_what_becomes_of_changes_beside_what_is_there() -> None:
    present = [
        Put("/n/example.test/c/CNAME", b"www", 5),
        Put("/n/example.test/x.d/A", A, 5),
        Put("/n/example.test/bad/A", b"nonsense", 5),
        Put("/n/example.test/old/A", A, 5),
        Put("/n/example.test/old/CNAME", b"www", 6),
        Put("/n/example.test/gone/A", A, 5),
    ]
    wanted = {
        "/n/example.test/c/A": A,
        "/n/example.test/d/DNAME": b"other.test.",
        "/n/example.test/gone/CNAME": b"www",
    }
    before = {put.key: put.value for put in present}
    changes = keys.plan("/n", before, wanted)
    said = served.afterwards("/n", present, changes)
    assert set(said.refused) == {"/n/example.test/c/A", "/n/example.test/gone/CNAME"}
    assert set(said.changed) == {"/n/example.test/x.d/A"}
    assert not served.afterwards("/n", present, keys.plan("/n", before, wanted, {ZONE})).refused
    assert served.afterwards("/n", present, []) == served.Said()
