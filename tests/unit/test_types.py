"""Every type that dnspython can parse goes through loader, table and both answerers byte for byte."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY
import dns.rdtypes.IN
import pytest

from loader.model import Reject
from loader.rdata import from_text, storable
from loader.zone import Zones
from server._answer import Terms, answer_packet
from server.answer import answer
from server.policy import Moment, Policy
from shm._table import Table
from tests.support.loading import table_of, zones_of_file, zones_of_keys
from tests.support.packets import query

SHA256 = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
SIGNATURE = "A 8 2 60 20300101000000 20200101000000 1 example.test. AQID"

EXAMPLES = {
    "A": "192.0.2.1", "AAAA": "2001:db8::1", "AFSDB": "1 host", "AMTRELAY": "10 0 1 192.0.2.1",
    "APL": "1:192.0.2.0/24 !2:2001:db8::/32", "AVC": '"app-name:x"', "BRID": "AQID",
    "CAA": '128 issue "ca.invalid; a=b"',
    "CDNSKEY": "257 3 8 AQID", "CDS": f"1 8 2 {SHA256}", "CERT": "1 1 8 AQID", "CNAME": "Target.Elsewhere.invalid.",
    "CSYNC": "66 3 A NS AAAA", "DHCID": "AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=", "DLV": f"1 8 2 {SHA256}",
    "DNAME": "target", "DNSKEY": "257 3 8 AQID", "DS": f"60485 5 2 {SHA256}", "DSYNC": "CDS NOTIFY 5300 notify",
    "EUI48": "00-00-5e-00-53-2a", "EUI64": "00-00-5e-ef-10-00-00-2a", "GPOS": "-32.6882 116.8652 10.0", "HHIT": "AQID",
    "HINFO": '"cpu" "os"', "HIP": "2 200100107B1A74DF365639CC39F1D578 AwEAAbdx rvs",
    "HTTPS": "1 . alpn=h2,h3 port=8443",
    "IPSECKEY": "10 1 2 192.0.2.38 AQID", "ISDN": '"150862028003217" "004"', "KEY": "256 3 8 AQID", "KX": "10 host",
    "L32": "10 10.1.2.0", "L64": "10 2001:0DB8:1140:1000", "LOC": "52 14 05.123 N 00 08 50.000 E 10.00m 1m 10000m 10m",
    "LP": "10 l64", "MX": "10 Mail", "NAPTR": '100 50 "s" "http+I2R" "!^.*$!x!" _http._tcp',
    "NID": "10 0014:4fff:ff20:ee64",
    "NINFO": '"zone"', "NSAP": "0x47000580005a0000000001e133ffffff00016100", "NSAP-PTR": "host",
    "NSEC": "host A MX RRSIG NSEC TYPE1234", "NSEC3": "1 1 12 aabbccdd 2t7b4g4vsa5smi47k61mv5bv1a22bojr A RRSIG",
    "NSEC3PARAM": "1 0 12 aabbccdd", "OPENPGPKEY": "AQID", "PTR": "host", "PX": "10 map822 mapx400",
    "RESINFO": '"qnamemin" "exterr=15"', "RP": "mbox text", "RRSIG": SIGNATURE, "RT": "10 host", "SIG": SIGNATURE,
    "SMIMEA": f"3 1 1 {SHA256}", "SPF": '"v=spf1 -all"', "SRV": "1 2 5060 sip", "SSHFP": f"4 2 {SHA256}",
    "SVCB": r'1 svc mandatory=alpn alpn="h2,a\\,b" port=53 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1 key667=x',
    "TLSA": f"3 1 1 {SHA256}", "TXT": r'"one" "" "q\"uote" "\000\255;"', "URI": '10 1 "https://example.test/"',
    "WALLET": '"BTC" "address"', "WKS": "192.0.2.1 6 25 80", "X25": '"311061700956"',
    "ZONEMD": f"2018031500 1 1 {SHA256}{SHA256[:32]}",
}  # fmt: skip

#: Bytes by the RFCs, for what this project's users have most: a mistake that dnspython makes is noticed here.
BY_HAND = {
    "CAA": b"\x80\x05issueca.invalid; a=b",  # RFC 8659 section 4.1
    "DS": b"\xec\x45\x05\x02" + bytes(range(1, 33)),  # RFC 4034 section 5.1
    "HTTPS": b"\0\1\0" + b"\0\1\0\6\2h2\2h3" + b"\0\3\0\2\x20\xfb",  # RFC 9460 section 2.2
    "SVCB": b"\0\1\3svc\7example\4test\0" + b"\0\0\0\2\0\1" + b"\0\1\0\7\2h2\3a,b" + b"\0\3\0\2\0\x35"
    + b"\0\4\0\x08\xc0\0\2\1\xc0\0\2\2" + b"\0\6\0\x10\x20\x01\x0d\xb8" + bytes(11) + b"\1" + b"\2\x9b\0\1x",
    "LOC": b"\0\x12\x16\x13" + (2**31 + (52 * 3600 + 14 * 60 + 5) * 1000 + 123).to_bytes(4, "big")
    + (2**31 + (8 * 60 + 50) * 1000).to_bytes(4, "big") + (10000000 + 1000).to_bytes(4, "big"),  # RFC 1876 section 2
    "MX": b"\0\x0a\4Mail\7example\4test\0",
    "NAPTR": b"\0\x64\0\x32\1s\x08http+I2R\x08!^.*$!x!\5_http\4_tcp\7example\4test\0",  # RFC 3403 section 4
    "SRV": b"\0\1\0\2\x13\xc4\3sip\7example\4test\0",
    "SSHFP": b"\4\2" + bytes(range(1, 33)),  # RFC 4255 section 3.1
    "TLSA": b"\3\1\1" + bytes(range(1, 33)),  # RFC 6698 section 2.1
    "TXT": b'\3one\0\6q"uote\3\0\xff;',
    "URI": b"\0\x0a\0\1https://example.test/",  # RFC 7553 section 4.5
    "CNAME": b"\6Target\x09Elsewhere\7invalid\0",
}  # fmt: skip


def expected_of(type_: str) -> bytes:
    origin = dns.name.from_text("example.test.")
    raw = dns.rdata.from_text("IN", type_, EXAMPLES[type_], origin=origin, relativize=False).to_wire()
    assert raw is not None
    return raw


def answered(table: Table, name: str, type_: int) -> list[bytes]:
    """The data of the RRs in the answer, as they stand in the reply, which both answerers agree on."""
    packet, moment, policy = bytearray(query(name)), Moment(stream=True), Policy()
    packet[-4:-2] = type_.to_bytes(2, "big")
    reply = answer(bytes(packet), table, policy, moment)
    assert reply is not None
    assert answer_packet(bytes(packet), table, Terms(policy).at(moment), moment) in (reply, None)
    assert reply[3] & 15 == 0
    found, at = [], len(packet)
    for _ in range(int.from_bytes(reply[6:8], "big")):
        assert reply[at : at + 2] == b"\xc0\x0c"
        assert reply[at + 2 : at + 6] == bytes(packet[-4:])
        length = int.from_bytes(reply[at + 10 : at + 12], "big")
        found.append(reply[at + 12 : at + 12 + length])
        at += 12 + length
    return found


def test_the_examples_are_all_there_is() -> None:
    """dnspython's implementations, without those that are no data, and the two that make zones and cuts (below)."""
    modules = {m.name for package in (dns.rdtypes.ANY, dns.rdtypes.IN) for m in pkgutil.iter_modules(package.__path__)}
    names = {name.replace("_", "-") for name in modules}
    assert {name for name in names if storable(dns.rdatatype.from_text(name))} - {"NS", "SOA"} <= set(EXAMPLES)


@pytest.mark.parametrize("type_", BY_HAND)
def test_dnspython_agrees_with_the_rfcs(type_: str) -> None:
    assert expected_of(type_) == BY_HAND[type_]


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = tmp_path_factory.mktemp("types") / "example.test.zone"
    lines = "".join(f"t-{type_.lower()} 60 {type_} {data}\n" for type_, data in EXAMPLES.items())
    path.write_text(f"@ 300 SOA ns1 Host\\.master 2026112401 7200 1800 86400 30\n@ 300 NS NS1\n{lines}")
    zones = zones_of_file(path)
    assert zones.problems == zones.warnings == {}
    return table_of(zones)


@pytest.fixture(scope="module")
def from_keys() -> Table:
    keys = [
        (f"/names/example.test/t-{type_.lower()}/{type_}", json.dumps(data).encode())
        for type_, data in EXAMPLES.items()
        if type_ != "TXT"  # whose strings are literal there
    ]
    zones = zones_of_keys(keys)
    assert zones.problems == {}
    return table_of(zones)


@pytest.mark.parametrize("type_", EXAMPLES)
def test_from_a_zone_file(type_: str, from_file: Table) -> None:
    number = int(dns.rdatatype.from_text(type_))
    assert answered(from_file, f"t-{type_}.example.test.", number) == [expected_of(type_)]


@pytest.mark.parametrize("type_", [type_ for type_ in EXAMPLES if type_ != "TXT"])
def test_from_keys(type_: str, from_keys: Table) -> None:
    number = int(dns.rdatatype.from_text(type_))
    assert answered(from_keys, f"t-{type_}.example.test.", number) == [expected_of(type_)]


def test_soa_and_ns(from_file: Table) -> None:
    numbers = b"".join(n.to_bytes(4, "big") for n in (2026112401, 7200, 1800, 86400, 30))
    zone = b"\7example\4test\0"
    assert answered(from_file, "example.test.", 6) == [b"\3ns1" + zone + b"\x0bHost.master" + zone + numbers]
    assert answered(from_file, "example.test.", 2) == [b"\3NS1" + zone]


# ---------------------------------------------------------------- RFC 3597

GENERIC = {
    ("TYPE65280", r"\# 4 0a000001"): bytes.fromhex("0a000001"),
    ("TYPE65281", r"\# 0"): b"",
    ("TYPE1234", r"\# 6 ( abcdef 012345 )"): bytes.fromhex("abcdef012345"),
    ("TYPE1", r"\# 4 c0000201"): b"\xc0\0\2\1",
    ("TYPE28", r"\# 16 20010db8000000000000000000000001"): b"\x20\x01\x0d\xb8" + bytes(11) + b"\1",
    ("A", r"\# 4 c0000202"): b"\xc0\0\2\2",
    ("TLSA", r"\# 6 030100 aabbcc"): bytes.fromhex("030100aabbcc"),
    ("TYPE65534", r"\# 3 616263"): b"abc",
}


def test_unknown_types(tmp_path: Path) -> None:
    path = tmp_path / "example.test.zone"
    lines = "".join(f"t{i} 60 {type_} {text}\n" for i, (type_, text) in enumerate(GENERIC))
    path.write_text(f"@ 300 SOA a b 1 2 3 4 5\n@ 300 NS a\n{lines}")
    table = table_of(zones_of_file(path))
    for i, ((type_, _), data) in enumerate(GENERIC.items()):
        assert answered(table, f"t{i}.example.test.", int(dns.rdatatype.from_text(type_))) == [data]


@pytest.mark.parametrize("size", [1, 1000, 60000])
def test_unknown_data_of_any_size(size: int) -> None:
    text = rf"\# {size} {'5a' * size}"
    table = table_of(zones_of_keys([("/names/example.test/big/TYPE65000", json.dumps(text).encode())]))
    assert answered(table, "big.example.test.", 65000) == [b"Z" * size]


@pytest.mark.parametrize("text", [r"\# 4 0a0000", r"\# 4 0a00000102", r"\# x 0a", r"\# 4 zz000001", r"\#", "0a000001"])
def test_bad_generic_data(text: str) -> None:
    with pytest.raises(Reject):
        from_text(65280, text, b"\0")


@pytest.mark.parametrize("number", [0, 41, 128, 249, 250, 251, 252, 253, 254, 255, 65536])
def test_what_is_no_data(number: int) -> None:
    assert not storable(number)


# ---------------------------------------------------------------- what is refused or changed at load


def test_a_cname_beside_other_data_names_both_keys() -> None:
    zones = zones_of_keys(
        [("/names/example.test/www/A", b'"192.0.2.1"'), ("/names/example.test/www/CNAME", b'"a.example.test."')]
    )
    assert set(zones.problems) == {"/names/example.test/www/CNAME"}
    assert "/names/example.test/www/A" in zones.problems["/names/example.test/www/CNAME"]
    assert answered(table_of(zones), "www.example.test.", 1) == [b"\xc0\0\2\1"]
    assert answered(table_of(zones), "www.example.test.", 5) == []


def test_a_cname_beside_other_data_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "example.test.zone"
    path.write_text("@ 300 SOA a b 1 2 3 4 5\n@ 300 NS a\nwww 60 CNAME a\nwww 60 TXT x\nok 60 A 192.0.2.1\n")
    zones = zones_of_file(path)
    assert len(zones.problems) == 1
    (key, reason), *_ = zones.problems.items()
    assert {"www.example.test./CNAME", "www.example.test./TXT"} == {
        key,
        *(w.strip(":") for w in reason.split() if "/" in w),
    }
    assert answered(table_of(zones), "ok.example.test.", 1) == [b"\xc0\0\2\1"]


def test_different_ttls_are_made_equal() -> None:
    """RFC 2181 section 5.2."""
    zones: Zones = zones_of_keys(
        [
            ("/names/example.test/www/A", b'{"ttl": 300, "data": ["192.0.2.1"]}'),
            ("/names/example.test/www/IP", b'{"ttl": 60, "data": ["192.0.2.2"]}'),
        ]
    )
    assert zones.problems == {}
    assert list(zones.warnings) == ["/names/example.test/www/A"]
    assert "lowered to 60" in zones.warnings["/names/example.test/www/A"]
    reply = answer(query("www.example.test."), table_of(zones))
    assert reply is not None
    assert reply.count(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4") == 2
