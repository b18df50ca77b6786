"""Zones as messages, who may have them, signatures, and when secondaries are told: all that is pure."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.SOA
import dns.rrset
import dns.tsig
import dns.xfr
import dns.zone
import pytest

from cli import checks
from cli.settings import Settings
from server import tsig
from server.access import Access
from server.answer import answer
from server.main import transfer_problems
from server.notifying import FIRST_RETRY_S, GATHER_S, INTERVAL_S, MOST_TELLINGS, Notifying
from server.passage import Doorkeeper, Passage, permitted
from server.policy import Moment, Policy
from server.query import HEADER, FormatError, parse
from server.transfer import (
    LARGEST_MESSAGE,
    MESSAGE_SIZE,
    Untransferable,
    asks_for_transfer,
    is_newer,
    message,
    serial_of,
    soa_part,
    zone_parts,
)
from shm._table import Table
from shm.errors import TableDamaged
from shm.layout import NodeFlag
from shm.node import pack
from tests.support.packets import query
from tests.support.tables import EXAMPLE, compile_zone, example_blocks, example_table, make_table, rrset, wire

EXAMPLE_TEST = wire("example.test.")
NOW_S = 1_700_000_000
KEY = "transfer:hmac-sha256:c2hhcmVkIHNlY3JldA=="
POLICY = Policy(keys=tsig.Keys([KEY]), transfers=Access(["192.0.2.0/24", "transfer"]))
Record = tuple[str, int, str, str]


def messages(table: Table, zone: str, type_: str = "AXFR") -> list[bytes]:
    asked = parse(query(zone, type_, flags=0))
    return [message(asked, part) for part in zone_parts(asked.name, table)]


def records(packets: Iterable[bytes]) -> list[Record]:
    """In their order."""
    result = []
    for packet in packets:
        for rrset_ in dns.message.from_wire(packet, one_rr_per_rrset=True, xfr=True).answer:
            kind = dns.rdatatype.to_text(rrset_.rdtype)
            result.append((rrset_.name.to_text(), rrset_.ttl, kind, rrset_[0].to_text()))
    return result


def of_zone_text(origin: str, text: str) -> set[Record]:
    zone = dns.zone.from_text(text, origin, relativize=False)
    return {
        (name.to_text().lower(), ttl, dns.rdatatype.to_text(rdata.rdtype), rdata.to_text())
        for name, ttl, rdata in zone.iterate_rdatas()
    }


# ---- the sequence


def test_all_of_a_zone_and_nothing_else() -> None:
    got = records(messages(example_table(), "example.test."))
    assert got[0][2] == got[-1][2] == "SOA"
    assert got[0] == got[-1]
    assert len(got) == len(set(got)) + 1
    assert set(got) == of_zone_text("example.test.", EXAMPLE)


def test_the_messages_are_what_a_client_expects() -> None:
    packets = messages(example_table(), "example.test.")
    assert len(packets) > 3
    zone = dns.zone.Zone("example.test.", relativize=False)
    with dns.xfr.Inbound(zone, dns.rdatatype.AXFR) as inbound:
        done = [inbound.process_message(dns.message.from_wire(packet, xfr=True)) for packet in packets]
    assert done == [False] * (len(packets) - 1) + [True]
    for packet in packets:
        assert len(packet) <= MESSAGE_SIZE
        assert packet[2] == 0x84  # an answer, authoritative
        assert packet[4:6] == b"\0\1"
    assert records(packets[:1])[0][2] == "SOA"
    assert {record[0] for record in records(packets[:1])} == {"example.test."}, "the first one holds the apex only"


def test_the_order_does_not_depend_on_the_table() -> None:
    blocks = list(example_blocks())
    random.Random(7).shuffle(blocks)
    other = make_table(blocks, seed=99)
    assert messages(other, "example.test.") == messages(example_table(), "example.test.")


def test_names_are_compressed() -> None:
    text = "@ 300 SOA ns hostmaster 1 2 3 4 5\n@ 300 NS ns\n" + "".join(f"host{i} 60 A 192.0.2.1\n" for i in range(100))
    packets = messages(make_table(compile_zone("a.long.name.of.a.zone.test.", text)), "a.long.name.of.a.zone.test.")
    assert sum(map(len, packets)) < 100 * (7 + 2 + 14) + 400


def test_names_of_another_case() -> None:
    asked = parse(query("ExAmPlE.tEsT.", "AXFR"))
    packets = [message(asked, part) for part in zone_parts(EXAMPLE_TEST, example_table())]
    assert {name.lower() for name, *_ in records(packets)} == {
        name for name, *_ in of_zone_text("example.test.", EXAMPLE)
    }


INNER = """
@      300 SOA ns1 hostmaster 1 7200 1800 86400 30
@      300 NS  ns1
@      300 NS  ns.elsewhere.test.
@       60 TXT "inner"
ns1     60 A   192.0.2.90
ns1     60 TXT "not glue"
www     60 A   192.0.2.91
"""


def test_a_zone_beneath_is_a_delegation() -> None:
    blocks = [
        *example_blocks(),
        *compile_zone("inner.example.test.", INNER),
        *compile_zone("x.inner.example.test.", INNER),
    ]
    table = make_table(blocks)
    extra = set(records(messages(table, "example.test."))) - of_zone_text("example.test.", EXAMPLE)
    assert {(name, kind, data) for name, _, kind, data in extra} == {
        ("inner.example.test.", "NS", "ns1.inner.example.test."),
        ("inner.example.test.", "NS", "ns.elsewhere.test."),
        ("ns1.inner.example.test.", "A", "192.0.2.90"),
    }
    inner = {(name, kind) for name, _, kind, _ in records(messages(table, "inner.example.test."))}
    assert ("www.inner.example.test.", "A") in inner
    assert ("ns1.inner.example.test.", "TXT") in inner
    assert ("x.inner.example.test.", "NS") in inner
    assert ("www.x.inner.example.test.", "A") not in inner


def test_a_name_that_only_ends_alike_is_none_of_the_zone() -> None:
    blocks = [*example_blocks(), pack(b"\x0dnotexample" + b"x" * 3 + EXAMPLE_TEST, 0, [rrset(1, 60, b"\1\2\3\4")])]
    fake = bytes([len(EXAMPLE_TEST)]) + EXAMPLE_TEST  # one label that holds the bytes of the apex
    blocks.append(pack(fake + b"\0", 0, [rrset(1, 60, b"\1\2\3\4")]))
    names = {name for name, *_ in records(messages(make_table(blocks), "example.test."))}
    assert names - {name for name, *_ in of_zone_text("example.test.", EXAMPLE)} == {"notexamplexxx.example.test."}


def test_the_root() -> None:
    blocks = compile_zone(".", "@ 300 SOA ns.test. host.test. 1 2 3 4 5\n@ 300 NS ns.test.\nns.test. 300 A 192.0.2.1\n")
    got = records(messages(make_table(blocks), "."))
    assert [(name, kind) for name, _, kind, _ in got] == [(".", "SOA"), (".", "NS"), ("ns.test.", "A"), (".", "SOA")]


@pytest.mark.parametrize("size", [MESSAGE_SIZE, 40000, LARGEST_MESSAGE - 100])
def test_a_large_record_has_a_message_of_its_own(size: int) -> None:
    apex = compile_zone("example.test.", "@ 300 SOA ns host 1 2 3 4 5\n@ 300 NS ns\n")
    blocks = [*apex, pack(b"\3big" + EXAMPLE_TEST, 0, [rrset(10, 60, bytes(size), b"\1")])]
    packets = messages(make_table(blocks), "example.test.")
    assert [kind for _, _, kind, _ in records(packets)] == ["SOA", "NS", "NULL", "NULL", "SOA"]
    assert max(map(len, packets)) < 0xFFFF - tsig.LARGEST


def test_a_record_that_no_message_holds() -> None:
    apex = compile_zone("example.test.", "@ 300 SOA ns host 1 2 3 4 5\n@ 300 NS ns\n")
    blocks = [*apex, pack(b"\3big" + EXAMPLE_TEST, 0, [rrset(10, 60, bytes(0xFFFF - 12))])]
    with pytest.raises(Untransferable, match="does not fit"):
        messages(make_table(blocks), "example.test.")


def test_no_apex_no_zone() -> None:
    with pytest.raises(TableDamaged):
        list(zone_parts(EXAMPLE_TEST, make_table([pack(EXAMPLE_TEST, int(NodeFlag.APEX), [rrset(2, 60, b"\0")])])))
    with pytest.raises(TableDamaged):
        list(zone_parts(wire("a.example.test."), example_table()))
    with pytest.raises(TableDamaged):
        list(zone_parts(wire("elsewhere.test."), example_table()))


# ---- serials


@pytest.mark.parametrize(
    ("ours", "theirs", "newer"),
    [(8, 7, True), (7, 7, False), (6, 7, False), (0, 2**32 - 1, True), (2**32 - 1, 0, False), (2**31, 0, True)],
)
def test_serial_arithmetic(ours: int, theirs: int, newer: bool) -> None:
    assert is_newer(ours, theirs) is newer


def test_the_serial_and_the_soa_alone() -> None:
    block = example_table().find(EXAMPLE_TEST)
    assert block is not None
    assert serial_of(block) == 7
    other = example_table().find(wire("www.other.test."))
    assert other is not None
    assert serial_of(other) is None
    asked = parse(query("example.test.", "IXFR"))
    assert [kind for _, _, kind, _ in records([message(asked, soa_part(block))])] == ["SOA"]


@pytest.mark.parametrize(
    ("packet", "asks"),
    [
        (query("example.test.", "AXFR"), True),
        (query(".", "IXFR"), True),
        (query("example.test.", "A"), False),
        (query("example.test.", "ANY"), False),
        (query("example.test.", "AXFR")[:20], False),
        (b"", False),
        (HEADER.pack(1, 0x8000, 1, 0, 0, 0) + EXAMPLE_TEST + b"\0\xfc\0\1", False),
        (HEADER.pack(1, 0, 0, 0, 0, 0) + EXAMPLE_TEST + b"\0\xfc\0\1", False),
    ],
)
def test_what_asks_for_a_transfer(packet: bytes, asks: bool) -> None:
    assert asks_for_transfer(packet) is asks


# ---- who may


@pytest.mark.parametrize(
    ("grants", "address", "key", "may"),
    [
        ([], "192.0.2.1", "", False),
        (["192.0.2.0/24"], "192.0.2.1", "", True),
        (["192.0.2.0/24"], "192.0.2.1", "any", True),
        (["192.0.2.0/24"], "192.0.3.1", "", False),
        (["192.0.2.0/24"], "::ffff:192.0.2.1", "", True),
        (["2001:db8::/32"], "2001:db8::1", "", True),
        (["2001:db8::/32"], "192.0.2.1", "", False),
        (["transfer"], "203.0.113.1", "transfer", True),
        (["Transfer."], "203.0.113.1", "transfer", True),
        (["transfer"], "203.0.113.1", "", False),
        (["transfer"], "203.0.113.1", "other", False),
        (["192.0.2.0/24#transfer"], "192.0.2.1", "transfer", True),
        (["192.0.2.0/24#transfer"], "192.0.2.1", "", False),
        (["192.0.2.0/24#transfer"], "192.0.3.1", "transfer", False),
        (["192.0.2.7", "transfer"], "192.0.2.7", "", True),
        (["0.0.0.0/0"], "192.0.2.7", "", True),
    ],
)
def test_who_may_transfer(grants: list[str], address: str, key: str, may: bool) -> None:
    packed = dns_address(address)
    assert Access(grants).permits(packed, wire(key) if key else b"") is may


def dns_address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize("text", ["192.0.2.1/24", "192.0.2.0/24#", "x/24", "a..b", "nobody#transfer", "#key", ""])
def test_wrong_grants(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Access([text])


# ---- signatures


def signed(packet: bytes, key: str = KEY, now_s: int = NOW_S) -> bytes:
    return tsig.sign_request(packet, tsig.parse_key(key), now_s)[0]


@pytest.mark.parametrize("algorithm", sorted(tsig.ALGORITHMS))
def test_a_signed_query_is_answered_signed(algorithm: str) -> None:
    text = f"k:{algorithm}:c2VjcmV0"
    key = tsig.parse_key(text)
    request = dns.message.make_query("a.example.test.", "A")
    request.use_tsig(key)
    packet = request.to_wire()
    now_s = int(request.tsig[0].time_signed)  # type: ignore[index]
    for stream in (False, True):
        reply = answer(packet, example_table(), Policy(keys=tsig.Keys([text])), Moment(now_s=now_s, stream=stream))
        assert reply is not None
        read = dns.message.from_wire(reply, keyring={key.name: key}, request_mac=request.mac)
        assert read.had_tsig
        assert [rdata.to_text() for rrset_ in read.answer for rdata in rrset_] == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("key", "now_s", "error"),
    [
        ("other:hmac-sha256:c2hhcmVkIHNlY3JldA==", NOW_S, tsig.BADKEY),
        ("transfer:hmac-sha512:c2hhcmVkIHNlY3JldA==", NOW_S, tsig.BADKEY),
        ("transfer:hmac-sha256:d3Jvbmc=", NOW_S, tsig.BADSIG),
        (KEY, NOW_S - tsig.FUDGE_S - 1, tsig.BADTIME),
        (KEY, NOW_S + tsig.FUDGE_S + 1, tsig.BADTIME),
    ],
)
def test_a_bad_signature_is_not_authorised(key: str, now_s: int, error: int) -> None:
    packet = signed(query("a.example.test."), key, now_s)
    reply = answer(packet, example_table(), POLICY, Moment(now_s=NOW_S))
    assert reply is not None
    identifier, flags, questions, answers, _, additionals = HEADER.unpack_from(reply)
    assert (identifier, flags & 0xF, questions, answers, additionals) == (0x1234, dns.rcode.NOTAUTH, 1, 0, 1)
    asked = parse(query("a.example.test."))
    _, record = tsig._read(reply, HEADER.size + len(asked.question))
    assert record.error == error
    assert bool(record.mac) is (error == tsig.BADTIME)
    if error == tsig.BADTIME:
        assert record.time_signed == now_s  # RFC 8945 section 5.2.3
        assert int.from_bytes(record.other, "big") == NOW_S


def test_a_signed_reply_that_does_not_fit_is_truncated() -> None:
    packet = signed(query("txt.example.test.", "TXT"))
    fits = answer(packet, example_table(), POLICY, Moment(now_s=NOW_S))
    assert fits is not None
    assert not fits[2] & 2
    # Its reply alone fits into 512 bytes; with the signature it does not.
    packet = signed(query("edge440.example.test.", "TXT"))
    reply = answer(packet, example_table(), POLICY, Moment(now_s=NOW_S))
    assert reply is not None
    assert len(reply) <= 512
    assert reply[2] & 2
    assert HEADER.unpack_from(reply)[2:] == (1, 0, 0, 1)


def test_every_message_of_a_reply_is_signed() -> None:
    key = tsig.parse_key(KEY)
    request = dns.message.make_query("example.test.", "AXFR")
    request.use_tsig(key)
    packet = request.to_wire()
    asked = parse(packet)
    now_s = int(request.tsig[0].time_signed)  # type: ignore[index]
    signer = tsig.Signer(tsig.check(packet, asked.signed_at, POLICY.keys, now_s))
    parts = list(zone_parts(EXAMPLE_TEST, example_table()))
    replies = [signer.sign(message(asked, part), now_s, more=True) for part in parts]
    context = None
    for reply in replies:
        read = dns.message.from_wire(
            reply, keyring={key.name: key}, request_mac=request.mac, xfr=True, tsig_ctx=context, multi=True
        )
        assert read.had_tsig
        context = read.tsig_ctx
    with pytest.raises(dns.tsig.BadSignature):
        dns.message.from_wire(
            replies[2], keyring={key.name: key}, request_mac=request.mac, xfr=True, tsig_ctx=None, multi=True
        )


def test_a_signature_that_cannot_be_read() -> None:
    packet = signed(query("a.example.test."))
    at = parse(packet).signed_at
    for cut in (
        packet[:at] + packet[at:].replace(b"\0\xfa\0\xff", b"\0\xfa\0\1"),
        packet[:at] + packet[at:].replace(b"\0\xfa\0\xff\0\0\0\0", b"\0\xfa\0\xff\0\0\0\1"),
    ):
        with pytest.raises(FormatError):
            tsig.check(cut, at, POLICY.keys, NOW_S)
        reply = answer(cut, example_table(), POLICY, Moment(now_s=NOW_S))
        assert reply is not None
        assert reply[3] & 0xF == dns.rcode.FORMERR


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:hmac-sha256", "a:hmac-sha3:c2VjcmV0", ":hmac-sha256:c2VjcmV0", "a:hmac-sha256:x", "a:hmac-sha256:"],
)
def test_wrong_keys(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        tsig.parse_key(text)


def test_two_keys_of_one_name() -> None:
    with pytest.raises(ValueError, match="two keys"):
        tsig.Keys([KEY, KEY.replace("transfer", "Transfer")])


# ---- what the stream worker lets through


@pytest.mark.parametrize(
    ("packet", "address", "passes"),
    [
        (query("example.test.", "AXFR"), "192.0.2.1", True),
        (query("example.test.", "IXFR", edns=1232), "192.0.2.1", True),
        (query("example.test.", "AXFR"), "203.0.113.1", False),
        (signed(query("example.test.", "AXFR")), "203.0.113.1", True),
        (signed(query("example.test.", "AXFR"), "transfer:hmac-sha256:d3Jvbmc="), "203.0.113.1", False),
        (signed(query("example.test.", "AXFR"), "transfer:hmac-sha256:d3Jvbmc="), "192.0.2.1", False),
        (query("example.test.", "A"), "192.0.2.1", False),
        (query("example.test.", "AXFR") + b"x", "192.0.2.1", False),
    ],
)
def test_who_passes(packet: bytes, address: str, passes: bool) -> None:
    assert (permitted(packet, dns_address(address), POLICY, NOW_S) is not None) is passes
    assert permitted(packet, dns_address(address), Policy(), NOW_S) is None


def test_the_refused_do_not_pass() -> None:
    passage = Passage()
    packet = query("example.test.", "AXFR")
    assert Doorkeeper(passage, POLICY, []).takes(packet, dns_address("192.0.2.1"))
    assert not Doorkeeper(passage, POLICY, ["192.0.2.0/28"]).takes(packet, dns_address("192.0.2.1"))
    passage.close()


def asks(packet: bytes, address: str, *, stream: bool = False) -> dns.message.Message:
    moment = Moment(address=dns_address(address), now_s=NOW_S, stream=stream)
    reply = answer(packet, example_table(), POLICY, moment)
    assert reply is not None
    return dns.message.from_wire(reply)


def test_ixfr_by_udp_is_the_soa() -> None:
    reply = asks(query("example.test.", "IXFR"), "192.0.2.1")
    assert [rrset_.rdtype for rrset_ in reply.answer] == [dns.rdatatype.SOA]
    assert reply.flags & dns.flags.AA
    assert asks(query("a.example.test.", "IXFR"), "192.0.2.1").rcode() == dns.rcode.NOTAUTH
    assert asks(query("elsewhere.test.", "IXFR"), "192.0.2.1").rcode() == dns.rcode.NOTAUTH


@pytest.mark.parametrize("type_", ["AXFR", "IXFR"])
def test_others_are_refused(type_: str) -> None:
    for stream in (False, True):
        reply = asks(query("example.test.", type_), "203.0.113.1", stream=stream)
        assert reply.rcode() == dns.rcode.REFUSED
        assert not reply.answer
    assert asks(query("example.test.", "AXFR"), "192.0.2.1").rcode() == dns.rcode.REFUSED, "not by UDP"


@pytest.mark.parametrize("opcode", [4, 5])
def test_notify_and_update_are_not_implemented(opcode: int) -> None:
    packet = HEADER.pack(1, opcode << 11, 1, 0, 0, 0) + EXAMPLE_TEST + b"\0\x06\0\1"
    assert asks(packet, "192.0.2.1").rcode() == dns.rcode.NOTIMP


# ---- settings


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        (Settings(), []),
        (Settings(tsig_key=[KEY], transfer_allow=["transfer"], notify=["127.0.0.1:53#transfer"]), []),
        (Settings(transfer_allow=["a.key"]), ["setting transfer_allow names key a.key., and tsig_key has none of it"]),
        (Settings(notify=["127.0.0.1:53#b"]), ["setting notify names key b., and tsig_key has none of it"]),
        (Settings(tsig_key=[KEY, KEY.title()]), ["setting tsig_key: there are two keys transfer."]),
    ],
)
def test_keys_that_are_named_must_be_there(settings: Settings, problems: list[str]) -> None:
    assert transfer_problems(settings) == problems
    assert [remark.text for remark in checks.transfers(settings)] == problems


def test_a_file_with_a_key_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "standoff.toml"
    path.touch(mode=0o644)
    (remark,) = checks.transfers(Settings(tsig_key=[KEY], config=path))
    assert "may be read by every user" in remark.text
    path.chmod(0o600)
    assert list(checks.transfers(Settings(tsig_key=[KEY], config=path))) == []


# ---- when to tell


A, B = wire("a.test."), wire("b.test.")


def test_a_zone_is_told_of_once_to_each() -> None:
    state = Notifying(2)
    state.saw({A: 1}, 0.0)
    assert state.due(0.0, 9) == []
    assert state.due(GATHER_S, 9) == [(A, 0), (A, 1)]
    state.answered((A, 0))
    state.answered((A, 1))
    state.saw({A: 1}, 1.0)
    assert state.due(1000.0, 9) == []
    assert state.pending == 0


def test_a_silent_secondary_is_told_again_with_growing_pauses() -> None:
    state = Notifying(1)
    state.saw({A: 1}, 0.0)
    times = [now / 10 for now in range(5000) if state.due(now / 10, 9)]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([FIRST_RETRY_S * 2**i for i in range(MOST_TELLINGS - 1)], abs=0.11)
    assert state.pending == 0
    state.saw({A: 2}, 1000.0)
    assert state.due(1001.0, 9) == [(A, 0)]


def test_many_changes_are_few_tellings() -> None:
    state = Notifying(1)
    told = []
    for tick in range(1000):
        now = tick / 50
        state.saw({A: tick}, now)
        for errand in state.due(now, 9):
            told.append(now)
            state.answered(errand)
    state.saw({A: 5000}, 20.0)
    last = [errand for tick in range(100) for errand in state.due(20 + tick / 10, 9)]
    assert last
    assert all(later - earlier >= INTERVAL_S - 0.001 for earlier, later in pairwise(told))
    assert 20 / INTERVAL_S - 1 <= len(told) <= 20 / INTERVAL_S + 1


def test_an_answer_to_an_older_serial_is_not_enough() -> None:
    state = Notifying(1)
    state.saw({A: 1}, 0.0)
    assert state.due(1.0, 9) == [(A, 0)]
    state.saw({A: 2}, 1.1)
    state.answered((A, 0))
    assert state.due(1.2, 9) == []
    assert state.due(1.0 + INTERVAL_S, 9) == [(A, 0)]


def test_a_flood_is_told_in_portions() -> None:
    state = Notifying(1)
    state.saw({A: 1, B: 1}, 0.0)
    assert state.due(1.0, 1) == [(A, 0)]
    assert state.due(1.1, 1) == [(B, 0)]


def test_a_zone_that_is_gone_is_told_of_no_more() -> None:
    state = Notifying(1)
    state.saw({A: 1, B: 1}, 0.0)
    state.saw({B: 1}, 0.1)
    assert state.due(1.0, 9) == [(B, 0)]
    state.answered((A, 0))
