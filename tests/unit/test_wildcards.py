"""RFC 4592 section 2.2.1 in full, and RFC 8020: the zone file goes through the loader, both answerers are asked."""

from __future__ import annotations

import functools
from pathlib import Path

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from server._answer import Terms, answer_packet
from server.answer import answer
from server.policy import Moment, Policy
from shm._table import Table
from tests.support.loading import table_of, zones_of_file
from tests.support.packets import parsed, query

ZONE = Path(__file__).parents[1] / "differential" / "zones" / "example.zone"
WILD_TXT, WILD_MX = '"this is a wildcard"', "10 host1.example."
SSH = "0 0 22 host1.example."

#: (name, type) -> rcode, data in the answer; None: a referral. The first eight are the RFC's own.
EXPECTED: dict[tuple[str, str], tuple[str, list[str]] | None] = {
    ("host3.example.", "MX"): ("NOERROR", [WILD_MX]),
    ("host3.example.", "A"): ("NOERROR", []),
    ("foo.bar.example.", "TXT"): ("NOERROR", [WILD_TXT]),
    ("host1.example.", "MX"): ("NOERROR", []),
    ("sub.*.example.", "MX"): ("NOERROR", []),
    ("_telnet._tcp.host1.example.", "SRV"): ("NXDOMAIN", []),
    ("host.subdel.example.", "A"): None,
    ("ghost.*.example.", "MX"): ("NXDOMAIN", []),
    # what else follows from section 3.3.1
    ("*.example.", "TXT"): ("NOERROR", [WILD_TXT]),
    ("*.example.", "MX"): ("NOERROR", [WILD_MX]),
    ("*.example.", "A"): ("NOERROR", []),
    ("sub.*.example.", "TXT"): ("NOERROR", ['"this is not a wildcard"']),
    ("x.sub.*.example.", "TXT"): ("NXDOMAIN", []),
    ("*.*.example.", "TXT"): ("NXDOMAIN", []),
    ("*.foo.example.", "TXT"): ("NOERROR", [WILD_TXT]),
    ("a.b.c.d.example.", "MX"): ("NOERROR", [WILD_MX]),
    ("host1.example.", "A"): ("NOERROR", ["192.0.2.1"]),
    ("x.host1.example.", "TXT"): ("NXDOMAIN", []),
    ("*.host1.example.", "TXT"): ("NXDOMAIN", []),
    ("_tcp.host1.example.", "TXT"): ("NOERROR", []),
    ("_ssh._tcp.host1.example.", "SRV"): ("NOERROR", [SSH]),
    ("host2.example.", "A"): ("NOERROR", []),
    ("host2.example.", "MX"): ("NOERROR", []),
    ("_tcp.host2.example.", "MX"): ("NOERROR", []),
    ("_ssh._tcp.host2.example.", "SRV"): ("NOERROR", [SSH]),
    ("x.host2.example.", "TXT"): ("NXDOMAIN", []),
    ("subdel.example.", "TXT"): None,
    ("*.subdel.example.", "MX"): None,
    ("subdel.example.", "DS"): ("NOERROR", []),
    ("example.", "MX"): ("NOERROR", []),
    ("example.", "NS"): ("NOERROR", ["ns.example.com.", "ns.example.net."]),
}


@functools.cache
def table() -> Table:
    return table_of(zones_of_file(ZONE))


def ask(name: str, type_: str) -> dns.message.Message:
    packet, policy = query(name, type_), Policy()
    reply = answer(packet, table(), policy)
    assert reply is not None
    assert answer_packet(packet, table(), Terms(policy), Moment()) in (reply, None)
    return parsed(reply)


@pytest.mark.parametrize(("name", "type_"), EXPECTED)
def test_rfc_4592(name: str, type_: str) -> None:
    expected, reply = EXPECTED[name, type_], ask(name, type_)
    if expected is None:
        assert reply.answer == []
        assert [str(one.name) for one in reply.authority] == ["subdel.example."]
        assert reply.authority[0].rdtype == dns.rdatatype.NS
        return
    rcode, data = expected
    assert dns.rcode.to_text(reply.rcode()) == rcode
    assert sorted(str(rdata) for one in reply.answer for rdata in one) == sorted(data)
    assert all(str(one.name) == name for one in reply.answer), "synthesized under the name asked for"
    if not data:
        assert reply.authority[0].rdtype == dns.rdatatype.SOA
        assert reply.authority[0].ttl == 600


@pytest.mark.parametrize("type_", ["A", "TXT", "MX", "NS", "SOA", "ANY"])
@pytest.mark.parametrize("gone", ["x.host1.example.", "ghost.*.example.", "_telnet._tcp.host1.example."])
def test_nothing_is_beneath_what_does_not_exist(gone: str, type_: str) -> None:
    """RFC 8020: NXDOMAIN holds for every type, and for every name beneath."""
    for below in ("", "a.", "*.", "a.b.c."):
        assert ask(below + gone, type_).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("name", ["_tcp.host1.example.", "_tcp.host2.example.", "host2.example."])
@pytest.mark.parametrize("type_", ["A", "TXT", "ANY"])
def test_what_something_is_beneath_exists(name: str, type_: str) -> None:
    """RFC 8020 section 1: an empty non-terminal is never NXDOMAIN."""
    reply = ask(name, type_)
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
