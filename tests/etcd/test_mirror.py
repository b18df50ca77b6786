"""The mirror's decisions against a simulated etcd: whatever happens in whatever order, the content ends up right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from loader import mirror as m
from loader.mirror_content import Content
from loader.model import Changes, Delete, Listing, Put

KEYS = ["/d/a", "/d/b", "/d/c", "/d/e"]
POLICY = m.Policy(endpoints=2, relist_interval=60, behind_limit=12)


@dataclass
class Store:
    """etcd, as far as the mirror can see it."""

    history: list[Put | Delete] = field(default_factory=list)
    revision: int = 1
    compacted: int = 0
    cluster_id: int = 7
    elsewhere: int = 0  # revisions outside the prefix

    def write(self, changes: list[tuple[str, bytes | None]]) -> None:
        """One transaction: one revision."""
        self.revision += 1
        for key, value in dict(changes).items():
            if value is not None:
                self.history.append(Put(key, value, self.revision))
            elif key in self.at(self.revision):
                self.history.append(Delete(key, self.revision))

    def at(self, revision: int) -> dict[str, Put]:
        content: dict[str, Put] = {}
        for change in self.history:
            if change.mod_revision <= revision:
                if isinstance(change, Put):
                    content[change.key] = change
                else:
                    content.pop(change.key, None)
        return content

    def restore(self, revision: int, same_cluster: bool) -> None:
        """From a backup."""
        self.history = [change for change in self.history if change.mod_revision <= revision]
        self.revision, self.compacted = revision, 0
        self.cluster_id += not same_cluster


class World:
    """Does the mirror's actions against a Store, in the order the test says, and applies what is emitted."""

    def __init__(self) -> None:
        self.store = Store()
        self.mirror = m.Mirror(POLICY)
        self.now = 100.0
        self.consumer: dict[str, Put] = {}
        self.items: list[Listing | Changes] = []
        self.notes: list[str] = []
        self.connecting = False
        self.listing: Iterator[m.PageRead | m.Failed] | None = None
        self.watch_from: int | None = None
        self.watch_made = False
        self.ping = False
        self.linear = True  # the store's history was never replaced, and no event was lost

    def step(self, event: m.Event) -> None:
        revision = self.mirror.revision
        for action in self.mirror.step(event, self.now):
            self.perform(action)
        if self.linear and self.mirror.listed:
            assert self.mirror.revision >= revision
            assert self.consumer == self.store.at(self.mirror.revision)
            assert self.mirror.drift == 0
        assert len(self.mirror.content.held) == len(self.consumer)

    def perform(self, action: m.Action) -> None:
        match action:
            case m.Connect() | m.Disconnect():
                self.connecting = isinstance(action, m.Connect)
                self.listing = self.watch_from = None
            case m.StartList(beside):
                self.listing = self.pages()
                if not beside:
                    self.watch_from = None
            case m.StartWatch(revision):
                self.watch_from, self.watch_made, self.ping = revision, False, False
            case m.StopWatch():
                self.watch_from = None
            case m.Ping():
                self.ping = True
            case m.Note(text):
                self.notes.append(text)
            case m.Emit(item):
                self.emit(item)

    def emit(self, item: Listing | Changes) -> None:
        self.items.append(item)
        if isinstance(item, Listing):
            self.consumer = {put.key: put for put in item.entries}
            return
        assert item.events
        for change in item.events:
            if isinstance(change, Put):
                self.consumer[change.key] = change
            else:
                self.consumer.pop(change.key, None)

    def pages(self) -> Iterator[m.PageRead | m.Failed]:
        store, revision, cluster_id = self.store, self.store.revision, self.store.cluster_id
        entries = [put for _, put in sorted(store.at(revision).items())]
        for start in range(0, max(1, len(entries)), 2):
            if start and revision < store.compacted:
                yield m.Failed("list", m.Kind.COMPACTED, "compacted")
                return
            yield m.PageRead(entries[start : start + 2], revision, cluster_id, start + 2 >= len(entries))

    def list_step(self) -> None:
        if self.listing is not None:
            event = next(self.listing, None)
            if event is None or isinstance(event, m.Failed) or event.last:
                self.listing = None
            if event is not None:
                self.step(event)

    def watch_step(self, revisions: int = 1, lose: bool = False) -> None:
        if self.watch_from is None:
            return
        if not self.watch_made:
            self.watch_made = True
            self.step(m.WatchMade(self.store.revision, self.store.cluster_id))
        elif self.watch_from <= self.store.compacted:
            self.watch_from = None
            self.step(m.Failed("watch", m.Kind.COMPACTED, "compacted"))
        else:
            news = [change for change in self.store.history if change.mod_revision >= self.watch_from]
            last = sorted({change.mod_revision for change in news})[:revisions]
            batch = [change for change in news if last and change.mod_revision <= last[-1]]
            if batch:
                self.watch_from = last[-1] + 1
                if not lose:
                    self.step(m.WatchRead(batch))
            elif self.ping:
                self.ping = False
                self.step(m.WatchRead([]))

    def connect_step(self, well: bool = True) -> None:
        if self.connecting:
            self.connecting = False
            self.step(m.Connected() if well else m.Failed("connect", m.Kind.LOST, "refused"))

    def fail(self, what: str, kind: m.Kind) -> None:
        if what == "watch" and self.watch_from is not None:
            self.watch_from = None
            self.step(m.Failed("watch", kind, "failed"))
        elif what == "list" and self.listing is not None:
            self.listing = None
            self.step(m.Failed("list", kind, "failed"))

    def tick(self, seconds: float, alive: bool = True) -> None:
        """Time passes, and the driver wakes up when it is told to; alive: pings are answered."""
        end = self.now + seconds
        while self.mirror.wake_at <= end:
            self.now = max(self.now, self.mirror.wake_at)
            before = self.mirror.wake_at
            self.step(m.Tick())
            if alive and self.ping and self.watch_from is not None:
                self.ping = False
                self.step(m.WatchRead([]))
            elif self.mirror.wake_at == before:
                self.now += 0.001
                if self.now > end:
                    break
        self.now = max(self.now, end)

    def settle(self) -> None:
        """Everything works from now on; ends when nothing more is to do, and a re-list has been made."""
        for _ in range(60):
            for _ in range(40):
                self.connect_step()
                self.list_step()
                self.watch_step(revisions=1000)
            self.tick(3)
        assert self.mirror.phase is m.Phase.WATCHING
        assert self.mirror.watching


def started(content: dict[str, bytes] | None = None) -> World:
    """A world whose first list is done."""
    world = World()
    for key, value in (content or {"/d/a": b"1", "/d/b": b"2", "/d/c": b"3"}).items():
        world.store.write([(key, value)])
    world.tick(0)
    world.connect_step()
    while world.listing is not None:
        world.list_step()
    world.watch_step()
    world.watch_step()
    return world


CHANGES = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([None, b"1", b"2"])), min_size=1, max_size=3)
COMMON = st.one_of(
    st.tuples(st.just("write"), CHANGES),
    st.tuples(st.just("write"), CHANGES),
    st.tuples(st.just("list_step")),
    st.tuples(st.just("list_step")),
    st.tuples(st.just("watch_step"), st.integers(1, 3)),
    st.tuples(st.just("watch_step"), st.integers(1, 3)),
    st.tuples(st.just("connect_step"), st.sampled_from([True, True, True, False])),
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.5, 3.0, 70.0]), st.booleans()),
    st.tuples(st.just("compact")),
    st.tuples(
        st.just("fail"),
        st.sampled_from(["list", "watch"]),
        st.sampled_from([m.Kind.LOST, m.Kind.TOO_LARGE, m.Kind.DENIED]),
    ),
    st.tuples(st.just("elsewhere"), st.integers(1, 20)),
)
RESTORES = st.tuples(st.just("restore"), st.integers(1, 30), st.booleans())
LOSSES = st.tuples(st.just("lose"), st.integers(1, 2))


def play(world: World, operations: list[tuple[Any, ...]]) -> None:
    store = world.store
    for name, *arguments in operations:
        match name:
            case "write":
                store.write(*arguments)
            case "compact":
                store.compacted = store.revision
            case "elsewhere":
                store.revision += arguments[0]
            case "restore":
                world.linear = False
                back, same_cluster = arguments
                store.restore(max(1, store.revision - back), same_cluster)
                # A restore restarts the server.
                world.fail("list", m.Kind.LOST)
                world.fail("watch", m.Kind.LOST)
            case "lose":
                world.linear = False
                world.watch_step(arguments[0], lose=True)
            case _:
                getattr(world, name)(*arguments)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(COMMON, max_size=60))
def test_any_order_ends_right(operations: list[tuple[Any, ...]]) -> None:
    """World.step also checks after each step that what was emitted is the store's content at mirror.revision."""
    world = World()
    play(world, operations)
    world.settle()
    assert world.consumer == world.store.at(world.store.revision)
    event(f"relists {min(world.mirror.relists, 5)}")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(COMMON, COMMON, RESTORES, LOSSES), max_size=60))
def test_restores_and_lost_events_are_found_by_the_next_relist(operations: list[tuple[Any, ...]]) -> None:
    world = World()
    play(world, operations)
    world.settle()
    assert world.consumer == world.store.at(world.store.revision)


def test_the_first_item_is_a_listing_even_of_nothing() -> None:
    world = World()
    world.tick(0)
    world.connect_step()
    world.list_step()
    assert world.items == [Listing([], 1)]


def test_events_after_the_lists_revision_are_no_drift() -> None:
    world = started()
    world.tick(70)
    assert world.listing is not None
    world.list_step()  # page 1 of the list at this revision
    world.store.write([("/d/a", b"new")])
    world.store.write([("/d/c", None)])
    world.store.write([("/d/e", b"new")])
    world.watch_step(3)
    world.list_step()
    assert (world.mirror.relists, world.mirror.drift) == (1, 0)


def test_events_that_the_watch_has_yet_to_deliver_are_waited_for() -> None:
    world = started()
    world.store.write([("/d/a", b"new")])
    world.store.write([("/d/b", None)])
    world.tick(58)
    world.mirror.relist_at = world.mirror.wake_at = world.now
    world.tick(0)
    world.list_step()
    world.list_step()
    assert world.mirror.comparison is not None
    assert world.items[1:] == []
    world.watch_step(2)
    assert world.mirror.comparison is None
    assert (world.mirror.relists, world.mirror.drift) == (1, 0)


def test_lost_events_are_found_counted_and_repaired() -> None:
    world = started()
    world.linear = False
    world.store.write([("/d/a", b"new")])
    world.store.write([("/d/b", None)])
    world.store.write([("/d/e", b"new")])
    world.watch_step(3, lose=True)
    world.settle()
    assert world.mirror.drift == 3
    assert world.consumer == world.store.at(world.store.revision)
    assert "/d/a" in "".join(world.notes)
    (repair,) = world.items[1:]
    assert isinstance(repair, Changes)
    assert [type(change) for change in repair.events] == [Put, Put, Delete]
    world.tick(70)
    world.settle()
    assert world.mirror.drift == 3


def test_a_value_changed_under_the_same_revision_is_found() -> None:
    """As after a restore from a backup that kept the cluster id, with writes after it."""
    world = started()
    world.linear = False
    world.store.history[0] = Put("/d/a", b"other", world.store.history[0].mod_revision)
    world.settle()
    assert world.mirror.drift == 1
    assert world.consumer["/d/a"].value == b"other"


@pytest.mark.parametrize("same_cluster", [True, False])
def test_another_history_gives_a_listing(same_cluster: bool) -> None:
    world = started()
    world.linear = False
    world.store.restore(2, same_cluster)
    world.fail("watch", m.Kind.LOST)
    world.settle()
    assert isinstance(world.items[-1], Listing)
    assert world.items[-1].revision == 2
    assert world.mirror.drift == 0


def test_a_watch_ahead_of_its_store_is_checked_at_once() -> None:
    """It would wait in silence for revisions that a restored store may take weeks to reach."""
    world = started()
    world.linear = False
    world.store.restore(2, same_cluster=True)
    world.fail("watch", m.Kind.LOST)
    for _ in range(5):
        world.tick(0)
        world.connect_step()
        world.watch_step()
        world.list_step()
    assert isinstance(world.items[-1], Listing)
    assert world.items[-1].revision == 2


def test_a_gap_is_closed_by_changes_and_is_no_drift() -> None:
    world = started()
    world.store.write([("/d/a", None), ("/d/e", b"new")])
    world.store.compacted = world.store.revision + 1
    world.store.revision += 1
    world.watch_step()
    assert world.mirror.phase is m.Phase.LISTING
    world.list_step()
    world.list_step()
    assert [type(item) for item in world.items] == [Listing, Changes]
    assert world.mirror.drift == 0


def test_far_behind_means_listing() -> None:
    world = started()
    world.store.revision += POLICY.behind_limit + 1
    world.fail("watch", m.Kind.LOST)
    world.tick(0)
    world.connect_step()
    world.watch_step()
    assert world.mirror.phase is m.Phase.LISTING


def test_the_next_endpoint_at_once_and_a_wait_after_each_round() -> None:
    world = World()
    waits, endpoints = [], []
    for _ in range(20):
        world.tick(world.mirror.wake_at - world.now)
        endpoints.append(world.mirror.endpoint)
        world.connect_step(well=False)
        waits.append(world.mirror.wake_at - world.now)
    assert endpoints == [0, 1] * 10
    assert waits[::2] == [0.0] * 10
    assert waits[1] < waits[3] < waits[5]
    assert max(waits) <= POLICY.backoff_limit


def test_denied_waits_and_tries_again() -> None:
    world = World()
    world.tick(0)
    world.connecting = False
    world.step(m.Failed("connect", m.Kind.DENIED, "wrong password"))
    assert world.mirror.wake_at - world.now >= POLICY.backoff_limit / 2
    assert world.notes == ["wrong password"]
    world.tick(POLICY.backoff_limit)
    assert world.connecting


def test_a_silent_watch_is_asked_and_then_given_up() -> None:
    world = started()
    assert world.mirror.answered
    world.tick(POLICY.ping_after, alive=False)
    assert world.ping
    world.tick(POLICY.ping_timeout + 0.1, alive=False)
    assert world.mirror.phase is m.Phase.CONNECTING  # the next endpoint, at once
    assert world.mirror.endpoint == 1


def test_a_watch_that_catches_up_is_asked_with_patience() -> None:
    world = started()
    world.fail("watch", m.Kind.LOST)
    world.tick(0)
    world.connect_step()
    world.watch_step()
    asked = 0
    for _ in range(25):
        world.tick(1, alive=False)
        asked += world.ping
        world.ping = False
    assert world.mirror.phase is m.Phase.WATCHING
    assert asked > 3
    world.tick(10, alive=False)
    assert world.mirror.phase is not m.Phase.WATCHING


def test_our_own_silence_is_not_etcds() -> None:
    """A consumer that was busy for a minute must not end a healthy watch."""
    world = started()
    world.tick(POLICY.ping_after, alive=False)
    world.now += 60
    world.step(m.Tick())
    assert world.mirror.phase is m.Phase.WATCHING
    world.step(m.WatchRead([]))
    assert world.mirror.phase is m.Phase.WATCHING


def test_many_keys_are_compared_and_deletions_found() -> None:
    seed = Random().randrange(1 << 32)
    print(f"seed {seed}")
    random = Random(seed)
    puts = [Put(f"/d/{i:06}", b"v%d" % i, i + 2) for i in range(20_000)]
    content = Content()
    first = content.compare()
    first.begin(30_000, 1)
    first.add(puts)
    first.result(final=True)
    gone = set(random.sample(range(len(puts)), 100))
    left = [put for i, put in enumerate(puts) if i not in gone]
    for expected in (100, 0):
        again = content.compare()
        assert again.begin(30_001, 1) == ""
        again.add(left[:7000])
        again.add(left[7000:])
        assert not again.suspects
        result = again.result(final=True)
        assert result is not None
        assert result.differences == expected
    assert len(content.held) == len(left)
