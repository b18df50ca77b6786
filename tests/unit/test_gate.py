"""The gate between model and tables: whatever is held, approved, rejected, pinned, readers' table is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from loader import names, rdata
from loader.apex import is_apex, same_but_serial, serial
from loader.gate import Gate, Undecided
from loader.guard import Limits, parse_canary
from loader.held import State
from loader.model import Record
from loader.takeover import MISSED, Saved, again, first, saved
from loader.zone import Zones
from shm.layout import NodeFlag
from shm.node import flags_of, name_of, types_of
from tests.support.tables import make_table

APEX = names.from_text("example.test.")
Blocks = dict[bytes, bytes]


def record(owner: str, type_: str = "A", data: str = "192.0.2.1", zone: bytes | None = None) -> Record:
    number = rdata.type_number(type_)
    return Record(zone, names.from_text(owner, APEX), number, 60, rdata.from_text(number, data, APEX))


class World:
    """A model, a gate, and the table that readers see; time stands still unless it is moved."""

    def __init__(self, limits: Limits | None = None, zones: Sequence[bytes] = (APEX,)) -> None:
        self.now = 1000.0
        self.apexes = zones
        self.keys: dict[str, tuple[Sequence[Record], int]] = {}
        self.zones = Zones(zones)
        self.limits = limits or Limits(floor=4, removed=0.5)
        self.gate = Gate(self.limits, self.zones, lambda: self.now, lambda: self.now)
        self.table: Blocks = {}
        self.revision = 0
        self.publish()
        self.zones.continue_serials({})

    def put(self, key: str, *records: Record) -> None:
        self.revision += 1
        self.zones.apply(key, records, self.revision)
        self.keys[key] = (records, self.revision)

    def hosts(self, *numbers: int, data: str = "192.0.2.1") -> None:
        for number in numbers:
            self.put(f"/h{number}", record(f"h{number}", data=data))

    def gone(self, *numbers: int) -> None:
        for number in numbers:
            self.put(f"/h{number}")

    def publish(self, why: str = "") -> dict[bytes, bytes | None]:
        flow = self.gate.sift(self.zones.take_changes(), self.table.get, self.revision, why)
        before = dict(self.table)
        for name, block in flow.items():
            if block is None:
                self.table.pop(name, None)
            else:
                self.table[name] = block
        self.check(before)
        return flow

    def restart(self, keep: bool = True, limits: Limits | None = None, why: str = "") -> None:
        """Another loader with the same content finds the table. keep: what was held has been saved."""
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(saved(self.gate)), type=Saved) if keep else None
        before, floors = dict(self.table), {a: serial(self.table[a]) for a in self.gate.zones}
        zones = Zones(self.apexes)
        for key, (records, revision) in self.keys.items():
            zones.apply(key, records, revision)
        self.zones = zones
        self.gate = Gate(limits or self.limits, zones, lambda: self.now, lambda: self.now)
        zones.continue_serials(floors)
        zones.forget_changes()
        table = make_table(self.table.values())
        table.describe({"zones": sorted(floors)})
        made = first(self.gate, zones.all_nodes(), table, self.revision, why, kept)
        self.table = {name_of(block): block for block in made}
        self.check(before)
        self.publish()

    def again(self) -> None:
        """The table is made anew in the place of one that cannot be read."""
        self.publish()
        before = dict(self.table)
        self.table = {name_of(block): block for block in again(self.gate, self.zones.all_nodes())}
        self.check(before)

    def start_over(self, *, failed: bool, kept: Saved | None = None) -> None:
        """The same loader makes the table anew, and can compare. failed: after a swap that came to nothing."""
        if failed:
            self.gate.free(self.gate.sift(self.zones.take_changes(), self.table.get, self.revision))
        before, apexes = dict(self.table), [name for name, block in self.table.items() if is_apex(block)]
        self.zones.forget_changes()
        table = make_table(self.table.values())
        table.describe({"zones": sorted(apexes)})
        made = first(self.gate, self.zones.all_nodes(), table, self.revision, kept=kept)
        self.table = {name_of(block): block for block in made}
        self.check(before)

    def back_to(self, then: Blocks) -> None:
        self.gate.pin({n: then.get(n) for n in then.keys() | self.table.keys()}, "pinned", 1)

    @property
    def model(self) -> Blocks:
        return {name_of(block): block for block in self.zones.all_nodes()}

    def names(self) -> set[str]:
        """Readers' hosts."""
        return {names.to_text(name).split(".")[0] for name in self.table if name != APEX}

    # ---- what must be true at any time

    def check(self, before: Blocks) -> None:
        self.check_followed()
        check_whole(self.table)
        check_serials(before, self.table)
        assert self.gate.zones == {name for name, block in self.table.items() if is_apex(block)}
        assert self.gate._names == sum(bool(types_of(block)) for block in self.table.values())

    def check_followed(self) -> None:
        """The table is the model's, outside of what is held."""
        model, held = self.model, {}
        for change in self.gate.holdings.all:
            assert not change.kept.keys() & held.keys()
            held.update(change.kept)
        for name in model.keys() | self.table.keys():
            wanted, seen = model.get(name), self.table.get(name)
            if name in held:
                assert held[name] == seen
                assert seen != wanted
            elif is_apex(wanted) and is_apex(seen):
                assert same_but_serial(wanted, seen)
            else:
                assert seen == wanted

    def approve_all(self) -> None:
        if self.gate.pinned:
            self.gate.resume()
        for held in list(self.gate.holdings.all):
            self.gate.approve(held)
        self.publish()
        assert self.table == self.model
        assert not self.gate.holdings.all


def check_whole(table: Blocks) -> None:
    """What the server needs to find its way (server/resolve.py)."""
    for name, block in table.items():
        flags = flags_of(block)
        above, cut = name, False
        while not flags_of(table[above]) & NodeFlag.APEX:
            above = names.parent(above)
            assert above in table, f"{name!r} without {above!r}"
            if not flags_of(table[above]) & NodeFlag.APEX:
                cut = cut or bool(flags_of(table[above]) & NodeFlag.DELEGATION)
                assert not flags_of(table[above]) & NodeFlag.DNAME
        assert bool(flags & NodeFlag.BELOW_CUT) == cut, name
        assert bool(flags & NodeFlag.WILDCARD_CHILD) == (names.STAR + name in table) or flags & NodeFlag.DNAME, name


def zone_in(table: Blocks, name: bytes) -> bytes | None:
    return next((one for one in names.ancestors(name) if is_apex(table.get(one))), None)


def check_serials(before: Blocks, after: Blocks) -> None:
    """A zone whose content has changed has a serial that has grown."""
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old == new or (is_apex(old) and is_apex(new) and same_but_serial(old, new)):
            continue
        zone = zone_in(after, name)
        if zone is not None and is_apex(before.get(zone)) and zone_in(before, name) in (zone, None):
            assert serial(after[zone]) > serial(before[zone]), names.to_text(name)
    for name, block in after.items():
        if is_apex(block) and is_apex(before.get(name)):
            assert serial(block) >= serial(before[name])


# ---------------------------------------------------------------- one by one


def filled(limits: Limits | None = None, count: int = 10) -> World:
    world = World(limits)
    world.hosts(*range(count))
    world.publish()
    return world


def test_a_large_deletion_is_held_and_the_rest_flows() -> None:
    world = filled()
    seen = serial(world.table[APEX])
    world.gone(*range(6))
    assert world.publish() == {}
    assert serial(world.table[APEX]) == seen
    (held,) = world.gate.pending
    assert len(held.kept) == 6
    assert held.reasons == ["6 of 11 names would be lost: 55%, guard_removed allows 50%"]
    world.hosts(20)
    assert len(world.publish()) == 2  # and the apex
    assert world.names() == {f"h{i}" for i in (*range(10), 20)}
    seen = serial(world.table[APEX])
    assert world.gate.approve(held) == 6
    world.publish()
    assert world.names() == {f"h{i}" for i in (6, 7, 8, 9, 20)}
    assert serial(world.table[APEX]) > seen
    assert world.table == world.model


def test_few_names_are_never_too_many() -> None:
    world = filled(count=4)
    world.gone(0, 1, 2)
    world.publish()
    assert not world.gate.pending


def test_rejected_until_the_source_changes_the_name_again() -> None:
    world = filled()
    world.gone(*range(6))
    world.publish()
    assert world.gate.reject(world.gate.pending[0]) == 6
    world.publish()
    assert world.names() == {f"h{i}" for i in range(10)}
    assert (len(world.gate.pending), len(world.gate.rejected[0].kept)) == (0, 6)
    world.hosts(0, data="192.0.2.9")  # another block than the one rejected
    world.publish()
    assert world.table == {**world.model, **{n: b for n, b in world.table.items() if n in world.gate.rejected[0].kept}}
    assert len(world.gate.rejected[0].kept) == 5
    world.gone(0)
    world.publish()
    assert "h0" not in world.names()
    world.gate.approve(world.gate.rejected[0])
    world.publish()
    assert world.names() == {f"h{i}" for i in range(6, 10)}


def test_what_becomes_of_a_held_change_is_told(caplog: pytest.LogCaptureFixture) -> None:
    world = filled()
    for back in ("taken back", "changed"):
        caplog.clear()
        world.gone(*range(6))
        world.publish()
        number = world.gate.pending[0].number
        if back == "changed":
            world.gate.reject(world.gate.pending[0])
            world.hosts(*range(6), data="192.0.2.9")
        else:
            world.hosts(*range(6))
        world.publish()
        how = {"taken back": "has resolved itself: the source has", "changed": "has ended: the source has changed its"}
        assert f"change {number} {how[back]}" in caplog.text
    world.gone(*range(6))
    world.publish()
    world.gate.reject(world.gate.pending[0])
    world.hosts(*range(6), data="192.0.2.8")
    caplog.clear()
    world.publish("the source went back")
    (absorbed,) = world.gate.holdings.all
    assert f"change {absorbed.number - 1} is part of change {absorbed.number} now" in caplog.text
    assert "taken it back" not in caplog.text


def test_a_rejected_apex_stays_rejected_while_its_zone_changes() -> None:
    world = filled()
    world.put("/mx", record("@", "MX", "10 a"))
    world.publish()
    world.put("/mx", record("@", "MX", "10 b"))
    world.publish("the store went back")
    world.gate.reject(world.gate.pending[0])
    seen = serial(world.table[APEX])
    world.hosts(20)
    world.publish()
    assert [list(held.kept) for held in world.gate.rejected] == [[APEX]]
    assert serial(world.table[APEX]) > seen
    world.restart()
    assert world.gate.rejected
    world.put("/mx", record("@", "MX", "10 c"))
    world.publish()
    assert world.table == world.model


def test_a_change_that_the_source_takes_back_resolves_itself() -> None:
    world = filled()
    world.gone(*range(6))
    world.publish()
    world.hosts(*range(6))
    world.publish()
    assert not world.gate.holdings.all
    assert world.table == world.model


def test_what_is_left_of_it_is_judged_anew() -> None:
    world = filled()
    world.gone(*range(6))
    world.publish()
    world.hosts(3, 4, 5)
    world.publish()
    assert not world.gate.holdings.all
    assert world.names() == {f"h{i}" for i in range(3, 10)}


def test_a_break_in_history_lets_nothing_pass() -> None:
    world = filled()
    world.gone(1)
    assert world.publish("the store went back") == {}
    assert world.gate.pending[0].reasons == ["the store went back; 1 name would change"]
    world.hosts(20)
    world.publish()
    assert "h20" in world.names()
    world.hosts(1)
    world.publish()
    assert not world.gate.pending
    world.put("/h1", record("h1"))
    world.publish("another cluster")
    assert not world.gate.pending  # no difference but a serial


def test_a_drip_is_held_and_only_losses_join_it() -> None:
    world = filled(count=20)
    for number in range(20):
        world.gone(number)
        world.publish()
        world.now += 1
    assert len(world.names()) == 10
    (held,) = world.gate.pending
    assert held.drip
    assert len(held.kept) == 10
    assert held.reasons[-1:] == ["20 of 21 names would be lost within 60 s: 95%, guard_removed allows 50%"]
    world.hosts(30)
    world.publish()
    assert "h30" in world.names()
    world.now += 1000
    world.gone(30)  # still a drip until somebody decides
    world.publish()
    assert "h30" in world.names()
    world.approve_all()
    assert world.names() == set()


def test_a_drip_of_bursts_that_are_large_is_one_change() -> None:
    """Scripts delete a hundred keys in a transaction, which is guard_floor; held once, none passes until it is decided,
    not even when the first ones are long ago."""
    world = filled(Limits(floor=4, removed=0.5), count=60)
    for start in range(0, 56, 4):
        world.gone(*range(start, start + 4))
        world.publish()
        world.now += 1 if start < 32 else 1000
    (held,) = world.gate.pending
    assert held.drip
    assert (len(held.kept), held.growth, len(held.reasons)) == (28, 7, 1)
    assert len(world.names()) == 32
    world.approve_all()


def test_reasons_do_not_become_more_and_more() -> None:
    world = filled(Limits(floor=1, removed=0.0), count=40)
    for number in range(40):
        world.hosts(number, data="192.0.2.2")
        world.publish(f"the store went back to {number}")
    assert max(len(held.reasons) for held in world.gate.pending) == 10


def test_a_slow_drip_passes() -> None:
    world = filled(Limits(floor=4, removed=0.5, window_s=25), count=20)
    for number in range(20):
        world.gone(number)
        world.publish()
        world.now += 10
    assert not world.gate.pending


def test_names_that_come_back_do_not_count() -> None:
    world = filled(count=20)
    for _ in range(5):
        world.gone(*range(4))
        world.publish()
        world.hosts(*range(4))
        world.publish()
    assert not world.gate.pending


def test_a_zone_emptied() -> None:
    other = names.from_text("other.test.")
    world = World(Limits(floor=4, removed=0.9), [APEX, other])
    world.hosts(*range(20))
    for number in range(5):
        world.put(f"/o{number}", record(f"o{number}.other.test."))
    world.publish()
    for number in range(5):
        world.put(f"/o{number}")
    world.publish()
    assert world.gate.pending[0].reasons == ["zone other.test. would be empty: it loses 5 names"]
    world.approve_all()


def test_a_zone_that_goes_stays_whole() -> None:
    world = World(Limits(floor=4, removed=0.9))
    own = names.from_text("own.test.")
    for number in range(5):
        world.put(f"/o{number}", record(f"o{number}.own.test.", zone=own))
    world.publish()
    assert own in world.gate.zones
    for number in range(5):
        world.put(f"/o{number}")
    world.publish()
    assert own in world.gate.zones
    assert own in world.table
    world.put("/new", record("new.own.test.", zone=own))
    world.publish()
    world.approve_all()
    assert own in world.gate.zones
    world.put("/new")
    world.publish()
    assert own not in world.gate.zones


def test_the_last_address_of_a_name() -> None:
    world = World(Limits(last_address=True))
    world.put("/a", record("a"), record("a", "TXT", "text"))
    world.put("/b", record("b"))
    world.publish()
    world.put("/a", record("a", "TXT", "text"))
    world.publish()
    assert world.gate.pending[0].reasons == ["a.example.test. would lose the last address and keep other records"]
    world.put("/b", record("b", "CNAME", "c"))
    world.publish()
    assert len(world.gate.pending) == 1


@pytest.mark.parametrize("canary", ["h1.example.test A", "h1.example.test A 192.0.2.1", "alias.example.test A"])
def test_a_canary(canary: str) -> None:
    world = filled(Limits(canaries=(parse_canary(canary),)))
    world.put("/alias", record("alias", "CNAME", "h1"))
    world.publish()
    world.gone(1)
    world.publish()
    assert world.gate.pending[0].reasons == [f"canary {canary} would be answered otherwise"]
    world.hosts(1)
    world.publish()
    assert not world.gate.pending
    world.hosts(1, data="192.0.2.7")
    world.publish()
    assert bool(world.gate.pending) == ("192" in canary)


def test_a_canary_under_a_wildcard() -> None:
    world = World(Limits(canaries=(parse_canary("any.thing.w.example.test TXT text"),)))
    world.put("/w", record("*.w", "TXT", "text"), record("w", "TXT", "other"))
    world.publish()
    world.put("/w", record("w", "TXT", "other"))
    world.publish()
    assert len(world.gate.pending) == 1
    with pytest.raises(ValueError, match="NAME TYPE"):
        parse_canary("name")


def test_strict_order_holds_what_comes_later() -> None:
    world = filled(Limits(floor=4, removed=0.5, strict=True))
    world.gone(*range(6))
    world.publish()
    world.hosts(20)
    assert world.publish() == {}
    assert len(world.gate.pending) == 1
    world.approve_all()
    world.hosts(21)
    world.publish()
    assert "h21" in world.names()


def test_the_guard_is_off() -> None:
    world = filled(Limits(on=False, floor=1, removed=0))
    world.gone(*range(10))
    world.publish("the store went back")
    assert world.names() == set()


def test_pinned() -> None:
    world = filled()
    then = dict(world.table)
    world.hosts(1, data="192.0.2.7")
    world.gone(2)
    world.hosts(20)
    world.publish()
    seen = serial(world.table[APEX])
    target = {
        name: then.get(name) for name in then.keys() | world.table.keys() if then.get(name) != world.table.get(name)
    }
    assert world.gate.pin(target, "pinned at revision 10", 10) == 3
    assert world.gate.due
    world.publish()
    assert {n: b for n, b in world.table.items() if n != APEX} == {n: b for n, b in then.items() if n != APEX}
    assert serial(world.table[APEX]) > seen
    world.hosts(21)
    assert world.publish() == {}
    pin = world.gate.pinned
    assert pin is not None
    assert pin.state is State.PINNED
    assert len(pin.kept) == 4
    with pytest.raises(Undecided, match="pinned"):
        world.gate.approve(pin)
    world.gate.resume()
    world.publish()
    assert world.table == world.model
    with pytest.raises(Undecided, match="not pinned"):
        world.gate.resume()


def test_a_store_that_goes_back_while_the_table_is_pinned_is_told_of() -> None:
    world = filled()
    world.gate.pin({}, "pinned", 5)
    world.publish()
    for number in (1, 2):
        world.gone(number)
        assert world.publish("the store went back") == {}
    assert world.gate.pinned is not None
    assert world.gate.pinned.reasons == ["pinned", "the store went back"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_zone_that_a_rollback_brings_back_has_a_serial_beyond_what_secondaries_may_have(restart: bool) -> None:
    other = names.from_text("other.test.")
    world = World(Limits(on=False))
    world.put("/a", record("a.other.test.", zone=other))
    world.publish()
    then = dict(world.table)
    world.put("/b", record("b.other.test.", zone=other))
    world.publish()
    seen = serial(world.table[other])
    world.put("/a")
    world.put("/b")
    world.publish()
    assert other not in world.table
    if restart:
        world.restart()
    world.back_to(then)
    world.publish()
    assert serial(world.table[other]) > seen
    seen = serial(world.table[other])
    world.gate.resume()
    world.publish()
    world.put("/a", record("c.other.test.", zone=other))
    world.publish()
    assert serial(world.table[other]) > seen


def test_so_has_one_that_a_rollback_has_taken_away() -> None:
    other = names.from_text("other.test.")
    world = World(Limits(on=False))
    then = dict(world.table)
    world.put("/a", record("a.other.test.", zone=other))
    world.put("/b", record("b.other.test.", zone=other))
    world.publish()
    world.put("/b")
    world.publish()
    del world.keys["/b"]
    seen = serial(world.table[other])
    world.back_to(then)
    world.publish()
    assert other not in world.table
    world.restart()  # it knows nothing of /b
    world.gate.resume()
    world.publish()
    assert serial(world.table[other]) > seen


def test_a_rollback_outlives_a_swap_that_fails() -> None:
    world = filled()
    then = dict(world.table)
    world.hosts(1, data="192.0.2.7")
    world.gone(2)
    world.hosts(20)
    world.publish()
    world.back_to(then)
    world.start_over(failed=True)
    assert {n: b for n, b in world.table.items() if n != APEX} == {n: b for n, b in then.items() if n != APEX}


def test_what_was_approved_outlives_a_swap_that_fails() -> None:
    world = filled()
    world.gone(*range(6))
    world.publish()
    world.gate.approve(world.gate.pending[0])
    world.start_over(failed=True)
    assert world.table == world.model


def test_no_such_change() -> None:
    world = filled()
    with pytest.raises(Undecided, match="no held change 7"):
        world.gate.find(7)
    world.back_to(dict(world.table))
    with pytest.raises(Undecided, match="change 1 is the pin of a rollback: `standoff resume` ends it"):
        world.gate.find(1)
    with pytest.raises(Undecided, match="no held change 7"):
        world.gate.find(7)


# ---------------------------------------------------------------- a new loader


def test_a_new_loader_finds_everything_as_it_is() -> None:
    world = filled()
    before = dict(world.table)
    world.restart()
    assert world.table == before


def test_what_was_deleted_meanwhile_moves_the_serial() -> None:
    world = filled()
    seen = serial(world.table[APEX])
    del world.keys["/h1"]  # no loader was there to see it
    world.restart()
    assert "h1" not in world.names()
    assert serial(world.table[APEX]) > seen


def test_too_much_was_deleted_meanwhile() -> None:
    world = filled()
    before = world.names()
    for number in range(6):
        del world.keys[f"/h{number}"]
    world.keys["/h20"] = ([record("h20")], 3)
    world.restart()
    assert world.names() == before  # all of it is one change
    assert len(world.gate.pending[0].kept) == 7
    world.approve_all()


def test_held_stays_held() -> None:
    world = filled()
    world.gone(*range(6))
    world.publish()
    world.hosts(20)
    world.publish()
    before = world.names()
    world.now += 10
    world.restart()
    (held,) = world.gate.pending
    assert (held.number, held.since, held.since_s, len(held.kept)) == (1, 1000.0, 1000.0, 6)
    assert world.names() == before
    world.gate.reject(held)
    world.publish()
    world.restart()
    assert len(world.gate.rejected[0].kept) == 6
    world.hosts(21)
    world.publish()
    assert "h21" in world.names()


def test_nothing_of_what_was_held_differs_any_more() -> None:
    world = filled()
    world.gone(*range(6))
    world.publish()
    world.hosts(*range(6))
    world.restart()
    assert not world.gate.holdings.all


def test_the_pin_stays() -> None:
    world = filled()
    world.gate.pin({}, "pinned", 5)
    world.publish()
    world.hosts(20)
    world.publish()
    world.restart()
    pin = world.gate.pinned
    assert pin is not None
    assert len(pin.kept) == 1
    world.hosts(21)
    assert world.publish() == {}
    world.approve_all()


def test_a_table_made_anew_knows_nothing_of_an_old_pin() -> None:
    """What was held when the loader started is told once."""
    world = filled()
    world.gate.pin({}, "pinned", 5)
    world.publish()
    kept = saved(world.gate)
    world.gate.resume()
    world.publish()
    world.start_over(failed=False, kept=kept)  # as after a start
    world.gate.resume()
    world.publish()
    world.start_over(failed=False, kept=kept)
    assert not world.gate.holdings.all
    assert saved(world.gate) == Saved(2, [])


def test_a_pin_that_readers_never_had() -> None:
    """Saved before it was published; or the image is older than it."""
    world = filled()
    then = dict(world.table)
    world.hosts(1, data="192.0.2.7")
    world.publish()
    world.back_to(then)
    world.restart()
    pin = world.gate.pinned
    assert pin is not None
    assert pin.reasons == ["pinned", MISSED]
    world.back_to(then)
    world.publish()
    assert pin.reasons == ["pinned"]
    world.hosts(20)
    world.publish()
    world.restart()
    pin = world.gate.pinned
    assert pin is not None
    assert pin.reasons == ["pinned"]


def test_no_table_is_there_to_compare_with() -> None:
    world = filled()
    gate = Gate(world.limits, world.zones, lambda: 0, lambda: 0)
    world.gone(*range(6))
    world.publish()
    kept, version = saved(world.gate), gate.version
    found = {name_of(block): block for block in first(gate, world.zones.all_nodes(), None, 1, "", kept)}
    assert found == world.model
    assert gate.zones == {APEX}
    assert gate.version != version  # so that no later loader is told of it


# ---------------------------------------------------------------- whatever comes

OWNERS = ["a", "b", "x.a", "y.a", "z.x.a", "*.a", "*", "sub", "w.sub", "q.w.sub", "*.w.sub", "m.n.o"]
SUB = names.from_text("sub.example.test.")
RECORDS = st.one_of(
    st.builds(record, st.sampled_from(OWNERS), st.just("A"), st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    st.builds(record, st.sampled_from(OWNERS), st.just("TXT"), st.just("text")),
    st.builds(record, st.sampled_from(["a", "x.a", "sub", "w.sub"]), st.just("NS"), st.just("ns.elsewhere.test.")),
    st.builds(record, st.sampled_from(["a", "b", "w.sub"]), st.just("DNAME"), st.just("elsewhere.test.")),
    st.builds(record, st.sampled_from(["w.sub", "v.sub"]), st.just("A"), st.just("192.0.2.3"), st.just(SUB)),
    st.builds(record, st.just("@"), st.just("MX"), st.sampled_from(["10 a", "10 b"])),
)
CHANGES = st.dictionaries(st.sampled_from([f"/k{i}" for i in range(10)]), st.lists(RECORDS, max_size=2), max_size=6)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), CHANGES),
        st.tuples(st.just("change"), CHANGES),
        st.tuples(st.just("break"), CHANGES),
        st.tuples(st.just("clear"), st.just(None)),
        st.tuples(st.just("approve"), st.integers(0, 3)),
        st.tuples(st.just("reject"), st.integers(0, 3)),
        st.tuples(st.just("pin"), st.integers(0, 9)),
        st.tuples(st.just("resume"), st.just(None)),
        st.tuples(st.just("wait"), st.just(100.0)),
        st.tuples(st.just("restart"), st.booleans()),
        st.tuples(st.just("again"), st.just(None)),
        st.tuples(st.just("start over"), st.booleans()),
    ),
    max_size=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, strict=st.booleans(), floor=st.integers(1, 3), removed=st.sampled_from([0.0, 0.2, 0.6]))
def test_readers_see_a_whole_table_whatever_comes(
    operations: list[tuple[str, Any]], strict: bool, floor: int, removed: float
) -> None:
    """World.check() holds after each step, and all approved is all published."""
    world = World(Limits(floor=floor, removed=removed, strict=strict, last_address=floor == 2))
    past = [dict(world.table)]
    for what, value in operations:
        held = world.gate.holdings.all
        match what:
            case "change" | "break":
                for key, records in value.items():
                    world.put(key, *records)
            case "clear":
                for i in range(10):
                    world.put(f"/k{i}")
            case "wait":
                world.now += value
            case "resume" if world.gate.pinned:
                world.gate.resume()
            case "approve" if held and not world.gate.pinned:
                world.gate.approve(held[value % len(held)])
            case "reject" if world.gate.pending and not world.gate.pinned:
                world.gate.reject(world.gate.pending[value % len(world.gate.pending)])
            case "restart":
                world.restart(value)
            case "again":
                world.again()
            case "start over":
                world.start_over(failed=value)
            case "pin":
                world.back_to(past[value % len(past)])
        world.publish("a break" if what == "break" else "")
        past.append(dict(world.table))
        for one in world.gate.holdings.all:
            event(one.state.value)
    world.approve_all()
