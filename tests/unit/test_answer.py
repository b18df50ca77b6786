"""The reference answerer against what the RFCs ask for, over two zones with one of everything."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest

from server.answer import answer
from server.policy import DEFAULT_POLICY, Moment, Policy
from shm.layout import NodeFlag
from shm.node import pack
from tests.support.packets import parsed, query
from tests.support.tables import DEEPEST, LONGEST, compile_zone, example_table, make_table, rrset, wire

QR, AA, TC, RD = dns.flags.QR, dns.flags.AA, dns.flags.TC, dns.flags.RD


def ask(name: str, type_: str = "A", *, stream: bool = False, **options: object) -> dns.message.Message:
    """The reply, as dnspython reads it; names may leave out the zone."""
    full = name if name.endswith(".") else f"{name}.example.test."
    reply = answer(query(full, type_, **options), example_table(), DEFAULT_POLICY, Moment(stream=stream))  # type: ignore[arg-type]
    assert reply is not None
    limit = 65535 if stream else max(512, int(options.get("edns") or 512))  # type: ignore[call-overload]
    assert len(reply) <= limit
    message = parsed(reply)
    assert message.id == 0x1234
    assert message.flags & QR
    return message


def section(rrsets: list[dns.rrset.RRset]) -> list[str]:
    """`owner type data` of every RR."""
    return [f"{one.name} {dns.rdatatype.to_text(one.rdtype)} {rdata}" for one in rrsets for rdata in one]


SOA = ["example.test. SOA ns1.example.test. hostmaster.example.test. 7 7200 1800 86400 30"]
OTHER_SOA = ["other.test. SOA ns2.other.test. hostmaster.other.test. 1 7200 1800 86400 600"]

POSITIVE = {
    ("a", "A"): ["a.example.test. A 192.0.2.1"],
    ("two", "A"): ["two.example.test. A 192.0.2.2", "two.example.test. A 192.0.2.3"],
    ("two", "AAAA"): ["two.example.test. AAAA 2001:db8::2"],
    ("example.test.", "MX"): ["example.test. MX 10 mail.example.test."],
    ("example.test.", "NS"): ["example.test. NS ns1.example.test.", "example.test. NS ns2.other.test."],
    ("example.test.", "SOA"): SOA,
    ("_sip._tcp", "SRV"): ["_sip._tcp.example.test. SRV 1 2 5060 a.example.test."],
    ("txt", "TXT"): ['txt.example.test. TXT "one" "two"'],
    ("alias", "CNAME"): ["alias.example.test. CNAME a.example.test."],
    ("alias", "A"): ["alias.example.test. CNAME a.example.test.", "a.example.test. A 192.0.2.1"],
    ("alias2", "A"): [
        "alias2.example.test. CNAME ALIAS.example.test.",
        "ALIAS.example.test. CNAME a.example.test.",
        "a.example.test. A 192.0.2.1",
    ],
    ("across", "A"): ["across.example.test. CNAME www.other.test.", "www.other.test. A 192.0.2.80"],
    ("outward", "A"): ["outward.example.test. CNAME www.elsewhere.test."],
    ("loop1", "A"): ["loop1.example.test. CNAME loop2.example.test.", "loop2.example.test. CNAME loop1.example.test."],
    ("self", "A"): ["self.example.test. CNAME self.example.test."],
    ("foo.wild", "A"): ["foo.wild.example.test. A 192.0.2.42"],
    ("x.y.z.wild", "A"): ["x.y.z.wild.example.test. A 192.0.2.42"],
    ("*.wild", "A"): ["*.wild.example.test. A 192.0.2.42"],
    ("foo.wild", "TXT"): ['foo.wild.example.test. TXT "star"'],
    ("real.wild", "A"): ["real.wild.example.test. A 192.0.2.43"],
    ("towild", "A"): ["towild.example.test. CNAME foo.wild.example.test.", "foo.wild.example.test. A 192.0.2.42"],
    ("x.wcname", "A"): ["x.wcname.example.test. CNAME a.example.test.", "a.example.test. A 192.0.2.1"],
    ("any.other.test.", "A"): ["any.other.test. A 192.0.2.81"],
    (LONGEST, "A"): [f"{LONGEST} A 192.0.2.7"],
    (DEEPEST, "A"): [f"{DEEPEST} A 192.0.2.8"],
    ("sub", "DS"): ["sub.example.test. DS 1 8 2 " + "ab" * 32],
}


#: What goes along in the additional section.
ADDRESSES = {
    ("example.test.", "MX"): ["mail.example.test. A 192.0.2.25"],
    ("example.test.", "NS"): [
        "ns1.example.test. A 192.0.2.53",
        "ns1.example.test. AAAA 2001:db8::53",
    ],  # not that of ns2.other.test: another zone's
    ("_sip._tcp", "SRV"): ["a.example.test. A 192.0.2.1"],
}


@pytest.mark.parametrize(("name", "type_"), POSITIVE, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("edns", [None, 1232])
def test_positive(name: str, type_: str, edns: int | None) -> None:
    reply = ask(name, type_, edns=edns)
    assert reply.rcode() == dns.rcode.NOERROR
    assert reply.flags == QR | AA | RD
    assert section(reply.answer) == POSITIVE[name, type_]
    assert reply.authority == []
    assert section(reply.additional) == ADDRESSES.get((name, type_), [])
    assert (reply.edns, reply.payload) == ((0, 1232) if edns else (-1, 0))


@pytest.mark.parametrize(
    ("name", "type_", "rcode", "aliases", "soa"),
    [
        ("nowhere", "A", "NXDOMAIN", 0, SOA),
        ("x.a", "A", "NXDOMAIN", 0, SOA),
        ("sub.nowhere.deep", "A", "NXDOMAIN", 0, SOA),
        ("a", "AAAA", "NOERROR", 0, SOA),
        ("example.test.", "A", "NOERROR", 0, SOA),
        ("ent", "A", "NOERROR", 0, SOA),  # empty non-terminals exist (RFC 8020)
        ("empty.ent", "A", "NOERROR", 0, SOA),
        ("ent.wild", "A", "NOERROR", 0, SOA),  # and keep the wildcard away (RFC 4592 section 2.2.2)
        ("y.ent.wild", "A", "NXDOMAIN", 0, SOA),
        ("y.real.wild", "A", "NXDOMAIN", 0, SOA),  # the closest encloser is real.wild
        ("foo.wild", "MX", "NOERROR", 0, SOA),
        ("wild", "A", "NOERROR", 0, SOA),
        ("dangling", "A", "NXDOMAIN", 1, SOA),  # RFC 6604: the rcode of the last name
        ("alias", "MX", "NOERROR", 1, SOA),
        ("across", "MX", "NOERROR", 1, OTHER_SOA),
        ("sub", "DS", "NOERROR", 1, []),
        ("bare", "DS", "NOERROR", 0, SOA),  # no DS at the cut: the parent says so
        ("a", "OPT", "NOERROR", 0, SOA),
        ("a", "TYPE0", "NOERROR", 0, SOA),
    ],
)
def test_negative(name: str, type_: str, rcode: str, aliases: int, soa: list[str]) -> None:
    reply = ask(name, type_)
    assert dns.rcode.to_text(reply.rcode()) == rcode
    assert reply.flags & AA
    assert len(reply.answer) == aliases
    assert section(reply.authority) == soa
    if soa:
        assert reply.authority[0].ttl == (30 if soa == SOA else 300), "RFC 2308 section 3: the lower of TTL and minimum"


@pytest.mark.parametrize("name", ["sub", "www.sub", "a.b.c.sub", "ns1.sub"])
@pytest.mark.parametrize("type_", ["A", "NS", "ANY"])
def test_referral(name: str, type_: str) -> None:
    reply = ask(name, type_, edns=1232)
    assert reply.flags == QR | RD, "a referral is not authoritative"
    assert reply.answer == []
    assert section(reply.authority) == [
        f"sub.example.test. NS {ns}.example.test." for ns in ("ns1.sub", "ns2.sub", "ns1")
    ]
    assert section(reply.additional) == [
        "ns1.sub.example.test. A 192.0.2.61",
        "ns2.sub.example.test. A 192.0.2.62",
        "ns2.sub.example.test. AAAA 2001:db8::62",
        "ns1.example.test. A 192.0.2.53",
        "ns1.example.test. AAAA 2001:db8::53",
    ]


def test_referral_without_glue() -> None:
    reply = ask("www.bare")
    assert section(reply.authority) == ["bare.example.test. NS ns.elsewhere.test."]
    assert reply.additional == []


def test_referral_after_an_alias() -> None:
    reply = ask("tocut")
    assert section(reply.answer) == ["tocut.example.test. CNAME www.sub.example.test."]
    assert reply.flags & AA, "AA speaks of the first owner name (RFC 1035 section 4.1.1)"
    assert len(reply.authority[0]) == 3


def test_referral_whose_glue_does_not_fit_is_truncated() -> None:
    """RFC 9471: addresses of servers beneath the cut come whole, or TC is set."""
    assert ask("x.crowd", edns=1232).flags & TC
    whole = ask("x.crowd", stream=True)
    assert not whole.flags & TC
    assert len(whole.additional) == 40


def test_neighbouring_glue_may_be_missing() -> None:
    text = "@ 60 SOA a b 1 1 1 1 1\n@ 60 NS a\n" + "".join(f"cut 60 NS {'n' * 30}{i}.aside\n" for i in range(3))
    text += "".join(f"{'n' * 30}{i}.aside 60 AAAA 2001:db8::{j}\n" for i in range(3) for j in range(5))
    reply = answer(query("cut.example.test."), make_table(compile_zone("example.test.", text)), Policy())
    assert reply is not None
    message = parsed(reply)
    assert 0 < len(message.additional) < 3
    assert not message.flags & TC


@pytest.mark.parametrize(
    ("name", "edns", "truncated"),
    [
        ("medium", None, True),
        ("medium", 1232, False),
        ("large", 1232, True),
        ("large", 4096, True),  # the policy's limit counts
        ("many", 1232, True),
        ("huge", 1232, True),
        ("medium", 100, True),  # less than 512 means 512 (RFC 6891 section 6.2.3)
        ("medium", 0, True),
    ],
)
def test_truncation(name: str, edns: int | None, truncated: bool) -> None:
    type_ = "TXT" if name in ("medium", "large") else "A"
    reply = ask(name, type_, edns=edns)
    assert bool(reply.flags & TC) == truncated
    assert bool(reply.answer) != truncated, "an RRset is whole or absent"
    whole = ask(name, type_, edns=edns, stream=True)
    assert not whole.flags & TC
    assert whole.answer


def test_a_reply_of_nearly_64_kib() -> None:
    reply = ask("huge", edns=1232, stream=True)
    assert len(reply.answer[0]) == 3700


@pytest.mark.parametrize("size", [490, 491, 492, 493])
def test_the_limit_to_the_byte(size: int) -> None:
    """12 bytes of header, 7 + 4 of question: 489 are left without an OPT."""
    name = b"\x01a\x03abc\x00"
    apex = pack(b"\x03abc\x00", NodeFlag.APEX, [rrset(0, 60, bytes(20))])
    table = make_table([apex, pack(name, 0, [rrset(16, 60, bytes(size - 13))])])
    reply = answer(query("a.abc.", "TXT"), table, Policy())
    assert reply is not None
    assert len(reply) == (12 + 11 + size - 1 if size <= 490 else 23)
    assert bool(reply[2] & 2) == (len(reply) == 23)


def test_case_is_kept_in_the_question_and_ignored_in_the_search() -> None:
    packet = query("A.eXample.TEST.")
    reply = answer(packet, example_table(), Policy())
    assert reply is not None
    assert reply[12 : len(packet)] == packet[12:]
    assert len(parsed(reply).answer) == 1


def test_any_gets_one_rrset() -> None:
    """RFC 8482 section 4.1."""
    assert len(ask("two", "ANY").answer) == 1
    assert len(ask("example.test.", "ANY").answer) == 1
    assert ask("nowhere", "ANY").rcode() == dns.rcode.NXDOMAIN
    assert ask("ent", "ANY").answer == []


@pytest.mark.parametrize("name", ["test.", "elsewhere.test.", ".", "xexample.test.", "com."])
def test_not_ours(name: str) -> None:
    reply = ask(name, edns=1232)
    assert reply.rcode() == dns.rcode.REFUSED
    assert reply.flags & 0xFFF0 == QR | RD
    assert (reply.answer, reply.authority) == ([], [])


@pytest.mark.parametrize("type_", ["AXFR", "IXFR"])
def test_transfers_are_refused(type_: str) -> None:
    packet = bytearray(query("example.test."))
    packet[-3] = 252 if type_ == "AXFR" else 251
    reply = answer(bytes(packet), example_table(), DEFAULT_POLICY, Moment(stream=True))
    assert reply is not None
    assert reply[3] & 15 == dns.rcode.REFUSED


def test_flags_come_back() -> None:
    for flags in (0, RD, dns.flags.CD, dns.flags.AD, RD | dns.flags.CD | dns.flags.AD | dns.flags.RA):
        reply = ask("a", flags=flags)
        assert reply.flags == QR | AA | flags & RD, "CD is not for us (RFC 4035 section 3.1.6)"


def test_the_do_bit_comes_back() -> None:
    """RFC 3225 section 3."""
    assert ask("a", edns=1232, dnssec_ok=True).ednsflags == dns.flags.DO
    assert ask("a", edns=1232).ednsflags == 0


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_table_servfail(stream: bool) -> None:
    reply = answer(query("a.example.test.", edns=1232), None, DEFAULT_POLICY, Moment(stream=stream))
    assert reply is not None
    assert parsed(reply).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("apex", [".", "test."])
def test_a_zone_may_be_near_the_root(apex: str) -> None:
    table = make_table(compile_zone(apex, "@ 60 SOA a b 1 1 1 1 1\n@ 60 NS a\na 60 A 192.0.2.9\n"))
    for name, rcode, count in (("a", 0, 1), ("b", 3, 0), ("", 0, 0)):
        full = (f"{name}." if name else "") + ("" if apex == "." else apex)
        reply = answer(query(full or "."), table, Policy())
        assert reply is not None
        message = parsed(reply)
        assert (message.rcode(), len(message.answer)) == (rcode, count)
        assert count or message.authority[0].name == dns.name.from_text(apex)


def test_a_long_chain_of_aliases_is_cut() -> None:
    text = "@ 60 SOA a b 1 1 1 1 1\n@ 60 NS a\n" + "".join(f"c{i} 60 CNAME c{i + 1}\n" for i in range(100))
    table = make_table(compile_zone("example.test.", text))
    reply = answer(query("c0.example.test."), table, DEFAULT_POLICY, Moment(stream=True))
    assert reply is not None
    assert len(parsed(reply).answer) == 16


def test_policy_sets_our_udp_size() -> None:
    reply = answer(query("large.example.test.", "TXT", edns=4096), example_table(), Policy(max_udp_size=4096))
    assert reply is not None
    message = parsed(reply)
    assert message.payload == 4096
    assert message.answer


def test_names_are_what_dnspython_makes_of_them() -> None:
    assert wire("a.example.test.") == b"\x01a\x07example\x04test\x00"
    assert len(wire(LONGEST)) == 255


def reply_of(packet: bytes, table: object = None) -> dns.message.Message:
    reply = answer(packet, table or example_table(), DEFAULT_POLICY, Moment(stream=True))  # type: ignore[arg-type]
    assert reply is not None
    return parsed(reply)


WITH_TARGETS = """
@      60 SOA   a b 1 1 1 1 1
@      60 NS    ns
ns     60 A     192.0.2.1
mx     60 MX    1 here.wild
mx     60 MX    2 ns.beneath
mx     60 MX    3 www.other.test.
mx     60 MX    4 x.cut
*.wild 60 A     192.0.2.2
cut    60 NS    ns.cut
ns.cut 60 A     192.0.2.3
*.cut  60 A     192.0.2.4
wns    60 NS    x.wild
dn     60 DNAME target
in     60 DNAME x.in
x.target 60 CNAME ns
"""
BENEATH = "@ 60 SOA a b 1 1 1 1 1\n@ 60 NS ns\nns 60 A 192.0.2.9\n"


def with_targets() -> object:
    return make_table(
        [
            *compile_zone("example.test.", WITH_TARGETS),
            *compile_zone("beneath.example.test.", BENEATH),
            *compile_zone("other.test.", "@ 60 SOA a b 1 1 1 1 1\n@ 60 NS ns\nwww 60 A 192.0.2.10\n"),
        ]
    )


def test_additional_addresses_are_those_of_the_zone() -> None:
    """Wildcards give some, other zones do not, and beneath a cut no wildcard counts."""
    reply = reply_of(query("mx.example.test.", "MX"), with_targets())
    assert section(reply.additional) == ["here.wild.example.test. A 192.0.2.2"]


def test_glue_may_come_from_a_wildcard() -> None:
    reply = reply_of(query("x.wns.example.test."), with_targets())
    assert section(reply.additional) == ["x.wild.example.test. A 192.0.2.2"]


def test_the_synthesized_alias_answers_a_question_for_aliases() -> None:
    reply = reply_of(query("x.dn.example.test.", "CNAME"), with_targets())
    assert section(reply.answer) == [
        "dn.example.test. DNAME target.example.test.",
        "x.dn.example.test. CNAME x.target.example.test.",
    ]


def test_a_dname_into_itself_is_followed_once() -> None:
    reply = reply_of(query("y.in.example.test."), with_targets())
    assert section(reply.answer) == [
        "in.example.test. DNAME x.in.example.test.",
        "y.in.example.test. CNAME y.x.in.example.test.",
    ]


def test_any_class_is_answered_without_authority() -> None:
    packet = bytearray(query("a.example.test."))
    packet[-1] = 255
    reply = answer(bytes(packet), example_table())
    assert reply is not None
    assert reply[2] & 4 == 0
    assert int.from_bytes(reply[6:8], "big") == 1


def test_a_format_error_keeps_the_opt_of_a_packet_without_a_question() -> None:
    packet = bytearray(query("a.example.test.", edns=1232))
    packet = packet[:4] + bytes(2) + packet[6:12] + packet[-11:]
    reply = reply_of(bytes(packet))
    assert (reply.rcode(), reply.edns) == (dns.rcode.FORMERR, 0)
