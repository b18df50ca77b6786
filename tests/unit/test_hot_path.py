"""One suite for both answerers: the hot path gives the reference's bytes or declines, and declines nothing common."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import dns.flags
import dns.rcode
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.answerers import ANSWERERS, Answerer, hot_path, reference
from tests.support.mutation import Mutator
from tests.support.packets import parsed, query
from tests.support.tables import example_table, make_table

CORPUS = Path(__file__).parents[1] / "corpus"
CASES = sorted(CORPUS.glob("*/*.hex"))


def packet_of(path: Path) -> bytes:
    return bytes.fromhex(path.read_text())


def expectation_of(path: Path) -> dict[str, Any]:
    expectation: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return expectation


@pytest.fixture(params=list(ANSWERERS))
def answerer(request: pytest.FixtureRequest) -> Answerer:
    """The reference, then the hot path."""
    return ANSWERERS[request.param]


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_the_corpus_is_whole() -> None:
    assert len(CASES) >= 150
    assert {path.with_suffix(".json") for path in CASES} == set(CORPUS.glob("*/*.json"))


@pytest.mark.parametrize("path", CASES, ids=case_id)
@pytest.mark.parametrize("stream", [False, True], ids=["datagram", "stream"])
def test_corpus(path: Path, stream: bool, answerer: Answerer) -> None:
    packet, expected = packet_of(path), expectation_of(path)
    reply = answerer(packet, example_table(), stream)
    if reply is None:
        assert answerer is hot_path
        assert "declines" in (expected["hot"], expected.get("stream") if stream else None)
        return
    if answerer is hot_path:
        assert expected["hot"] == ("answers" if reply else "drops")
    if expected["rcode"] is None:
        assert reply == b""
        return
    message = parsed(reply)
    assert dns.rcode.to_text(message.rcode()) == expected["rcode"]
    assert reply[:2] == packet[:2]
    assert reply[2] & 0x78 == packet[2] & 0x78, "the opcode comes back"
    assert message.flags & dns.flags.RD == int.from_bytes(packet[2:4], "big") & 0x0100
    assert not message.flags & (dns.flags.RA | dns.flags.AD | dns.flags.CD)
    if path.parent.name == "invalid" or expected.get("bare"):
        assert len(reply) == 12, "nothing behind the header can be trusted"
        return
    question = packet[12 : 12 + len(message.question[0].name.to_wire() or b"") + 4] if message.question else b""
    assert reply[12 : 12 + len(question)] == question
    truncated = bool(expected.get("truncated")) and not stream
    assert bool(message.flags & dns.flags.TC) == truncated
    assert message.edns == (0 if expected.get("edns") else -1)
    if not expected.get("truncated"):
        assert len(message.answer) == expected.get("answers", 0)
        assert len(message.authority) == expected.get("authorities", 0)
        assert len(message.additional) >= expected.get("additionals", 0)


NOT_TO_BE_DECLINED = {
    "positive": query("a.example.test."),
    "several": query("two.example.test.", "AAAA"),
    "apex": query("example.test.", "NS"),
    "alias itself": query("alias.example.test.", "CNAME"),
    "NXDOMAIN": query("nowhere.example.test."),
    "NXDOMAIN far below": query("a.b.c.d.e.nowhere.example.test."),
    "NODATA": query("a.example.test.", "AAAA"),
    "NODATA at the apex": query("example.test.", "HTTPS"),
    "empty non-terminal": query("ent.example.test."),
    "REFUSED": query("www.elsewhere.test."),
    "EDNS": query("a.example.test.", edns=1232),
    "EDNS and DO": query("a.example.test.", edns=4096, dnssec_ok=True),
    "truncated": query("many.example.test."),
    "truncated with EDNS": query("large.example.test.", "TXT", edns=1232),
    "wildcard itself": query("*.wild.example.test."),
    "below a wildcard's sibling": query("real.wild.example.test."),
    "mixed case": query("A.eXample.TesT."),
    "checking disabled": query("a.example.test.", flags=0x0110),
    "response": query("a.example.test.", flags=0x8000),
    "short": query("a.example.test.")[:11],
}


@pytest.mark.parametrize("packet", NOT_TO_BE_DECLINED.values(), ids=list(NOT_TO_BE_DECLINED))
@pytest.mark.parametrize("stream", [False, True])
def test_common_queries_are_not_declined(packet: bytes, stream: bool) -> None:
    reply = hot_path(packet, example_table(), stream)
    assert reply is not None
    assert reply == reference(packet, example_table(), stream)


@pytest.mark.parametrize("name", [f"{name}.example.test." for name in ("a", "foo.wild", "nowhere", "sub")])
def test_every_type(name: str) -> None:
    """What a type that nobody knows gets is what the name gives: data, NODATA, NXDOMAIN, a referral."""
    table, packet = example_table(), bytearray(query(name))
    usual: dict[bytes, list[int]] = {}
    for type_ in range(65536):
        packet[-4:-2] = type_.to_bytes(2, "big")
        reply = hot_path(bytes(packet), table)
        if reply is None:
            reply = reference(bytes(packet), table)
        elif type_ % 97 == 0 or type_ < 300:
            assert reply == reference(bytes(packet), table)
        assert reply
        usual.setdefault(reply[:12] + reply[len(packet) :], []).append(type_)
    commonest = max(usual.values(), key=len)
    others = set(range(65536)) - set(commonest)
    assert others <= {1, 2, 6, 16, 43, 251, 252, 255}, "only what there is, transfers, and ANY"


@pytest.mark.parametrize("opcode", range(16))
@pytest.mark.parametrize("class_", [0, 1, 2, 3, 4, 254, 255, 65535])
def test_every_opcode_and_class(opcode: int, class_: int) -> None:
    packet = bytearray(query("a.example.test.", edns=1232))
    packet[2] |= opcode << 3
    at = len(query("a.example.test.")) - 2
    packet[at : at + 2] = class_.to_bytes(2, "big")
    alike(bytes(packet), stream=False)
    reply = reference(bytes(packet), example_table())
    assert reply is not None
    expected = dns.rcode.NOTIMP if opcode else dns.rcode.NOERROR if class_ in (1, 255) else dns.rcode.REFUSED
    assert reply[3] & 15 == expected
    assert reply[2] >> 3 & 15 == opcode


@settings(max_examples=200, deadline=None)
@given(
    name=st.one_of(
        st.sampled_from(
            [
                "a",
                "A",
                "two",
                "many",
                "huge",
                "alias",
                "x.wild",
                "ent",
                "x.ent",
                "sub",
                "x.sub",
                "nowhere",
                "txt",
                "medium",
                "large",
                "across",
                "loop1",
                "x.wcname",
                "bare",
                "crowd",
                "ns1.sub",
            ]
        ).map(lambda label: f"{label}.example.test."),
        st.sampled_from([".", "test.", "example.test.", "other.test.", "x.other.test.", "EXAMPLE.test."]),
    ),
    type_=st.sampled_from(
        ["A", "AAAA", "NS", "SOA", "CNAME", "TXT", "MX", "DS", "ANY", "SRV", "TYPE0", "OPT", "DNAME"]
    ),
    edns=st.one_of(st.none(), st.integers(0, 65535)),
    dnssec_ok=st.booleans(),
    flags=st.integers(0, 0xFFFF),
    stream=st.booleans(),
)
@example("large.example.test.", "TXT", 1232, True, 0, False)
def test_well_formed_queries_alike(
    name: str, type_: str, edns: int | None, dnssec_ok: bool, flags: int, stream: bool
) -> None:
    packet = bytearray(query(name, type_, edns=edns, dnssec_ok=dnssec_ok))
    packet[2:4] = flags.to_bytes(2, "big")
    alike(bytes(packet), stream)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=600), st.binary(max_size=64).map(lambda tail: query("a.example.test.")[:12] + tail))
)
def test_junk_alike(packet: bytes) -> None:
    alike(packet, stream=False)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.booleans())
def test_mutated_alike(seed: int, stream: bool) -> None:
    for packet in Mutator(random.Random(seed)).packets(10):
        alike(packet, stream)


def alike(packet: bytes, stream: bool) -> None:
    expected = reference(packet, example_table(), stream)
    reply = hot_path(packet, example_table(), stream)
    assert reply is None or reply == expected
    if expected and len(expected) < 4096:  # dnspython takes its time over thousands of records
        parsed(expected)


def test_the_hot_path_declines_what_an_empty_table_cannot_say() -> None:
    """An empty table is a table: everything is outside its zones."""
    table = make_table([])
    for packet in NOT_TO_BE_DECLINED.values():
        assert hot_path(packet, table) == reference(packet, table)
