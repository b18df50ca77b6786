"""The short way of schema records against the long one: the same gifts, and the same model in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import apex, bulk, names, records
from loader._plain import Short
from loader.feed import Update, schema_parse, update_of
from loader.model import Listing, Put, Record, Reject
from loader.publisher import Publisher
from loader.zone import Zones

TTL = 300
USUAL = [
    "192.0.2.1", " 192.0.2.1\n", '"192.0.2.1"', '["192.0.2.1"]', '[ "192.0.2.1" , "192.0.2.2" ]',
    '{"data":"192.0.2.1"}', '{"ttl":0,"data":["192.0.2.1"]}', ' { "data" : ["192.0.2.1","192.0.2.1"], "ttl" : 60 } ',
]  # fmt: skip
UNUSUAL = [
    "", " ", '"', '"192.0.2.1', '"192.0.2.1" x', "192.0.2.256", "192.0.2", "192.0.2.1\0", "\u00b9", '"\\u0031"', "[]",
    "[",
    '["192.0.2.1",]', '["192.0.2.1"', '[["192.0.2.1"]]', "{}", '{"data":[]}', '{"data":"192.0.2.1"', '{"ttl":60}',
    '{"data":"192.0.2.1","ttl":60,"tll":1}', '{"data":"192.0.2.1","data":"192.0.2.2"}', '{"data":"192.0.2.1","ttl":01}',
    '{"data":"192.0.2.1","ttl":1.5}', '{"data":"192.0.2.1","ttl":-1}', '{"data":"192.0.2.1","ttl":4294967296}',
    '{"data":"192.0.2.1","ttl":null}', '{"data":"192.0.2.1"} x', '{"data":[{"data":"192.0.2.1","weight":1}]}',
    '{"data":"192.0.2.1","weight":3}', "1" * 60, '"192.0.2.1"\x0b',
]  # fmt: skip
OWNERS = ["www", "WWW", "a.b", "_x-1", "@", "*", "*.a", "a..b", ".a", "a.", "www.z.test.", "\\097", "a b", "\u00e9", "",
          "a" * 63, "a" * 64, ".".join(["a" * 63] * 4), "0/25", "z.test"]  # fmt: skip


def long_way(put: Put) -> dict[bytes, list[object]]:
    """name -> zone, then (type, ttl, data) of each record."""
    found: dict[bytes, list[object]] = {}
    for record in records.parse("/p", put):
        ttl = record.ttl if record.ttl >= 0 else TTL
        found.setdefault(record.owner, [record.zone]).append((record.type, ttl, record.rdata))
    return found


def check(key: str, value: bytes, usual: bool | None = None) -> None:
    made = Short("/p/", "", TTL).gift(key, value, 7)
    if usual is not None:
        assert (made is not None) == usual
    if made is None:
        return
    name, gift = made
    assert gift[:2] == (key, 7)
    rrs = [gift[at : at + 3] for at in range(3, len(gift), 3)]
    assert long_way(Put(key, value, 7)) == {name: [gift[2], *rrs]}


@pytest.mark.parametrize("value", USUAL)
@pytest.mark.parametrize("type_", ["A", "IP"])
def test_usual_values_go_the_short_way(value: str, type_: str) -> None:
    check(f"/p/z.test/www/{type_}", value.encode(), True)
    sixth = value.replace("192.0.2.", "2001:db8::")
    check(f"/p/z.test/www/{'AAAA' if type_ == 'A' else 'IP'}", sixth.encode(), True)


@pytest.mark.parametrize("value", UNUSUAL)
@pytest.mark.parametrize("type_", ["A", "AAAA", "IP"])
def test_unusual_values_go_the_long_way_or_come_to_the_same(value: str, type_: str) -> None:
    check(f"/p/z.test/www/{type_}", value.encode(), False)


@pytest.mark.parametrize("type_", ["a", "TXT", "CNAME", "AAA", "AAAAA", "", "IP ", "A/A"])
def test_other_types_go_the_long_way(type_: str) -> None:
    check(f"/p/z.test/www/{type_}", b"192.0.2.1", False)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize(
    "zone", ["z.test", "Z.test.", ".", "@", "", "a" * 64, "\u00e9", "a\\046b", ".".join(["b" * 60] * 4)]
)
def test_names(owner: str, zone: str) -> None:
    check(f"/p/{zone}/{owner}/A", b"192.0.2.1")


@pytest.mark.parametrize("key", ["", "/p", "/p/", "/p/z.test", "/p/z.test/A", "/q/z.test/www/A", "/p//www/A", "/p/z/w"])
def test_keys_of_another_shape(key: str) -> None:
    check(key, b"192.0.2.1", False)


def test_zones_do_not_mix() -> None:
    short = Short("/p/", "", TTL)
    for zone in ("z.test", "y.test", "@", "y.test", "z.tes", "z.test", ""):
        for owner in ("www", "x"):
            made = short.gift(f"/p/{zone}/{owner}/A", b"192.0.2.1", 1)
            assert (made is None) == (zone in ("@", ""))
            if made is not None:
                assert {made[0]: made[1][2]} == {
                    name: content[0] for name, content in long_way(Put(f"/p/{zone}/{owner}/A", b"192.0.2.1", 1)).items()
                }


ADDRESS = st.sampled_from(["192.0.2.1", "10.0.0.300", "2001:db8::1", "::ffff:1.2.3.4", "fe80::1%1", "x", ""])
JSON = st.one_of(
    ADDRESS,
    ADDRESS.map('"{}"'.format),
    st.lists(ADDRESS, max_size=4).map(lambda found: "[" + ",".join(f'"{one}"' for one in found) + "]"),
    st.builds('{{"ttl":{},"data":"{}"}}'.format, st.integers(-1, 2**33), ADDRESS),
)


@given(st.data())
@settings(deadline=None)
def test_a_spoiled_value_is_never_taken_for_another(data: st.DataObject) -> None:
    raw = bytearray(data.draw(JSON).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    for type_ in ("A", "AAAA", "IP"):
        put = Put(f"/p/z.test/www/{type_}", bytes(raw), 7)
        try:
            check(put.key, put.value)
        except Reject as reject:  # the short way took what the long way refuses
            pytest.fail(f"{put.value!r}: {reject}")


# ---------------------------------------------------------------- the whole list


class Silent:
    """In the place of the tables' writer."""

    class words:
        @staticmethod
        def set(name: str, value: int) -> None: ...


def model(update: Update, source: int) -> tuple[dict[bytes, bytes], Zones, set[str]]:
    zones = Zones([b"\x03own\x04test\x00"], TTL)
    publisher = Publisher(Silent(), zones, 2)  # type: ignore[arg-type]
    asyncio.run(publisher.take(source, update))
    zones.forget_changes()
    blocks = {block[8 : 8 + block[4]]: block for block in zones.all_nodes()}
    return blocks, zones, publisher._keys[source]


def entries(pairs: Iterable[tuple[str, str]]) -> list[Put]:
    return [Put(f"/p/{key}", value.encode(), number) for number, (key, value) in enumerate(pairs, 5)]


MIXED = entries([
    ("a.test/@/A", "192.0.2.1"), ("a.test/www/A", "192.0.2.1"), ("a.test/www/AAAA", "::1"), ("a.test/www/TXT", "x"),
    ("a.test/x.y/A", "192.0.2.1"), ("a.test/y/A", "192.0.2.1"), ("a.test/*.w/A", "192.0.2.1"), ("a.test/b/NS", "ns.x."),
    ("a.test/in.b/A", "192.0.2.1"), ("a.test/d/DNAME", "x."), ("a.test/in.d/A", "192.0.2.1"),
    ("a.test/late.in/A", "192.0.2.9"), ("in.a.test/www/A", "192.0.2.1"), ("b.test/www/A", "bad"),
    ("b.test/www/IP", "192.0.2.3"), ("c.test/www/CNAME", "x."), ("c.test/www/A", "192.0.2.1"),
    ("own.test/www/A", "192.0.2.1"), (".test/www/A", "192.0.2.1"), ("e.test/q/A", '["192.0.2.2","192.0.2.1"]'),
    ("e.test/r/A", "192.0.2.7"), ("f.test/p/A", "192.0.2.1"), ("x.f.test/p/A", "192.0.2.1"),
])  # fmt: skip


@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("order", [1, -1])
def test_the_model_is_the_same(source: int, order: int) -> None:
    listing = Listing(MIXED[::order], 99)
    parse = schema_parse("records", "/p")
    shortly = model(update_of(listing, parse, prefix="/p"), source)
    longly = model(update_of(listing, parse), source)
    assert shortly[0] == longly[0]
    assert shortly[2] == longly[2]
    assert shortly[0] == {name: block for name in shortly[0] if (block := longly[1]._compile(name))}
    for attribute in ("problems", "warnings"):
        assert getattr(shortly[1], attribute) == getattr(longly[1], attribute)
    assert shortly[1].apexes() == longly[1].apexes()


@given(st.lists(st.sampled_from(MIXED), unique_by=lambda put: put.key), st.integers(0, 10))
@settings(deadline=None, max_examples=60)
def test_and_goes_on_the_same(puts: Sequence[Put], gone: int) -> None:
    """Afterwards keys go, and zones with them."""
    parse = schema_parse("records", "/p")
    results: list[dict[bytes, bytes | None]] = []
    for prefix in ("/p", None):
        _, zones, _ = model(update_of(Listing(list(puts), 99), parse, prefix=prefix), 0)
        for put in puts[:gone]:
            zones.apply(put.key, (), 100)
        results.append(zones.take_changes() | {block[8 : 8 + block[4]]: block for block in zones.all_nodes()})
    assert results[0].keys() == results[1].keys()
    for name, block in results[0].items():
        # A zone's serial tells whether another was taken out of it, which it is not if it comes later.
        assert block == results[1][name] or apex.same_but_serial(block, results[1][name])


def test_changes_are_told_of_what_came_the_short_way() -> None:
    zones = Zones((), TTL)
    publisher = Publisher(Silent(), zones, 1)  # type: ignore[arg-type]
    asyncio.run(publisher.take(0, update_of(Listing(MIXED[:6], 9), schema_parse("records", "/p"), prefix="/p")))
    told = {name for name, block in zones.take_changes().items() if block is not None}
    assert told == {block[8 : 8 + block[4]] for block in zones.all_nodes()}


# ---------------------------------------------------------------- changes

NAMES = [names.from_text(text) for text in ("a.test", "www.a.test", "b.a.test", "x.b.a.test", "q.z.a.test", "out.side")]
ZONES = [None, names.from_text("a.test"), names.from_text("b.a.test")]
DATA: dict[int, list[bytes]] = {
    1: [b"\1\1\1\1", b"\2\2\2\2"],
    2: [names.from_text("ns.x"), names.from_text("ns.y")],
    5: [names.from_text("c.x"), names.from_text("c.y")],
    6: [names.from_text("m.x") * 2 + bytes((0, 0, 0, n) * 5) for n in (1, 2)],
    16: [b"\1x", b"\1y" * 2500, b"\xffx" + b"y" * 254],
    39: [names.from_text("d.x"), names.from_text("d.y")],
}
SHAPE = st.tuples(
    st.sampled_from(["k1", "k2", "k3"]), st.sampled_from(NAMES), st.sampled_from(ZONES), st.sampled_from(list(DATA))
)
CHANGE = st.tuples(
    st.integers(0, 3), st.integers(0, 2), st.sampled_from([60, 300]), st.booleans(), st.integers(0, 3)
)  # fmt: skip


@given(
    st.lists(SHAPE, min_size=1, max_size=4),
    st.lists(CHANGE, min_size=4, max_size=16),
    st.sampled_from([(), (ZONES[1],), (ZONES[1], ZONES[2])]),
)
@settings(deadline=None, max_examples=400)
def test_the_short_way_of_a_change(
    shapes: list[tuple[str, bytes, bytes | None, int]], steps: list[tuple[Any, ...]], configured: tuple[bytes, ...]
) -> None:
    """Against a model that always takes the long way: after each burst the same changes and problems; serials, too, if
    no zone comes or goes, for a name that changes and then changes its zone has touched the one or the other."""
    exact = all(zone is None or zone in configured for _, _, zone, _ in shapes)
    short, long = Zones(configured, TTL), Zones(configured, TTL)
    for number, (shape, which, ttl, tell, cause) in enumerate(steps, 1):
        key, owner, zone, type_ = shapes[shape % len(shapes)]
        record = Record(zone, owner, type_, ttl, DATA[type_][which % len(DATA[type_])])
        short.apply(key, [record], number, cause and number + cause)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bulk, "give_again", lambda *_: False)
            long.apply(key, [record], number, cause and number + cause)
        if tell:
            assert alike(short.take_changes(), long.take_changes(), exact)
    assert alike(short.take_changes(), long.take_changes(), exact)
    assert alike(by_name(short.all_nodes()), by_name(long.all_nodes()), exact)
    assert (short.problems, short.warnings) == (long.problems, long.warnings)
    assert all(short.revision_of(key) == long.revision_of(key) for key in ("k1", "k2", "k3"))


def by_name(blocks: Iterable[bytes]) -> dict[bytes, bytes | None]:
    return {block[8 : 8 + block[4]]: block for block in blocks}


def alike(one: dict[bytes, bytes | None], other: dict[bytes, bytes | None], exact: bool) -> bool:
    """exact: the serials count."""

    def same(block: bytes | None, than: bytes | None) -> bool:
        return block == than or (not exact and bool(block and than) and apex.same_but_serial(block, than))

    return one.keys() == other.keys() and all(same(block, other[name]) for name, block in one.items())
