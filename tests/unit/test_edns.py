"""EDNS in both answerers: cookies by the vectors of RFC 9018, options well- and ill-formed, sizes, versions, errors."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import replace

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from server._answer import Terms, answer_packet
from server.answer import answer
from server.edns import has_valid_cookie
from server.policy import Moment, Policy
from server.query import parse
from tests.support.packets import parsed, query
from tests.support.tables import compile_zone, example_table, make_table

Answer = Callable[[bytes, Policy, Moment], bytes]


def by_reference(packet: bytes, policy: Policy, moment: Moment) -> bytes:
    return answer(packet, example_table(), policy, moment) or b""


def by_hot_path(packet: bytes, policy: Policy, moment: Moment) -> bytes:
    """The hot path's reply, and if it declines that of the reference."""
    reply = answer_packet(packet, example_table(), Terms(policy).at(moment), moment)
    expected = by_reference(packet, policy, moment)
    if reply is None:
        return expected
    assert reply == expected
    return reply


@pytest.fixture(params=[by_reference, by_hot_path], ids=["reference", "hot path"])
def ask(request: pytest.FixtureRequest) -> Answer:
    chosen: Answer = request.param
    return chosen


def with_options(*options: tuple[int, bytes], size: int = 1232, version: int = 0, flags: int = 0) -> bytes:
    data = b"".join(struct.pack("!HH", code, len(value)) + value for code, value in options)
    plain = bytearray(query("a.example.test."))
    plain[11] = 1
    return bytes(plain) + b"\0" + struct.pack("!HHBBHH", 41, size, 0, version, flags, len(data)) + data


def options_of(reply: bytes) -> dict[int, bytes]:
    return {int(option.otype): option.to_wire() or b"" for option in parsed(reply).options}


# ---------------------------------------------------------------- cookies: RFC 9018 appendix A

FIRST = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")
OLD = bytes.fromhex("dd3bdf9344b678b185a6f5cb60fca715")
NEW = bytes.fromhex("445536bcd2513298075a5d379663c962")

#: (secrets, address, time, what is sent, what comes back, whether what was sent is valid)
VECTORS = {
    "A.1 a new cookie": (
        (FIRST,), "198.51.100.100", 1559731985, "2464c4abcf10c957",
        "2464c4abcf10c957010000005cf79f111f8130c3eee29480", False,
    ),
    "A.2 the same client, 40 minutes later": (
        (FIRST,), "198.51.100.100", 1559734385, "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
        "2464c4abcf10c957010000005cf7a871d4a564a1442aca77", True,
    ),
    "A.3 another client, with reserved bytes": (
        (FIRST,), "203.0.113.203", 1559734700, "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
        "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e", False,  # its cookie is older than an hour
    ),
    "A.4 IPv6, the secret was rolled over": (
        (NEW, OLD), "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961,
        "22681ab97d52c298010000005cf7c57926556bd0934c72f8",
        "22681ab97d52c298010000005cf7c609a6bb79d16625507a", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS.values(), ids=list(VECTORS))
def test_vectors_of_rfc_9018(vector: tuple[tuple[bytes, ...], str, int, str, str, bool], ask: Answer) -> None:
    secrets, address, now_s, sent, expected, valid = vector
    policy = Policy(cookie_secrets=secrets)
    moment = Moment(address=ipaddress.ip_address(address).packed, now_s=now_s)
    packet = with_options((10, bytes.fromhex(sent)))
    assert options_of(ask(packet, policy, moment))[10].hex() == expected
    assert has_valid_cookie(parse(packet), policy, moment) == valid


def test_reserved_bytes_are_signed_and_not_judged(ask: Answer) -> None:
    """RFC 9018 section 4.2: A.3's cookie, while it was young."""
    sent = "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5"
    policy, moment = (
        Policy(cookie_secrets=(FIRST,)),
        Moment(ipaddress.ip_address("203.0.113.203").packed, now_s=0x5CF78F80),
    )
    packet = with_options((10, bytes.fromhex(sent)))
    assert has_valid_cookie(parse(packet), policy, moment)
    assert options_of(ask(packet, policy, moment))[10].hex() == sent


def fresh(policy: Policy, moment: Moment) -> bytes:
    return options_of(by_reference(with_options((10, b"client-c")), policy, moment))[10]


@pytest.mark.parametrize(
    ("age_s", "valid", "renewed"),
    [(0, True, False), (1800, True, False), (1801, True, True), (3600, True, True), (3601, False, True),
     (-300, True, False), (-301, False, True)],
)  # fmt: skip
@pytest.mark.parametrize("then", [1_700_000_000, 2**32 - 100], ids=["now", "as the clock's 32 bits end"])
def test_ages(age_s: int, valid: bool, renewed: bool, then: int, ask: Answer) -> None:
    """RFC 9018 section 4.3, in serial arithmetic."""
    policy = Policy(cookie_secrets=(FIRST,))
    cookie = fresh(policy, Moment(now_s=then))
    now = Moment(now_s=then + age_s)
    packet = with_options((10, cookie))
    assert has_valid_cookie(parse(packet), policy, now) == valid
    assert (options_of(ask(packet, policy, now))[10] != cookie) == renewed


def test_rollover(ask: Answer) -> None:
    """A new secret in front: cookies of the old one stay valid and are replaced. The old one dropped: they are none."""
    moment = Moment(now_s=1_700_000_000)
    cookie = fresh(Policy(cookie_secrets=(OLD,)), moment)
    packet = with_options((10, cookie))
    both, new = Policy(cookie_secrets=(NEW, OLD)), Policy(cookie_secrets=(NEW,))
    assert has_valid_cookie(parse(packet), both, moment)
    replaced = options_of(ask(packet, both, moment))[10]
    assert replaced == fresh(new, moment) != cookie
    assert not has_valid_cookie(parse(packet), new, moment)
    assert has_valid_cookie(parse(with_options((10, replaced))), new, moment)


def test_a_cookie_is_good_for_its_address_alone() -> None:
    policy, moment = Policy(cookie_secrets=(FIRST,)), Moment(now_s=1_700_000_000)
    packet = with_options((10, fresh(policy, moment)))
    assert has_valid_cookie(parse(packet), policy, moment)
    assert not has_valid_cookie(parse(packet), policy, replace(moment, address=b"\x7f\0\0\2"))


@pytest.mark.parametrize("length", [0, 1, 7, 9, 15, 41])
def test_cookies_of_a_length_that_none_has(length: int, ask: Answer) -> None:
    reply = ask(with_options((10, bytes(length))), Policy(cookie_secrets=(FIRST,)), Moment())
    assert reply[3] & 15 == dns.rcode.FORMERR


@pytest.mark.parametrize("length", [8, 16, 17, 24, 39, 40])
def test_other_servers_cookies_are_no_error(length: int, ask: Answer) -> None:
    reply = ask(with_options((10, bytes(length))), Policy(cookie_secrets=(FIRST,)), Moment())
    assert reply[3] & 15 == dns.rcode.NOERROR
    assert len(options_of(reply)[10]) == 24


def test_without_a_secret_no_cookie(ask: Answer) -> None:
    assert 10 not in options_of(ask(with_options((10, b"client-c")), Policy(), Moment()))


def test_a_cookie_without_a_question(ask: Answer) -> None:
    """RFC 7873 section 5.4."""
    packet = with_options((10, b"client-c"))
    bare = packet[:4] + bytes(2) + packet[6:12] + packet[len(query("a.example.test.")) :]
    reply = ask(bare, Policy(cookie_secrets=(FIRST,)), Moment())
    assert reply[3] & 15 == dns.rcode.NOERROR
    assert len(options_of(reply)[10]) == 24


# ---------------------------------------------------------------- the other options


@pytest.mark.parametrize("data", [b"", b"whatever"])
def test_nsid(data: bytes, ask: Answer) -> None:
    policy, moment = Policy(identity="host/3"), Moment(generation=12)
    assert options_of(ask(with_options((3, data)), policy, moment)) == {3: b"host/3/12"}


def test_nsid_only_when_asked(ask: Answer) -> None:
    assert options_of(ask(with_options(), Policy(), Moment())) == {}


def test_zone_version(ask: Answer) -> None:
    """RFC 9660 section 3.2: labels of the zone, type 0, its serial."""
    assert options_of(ask(with_options((19, b"")), Policy(), Moment())) == {19: b"\2\0\0\0\0\7"}


def test_zone_version_of_a_zone_that_is_not_ours(ask: Answer) -> None:
    packet = with_options((19, b"")).replace(b"\x04test\0", b"\x04tess\0")
    assert set(options_of(ask(packet, Policy(), Moment()))) == {15}


def test_zone_version_with_data(ask: Answer) -> None:
    assert ask(with_options((19, b"x")), Policy(), Moment())[3] & 15 == dns.rcode.FORMERR


@pytest.mark.parametrize("data", [b"", b"\0\1"])
def test_keepalive(data: bytes, ask: Answer) -> None:
    """RFC 7828: over TCP in units of 100 ms; never over UDP."""
    packet, policy = with_options((11, data)), Policy(keepalive_s=12.5)
    assert options_of(ask(packet, policy, Moment())) == {}
    assert options_of(ask(packet, policy, Moment(stream=True))) == {11: b"\0\x7d"}


def test_padding_over_tls_only(ask: Answer) -> None:
    packet = with_options((12, bytes(30)))
    assert len(ask(packet, Policy(), Moment(stream=True))) < 468
    assert len(ask(packet, Policy(), Moment(stream=True, encrypted=True))) == 468


@pytest.mark.parametrize("code", [0, 1, 2, *range(4, 10), 13, 14, 15, 16, 17, 18, 20, 26946, 65001, 65535])
@pytest.mark.parametrize("length", [0, 1, 200])
def test_other_options_are_ignored(code: int, length: int, ask: Answer) -> None:
    reply = ask(with_options((code, bytes(length))), Policy(), Moment())
    assert reply == ask(with_options(), Policy(), Moment())


EXTENDED = {
    "stale": (Moment(stale=True), "a.example.test.", 3, dns.rcode.NOERROR),
    "prohibited": (Moment(prohibited=True), "a.example.test.", 18, dns.rcode.REFUSED),
    "not authoritative": (Moment(), "www.elsewhere.test.", 20, dns.rcode.REFUSED),
}


@pytest.mark.parametrize("name", EXTENDED)
def test_extended_errors(name: str) -> None:
    moment, owner, code, rcode = EXTENDED[name]
    packet = query(owner, edns=1232)
    reply = answer(packet, example_table(), Policy(), moment)
    assert reply is not None
    assert options_of(reply)[15][:2] == code.to_bytes(2, "big")
    assert parsed(reply).rcode() == rcode
    if not moment.prohibited:
        assert answer_packet(packet, example_table(), Terms(Policy()).at(moment), moment) == reply
    plain = answer(query(owner), example_table(), Policy(), moment)
    assert plain is not None
    assert parsed(plain).edns == -1, "no OPT in the query, none in the reply"


def test_extended_error_without_a_table() -> None:
    reply = answer(query("a.example.test.", edns=1232), None)
    assert reply is not None
    assert options_of(reply)[15][:2] == b"\0\x0e"


def test_all_options_at_once(ask: Answer) -> None:
    policy = Policy(cookie_secrets=(FIRST,), identity="h/0")
    packet = with_options((19, b""), (10, b"client-c"), (3, b""), (65001, b"x"))
    assert list(options_of(ask(packet, policy, Moment(stale=True, now_s=1)))) == [3, 10, 19, 15]


# ---------------------------------------------------------------- OPT itself


def test_do_comes_back_and_no_other_flag(ask: Answer) -> None:
    assert parsed(ask(with_options(flags=0xFFFF), Policy(), Moment())).ednsflags & 0xFFFF == 0x8000
    assert parsed(ask(with_options(flags=0x7FFF), Policy(), Moment())).ednsflags & 0xFFFF == 0


@pytest.mark.parametrize("version", [1, 2, 127, 255])
def test_badvers(version: int, ask: Answer) -> None:
    """RFC 6891 section 6.1.3: our version, no answer; a version's options are not ours to judge."""
    message = parsed(ask(with_options((10, b"x"), version=version), Policy(), Moment()))
    assert message.rcode() == dns.rcode.BADVERS
    assert (message.edns, message.answer) == (0, [])
    assert not message.flags & dns.flags.AA


@pytest.mark.parametrize("offered", [0, 511, 512, 513, 700, 1231, 1232, 1233, 4096, 65535])
@pytest.mark.parametrize("ours", [512, 1232, 4096])
def test_sizes_are_clamped(offered: int, ours: int, ask: Answer) -> None:
    for name, type_ in (("many.example.test.", "A"), ("large.example.test.", "TXT"), ("medium.example.test.", "TXT")):
        reply = ask(query(name, type_, edns=offered), Policy(max_udp_size=ours), Moment())
        assert len(reply) <= min(max(512, offered), ours)
        assert parsed(reply).payload == ours


def test_two_opt_records(ask: Answer) -> None:
    packet = bytearray(with_options())
    packet[11] = 2
    packet += packet[-11:]
    assert ask(bytes(packet), Policy(), Moment())[3] & 15 == dns.rcode.FORMERR


def test_negative_ttl_is_the_lower_of_ttl_and_minimum() -> None:
    """RFC 2308 section 3."""
    for ttl, minimum, expected in ((600, 30, 30), (30, 600, 30), (0, 60, 0), (60, 0, 0)):
        table = make_table(compile_zone("t.", f"@ {ttl} SOA a b 1 2 3 4 {minimum}\n@ 60 NS a\n"))
        for type_ in ("A", "MX"):
            reply = answer(query("x.t.", type_), table)
            assert reply is not None
            assert parsed(reply).authority[0].ttl == expected
