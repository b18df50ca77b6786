"""loader/skydns_tree.py: step by step is as from scratch; what a change tells, and what it costs."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader import names
from loader.model import Changes, Delete, Put
from loader.skydns import Semantics
from loader.skydns_feed import pieces
from loader.skydns_views import winning_group
from tests.support.skydns import World

Steps = list[list[tuple[str, str | None]]]

BENEATH = ("a", "a/", "a/b", "a/b/c", "a/d", "a/*", "a/*/x", "A", "b", "b/any/c", "dns/apex", "dns/apex/a", "dns/ns/a")
PATHS = ["test/example", "test/outside", *(f"test/example/{one}" for one in BENEATH)]
VALUES = st.one_of(
    st.just("{"),
    st.fixed_dictionaries(
        {},
        optional={
            "host": st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "a.example.test", "x.example.net"]),
            "text": st.sampled_from(["t", "u"]),
            "port": st.sampled_from([-1, 80]),
            "priority": st.sampled_from([10, 20]),
            "weight": st.sampled_from([1, 50]),
            "mail": st.booleans(),
            "ttl": st.sampled_from([0, 60]),
            "targetstrip": st.integers(0, 2),
            "group": st.sampled_from(["", "g", "h"]),
        },
    ).map(json.dumps),
)
STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from(PATHS), st.one_of(st.none(), VALUES)), min_size=1, max_size=4), max_size=12
)


H1, H2, T = '{"host":"192.0.2.1","targetstrip":1}', '{"host":"192.0.2.2","targetstrip":1}', '{"text":"t"}'
PLAIN = st.sampled_from(
    [
        H1, H2, T, '{"host":"192.0.2.1"}', '{"host":"2001:db8::1","targetstrip":1,"text":"t"}',
        '{"host":"192.0.2.1","targetstrip":1,"ttl":60}', '{"host":"192.0.2.3","targetstrip":2,"text":"u"}',
    ]
)  # fmt: skip
PLAIN_PATHS = [f"test/example/{one}" for one in ("a", "a/x", "a/y", "a/z", "a/x/z", "b/x", "b/y", "*/x", "x")]
PLAIN_STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from(PLAIN_PATHS), st.one_of(st.none(), PLAIN)), min_size=1, max_size=4), max_size=8
)


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
@settings(max_examples=40, deadline=None)
@given(steps=STEPS, most=st.sampled_from([2, 256]))
def test_step_by_step_is_as_from_scratch(semantics: Semantics, steps: Steps, most: int) -> None:
    world = World({}, semantics, most=most)
    held: dict[str, Put] = {}
    for step in steps:
        events: list[Put | Delete] = []
        for path, value in step:
            events.append(world.delete(path) if value is None else world.put(path, value))
            last = events[-1]
            if isinstance(last, Put):
                held[path] = last
            else:
                held.pop(path, None)
        world.change(*events)
    scratch = World({}, semantics, most=most)
    scratch.revision = world.revision
    scratch.relist(list(held.values()))
    assert world.content() == scratch.content()
    assert world.tree.problems == scratch.tree.problems
    assert world.zones.problems == scratch.zones.problems
    assert world.marked == scratch.marked
    # A second list of the same changes nothing, one of nothing leaves nothing.
    world.relist(list(held.values()))
    assert world.content() == scratch.content()
    world.relist([])
    assert world.content() == World({}, semantics).content()


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
@settings(max_examples=40, deadline=None)
@given(before=STEPS, after=STEPS, most=st.sampled_from([2, 256]))
def test_name_by_name_is_as_key_by_key(semantics: Semantics, before: Steps, after: Steps, most: int) -> None:
    """The first listing, and what changes after it."""
    compare_ways(semantics, before, after, most)


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
@settings(max_examples=120, deadline=None)
@given(before=PLAIN_STEPS, after=PLAIN_STEPS)
@example([[("test/example/a/x", H1)]], [[("test/example/a", T)], [("test/example/a/x", None)]])
@example([[("test/example/a/x", H1), ("test/example/a/y", H2)]], [[("test/example/a/y", None)]] * 2)
@example([[("test/example/a/x", H1), ("test/example/a/y", H2)]], [[("test/example/a/x/z", H1)]])
@example([[("test/example/a", H1), ("test/example/a/x/z", H1)]], [[("test/example/a/x/z", None)]])
def test_name_by_name_of_what_most_keys_are(semantics: Semantics, before: Steps, after: Steps) -> None:
    """Addresses, one or several for a name, as ExternalDNS writes them; and texts."""
    compare_ways(semantics, before, after, 256)


def compare_ways(semantics: Semantics, before: Steps, after: Steps, most: int) -> None:
    keys = {path: value for step in before for path, value in step if value is not None}
    short, long = (World(keys, semantics, most=most, by_key=by_key) for by_key in (False, True))
    for step in [[], *after]:
        for world in (short, long):
            world.change(*(world.delete(path) if value is None else world.put(path, value) for path, value in step))
        assert short.content() == long.content()
        assert short.zones.problems == long.zones.problems
        assert set(short.zones.keys()) == set(long.zones.keys())
        assert short.marked == long.marked
    for name in short.content():
        assert short.zones.gifts_of(name) == long.zones.gifts_of(name)
    assert short.zones.apexes() == long.zones.apexes()


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_no_key_contradicts_another(steps: Steps) -> None:
    """What the schema hands on is DNS: the zone model has nothing to refuse but names outside the zones."""
    world = World({})
    for step in steps:
        world.change(*(world.delete(path) if value is None else world.put(path, value) for path, value in step))
    outside = {key for key in world.zones.problems if key.startswith("/skydns/test/outside")}
    folded = {key for key in world.zones.problems if key == "/skydns/test/example/A"}
    assert set(world.zones.problems) <= outside | folded


def owner(text: str) -> bytes:
    return names.from_text(text + ".example.test")


def test_a_change_names_only_what_gives_something_else() -> None:
    world = World({f"test/example/{i}/x": f'{{"host":"192.0.2.{i}"}}' for i in range(150)})
    update = world.change(world.put("test/example/7/x", '{"host":"198.51.100.7"}'))
    assert list(update.records) == ["/skydns/test/example/7/x"]
    changed = world.zones.take_changes()
    update = world.change(world.put("test/example/7/x", '{"host":"198.51.100.8"}'))
    changed = world.zones.take_changes()
    assert set(changed) == {names.from_text(n) for n in ("x.7.example.test", "7.example.test", "example.test")}


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
def test_the_short_way_of_a_change(semantics: Semantics) -> None:
    """Most changes take it; the result is as from scratch."""
    keys = {f"test/example/{i}/x": f'{{"host":"192.0.2.{i % 200}","targetstrip":1}}' for i in range(600)}
    world = World(keys, semantics)
    for i in range(0, 600, 7):
        keys[f"test/example/{i}/x"] = f'{{"host":"198.51.100.{i % 200}","targetstrip":1,"ttl":{i}}}'
    del keys["test/example/7/x"]
    keys["test/example/14/y"] = '{"host":"192.0.2.1"}'
    keys["test/example/21/x"] = '{"host":"192.0.2.1","targetstrip":1,"port":80}'
    events = [world.put(key, value) for key, value in keys.items() if "198.51.100" in value or '192.0.2.1"' in value]
    world.change(*events, world.delete("test/example/7/x"))
    assert world.swapped > 30
    assert world.content() == World(keys, semantics).content()


def test_weights_of_the_others_change_with_one() -> None:
    world = World({"test/example/x/a": '{"host":"192.0.2.1","port":80}'})
    update = world.change(world.put("test/example/x/b", '{"host":"192.0.2.2","port":80}'))
    assert set(update.records) == {"/skydns/test/example/x/a", "/skydns/test/example/x/b"}
    assert update.revisions["/skydns/test/example/x/a"] == 1
    assert update.causes == {"/skydns/test/example/x/a": 2}
    assert world.zones.apexes()[names.from_text("example.test")] == 2


def test_an_exact_key_comes_back_when_nothing_is_beneath_it_any_more() -> None:
    world = World({"test/example/x": '{"host":"192.0.2.9"}', "test/example/x/a": '{"host":"192.0.2.1"}'})
    assert world.ask("x.example.test", "A") == ["A 192.0.2.1"]
    update = world.change(world.delete("test/example/x/a"))
    assert update.marks == {owner("x"): False}
    assert world.ask("x.example.test", "A") == ["A 192.0.2.9"]
    assert world.ask("*.x.example.test", "A") == ["NXDOMAIN"]


def test_provenance() -> None:
    world = World({"test/example/x/a": '{"host":"192.0.2.1"}', "test/example/x/b": '{"host":"192.0.2.2"}'})
    world.change(world.put("test/example/x/a", '{"host":"192.0.2.3"}'))
    gifts = world.zones.gifts_of(owner("x"))
    assert [(gift[0], gift[1]) for gift in gifts] == [("/skydns/test/example/x/a", 3), ("/skydns/test/example/x/b", 2)]


def test_a_lease_that_is_another_one_now() -> None:
    ttls = {7: 0}
    world = World(lease_ttls=ttls)
    world.change(world.put("test/example/x/a", '{"host":"192.0.2.1"}', 7), world.put("test/example/x/b", "{}", 0))
    assert world.tree.records_of("/skydns/test/example/x/a")[0].ttl == 30
    ttls[7] = 120
    assert world.tree.renew([7, 8]) == {"/skydns/test/example/x/a"}
    assert {record.ttl for record in world.tree.records_of("/skydns/test/example/x/a")} == {120}
    assert list(world.tree.keys_of(7)) == ["/skydns/test/example/x/a"]
    assert world.tree.lease_of("/skydns/test/example/x/a") == 7
    world.change(world.delete("test/example/x/a"))
    assert not world.tree.keys_of(7)


@pytest.mark.parametrize(
    ("levels", "group"),
    [
        ({}, ""),
        ({(3, ""): 2}, ""),
        ({(3, "g"): 1}, "g"),
        ({(3, "g"): 1, (4, "h"): 5}, "g"),
        ({(3, "g"): 1, (3, "h"): 1}, ""),
        ({(3, "g"): 1, (3, ""): 1}, "g"),
        ({(3, ""): 1, (4, "g"): 1}, ""),
    ],
)
def test_winning_group(levels: dict[Any, int], group: str) -> None:
    assert winning_group(Counter(levels)) == group


@given(
    revisions=st.lists(st.integers(1, 40), max_size=30).map(sorted),
    most=st.integers(1, 9), before=st.integers(0, 50), last=st.integers(0, 60),
)  # fmt: skip
def test_pieces_of_changes_are_whole_revisions(revisions: list[int], most: int, before: int, last: int) -> None:
    """Nothing is left out, no revision is in two pieces, and what a piece is said to be of never goes back."""
    last = max([last, before, *revisions])
    events: list[Put | Delete] = [Put(f"/{number}", b"", revision) for number, revision in enumerate(revisions)]
    parts = list(pieces(Changes(list(events), last), before, most))
    assert [event for part in parts for event in part.events] == events
    said = [part.revision for part in parts]
    assert said == sorted(said)
    assert said[-1] == last
    for one, other in pairwise(parts):
        assert one.events[-1].mod_revision < other.events[0].mod_revision
        assert len(one.events) >= most
        assert before <= one.revision
        assert one.revision < other.events[0].mod_revision or one.revision == before
