"""SkyDNS keys -> answers, in both semantics: a table of what CoreDNS gives, and where this differs on purpose."""

from __future__ import annotations

import pytest

from cli.finding import Kind, resolve
from loader import names
from shm.node import unpack
from tests.support.skydns import World

#: What is asked -> (as CoreDNS, strict).
Expected = dict[tuple[str, str], tuple[list[str], list[str]]]
NX = ["NXDOMAIN"]


def same(*answers: str) -> tuple[list[str], list[str]]:
    return sorted(answers), sorted(answers)


CASES: dict[str, tuple[dict[str, str], Expected]] = {
    "a host": (
        {"test/example/www": '{"host":"192.0.2.1","ttl":60}'},
        {
            ("www.example.test", "A"): same("A 60 192.0.2.1"),
            ("www.example.test", "AAAA"): same(),
            ("www.example.test", "SRV"): (["SRV 60 10 100 0 www.example.test."], []),
            ("other.example.test", "A"): (NX, NX),
        },
    ),
    "both families": (
        {"test/example/www/a": '{"host":"192.0.2.1"}', "test/example/www/b": '{"host":"2001:db8::1"}'},
        {
            ("www.example.test", "A"): (["A 192.0.2.1"], []),
            ("www.example.test", "AAAA"): (["AAAA 2001:db8::1"], []),
            ("a.www.example.test", "A"): same("A 192.0.2.1"),
            ("a.www.example.test", "AAAA"): same(),
        },
    ),
    "an IPv4 address in IPv6 form": (
        {"test/example/www": '{"host":"::ffff:192.0.2.1"}'},
        {("www.example.test", "A"): same("A 192.0.2.1"), ("www.example.test", "AAAA"): same()},
    ),
    "a name": (
        {"test/example/www": '{"host":"web.example.net"}', "test/example/in": '{"host":"a.example.test."}',
         "test/example/a": '{"host":"192.0.2.1"}'},
        {
            ("www.example.test", "A"): same("CNAME web.example.net."),
            ("www.example.test", "CNAME"): same("CNAME web.example.net."),
            ("in.example.test", "A"): same("CNAME a.example.test.", "a.example.test. A 192.0.2.1"),
        },
    ),
    "an alias of itself": (
        {"test/example/www": '{"host":"www.example.test"}', "test/example/a/x": '{"host":"a.example.test"}'},
        {("www.example.test", "A"): same(*NX), ("a.example.test", "A"): ([], [])},
    ),
    "the exact key is ignored if there are others beneath": (
        {"test/example/www": '{"host":"192.0.2.9"}', "test/example/www/a": '{"host":"192.0.2.1"}'},
        {
            ("www.example.test", "A"): (["A 192.0.2.1"], ["A 192.0.2.9"]),
            ("example.test", "A"): (["A 192.0.2.1", "A 192.0.2.9"], []),
        },
    ),
    "but a text beneath does not break an address": (
        {"test/example/www": '{"host":"192.0.2.9"}', "test/example/www/a": '{"text":"heritage"}'},
        {
            ("www.example.test", "A"): same("A 192.0.2.9"),
            ("www.example.test", "TXT"): (['TXT "heritage"'], []),
        },
    ),
    "foo is not foobar": (
        {"test/example/foo/a": '{"host":"192.0.2.1"}', "test/example/foobar": '{"host":"192.0.2.2"}'},
        {("foo.example.test", "A"): (["A 192.0.2.1"], [])},
    ),
    "levels": (
        {"test/example/east/staging/1/rails": '{"host":"192.0.2.1"}',
         "test/example/east/prod/2/rails": '{"host":"192.0.2.2"}'},
        {
            ("east.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], []),
            ("staging.east.example.test", "A"): (["A 192.0.2.1"], []),
            ("rails.1.staging.east.example.test", "A"): same("A 192.0.2.1"),
        },
    ),
    "SRV": (
        {"test/example/rails/a": '{"host":"web1.example.net","port":8080}',
         "test/example/rails/b": '{"host":"192.0.2.2","port":8081,"priority":20,"weight":7}'},
        {
            ("rails.example.test", "SRV"): (
                ["SRV 10 100 8080 web1.example.net.", "SRV 20 100 8081 b.rails.example.test."], []
            ),
            ("rails.example.test", "A"): (["A 192.0.2.2"], []),
            ("a.rails.example.test", "SRV"): same("SRV 10 100 8080 web1.example.net."),
            ("a.rails.example.test", "A"): same(),
        },
    ),
    "weights are shares within a priority": (
        {"test/example/x/a": '{"host":"server1","weight":120}', "test/example/x/b": '{"host":"server2","weight":80}',
         "test/example/x/c": '{"host":"server3","weight":150}',
         "test/example/x/d": '{"host":"server4","priority":30}'},
        {
            ("x.example.test", "SRV"): (
                ["SRV 10 22 0 server2.", "SRV 10 34 0 server1.", "SRV 10 42 0 server3.", "SRV 30 100 0 server4."], []
            ),
        },
    ),
    "the smallest share is 1": (
        {"test/example/x/a": '{"host":"192.0.2.1","port":1,"weight":1}',
         "test/example/x/b": '{"host":"192.0.2.2","port":1,"weight":1000}'},
        {
            ("x.example.test", "SRV"): (
                ["SRV 10 1 1 a.x.example.test.", "SRV 10 99 1 b.x.example.test."], []
            ),
        },
    ),
    "port -1 is no SRV": (
        {"test/example/x": '{"host":"192.0.2.1","port":-1}'},
        {("x.example.test", "SRV"): same(), ("x.example.test", "A"): same("A 192.0.2.1")},
    ),
    "targetstrip": (
        {"test/example/x/1": '{"host":"192.0.2.1","port":80,"targetstrip":1}',
         "test/example/x/2": '{"host":"192.0.2.2","port":80,"targetstrip":1}'},
        {
            ("x.example.test", "SRV"): same("SRV 10 50 80 x.example.test."),
            ("x.example.test", "A"): same("A 192.0.2.1", "A 192.0.2.2"),
            ("1.x.example.test", "A"): (["A 192.0.2.1"], NX),
        },
    ),
    "targetstrip beyond the name": (
        {"test/example/x": '{"host":"192.0.2.1","port":80,"targetstrip":9}'},
        {("x.example.test", "SRV"): same("SRV 10 100 80 x.example.test.")},
    ),
    "MX": (
        {"test/example/mail/a": '{"host":"192.0.2.1","mail":true,"priority":5}',
         "test/example/mail/b": '{"host":"mx.example.net","mail":true}'},
        {
            ("mail.example.test", "MX"): (["MX 10 mx.example.net.", "MX 5 a.mail.example.test."], []),
            ("b.mail.example.test", "MX"): same("MX 10 mx.example.net."),
            ("example.test", "MX"): (["MX 10 mx.example.net.", "MX 5 a.mail.example.test."], []),
        },
    ),
    "TXT": (
        {"test/example/t/a": '{"text":"one"}', "test/example/t/b": '{"text":"two"}'},
        {
            ("t.example.test", "TXT"): (['TXT "one"', 'TXT "two"'], []),
            ("a.t.example.test", "TXT"): same('TXT "one"'),
            ("t.example.test", "A"): same(),
        },
    ),
    "text beside an address": (
        {"test/example/t": '{"host":"192.0.2.1","text":"note"}'},
        {("t.example.test", "TXT"): ([], ['TXT "note"']), ("t.example.test", "A"): same("A 192.0.2.1")},
    ),
    "text beside a name does not break the name": (
        {"test/example/t": '{"host":"web.example.net","text":"note"}'},
        {("t.example.test", "A"): same("CNAME web.example.net.")},
    ),
    "groups: the shortest key's wins": (
        {"test/example/g/a": '{"host":"192.0.2.1","group":"g1"}',
         "test/example/g/sub/b": '{"host":"192.0.2.2","group":"g2"}',
         "test/example/g/sub/c": '{"host":"192.0.2.3"}'},
        {
            ("g.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.3"], []),
            ("sub.g.example.test", "A"): (["A 192.0.2.2", "A 192.0.2.3"], []),
        },
    ),
    "groups that disagree": (
        {"test/example/g/a": '{"host":"192.0.2.1","group":"g1"}',
         "test/example/g/b": '{"host":"192.0.2.2","group":"g2"}'},
        {("g.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], [])},
    ),
    "addresses and names under one name": (
        {"test/example/m/a": '{"host":"192.0.2.1"}', "test/example/m/b": '{"host":"web.example.net"}'},
        {("m.example.test", "A"): (["A 192.0.2.1"], []), ("b.m.example.test", "A"): same("CNAME web.example.net.")},
    ),
    "the older of two names": (
        {"test/example/m/b": '{"host":"first.example.net"}', "test/example/m/a": '{"host":"second.example.net"}'},
        {("m.example.test", "A"): (["CNAME first.example.net."], [])},
    ),
    "the apex's own addresses": (
        {"test/example/dns/apex/a": '{"host":"192.0.2.1"}', "test/example/www": '{"host":"192.0.2.2"}'},
        {
            ("example.test", "A"): same("A 192.0.2.1"),
            ("a.apex.dns.example.test", "A"): same("A 192.0.2.1"),
            ("apex.dns.example.test", "A"): (["A 192.0.2.1"], []),
        },
    ),
    "a name as the apex's own host": (
        {"test/example/dns/apex/a": '{"host":"lb.example.net"}', "test/example/www": '{"host":"192.0.2.2"}'},
        {("example.test", "A"): same()},
    ),
    "an apex without": (
        {"test/example/www": '{"host":"192.0.2.2"}', "test/example/t": '{"text":"t"}'},
        {("example.test", "A"): (["A 192.0.2.2"], []), ("example.test", "TXT"): (['TXT "t"'], [])},
    ),
    "the key of the apex itself": (
        {"test/example": '{"host":"192.0.2.2"}'},
        {("example.test", "A"): same("A 192.0.2.2")},
    ),
    "a name at the apex": (
        {"test/example/www": '{"host":"web.example.net"}', "test/example": '{"host":"web.example.net"}'},
        {("example.test", "A"): same(), ("example.test", "NS"): same("NS ns1.example.test.")},
    ),
    "name servers": (
        {"test/example/dns/ns/a": '{"host":"192.0.2.53","ttl":60}',
         "test/example/dns/ns/b": '{"host":"ns.example.net"}', "test/example/dns/apex/x": '{"host":"192.0.2.1"}'},
        {
            ("example.test", "NS"): same("NS 60 a.ns.dns.example.test.", "NS 60 ns.example.net."),
            ("a.ns.dns.example.test", "A"): same("A 60 192.0.2.53"),
        },
    ),
    "ttl": (
        {"test/example/a": '{"host":"192.0.2.1","ttl":0}', "test/example/b": '{"host":"192.0.2.1","ttl":4294967295}'},
        {("a.example.test", "A"): same("A 192.0.2.1"), ("b.example.test", "A"): same("A 2147483647 192.0.2.1")},
    ),
    "wildcards stored": (
        {"test/example/apps/*": '{"host":"192.0.2.1"}', "test/example/apps/one": '{"host":"192.0.2.2"}'},
        {
            ("foo.apps.example.test", "A"): (NX, ["A 192.0.2.1"]),
            ("one.apps.example.test", "A"): same("A 192.0.2.2"),
            ("apps.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], []),
            ("*.apps.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], ["A 192.0.2.1"]),
        },
    ),
    "wildcards asked for": (
        {"test/example/a/x": '{"host":"192.0.2.1","port":80}', "test/example/a/y/z": '{"host":"192.0.2.2"}'},
        {
            ("*.a.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], NX),
            ("any.a.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], NX),
            ("any.a.example.test", "MX"): ([], NX),
            ("*.x.a.example.test", "A"): (NX, NX),
            ("anyx.a.example.test", "A"): (NX, NX),
            ("*.example.test", "A"): (["A 192.0.2.1", "A 192.0.2.2"], NX),
        },
    ),
    "capitals": (
        {"test/Example/WWW": '{"host":"192.0.2.1"}'},
        {("www.example.test", "A"): same("A 192.0.2.1")},
    ),
    "a slash at the end": (
        {"test/example/www/": '{"host":"192.0.2.1"}', "test/example/a": '{"host":"192.0.2.2"}',
         "test/example/a/": '{"host":"192.0.2.3"}'},
        {
            ("www.example.test", "A"): same("A 192.0.2.1"),
            ("a.example.test", "A"): same("A 192.0.2.2", "A 192.0.2.3"),
        },
    ),
    "one bad value costs its key": (
        {"test/example/www/a": '{"host":"192.0.2.1"}', "test/example/www/b": "{"},
        {("www.example.test", "A"): (["A 192.0.2.1"], []), ("b.www.example.test", "A"): (NX, NX)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
@pytest.mark.parametrize("case", CASES)
def test_answers(case: str, semantics: str) -> None:
    keys, expected = CASES[case]
    world = World(keys, "coredns" if semantics == "coredns" else "strict")
    for (name, type_), (coredns, strict) in expected.items():
        assert world.ask(name, type_) == sorted(coredns if semantics == "coredns" else strict), (name, type_)


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
def test_reverse_zones(semantics: str) -> None:
    keys = {
        "arpa/in-addr/10/0/0/127": '{"host":"a.example.test","text":"owner"}',
        "arpa/in-addr/10/0/0/127/x": '{"host":"b.example.test"}',
        "arpa/ip6/8/b/d/0/1/0/0/2": '{"host":"v6.example.test"}',
    }
    world = World(keys, "coredns" if semantics == "coredns" else "strict", ("10.in-addr.arpa", "ip6.arpa"))
    assert world.ask("127.0.0.10.in-addr.arpa", "PTR") == ["PTR a.example.test."]
    assert world.ask("127.0.0.10.in-addr.arpa", "TXT") == ['TXT "owner"']
    assert world.ask("x.127.0.0.10.in-addr.arpa", "PTR") == ["PTR b.example.test."]
    assert world.ask("2.0.0.1.0.d.b.8.ip6.arpa", "PTR") == ["PTR v6.example.test."]
    assert world.ask("0.10.in-addr.arpa", "PTR") == []
    assert world.ask("1.0.0.10.in-addr.arpa", "PTR") == NX


def test_targets_come_with_their_addresses() -> None:
    world = World({
        "test/example/r/a": '{"host":"192.0.2.1","port":80}',
        "test/example/r/b": '{"host":"w.example.test","port":80}',
        "test/example/w/1": '{"host":"2001:db8::1"}',
    })  # fmt: skip
    assert world.additional("r.example.test", "SRV") == [
        "a.r.example.test. A 192.0.2.1",
        "w.example.test. AAAA 2001:db8::1",
    ]


@pytest.mark.parametrize(
    ("lease", "granted", "own", "expected"),
    [(0, 0, 0, 300), (0, 0, 60, 60), (7, 100, 0, 100), (7, 100, 60, 60), (7, 100, 200, 100), (7, 5, 0, 30),
     (7, 10**6, 0, 86400), (7, 0, 600, 30), (7, 10, 20, 20)],
)  # fmt: skip
def test_ttl_of_lease_and_value(lease: int, granted: int, own: int, expected: int) -> None:
    world = World(lease_ttls={7: granted})
    world.change(world.put("test/example/www", f'{{"host":"192.0.2.1","ttl":{own}}}', lease))
    assert world.message("www.example.test", "A").answer[0].ttl == expected


def test_tools_tell_what_is_answered_to_questions_for_all() -> None:
    world = World({"test/example/a/x": '{"host":"192.0.2.1"}'})
    blocks = {unpack(block).name: block for block in world.zones.all_nodes()}
    for name, kind in (
        ("*.a", Kind.ANSWER),
        ("any.a", Kind.ANSWER),
        ("any.x.a", Kind.NXDOMAIN),
        ("anyx.a", Kind.NXDOMAIN),
    ):
        found = resolve(blocks.get, names.from_text(f"{name}.example.test"), 1, names.to_text)
        assert found.kind is kind
        assert found.owner == names.from_text(f"{'a' if kind is Kind.ANSWER else name.partition('.')[2]}.example.test")


def test_zones_end_aggregation() -> None:
    keys = {"test/example/www/a": '{"host":"192.0.2.1"}', "test/example/b": '{"host":"192.0.2.2"}'}
    world = World(keys, zones=("example.test", "www.example.test"))
    assert world.ask("example.test", "A") == ["A 192.0.2.2"]
    assert world.ask("www.example.test", "A") == ["A 192.0.2.1"]


def test_a_crowd_is_sampled(caplog: pytest.LogCaptureFixture) -> None:
    keys = {f"test/example/x/{i}": f'{{"host":"192.0.2.{i}"}}' for i in range(200)}
    world = World(keys, most=10)
    answers = world.ask("x.example.test", "A")
    assert len(answers) == 10
    assert "x.example.test. answers with a sample of 10 of the 200 services beneath it" in caplog.text
    assert world.tree.crowded()[b"\x01x\x07example\x04test\0"] == 200
    # One that comes or goes changes one at most.
    for i in range(200, 230):
        world.change(world.put(f"test/example/x/{i}", f'{{"host":"192.0.2.{i}"}}'))
        fresh = world.ask("x.example.test", "A")
        assert len(fresh) == 10
        assert len(set(fresh) - set(answers)) <= 1
        answers = fresh


def test_a_sample_is_fair() -> None:
    """Over many names each of 100 services is in a sample of 10 about as often as the others."""
    keys = {f"test/example/x{n}/{i}": f'{{"host":"192.0.2.{i}"}}' for i in range(100) for n in range(200)}
    world = World(keys, most=10)
    picked = [0] * 100
    for n in range(200):
        for answer in world.zones.gifts_of(names.from_text(f"x{n}.example.test")):
            picked[int(answer[0].rpartition("/")[2])] += 1
    assert sum(picked) == 2000
    assert 5 <= min(picked) <= max(picked) <= 45
