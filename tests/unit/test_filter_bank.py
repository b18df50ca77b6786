"""The bank: whatever has happened in whatever order, the zone model holds what filtering from scratch gives."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loader import names, rdata, targets
from loader.attributes import NONE, Attributes, Conditional
from loader.bulk import give_all
from loader.feed import schema_parse, update_of
from loader.filters import Context, Kept, RRsets
from loader.filters.bank import STEP, Bank
from loader.filters.chain import BUILT_IN, Chain
from loader.model import Listing, Put, Record
from loader.records import parse
from loader.targets import Target
from loader.zone import Zones
from shm.node import RRset, unpack
from tests.support.mirroring import run_async

APEX = names.from_text("example.test")
OWNERS = [names.from_text(text) for text in ("www.example.test", "a.b.example.test", "example.test", "x.other.test")]
#: A zone that only records name.
OTHER = names.from_text("other.test")


class Book:
    """Health checks that the test turns."""

    def __init__(self) -> None:
        self.up: dict[str, bool] = {}
        self.watched: set[str] = set()

    def watch(self, added: Collection[Target], removed: Collection[str]) -> None:
        self.watched |= {target.text for target in added}
        self.watched -= set(removed)

    def is_up(self, text: str) -> bool | None:
        return self.up.get(text)


class House:
    """A zone model behind a bank."""

    def __init__(self, names: Sequence[str] = tuple(BUILT_IN)) -> None:
        self.zones = Zones([APEX])
        self.book = Book()
        self.chain = Chain(names, 1.0, lambda: None)
        self.bank = Bank(self.zones, self.chain, self.book, b"seed")

    def settle(self, now: float = 0.0) -> None:
        async def nothing() -> None:
            pass

        run_async(self.bank.settle(now, nothing))

    def content(self) -> dict[bytes, tuple[int, dict[int, RRset]]]:
        """What would be published, but for the serials."""
        return {
            node.name: (
                node.flags,
                {type_: rrset for type_, rrset in node.rrsets.items() if type_ not in (0, rdata.SOA)},
            )
            for node in map(unpack, self.zones.all_nodes())
        }

    def addresses(self, owner: bytes = OWNERS[0]) -> list[int]:
        found = self.content().get(owner)
        if found is None or rdata.A not in found[1]:
            return []
        wire = found[1][rdata.A].wire
        return sorted(wire[at + 15] for at in range(0, len(wire), 16))


def address(last: int, attributes: Attributes = NONE, owner: bytes = OWNERS[0], zone: bytes | None = None) -> Record:
    data = bytes((192, 0, 2, last))
    if attributes == NONE:
        return Record(zone, owner, rdata.A, 60, data)
    return Conditional(zone, owner, rdata.A, 60, data, attributes)


def check(last: int) -> Attributes:
    return Attributes(check=targets.parse("tcp://{address}:80").at(f"192.0.2.{last}"))


# ---------------------------------------------------------------- any order of events

ATTRIBUTES = st.sampled_from(
    [
        NONE, NONE, check(1), check(2), Attributes(weight=3), Attributes(weight=0), Attributes(not_before=200.0),
        Attributes(not_after=300.0), Attributes(not_before=100.0, not_after=400.0, weight=1),
    ]
)  # fmt: skip


@st.composite
def values(draw: st.DrawFn) -> list[Record]:
    """What a key gives: up to four records at up to two names, some of them with attributes."""
    owners = draw(st.lists(st.sampled_from(OWNERS), min_size=1, max_size=2, unique=True))
    records = []
    for _ in range(draw(st.integers(0, 4))):
        owner = draw(st.sampled_from(owners))
        zone = OTHER if owner == OWNERS[3] else draw(st.sampled_from([None, APEX]))
        if draw(st.integers(0, 5)):
            records.append(address(draw(st.integers(1, 3)), draw(ATTRIBUTES), owner, zone))
        else:
            records.append(Record(zone, owner, rdata.TXT, 90, b"\x01x"))
    return records


EVENTS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcdef"), values()),
    st.tuples(st.just("put"), st.sampled_from("abcdef"), st.just([])),
    st.tuples(st.just("health"), st.sampled_from([1, 2]), st.sampled_from([True, False])),
    st.tuples(st.just("time"), st.integers(1, 120), st.none()),
    st.tuples(st.just("settle"), st.none(), st.none()),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=25))
def test_equal_to_filtering_from_scratch(events: list[tuple[str, Any, Any]]) -> None:
    house, held, now, revision = House(), {}, 0.0, 0
    for kind, first, second in events:
        if kind == "put":
            revision += 1
            held[first] = (second, revision)
            house.bank.apply(first, second, revision)
        elif kind == "health":
            text = f"tcp://192.0.2.{first}:80"
            house.book.up[text] = second
            house.bank.flipped([text])
        elif kind == "time":
            now += first
        else:
            house.settle(now)
    house.settle(now)
    scratch = House()
    scratch.book.up = house.book.up
    for key, (records, of) in held.items():
        scratch.bank.apply(key, records, of)
    scratch.settle(now)
    assert house.content() == scratch.content()
    assert house.book.watched == scratch.book.watched == {
        record.attributes.check.text
        for records, _ in held.values() for record in records
        if isinstance(record, Conditional) and record.attributes.check
    }  # fmt: skip
    assert house.bank.due == scratch.bank.due
    assert house.zones.problems == scratch.zones.problems
    for owner in OWNERS:
        assert house.bank.taken(owner) == scratch.bank.taken(owner)
    # Nothing is kept of what nobody filters.
    assert house.bank._held.keys() == scratch.bank._held.keys()
    for key, (records, of) in held.items():
        assert house.bank.revision_of(key) == (of if records else None)
        house.bank.apply(key, [], revision + 1)
    house.settle(now)
    assert not house.bank._held
    assert not house.bank._names
    assert not house.bank._looked_at
    assert house.zones.apexes().keys() == {APEX}


# ---------------------------------------------------------------- the short way of a first list


def take_list(house: House, values: dict[str, bytes], revision: int) -> None:
    """As the publisher does it (_take_usual): what is unusual in no way never comes to the bank."""
    puts = [Put(f"/n/example.test/{owner}/{type_}", value, revision) for (owner, _, type_), value in (
        (key.partition("/"), value) for key, value in values.items()
    )]  # fmt: skip
    update = update_of(Listing(puts, revision), schema_parse("records", "/n"), prefix="/n")
    assert update.usual is not None
    left = give_all(house.zones, update.usual.gifts(0, len(puts), "", 300), house.bank.watched_names)
    rest = update.usual.rest(left)
    for key, records in rest.records.items():
        house.bank.apply(key, records or [], rest.revisions[key])


def test_the_first_list_and_the_next_one_are_filtered() -> None:
    past = b'{"data":"192.0.2.9","not_after":5}'
    values = {
        "www/A": past, "www/AAAA": b'"2001:db8::1"', "www/TXT": b'{"data":"x","labels":{"a":"b"}}',
        "a.b/AAAA": b'"2001:db8::2"', "a.b/A": past, "plain/A": b"192.0.2.1", "gone/A": past,
    }  # fmt: skip
    house = House()
    take_list(house, values, 7)
    house.settle(10)
    wanted = House()
    for key, value in values.items():
        owner, _, type_ = key.partition("/")
        put = Put(f"/n/example.test/{owner}/{type_}", value, 7)
        wanted.bank.apply(put.key, parse("/n", put), 7)
    wanted.settle(10)
    assert house.content() == wanted.content()
    assert names.from_text("gone.example.test") not in house.content()
    assert house.bank._held.keys() == wanted.bank._held.keys()
    # Again, with a plain key in the place of one that is filtered away, and one more at its name.
    values |= {"gone/A": b"192.0.2.7", "gone/AAAA": b'"2001:db8::7"'}
    take_list(house, values, 8)
    house.settle(10)
    assert house.addresses(names.from_text("gone.example.test")) == [7]
    assert names.from_text("gone.example.test") not in house.bank._names
    assert rdata.AAAA in house.content()[names.from_text("gone.example.test")][1]


# ---------------------------------------------------------------- one by one


def test_plain_keys_pass_and_nothing_is_kept() -> None:
    house = House()
    house.bank.apply("k", [address(1)], 1)
    assert house.addresses() == [1]
    assert not house.bank._held
    assert house.bank.due == float("inf")


def test_a_key_that_was_there_before_is_filtered_with_the_new_one() -> None:
    house = House()
    house.bank.apply("plain", [address(1), address(2, owner=OWNERS[1])], 1)
    house.bank.apply("weighty", [address(3, Attributes(weight=65535))], 2)
    house.settle()
    # The plain one has weight 1 now, and is not drawn at this moment.
    assert house.addresses() == [3]
    assert house.addresses(OWNERS[1]) == [2]
    house.bank.apply("weighty", [], 3)
    house.settle()
    assert house.addresses() == [1]
    assert not house.bank._held


def test_a_flip_touches_only_the_names_that_it_concerns_and_moves_the_serial() -> None:
    house = House()
    for number in range(20):
        owner = names.from_text(f"n{number}.example.test")
        house.bank.apply(f"k{number}", [address(1, check(number), owner), address(2, owner=owner)], number + 1)
    house.settle()
    house.zones.continue_serials({})
    house.zones.take_changes()
    before = house.zones.apexes()[APEX]
    house.book.up["tcp://192.0.2.7:80"] = False
    house.bank.flipped(["tcp://192.0.2.7:80"])
    house.settle()
    changes = house.zones.take_changes()
    assert set(changes) == {names.from_text("n7.example.test"), APEX}
    assert house.zones.apexes()[APEX] == before + 1
    assert house.addresses(names.from_text("n7.example.test")) == [2]
    house.bank.flipped(["tcp://192.0.2.7:80"])  # nothing new
    house.settle()
    assert not house.zones.take_changes()


def test_time_alone_opens_and_closes_a_window() -> None:
    house = House()
    house.bank.apply("k", [address(1, Attributes(not_before=100.0, not_after=1000.0)), address(2)], 1)
    house.settle(0)
    assert (house.addresses(), house.bank.due) == ([2], 100.0)
    house.settle(99)
    assert house.addresses() == [2]
    house.settle(100)
    assert house.addresses() == [1, 2]
    while house.bank.due < 1000:
        house.settle(house.bank.due)
        assert house.addresses() == [1, 2]
    house.settle(1000)
    assert (house.addresses(), house.bank.due) == ([2], float("inf"))


def test_a_zone_stays_when_all_its_records_are_filtered_away() -> None:
    house = House()
    house.bank.apply("k", [address(1, Attributes(not_after=1.0), OWNERS[3], OTHER)], 1)
    house.settle(5)
    assert set(house.zones.apexes()) == {APEX, OTHER}
    assert OWNERS[3] not in house.content()
    assert house.bank.taken(OWNERS[3]) == [("windows", "k", rdata.A, bytes((192, 0, 2, 1)))]
    house.bank.apply("k", [], 2)
    house.settle(5)
    assert set(house.zones.apexes()) == {APEX}


def test_what_is_taken_away_does_not_stand_in_the_way() -> None:
    """A CNAME whose window is closed leaves the name to an address, though its key is the older one."""
    house = House()
    alias = Conditional(None, OWNERS[0], rdata.CNAME, 60, APEX, Attributes(not_before=100.0))
    house.bank.apply("alias", [alias], 1)
    house.bank.apply("address", [address(1)], 2)
    house.settle(0)
    assert (house.addresses(), house.zones.problems) == ([1], {})
    house.settle(100)
    assert house.addresses() == []
    assert "older key alias" in house.zones.problems["address"]


def test_a_filter_that_fails_is_left_out_for_its_name_and_told_once(caplog: Any) -> None:
    def stumble(rrsets: RRsets, context: Context) -> Kept:
        if context.owner == OWNERS[0]:
            raise RuntimeError("no")
        return Kept({})

    house = House()
    house.chain._stages[1]._function = stumble  # type: ignore[attr-defined]
    for number in range(3):
        house.bank.apply("k", [address(1, Attributes(weight=1))], number)
        house.bank.apply("l", [address(1, Attributes(weight=1), OWNERS[1])], number)
        house.settle()
    assert house.addresses() == [1]
    assert house.addresses(OWNERS[1]) == []
    assert house.bank.bypassed == {OWNERS[0]: {"health": "RuntimeError: no"}}
    assert house.chain.bypasses == 3
    assert sum("is bypassed at" in record.message for record in caplog.records) == 1


def test_names_are_filtered_in_parts_with_a_breath_between() -> None:
    house = House()
    for number in range(2 * STEP + 1):
        owner = names.from_text(f"n{number}.example.test")
        house.bank.apply(f"k{number}", [address(1, Attributes(weight=1), owner)], number)
    breaths = 0

    async def breathe() -> None:
        nonlocal breaths
        breaths += 1
        await asyncio.sleep(0)

    run_async(house.bank.settle(0.0, breathe))
    assert breaths == 5  # three parts through the filters, two full ones into the model
    assert house.bank.watched == 2 * STEP + 1
