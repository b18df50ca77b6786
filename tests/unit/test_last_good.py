"""on_reject = keep: whatever comes in whatever pieces, over restarts from a snapshot, a key has its last good value."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader import names
from loader.feed import Feed, Update, etcd_feed
from loader.files import FileStatus
from loader.kept_source import _as_it_came
from loader.last_good import refuser, rounds
from loader.model import Changes, Delete, Listing, Put
from loader.skydns_feed import SkydnsFeed
from loader.snapshot import Snapshot
from loader.zone import Zones
from tests.support.skydns import take_swap

APEX = names.from_text("example.test")
KEYS = ("a", "b")
PATHS = {"records": "/names/example.test/{}/A", "skydns": "/names/test/example/{}"}
#: A number is a good value, None a deletion, "bad" a value that is refused.
Value = int | str | None
Batch = list[tuple[str, Value]]
step = st.tuples(st.sampled_from(KEYS), st.one_of(st.integers(1, 9), st.just("bad"), st.just("bad"), st.none()))
batches = st.lists(st.lists(step, min_size=1, max_size=4), min_size=1, max_size=3)


class Given:
    """A source that gives what it was made with, and ends."""

    status = FileStatus()

    def __init__(self, items: list[Listing | Changes]) -> None:
        self._items = items

    async def lease_ttl(self, lease: int) -> tuple[int, int]:
        return -1, 0

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        for item in self._items:
            yield item


class Model:
    """As loader/publisher.py applies updates; what it gives and says is looked at from outside."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._zones = Zones([APEX])
        self._keys: set[str] = set()
        self.problems: dict[str, tuple[str, int]] = {}
        self.revisions: list[int] = []

    def take(self, items: list[Listing | Changes]) -> None:
        source = Given(items)
        feed: Feed
        if self._schema == "records":
            feed = etcd_feed(source, SimpleNamespace(prefix="/names", schema="records"), keep=True)
        else:
            feed = SkydnsFeed(source, "/names", [APEX], "strict", keep=True)

        async def run() -> None:
            async with aclosing(feed.run()) as updates:
                async for update in updates:
                    self._apply(update)

        asyncio.run(run())

    def _apply(self, update: Update) -> None:
        for swap in update.swaps:
            take_swap(self._zones, *swap)
        gone = self._keys - update.records.keys() if update.full else set()
        for key, records in [*update.records.items(), *((key, None) for key in gone)]:
            refused = update.kept.get(key)
            if refused is None or records is not None:
                self._zones.apply(key, records or (), update.revisions.get(key, update.revision))
            self.problems.pop(key, None)
            if key in update.problems:
                self.problems[key] = update.problems[key], refused or update.revisions.get(key, update.revision)
            (self._keys.discard if records is None and key not in update.problems else self._keys.add)(key)
        self.revisions.append(update.revision)

    def gives(self) -> dict[str, tuple[int, int]]:
        """Key -> the last octet of its address, and the revision that it is of."""
        found = {}
        for name in KEYS:
            for gift in self._zones.gifts_of(names.from_text(f"{name}.example.test")):
                found[name] = gift[5][3], gift[1]
        return found


def events_of(schema: str, batch: Batch, revision: int) -> list[Put | Delete]:
    """One revision for each."""
    made: list[Put | Delete] = []
    for number, (name, value) in enumerate(batch, revision + 1):
        key = PATHS[schema].format(name)
        if value is None:
            made.append(Delete(key, number))
        else:
            address = f"192.0.2.{value}" if value != "bad" else "no"
            text = address if schema == "records" else '{"host":3}' if value == "bad" else f'{{"host":"{address}"}}'
            made.append(Put(key, text.encode(), number))
    return made


def expected(steps: Iterator[tuple[str, Value, int]]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """(what is given, which key's value of which revision is refused)"""
    good: dict[str, tuple[int, int]] = {}
    refused: dict[str, int] = {}
    for name, value, revision in steps:
        refused.pop(name, None)
        if value is None:
            good.pop(name, None)
        elif isinstance(value, int):
            good[name] = value, revision
        else:
            refused[name] = revision
    return good, refused


@pytest.mark.parametrize("schema", ["records", "skydns"])
@settings(max_examples=25, deadline=None)
@example(runs=[[[("a", 5)]], [[("a", "bad")]], [[("b", 1)]]])
@example(runs=[[[("a", 5)]], [[("a", "bad")]], [[("a", None), ("a", "bad")]], [[("b", 1)]]])
@given(runs=st.lists(batches, min_size=3, max_size=4))
def test_the_last_good_value_is_given(schema: str, runs: list[list[Batch]]) -> None:
    """Each of `runs` is a life of the loader; the next one begins with what the snapshot has."""
    refuses = refuser(schema, "/names")
    steps: list[tuple[str, Value, int]] = []
    revision = 1
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs):
            snapshot = Snapshot(Path(folder, "s.sqlite"), "x", refuses)
            saved = snapshot.load()
            items: list[Listing | Changes] = [] if saved is None else _as_it_came(saved)
            kept: list[Listing | Changes] = [] if number else [Listing([], 1)]
            for batch in run:
                events = events_of(schema, batch, revision)
                steps += [(name, value, revision + 1 + at) for at, (name, value) in enumerate(batch)]
                revision += len(batch)
                kept.append(Changes(events, revision))
            for item in kept:
                snapshot.keep(item, 1, 1)
            snapshot.close()
            model = Model(schema)
            model.take([*items, *kept])
            good, refused = expected(iter(steps))
            assert model.gives() == good
            assert {key: at for key, (_, at) in model.problems.items()} == {
                PATHS[schema].format(name): at for name, at in refused.items()
            }
            assert model.revisions == sorted(model.revisions)


@given(batches)
def test_rounds_keep_the_order_of_each_key(runs: list[Batch]) -> None:
    batch = [step for run in runs for step in run]
    events = events_of("records", batch, 10)
    parts = list(rounds(Changes(events, 10 + len(batch)), 10))
    for key in {event.key for event in events}:
        assert [e for part in parts for e in part.events if e.key == key] == [e for e in events if e.key == key]
    for part in parts:
        assert len({event.key for event in part.events}) == len(part.events)
    assert [part.revision for part in parts] == [10] * (len(parts) - 1) + [10 + len(batch)]
