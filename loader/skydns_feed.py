"""An etcd source in the SkyDNS schema as a feed: keeps the tree of services, and looks after leases."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from loader.feed import FeedStatus, Source, Swap, Update
from loader.last_good import rounds
from loader.leases import CHANGE_PATIENCE, LIST_PATIENCE, Leases
from loader.model import Changes, Delete, Listing, Put, Record
from loader.skydns import Semantics
from loader.skydns_fill import ByName
from loader.skydns_tree import ServiceTree

log = logging.getLogger(__name__)

#: Changes applied in one go. Each takes 0.5 ms where a million services lie beneath one name, and signs of life wait.
PIECE = 200


class LeasedSource(Source, Protocol):
    """A source that can tell of leases, too."""

    async def lease_ttl(self, lease: int) -> tuple[int, int]: ...


class SkydnsFeed:
    """loader/feed.py's Feed. Its updates name all keys that give something else than before, changed or not."""

    def __init__(
        self,
        source: LeasedSource,
        prefix: str,
        zones: Collection[bytes],
        semantics: Semantics,
        *,
        default_ttl: int = 300,
        keep: bool = False,
    ) -> None:
        """default_ttl, in seconds: of services that have no other. keep: see loader/last_good.py."""
        self._source = source
        self._keep = keep
        self._leases = Leases(source.lease_ttl, time.monotonic)
        self._make_tree = partial(
            ServiceTree, prefix, zones, semantics, self._leases.granted, default_ttl=default_ttl, keep=keep
        )
        self._tree = self._make_tree()
        self._revision = 0

    @property
    def status(self) -> FeedStatus:
        return self._source.status

    async def run(self) -> AsyncGenerator[Update, None]:
        async with aclosing(self._source.run()) as items:
            reading: asyncio.Future[Listing | Changes] | None = asyncio.ensure_future(anext(items))
            checking: asyncio.Future[tuple[set[int], set[int]]] | None = None
            try:
                while True:
                    tasks = {task for task in (reading, checking) if task is not None}
                    pause = self._leases.pause() if checking is None else None
                    await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    if checking is not None and checking.done():
                        update = self._leases_checked(*checking.result())
                        checking = None
                        if update is not None:
                            yield update
                    if checking is None and self._leases.pause() == 0:
                        checking = asyncio.ensure_future(self._leases.check())
                    if reading is None or not reading.done():
                        continue
                    try:
                        parts = self._parts(reading.result())
                    except StopAsyncIteration:
                        return
                    reading, tasks = None, set()
                    while parts:
                        yield await self._take(parts.pop())
                        await asyncio.sleep(0)
                    reading = asyncio.ensure_future(anext(items))
            finally:
                for task in (reading, checking):
                    if task is not None:
                        task.cancel()
                        with suppress(asyncio.CancelledError, StopAsyncIteration):
                            await task

    def _parts(self, item: Listing | Changes) -> list[Listing | Changes]:
        """What is to be taken one after the other, the last one first. Nobody else keeps it: a listing is large."""
        parts: list[Listing | Changes] = [item]
        if isinstance(item, Changes):
            parts.clear()
            before = self._revision
            for piece in pieces(item, before, PIECE):
                parts.extend(rounds(piece, before) if self._keep else (piece,))
                before = piece.revision
        parts.reverse()
        return parts

    async def _take(self, item: Listing | Changes) -> Update:
        leases = _leases(item)
        if leases:
            await self._leases.learn(leases, LIST_PATIENCE if isinstance(item, Listing) else CHANGE_PATIENCE)
        if isinstance(item, Changes):
            self._revision = max(self._revision, item.revision)
            return self._changes(item)
        self._revision = item.revision
        tree = self._make_tree()  # a new one: an earlier listing may still be read from the old one
        entries, item = list(item.entries), replace(item, entries=[])  # the snapshot may want its own list
        for _ in tree.replacing(entries, self._tree):
            await asyncio.sleep(0)  # a million keys take seconds
        update = _loaded(tree, item, self._tree.aggregates())
        self._tree = tree
        self._forget(self._leases.known())
        return update

    def _changes(self, item: Changes) -> Update:
        perhaps = {self._tree.lease_of(event.key) for event in item.events}
        perhaps.update(event.lease for event in item.events if isinstance(event, Put))
        update = change_update(self._tree, item)
        self._forget(perhaps)
        return update

    def _forget(self, leases: Iterable[int]) -> None:
        for lease in leases:
            if not self._tree.keys_of(lease):
                self._leases.forget(lease)

    def _leases_checked(self, gone: set[int], other: set[int]) -> Update | None:
        lost = sorted(key for lease in gone for key in self._tree.keys_of(lease))
        if lost:
            log.warning("%d keys of ended leases are still here: their deletion was not heard of", len(lost))
            deletes: list[Put | Delete] = [Delete(key, self._revision) for key in lost]
            return self._changes(Changes(deletes, self._revision))
        keys = self._tree.renew(other)
        if not keys:
            return None
        return _update_of(self._tree, keys, {}, self._revision, {})


def _leases(item: Listing | Changes) -> set[int]:
    events = item.entries if isinstance(item, Listing) else item.events
    return {event.lease for event in events if isinstance(event, Put) and event.lease}


def pieces(changes: Changes, before: int, most: int) -> Iterator[Changes]:
    """The same in Changes of some `most` events, none of which ends within a revision. before: the revision until now,
    below which none goes: what a re-list repairs is older."""
    start = 0
    events = changes.events
    while start + most < len(events):
        stop = start + most
        while stop < len(events) and events[stop].mod_revision == events[stop - 1].mod_revision:
            stop += 1
        if stop == len(events):
            break
        before = max(before, min(events[stop - 1].mod_revision, changes.revision))
        yield Changes(events[start:stop], before)
        start = stop
    yield Changes(events[start:], changes.revision) if start else changes


def full_update(tree: ServiceTree, listing: Listing) -> Update:
    """A listing in the tree's place."""
    before = tree.aggregates()
    tree.replace(listing.entries)
    return _loaded(tree, listing, before)


def _loaded(tree: ServiceTree, listing: Listing, before: set[bytes]) -> Update:
    """before: the aggregates that were told."""
    keys = _Keys(tree)
    return Update(
        _Records(keys), listing.revision, True, tree.problems, _Revisions(keys), marks=_Marks(tree, before),
        kept=tree.kept, by_name=None if before else ByName(tree), why=listing.why,
    )  # fmt: skip


def change_update(tree: ServiceTree, changes: Changes) -> Update:
    """Of several events for a key the last one counts."""
    last = {event.key: event for event in changes.events}
    swaps: list[Swap] = []
    news: dict[str, Put | None] = {}
    for key, event in last.items():
        put = event if isinstance(event, Put) else None
        if put is not None and (swap := tree.swap(put)) is not None:
            swaps.append(swap)
        else:
            news[key] = put
    keys, marks = tree.change(news)
    own = {key: event.mod_revision for key, event in last.items()}
    return _update_of(tree, keys, own, changes.revision, marks, swaps)


def _update_of(
    tree: ServiceTree,
    keys: set[str],
    own: dict[str, int],
    revision: int,
    marks: dict[bytes, bool],
    swaps: Sequence[Swap] = (),
) -> Update:
    problems = {key: tree.problems[key] for key in keys if key in tree.problems}
    kept = {key: tree.kept[key] for key in keys if key in tree.kept}
    revisions = {key: (key not in kept and own.get(key)) or tree.revision_of(key) or revision for key in keys}
    # What changed because of another key's change moves the serial as that does.
    causes = dict.fromkeys(keys - own.keys(), max(own.values(), default=revision))
    records: dict[str, list[Record] | None] = {key: tree.records_of(key) for key in keys}
    return Update(records, revision, False, problems, revisions, causes, marks, kept, swaps=swaps)


class _Keys:
    """The keys of a tree, listed only if somebody goes through them."""

    def __init__(self, tree: ServiceTree) -> None:
        self.tree = tree
        self._count = len(tree.services.by_key) + len(tree.problems.keys() - tree.services.by_key.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.tree.services.by_key or key in self.tree.problems

    def __iter__(self) -> Iterator[str]:
        held = self.tree.services.by_key
        yield from [*held, *(key for key in self.tree.problems if key not in held)]

    def __len__(self) -> int:
        return self._count


class _Records(Mapping[str, list[Record] | None]):
    """Records made as they are read. The tree may have moved on by then: the update that tells is on its way."""

    def __init__(self, keys: _Keys) -> None:
        self._keys = keys

    def __getitem__(self, key: str) -> list[Record] | None:
        return self._keys.tree.records_of(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class _Revisions(Mapping[str, int]):
    def __init__(self, keys: _Keys) -> None:
        self._keys = keys

    def __getitem__(self, key: str) -> int:
        revision = self._keys.tree.revision_of(key)
        return self._keys.tree.refused[key] if revision is None else revision

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class _Marks(Mapping[bytes, bool]):
    """The names that became aggregates with another tree, or ceased to be: worked out if somebody asks."""

    def __init__(self, tree: ServiceTree, before: set[bytes]) -> None:
        self._tree = tree
        self._before = before

    def __getitem__(self, name: bytes) -> bool:
        return self._tree.is_aggregate(name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._before ^ self._tree.aggregates())

    def __len__(self) -> int:
        return len(self._before ^ self._tree.aggregates())
