"""SkyDNS keys with health checks and windows: what lies above a key changes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loader import bulk, names
from loader.filters.bank import Bank
from loader.filters.chain import BUILT_IN, Chain
from loader.skydns_fill import ByName
from loader.zone import Zones
from tests.support.mirroring import run_async
from tests.support.skydns import World
from tests.unit.test_filter_bank import Book


class Filtered:
    """In place of a world's zone model: what is published has been through the filters."""

    def __init__(self, zones: Zones) -> None:
        self._zones = zones
        self.book = Book()
        self.now = 0.0
        self.bank = Bank(zones, Chain(tuple(BUILT_IN), 1.0, lambda: None), self.book)
        self.apply, self.mark = self.bank.apply, zones.mark

    def all_nodes(self) -> Iterator[bytes]:
        async def nothing() -> None:
            pass

        run_async(self.bank.settle(self.now, nothing))
        return self._zones.all_nodes()

    def turn(self, text: str, up: bool) -> None:
        self.book.up[text] = up
        self.bank.flipped([text])


def filtered() -> tuple[Any, Filtered]:
    world: Any = World({})
    world.zones = stand = Filtered(world.zones)
    return world, stand


def test_an_address_that_is_down_is_gone_at_its_name_and_above() -> None:
    world, stand = filtered()
    for number in (1, 2):
        value = f'{{"host":"192.0.2.{number}","check":"tcp://{{address}}:80","targetstrip":1}}'
        world.change(world.put(f"test/example/www/x{number}", value))
    world.change(world.put("test/example/db", '{"host":"192.0.2.9"}'))
    both = ["A 192.0.2.1", "A 192.0.2.2"]
    assert world.ask("www.example.test", "A") == world.ask("*.www.example.test", "A") == both
    assert world.ask("example.test", "A") == [*both, "A 192.0.2.9"]
    stand.turn("tcp://192.0.2.1:80", False)
    assert world.ask("www.example.test", "A") == ["A 192.0.2.2"]
    assert world.ask("example.test", "A") == ["A 192.0.2.2", "A 192.0.2.9"]
    assert world.ask("x1.www.example.test", "A") == ["A 192.0.2.1"]  # all that it has is down
    # Both are down: they are all that `www` has, but not all that the apex has.
    stand.turn("tcp://192.0.2.2:80", False)
    assert world.ask("www.example.test", "A") == both
    assert world.ask("example.test", "A") == ["A 192.0.2.9"]
    world.change(world.delete("test/example/www/x1"))
    assert world.ask("www.example.test", "A") == ["A 192.0.2.2"]
    stand.turn("tcp://192.0.2.2:80", True)
    assert world.ask("example.test", "A") == ["A 192.0.2.2", "A 192.0.2.9"]
    assert stand.book.watched == {"tcp://192.0.2.2:80"}


def test_a_window() -> None:
    world, stand = filtered()
    world.change(world.put("test/example/www/a", '{"host":"192.0.2.1","not_before":100,"ttl":30}'))
    assert world.ask("www.example.test", "A") == world.ask("a.www.example.test", "A") == ["NXDOMAIN"]
    stand.now = 100.0
    assert world.ask("www.example.test", "A") == ["A 30 192.0.2.1"]
    assert len(world.ask("a.www.example.test", "SRV")) == 1


def test_the_first_list_is_filtered_as_changes_are() -> None:
    keys = {
        "test/example/www/a": '{"host":"192.0.2.1","check":"tcp://{address}:80"}',
        "test/example/www/b": '{"host":"192.0.2.2"}',
        "test/example/www/c": '{"host":"192.0.2.3","owner":"me","not_after":5}',
        "test/example/db": '{"host":"192.0.2.4"}',
        "test/example/www/d": '{"host":"192.0.2.5","text":"x","labels":{"a":"b"}}',
    }
    one_by_one, stand = filtered()
    stand.now = 10.0
    for key, value in keys.items():
        one_by_one.change(one_by_one.put(key, value))
    listed = World(keys)  # for its tree
    at_once, by_name = Filtered(Zones([names.from_text("example.test")])), ByName(listed.tree)
    at_once.now = 10.0
    for _ in bulk.fill(at_once._zones, by_name, 2):
        pass
    for key in by_name.left:
        at_once.apply(key, listed.tree.records_of(key), listed.tree.revision_of(key) or 0)
    for world, through in ((one_by_one, stand), (listed, at_once)):
        world.zones = through
        through.turn("tcp://192.0.2.1:80", False)
        assert world.ask("www.example.test", "A") == ["A 192.0.2.2", "A 192.0.2.5"]
        assert world.ask("example.test", "A") == ["A 192.0.2.2", "A 192.0.2.4", "A 192.0.2.5"]
        assert world.ask("c.www.example.test", "A") == ["NXDOMAIN"]
    assert one_by_one.content() == listed.content()
