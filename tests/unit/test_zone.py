"""loader/zone.py: which names exist, and what a change touches."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import compiler, names
from loader.model import DEFAULT_TTL, Record
from loader.zone import Zones
from shm.layout import NEGATIVE_SOA, NodeFlag
from shm.node import Node, unpack

A, NS, CNAME, SOA, TXT, DNAME, DS = 1, 2, 5, 6, 16, 39, 43


def n(text: str) -> bytes:
    return names.from_text(text)


APEX = n("example.test")
NAMED = b"\x01t\0"


def rr(owner: str, type_: int = A, data: bytes = b"\x01\x02\x03\x04", ttl: int = 60, zone: str | None = None) -> Record:
    return Record(None if zone is None else n(zone), n(owner), type_, ttl, data)


def soa(serial: int, ttl: int = 600, minimum: int = 77) -> bytes:
    return NAMED + NAMED + struct.pack(">IIIII", serial, 1, 2, 3, minimum)


def table(zones: Zones) -> dict[bytes, Node]:
    blocks = list(zones.all_nodes())
    nodes = {node.name: node for node in map(unpack, blocks)}
    assert len(nodes) == len(blocks), "all_nodes names something twice"
    return nodes


def flags(zones: Zones, name: str) -> NodeFlag:
    return NodeFlag(table(zones)[n(name)].flags)


def taken(zones: Zones) -> dict[bytes, Node | None]:
    return {name: unpack(block) if block else None for name, block in zones.take_changes().items()}


def serial(node: Node, entry: int = SOA) -> int:
    return int.from_bytes(node.rrsets[entry].wire[-20:-16], "big")


def fresh(*applied: tuple[str, list[Record]], zones: Iterable[str] = ("example.test",)) -> Zones:
    result = Zones(map(n, zones))
    for revision, (key, records) in enumerate(applied, 1):
        result.apply(key, records, revision)
    return result


# ---------------------------------------------------------------- the apex


def test_a_configured_zone_exists_without_data() -> None:
    node = table(fresh())[APEX]
    assert node.flags == NodeFlag.APEX
    assert set(node.rrsets) == {NEGATIVE_SOA, SOA, NS}


def test_made_soa_and_ns() -> None:
    node = table(fresh(("k", [rr("www.example.test")])))[APEX]
    head = b"\xc0\x0c\x00\x06\x00\x01"
    data = b"\x03ns1" + APEX + b"\x0ahostmaster" + APEX + struct.pack(">IIIII", 1, 7200, 1800, 86400, 30)
    assert node.rrsets[SOA].wire == head + struct.pack(">IH", 300, len(data)) + data
    assert node.rrsets[NEGATIVE_SOA].wire == head + struct.pack(">IH", 30, len(data)) + data
    ns = b"\x03ns1" + APEX
    assert node.rrsets[NS].wire == b"\xc0\x0c\x00\x02\x00\x01" + struct.pack(">IH", 300, len(ns)) + ns


def test_made_names_fit_the_longest_apex() -> None:
    apex = names.from_labels([b"x" * 63, b"x" * 63, b"x" * 63, b"x" * 59])
    node = unpack(next(Zones([apex]).all_nodes()))
    assert apex in node.rrsets[NS].wire
    assert b"ns1" not in node.rrsets[NS].wire


def test_serial_is_the_last_revision_that_touched_the_zone() -> None:
    zones = fresh(zones=("a.test", "b.test"))
    zones.apply("a", [rr("www.a.test")], 7)
    zones.apply("b", [rr("www.b.test")], 9)
    assert (serial(table(zones)[n("a.test")]), serial(table(zones)[n("b.test")])) == (7, 9)
    zones.take_changes()
    zones.apply("a", [], 12)
    changes = taken(zones)
    assert set(changes) == {n("a.test"), n("www.a.test")}
    apex = changes[n("a.test")]
    assert apex is not None
    assert serial(apex) == serial(apex, NEGATIVE_SOA) == 12


def test_serial_counts_modulo_32_bits() -> None:
    zones = fresh()
    zones.apply("k", [rr("www.example.test")], 2**32 + 5)
    assert serial(table(zones)[APEX]) == 5


def test_a_given_serial_is_kept_and_zero_is_replaced() -> None:
    kept = fresh(("soa", [rr("example.test", SOA, soa(4711), 600)]), ("k", [rr("www.example.test")]))
    assert serial(table(kept)[APEX]) == serial(table(kept)[APEX], NEGATIVE_SOA) == 4711
    made = fresh(("soa", [rr("example.test", SOA, soa(0), 600)]), ("k", [rr("www.example.test")]))
    assert serial(table(made)[APEX]) == 2
    assert table(made)[APEX].rrsets[SOA].wire[12:].startswith(NAMED + NAMED)


@pytest.mark.parametrize(("ttl", "minimum", "negative"), [(600, 77, 77), (50, 77, 50)])
def test_negative_soa_has_the_lower_of_ttl_and_minimum(ttl: int, minimum: int, negative: int) -> None:
    node = table(fresh(("soa", [rr("example.test", SOA, soa(1, minimum=minimum), ttl)])))[APEX]
    assert struct.unpack(">I", node.rrsets[NEGATIVE_SOA].wire[6:10]) == (negative,)
    assert struct.unpack(">I", node.rrsets[SOA].wire[6:10]) == (ttl,)


def test_given_ns_are_not_added_to() -> None:
    assert table(fresh(("ns", [rr("example.test", NS, NAMED)])))[APEX].rrsets[NS].count == 1


def test_ns_of_the_apex_are_no_cut() -> None:
    zones = fresh(("ns", [rr("example.test", NS, NAMED)]), ("k", [rr("www.example.test")]))
    assert flags(zones, "example.test") == NodeFlag.APEX
    assert flags(zones, "www.example.test") == 0


# ---------------------------------------------------------------- zones come and go


def test_a_zone_named_by_records_comes_and_goes_with_them() -> None:
    zones = fresh(zones=())
    zones.apply("k", [rr("www.a.test", zone="a.test")], 3)
    assert set(table(zones)) == {n("a.test"), n("www.a.test")}
    zones.take_changes()
    zones.apply("k", [], 4)
    changes = taken(zones)
    assert {n("a.test"), n("www.a.test")} <= set(changes)
    assert set(changes.values()) == {None}
    assert zones.apexes() == {}


def test_a_configured_zone_stays_when_its_last_key_goes() -> None:
    zones = fresh(("k", [rr("www.example.test", zone="example.test")]), ("k", []))
    assert set(table(zones)) == {APEX}


def test_a_name_outside_every_zone_is_a_problem_until_a_zone_encloses_it() -> None:
    zones = fresh(("k", [rr("www.a.test")]), zones=())
    assert table(zones) == {}
    assert len(zones) == 0
    assert "www.a.test. is outside every zone" in zones.problems["k"]
    zones.apply("soa", [rr("a.test", SOA, soa(1), zone="a.test")], 2)
    assert n("www.a.test") in table(zones)
    assert zones.problems == {}
    zones.apply("soa", [], 3)
    assert "k" in zones.problems


def test_a_record_outside_the_zone_that_it_names() -> None:
    zones = fresh(("k", [rr("www.other.test", zone="example.test")]), zones=("example.test", "other.test"))
    assert "outside its zone example.test." in zones.problems["k"]
    assert n("www.other.test") not in table(zones)


def test_the_longest_zone_wins() -> None:
    zones = fresh(("k", [rr("www.b.test")]), zones=("test", "b.test"))
    assert zones.apexes() == {n("test"): 0, n("b.test"): 1}


def test_a_zone_beneath_another_is_an_apex_and_no_cut() -> None:
    zones = fresh(
        ("parent-ns", [rr("b.test", NS, NAMED, zone="test")]),
        ("glue", [rr("ns.b.test", zone="test")]),
        ("child", [rr("www.b.test", zone="b.test")]),
        zones=("test",),
    )
    assert flags(zones, "b.test") == NodeFlag.APEX
    assert flags(zones, "www.b.test") == 0
    # The parent's NS stand in for those that the child lacks; its glue is hidden behind the child.
    assert NAMED in table(zones)[n("b.test")].rrsets[NS].wire
    assert n("ns.b.test") not in table(zones)
    assert zones.problems == zones.warnings == {}
    zones.apply("child-ns", [rr("b.test", NS, b"\x01c\0", zone="b.test")], 9)
    assert NAMED not in table(zones)[n("b.test")].rrsets[NS].wire
    zones.take_changes()
    for key in ("child", "child-ns"):
        zones.apply(key, [], 10)
    assert flags(zones, "b.test") == NodeFlag.DELEGATION
    assert flags(zones, "ns.b.test") == NodeFlag.BELOW_CUT
    changes = taken(zones)
    assert {n("b.test"), n("ns.b.test"), n("www.b.test"), n("test")} <= set(changes)


def test_the_zone_that_loses_names_to_another_is_touched() -> None:
    zones = fresh(("k", [rr("www.b.test")]), zones=("test",))
    zones.take_changes()
    zones.apply("child", [rr("b.test", TXT, b"\x01x", zone="b.test")], 5)
    changes = taken(zones)
    parent = changes[n("test")]
    assert parent is not None
    assert serial(parent) == 5


def test_the_parents_ds_is_served_at_the_childs_apex() -> None:
    zones = fresh(("ds", [rr("b.test", DS, b"x" * 36, zone="test")]), zones=("test", "b.test"))
    assert DS in table(zones)[n("b.test")].rrsets


def test_hidden_data_that_is_no_glue_is_told() -> None:
    zones = fresh(("k", [rr("www.b.test", TXT, b"\x01x", zone="test")]), zones=("test", "b.test"))
    assert "hidden" in zones.warnings["k"]
    assert n("www.b.test") not in table(zones)


def test_names_between_two_zones_exist() -> None:
    assert flags(fresh(zones=("test", "a.b.test")), "b.test") == NodeFlag.EMPTY


# ---------------------------------------------------------------- which names exist


def test_empty_non_terminals_come_and_go() -> None:
    zones = fresh(("k", [rr("a.b.c.example.test")]))
    assert flags(zones, "b.c.example.test") == flags(zones, "c.example.test") == NodeFlag.EMPTY
    zones.take_changes()
    zones.apply("sibling", [rr("x.b.c.example.test")], 2)
    assert set(zones.take_changes()) == {APEX, n("x.b.c.example.test")}
    zones.apply("k", [], 3)
    assert n("b.c.example.test") in table(zones)
    zones.take_changes()
    zones.apply("sibling", [], 4)
    gone = {name for name, block in zones.take_changes().items() if block is None}
    assert gone == {n("x.b.c.example.test"), n("b.c.example.test"), n("c.example.test")}
    assert set(table(zones)) == {APEX}


def test_a_name_with_records_becomes_empty_while_others_are_beneath_it() -> None:
    zones = fresh(("upper", [rr("b.example.test")]), ("lower", [rr("a.b.example.test")]))
    zones.apply("upper", [], 3)
    assert flags(zones, "b.example.test") == NodeFlag.EMPTY


def test_wildcard_child_flag_follows_the_star() -> None:
    zones = fresh(("www", [rr("www.b.example.test")]))
    assert flags(zones, "b.example.test") == NodeFlag.EMPTY
    zones.take_changes()
    zones.apply("star", [rr("*.b.example.test")], 2)
    changes = taken(zones)
    parent = changes[n("b.example.test")]
    assert parent is not None
    assert parent.flags == NodeFlag.EMPTY | NodeFlag.WILDCARD_CHILD
    zones.apply("star", [], 3)
    parent = taken(zones)[n("b.example.test")]
    assert parent is not None
    assert parent.flags == NodeFlag.EMPTY


def test_a_star_that_is_an_empty_non_terminal_counts() -> None:
    assert NodeFlag.WILDCARD_CHILD in flags(fresh(("k", [rr("a.*.example.test")])), "example.test")


def test_a_delegation_flags_what_is_beneath_it() -> None:
    zones = fresh(("glue", [rr("ns.sub.example.test")]), ("deep", [rr("a.b.sub.example.test")]))
    zones.take_changes()
    zones.apply("cut", [rr("sub.example.test", NS, NAMED)], 3)
    changes = taken(zones)
    for name in ("ns.sub.example.test", "a.b.sub.example.test", "b.sub.example.test"):
        node = changes[n(name)]
        assert node is not None
        assert NodeFlag.BELOW_CUT in NodeFlag(node.flags)
    assert flags(zones, "sub.example.test") == NodeFlag.DELEGATION
    zones.apply("cut", [], 4)
    back = taken(zones)[n("ns.sub.example.test")]
    assert back is not None
    assert back.flags == 0


def test_a_cut_beneath_a_cut_is_only_beneath() -> None:
    zones = fresh(("up", [rr("b.example.test", NS, NAMED)]), ("down", [rr("a.b.example.test", NS, NAMED)]))
    assert flags(zones, "a.b.example.test") == NodeFlag.BELOW_CUT


def test_names_beneath_a_dname_are_not_in_the_table() -> None:
    zones = fresh(("k", [rr("x.y.old.example.test")]), ("star", [rr("*.old.example.test")]))
    zones.take_changes()
    zones.apply("dname", [rr("old.example.test", DNAME, NAMED)], 3)
    changes = zones.take_changes()
    assert changes[n("x.y.old.example.test")] is changes[n("y.old.example.test")] is None
    assert flags(zones, "old.example.test") == NodeFlag.DNAME
    assert "hidden by a DNAME" in zones.warnings["k"]
    zones.apply("dname", [], 4)
    assert n("x.y.old.example.test") in table(zones)
    assert zones.warnings == {}


def test_a_dname_at_the_apex() -> None:
    zones = fresh(("dname", [rr("example.test", DNAME, NAMED)]), ("k", [rr("www.example.test")]))
    assert flags(zones, "example.test") == NodeFlag.APEX | NodeFlag.DNAME
    assert set(table(zones)) == {APEX}


def test_beneath_a_cut_a_dname_hides_nothing() -> None:
    zones = fresh(
        ("cut", [rr("b.example.test", NS, NAMED)]),
        ("dname", [rr("b.example.test", DNAME, NAMED)]),
        ("lower", [rr("a.b.example.test", DNAME, NAMED)]),
        ("glue", [rr("x.a.b.example.test")]),
    )
    assert flags(zones, "x.a.b.example.test") == NodeFlag.BELOW_CUT
    assert flags(zones, "b.example.test") == NodeFlag.DELEGATION
    assert zones.warnings == {}


def test_a_zone_beneath_a_dname_is_served() -> None:
    zones = fresh(("dname", [rr("b.example.test", DNAME, NAMED)]), zones=("example.test", "a.b.example.test"))
    assert flags(zones, "a.b.example.test") == NodeFlag.APEX


# ---------------------------------------------------------------- keys


def test_a_change_touches_its_name_and_the_apex_only() -> None:
    zones = fresh(*[(f"k{i}", [rr(f"n{i}.example.test")]) for i in range(50)])
    zones.take_changes()
    zones.apply("k7", [rr("n7.example.test", data=b"\x09\x09\x09\x09")], 99)
    assert set(zones.take_changes()) == {APEX, n("n7.example.test")}
    assert zones.take_changes() == {}


def test_the_same_again_touches_nothing() -> None:
    zones = fresh(("k", [rr("www.example.test")]))
    zones.take_changes()
    zones.apply("k", [rr("www.example.test")], 1)
    assert zones.take_changes() == {}


def test_a_key_may_give_to_several_names() -> None:
    zones = fresh(("k", [rr("a.example.test"), rr("x.a.example.test")]))
    assert {n("a.example.test"), n("x.a.example.test")} < set(table(zones))
    zones.apply("k", [rr("b.example.test")], 2)
    assert set(table(zones)) == {APEX, n("b.example.test")}


def test_default_ttl() -> None:
    zones = Zones([APEX], default_ttl=42)
    zones.apply("k", [rr("www.example.test", ttl=DEFAULT_TTL)], 1)
    assert struct.unpack(">I", table(zones)[n("www.example.test")].rrsets[A].wire[6:10]) == (42,)


def test_many_keys_at_one_name() -> None:
    zones = fresh(*[(f"k{i:02d}", [rr("www.example.test", data=bytes((i,)) * 4)]) for i in range(40)])
    assert table(zones)[n("www.example.test")].rrsets[A].count == 40
    for i in range(0, 38):
        zones.apply(f"k{i:02d}", [], 100)
    assert table(zones)[n("www.example.test")].rrsets[A].wire[12:16] == b"\x26" * 4


def test_many_keys_at_one_name_until_none_is_left() -> None:
    zones = fresh(*[(f"k{i:02d}", [rr("www.example.test", data=bytes((i,)) * 4)]) for i in range(40)])
    for i in range(40):
        zones.apply(f"k{i:02d}", [], 100)
        assert (n("www.example.test") in table(zones)) == (i < 39)


def test_what_is_known_of_a_key() -> None:
    records = [rr("www.example.test"), rr("www.example.test", TXT, b"\x01x")]
    zones = fresh(("k", records))
    assert list(zones.keys()) == ["k"]
    assert (zones.revision_of("k"), zones.revision_of("other")) == (1, None)
    assert zones.gives("k", records)
    assert not zones.gives("k", records[:1])
    assert not zones.gives("k", [rr("www.example.test"), rr("mail.example.test")])
    assert not zones.gives("other", records)
    assert zones.gives("other", [])
    assert [gift[0] for gift in zones.gifts_of(n("www.example.test"))] == ["k"]


def test_len_counts_names_with_records() -> None:
    zones = fresh(("k", [rr("a.b.example.test")]), ("out", [rr("www.elsewhere.test")]))
    assert len(zones) == 2


def test_forget_changes() -> None:
    zones = fresh(("k", [rr("www.example.test")]))
    zones.forget_changes()
    assert zones.take_changes() == {}


# ---------------------------------------------------------------- any history

LABELS = st.sampled_from(["a", "b", "*"])
OWNERS = st.lists(LABELS, max_size=4).map(lambda labels: ".".join([*labels, "test"]))
ZONE_NAMES = st.sampled_from([None, None, "test", "a.test", "b.a.test"])
DATA = {
    A: [b"\x01\x01\x01\x01", b"\x02\x02\x02\x02"],
    NS: [NAMED],
    CNAME: [NAMED, b"\x01u\0"],
    SOA: [soa(0), soa(5)],
    TXT: [b"\x01x"],
    DNAME: [NAMED],
    DS: [b"x" * 36],
}


@st.composite
def some_records(draw: st.DrawFn) -> list[Record]:
    records = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        type_ = draw(st.sampled_from(sorted(DATA)))
        owner, zone = draw(OWNERS), draw(ZONE_NAMES)
        records.append(rr(owner, type_, draw(st.sampled_from(DATA[type_])), draw(st.sampled_from([60, 90])), zone))
    return records


STEPS = st.lists(st.tuples(st.sampled_from("klmnop"), some_records(), st.booleans()), max_size=14)


def masked(block: bytes) -> tuple[int, dict[int, tuple[int, bytes]]]:
    """A node for comparison: without the serial, the one thing that depends on the way."""
    node = unpack(block)
    sets = {}
    for type_, rrset in node.rrsets.items():
        wire = rrset.wire[:-20] + bytes(4) + rrset.wire[-16:] if type_ in (SOA, NEGATIVE_SOA) else rrset.wire
        sets[type_] = (rrset.count, wire)
    return node.flags, sets


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([(), ("test",), ("a.test",), ("test", "b.a.test")]))
def test_the_way_does_not_matter(steps: list[tuple[str, list[Record], bool]], configured: tuple[str, ...]) -> None:
    zones = Zones(map(n, configured))
    seen: dict[bytes, bytes] = {}
    final: dict[str, tuple[list[Record], int]] = {}

    def take() -> None:
        for name, block in zones.take_changes().items():
            if block is None:
                seen.pop(name, None)
            else:
                seen[name] = block

    for revision, (key, records, look) in enumerate(steps, 1):
        zones.apply(key, records, revision)
        final[key] = (records, revision)
        if look:
            take()
    take()
    scratch = Zones(map(n, configured))
    for key, (records, revision) in sorted(final.items(), reverse=True):
        scratch.apply(key, records, revision)

    whole = {unpack(block).name: block for block in scratch.all_nodes()}
    assert {k: masked(v) for k, v in seen.items()} == {k: masked(v) for k, v in whole.items()}
    assert {unpack(block).name: block for block in zones.all_nodes()} == seen
    assert (zones.problems, zones.warnings) == (scratch.problems, scratch.warnings)
    assert len(zones) == len(scratch)
    assert set(zones.apexes()) == set(scratch.apexes())
    assert {k: (NodeFlag(f), set(s)) for k, (f, s) in ((k, masked(v)) for k, v in seen.items())} == expected(
        final, configured
    )


def expected(
    final: dict[str, tuple[list[Record], int]], configured: tuple[str, ...]
) -> dict[bytes, tuple[NodeFlag, set[int]]]:
    """The table by the rules themselves, without any index: name -> (flags, types)."""
    gifts: dict[bytes, dict[str, compiler.Gift]] = {}
    apexes = set(map(n, configured))
    for key, (records, revision) in final.items():
        for owner in {record.owner for record in records}:
            mine = [record for record in records if record.owner == owner]
            mine = [record for record in mine if record.zone == mine[0].zone]
            content = [part for record in mine for part in (record.type, record.ttl, record.rdata)]
            gifts.setdefault(owner, {})[key] = (key, revision, mine[0].zone, *content)
            apexes |= {mine[0].zone} - {None}  # type: ignore[arg-type]

    def zone_of(name: bytes) -> bytes | None:
        return max((apex for apex in apexes if names.is_under(name, apex)), key=len, default=None)

    def merged(name: bytes) -> set[int]:
        return set(compiler.merge(name, list(gifts.get(name, {}).values()), zone_of(name)).rrsets)

    types = {name: merged(name) for name in {*gifts, *apexes}}
    real = {name for name, found in types.items() if found or name in apexes}
    exist = {up for name in real for up in names.ancestors(name) if zone_of(up) is not None}
    result = {}
    for name in exist:
        apex = zone_of(name)
        assert apex is not None
        path = [up for up in names.ancestors(name) if names.is_under(up, apex)][1:]
        state = NodeFlag(0)
        hidden = False
        for up in reversed(path):
            if NS in types.get(up, ()) and up != apex:
                state = NodeFlag.BELOW_CUT
                break
            if DNAME in types.get(up, ()):
                hidden = True
                break
        if hidden:
            continue
        found = types.get(name, set())
        flags = state
        if name == apex:
            flags |= NodeFlag.APEX
            found = found | {SOA, NS, NEGATIVE_SOA}
        elif not state and NS in found:
            flags |= NodeFlag.DELEGATION
        redirects = not state and DNAME in found and NodeFlag.DELEGATION not in flags
        if redirects:
            flags |= NodeFlag.DNAME
        elif b"\x01*" + name in exist:
            flags |= NodeFlag.WILDCARD_CHILD
        if not found:
            flags |= NodeFlag.EMPTY
        result[name] = (flags, found)
    return result


def test_a_serial_goes_on_from_where_it_was() -> None:
    """A new loader does not know of deletions, and a restored store counts anew: serials grow all the same."""
    zones = Zones([n("example.test")])
    zones.apply("k", [rr("www.example.test")], 5)
    zones.continue_serials({n("example.test"): 9, n("gone.test"): 3})
    assert zones.apexes() == {n("example.test"): 9}
    zones.apply("k2", [rr("w2.example.test")], 9)
    zones.apply("k3", [rr("w3.example.test")], 9)
    assert zones.apexes() == {n("example.test"): 10}, "what is published at once counts once"
    zones.apply("k", [], 7)
    assert zones.apexes() == {n("example.test"): 11}
    zones.apply("k", [rr("www.example.test")], 100)
    assert zones.apexes() == {n("example.test"): 100}
