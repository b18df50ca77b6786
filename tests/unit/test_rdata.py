"""loader/rdata.py: text -> wire data."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import names, rdata
from loader.model import Record, Reject
from loader.zone import Zones
from shm.node import unpack

ZONE = b"\x07example\x04test\0"


def wire(type_name: str, text: str) -> bytes:
    return rdata.from_text(rdata.type_number(type_name), text, ZONE)


@pytest.mark.parametrize(
    ("type_name", "text", "expected"),
    [
        ("A", "192.0.2.1", b"\xc0\x00\x02\x01"),
        ("AAAA", "2001:db8::1", b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ("CNAME", "web1", b"\x04web1" + ZONE),
        ("CNAME", "Web1.Other.", b"\x04Web1\x05Other\0"),
        ("NS", "@", ZONE),
        ("PTR", "host.", b"\x04host\0"),
        ("DNAME", "new", b"\x03new" + ZONE),
        ("TXT", "v=spf1 -all", b"\x0bv=spf1 -all"),
        ("TXT", "", b"\x00"),
        ("TXT", r"back\slash", b"\x0aback\\slash"),
        ("TXT", "ü", b"\x02\xc3\xbc"),
        ("TXT", '"a b" "c"', b"\x03a b\x01c"),
        ("TXT", r'"say \"hi\""', b'\x08say "hi"'),
        ("TXT", r"\# 3 026162", b"\x02ab"),
        ("MX", "10 mail", b"\x00\x0a\x04mail" + ZONE),
        ("MX", "10 mail.other.", b"\x00\x0a\x04mail\x05other\0"),
        ("SRV", "0 5 5060 sip", b"\x00\x00\x00\x05\x13\xc4\x03sip" + ZONE),
        ("CAA", '0 issue "ca.example.net"', b"\x00\x05issueca.example.net"),
        ("mx", "10 mail.", b"\x00\x0a\x04mail\0"),
        ("TYPE65280", r"\# 4 0a000001", b"\x0a\x00\x00\x01"),
        ("TYPE1", "192.0.2.1", b"\xc0\x00\x02\x01"),
        ("CNAME", r"\# 3 016100", b"\x01a\0"),
    ],
)
def test_from_text(type_name: str, text: str, expected: bytes) -> None:
    assert wire(type_name, text) == expected


@pytest.mark.parametrize(
    ("type_name", "text", "reason"),
    [
        ("A", "192.0.2.256", "'192.0.2.256' is not an IPv4 address"),
        ("A", "192.0.02.1", "not an IPv4 address"),
        ("A", "2001:db8::1", "not an IPv4 address"),
        ("A", "192.0.2.1\0", "not an IPv4 address"),
        ("AAAA", "fe80::1%eth0", "not an IPv6 address"),
        ("AAAA", "192.0.2.1", "not an IPv6 address"),
        ("CNAME", "two words", "CNAME 'two words'"),
        ("MX", "mail", "MX 'mail'"),
        ("MX", "70000 mail", "MX '70000 mail'"),
        ("MX", "10 mail extra", "MX '10 mail extra'"),
        ("MX", "10 a\n20 b", "one line"),
        ("SRV", "1 2 3", "SRV '1 2 3'"),
        ("TYPE65280", "192.0.2.1", "TYPE65280"),
        ("TYPE65280", r"\# 5 0a000001", "wrong length"),
        ("CNAME", r"\# 2 c00c", "CNAME"),
        ("TXT", '"open', "TXT"),
        ("TXT", "x" * 66000, "at most 65523 octets"),
        ("NOPE", "x", "'NOPE' is not a record type"),
        ("TYPE0", "x", "not a record type"),
        ("TYPE65536", "x", "not a record type"),
        ("ANY", "x", "not a type that a zone can hold"),
        ("OPT", "x", "not a type that a zone can hold"),
        ("AXFR", "x", "not a type that a zone can hold"),
    ],
)
def test_rejects_say_why_in_one_line(type_name: str, text: str, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        wire(type_name, text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_what_is_taken_fits_into_a_node() -> None:
    """The short ways of the zone model do not ask for the size of a lone record."""
    zone, owner = names.from_text("example.test"), names.from_text("a.example.test")
    model = Zones([zone])
    longest = rdata.txt(["x" * 65267])
    assert len(longest) == 65523
    model.apply("k", [Record(None, owner, rdata.TXT, 60, longest)], 1)
    block = model.block(owner)
    assert block is not None
    assert len(unpack(block).rrsets[rdata.TXT].wire) == 65535
    with pytest.raises(Reject, match="at most 65523 octets"):
        rdata.txt(["x" * 65268])


def test_long_txt_is_split() -> None:
    data = rdata.txt(["x" * 300, "", "y"])
    assert data == b"\xff" + b"x" * 255 + b"\x2d" + b"x" * 45 + b"\x00" + b"\x01y"


def test_txt_of_no_strings() -> None:
    with pytest.raises(Reject):
        rdata.txt([])


def test_address_takes_both_families() -> None:
    assert rdata.address("192.0.2.1") == (rdata.A, b"\xc0\x00\x02\x01")
    assert rdata.address("::1") == (rdata.AAAA, bytes(15) + b"\x01")
    with pytest.raises(Reject, match="neither"):
        rdata.address("localhost")


@given(st.ip_addresses(v=4))
def test_every_ipv4_address(address: ipaddress.IPv4Address) -> None:
    assert rdata.ipv4(str(address)) == address.packed


@given(st.text(max_size=40), st.sampled_from(["A", "AAAA", "CNAME", "TXT", "MX", "SRV", "CAA", "SOA", "TYPE65280"]))
def test_any_text_gives_data_or_a_reject(text: str, type_name: str) -> None:
    try:
        wire(type_name, text)
        reason = ""
    except Reject as reject:
        reason = str(reject)
    assert "\n" not in reason


def test_type_names() -> None:
    assert rdata.type_name(1) == "A"
    assert rdata.type_name(65280) == "TYPE65280"
