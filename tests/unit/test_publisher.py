"""loader/publisher.py: which way what a source tells takes into the zone model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from loader import names
from loader._short import Plain, plain
from loader.feed import Update
from loader.model import Changes, Delete, Listing, Put, Record
from loader.publisher import Publisher
from loader.rdata import SRV, A
from loader.skydns_feed import change_update, full_update
from loader.skydns_tree import ServiceTree
from loader.zone import Zones
from shm.layout import NodeFlag
from shm.node import unpack

KEY = "/skydns/test/example/www"
APEX = names.from_text("example.test")
WWW = names.from_text("www.example.test")


def kept(address: str, revision: int) -> Plain:
    found = plain("/skydns/", KEY, f'{{"host":"{address}"}}'.encode(), revision, 60)
    assert found is not None
    assert isinstance(found[1], Plain)
    return found[1]


def given(one: Plain) -> list[Record]:
    gift = one.gift()
    return [Record(None, WWW, *gift[at : at + 3]) for at in (3, 6)]


class Bank:
    """Notes what comes through it."""

    def __init__(self, zones: Zones, held: bool) -> None:
        self.zones, self.held, self.came = zones, held, 0

    def holds(self, key: str) -> bool:
        return self.held

    def apply(self, key: str, records: Sequence[Record], revision: int, cause: int = 0) -> None:
        self.came += 1
        self.zones.apply(key, records, revision, cause)


@pytest.mark.parametrize(("source", "held", "long"), [(0, False, 0), (0, True, 1), (1, False, 1)])
def test_a_swap(source: int, held: bool, long: int) -> None:
    """The short way, but for keys that filters look at, and for sources whose keys have a number in front."""
    zones = Zones([APEX])
    bank = Bank(zones, held)
    filters: Any = SimpleNamespace(bank=bank)
    writer: Any = SimpleNamespace(words=SimpleNamespace(set=lambda name, value: None))
    publisher = Publisher(writer, zones, 2, filters=filters)
    key = f"{source}:{KEY}" if source else KEY
    zones.apply(key, given(kept("192.0.2.1", 5)), 5)
    zones.take_changes()
    asyncio.run(publisher.take(source, Update({}, 6, swaps=[(kept("192.0.2.2", 6), [WWW])])))
    assert bank.came == long
    assert [record.rdata for record in zones.records_of(key) if record.type == A] == [bytes([192, 0, 2, 2])]
    assert {record.type for record in zones.records_of(key)} == {A, SRV}
    assert zones.revision_of(key) == 6
    changes = zones.take_changes()
    assert bytes([192, 0, 2, 2]) in (changes[WWW] or b"")
    assert zones.apexes() == {APEX: 6}


def test_a_swap_that_the_model_cannot_follow() -> None:
    """Another source gives to the name, too."""
    zones = Zones([APEX])
    writer: Any = SimpleNamespace(words=SimpleNamespace(set=lambda name, value: None))
    publisher = Publisher(writer, zones, 2)
    zones.apply(KEY, given(kept("192.0.2.1", 5)), 5)
    zones.apply("1:/other", [Record(None, WWW, A, 60, bytes([192, 0, 2, 9]))], 5)
    asyncio.run(publisher.take(0, Update({}, 6, swaps=[(kept("192.0.2.2", 6), [WWW])])))
    assert len(zones.gifts_of(WWW)) == 2
    changes = zones.take_changes()
    assert bytes([192, 0, 2, 2]) in (changes[WWW] or b"")
    assert bytes([192, 0, 2, 9]) in (changes[WWW] or b"")


def aggregate(*keys: str) -> tuple[ServiceTree, Update]:
    tree = ServiceTree("/skydns", [APEX], "coredns")
    puts = [Put(f"/skydns/test/example/{key}", b'{"host":"192.0.2.1"}', 5) for key in keys]
    return tree, full_update(tree, Listing(puts, 5))


@pytest.mark.parametrize("first", [0, 1])
def test_an_aggregate_of_two_sources(first: int) -> None:
    """It is one until it is none for either."""
    zones = Zones([APEX])
    writer: Any = SimpleNamespace(words=SimpleNamespace(set=lambda name, value: None))
    publisher = Publisher(writer, zones, 2)
    trees = []
    for source in (0, 1):
        tree, update = aggregate(f"www/k{source}", "mail")
        trees.append(tree)
        asyncio.run(publisher.take(source, update))
    for gone, still in ((first, True), (1 - first, False)):
        delete: Put | Delete = Delete(f"/skydns/test/example/www/k{gone}", 6)
        asyncio.run(publisher.take(gone, change_update(trees[gone], Changes([delete], 6))))
        block = zones.block(WWW)
        assert (block is not None and bool(unpack(block).flags & NodeFlag.AGGREGATE)) == still
