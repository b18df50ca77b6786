"""An etcd source whose leases are looked after: keys of an ended lease go, even if their deletion is not heard of.

For schemas that read each key by itself; the SkyDNS feed, which needs leases for its TTLs as well, does the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress

from loader.feed import FeedStatus
from loader.leases import CHANGE_PATIENCE, LIST_PATIENCE, Leases
from loader.model import Changes, Delete, Listing, Put
from loader.skydns_feed import LeasedSource as Leased

log = logging.getLogger(__name__)


class LeasedSource:
    """Gives what the source gives, and deletions of its own."""

    def __init__(self, source: Leased) -> None:
        self._source = source
        self._leases = Leases(source.lease_ttl, time.monotonic)
        self._lease_of: dict[str, int] = {}  # of the keys that have one
        self._keys_of: dict[int, set[str]] = {}
        self._revision = 0

    @property
    def status(self) -> FeedStatus:
        return self._source.status

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        """See EtcdSource.run."""
        async with aclosing(self._source.run()) as items:
            reading = asyncio.ensure_future(anext(items))
            checking: asyncio.Future[tuple[set[int], set[int]]] | None = None
            try:
                while True:
                    tasks = {task for task in (reading, checking) if task is not None}
                    pause = self._leases.pause() if checking is None else None
                    await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    if checking is not None and checking.done():
                        gone, _ = checking.result()
                        checking = None
                        if lost := self._lost(gone):
                            yield lost
                    if checking is None and self._leases.pause() == 0:
                        checking = asyncio.ensure_future(self._leases.check())
                    if not reading.done():
                        continue
                    try:
                        item = reading.result()
                    except StopAsyncIteration:
                        return
                    await self._learn(item)
                    yield item
                    reading = asyncio.ensure_future(anext(items))
            finally:
                for task in (reading, checking):
                    if task is not None:
                        task.cancel()
                        with suppress(asyncio.CancelledError, StopAsyncIteration):
                            await task

    async def _learn(self, item: Listing | Changes) -> None:
        self._revision = max(self._revision, item.revision)
        if isinstance(item, Listing):
            self._revision = item.revision
            self._lease_of.clear()
            self._keys_of.clear()
            self._forget(self._leases.known())
            leases = {put.lease for put in item.entries} - {0}
            if leases:
                for put in item.entries:
                    self._hold(put.key, put.lease)
            await self._leases.learn(leases, LIST_PATIENCE)
            return
        leases = {event.lease for event in item.events if isinstance(event, Put)} - {0}
        if leases or self._lease_of:
            before = {self._hold(event.key, event.lease if isinstance(event, Put) else 0) for event in item.events}
            self._forget(before)
        await self._leases.learn(leases, CHANGE_PATIENCE)

    def _hold(self, key: str, lease: int) -> int:
        """The key has this lease, 0: none. Returns the one before."""
        old = self._lease_of.pop(key, 0)
        if old:
            self._keys_of[old].discard(key)
        if lease:
            self._lease_of[key] = lease
            self._keys_of.setdefault(lease, set()).add(key)
        return old

    def _forget(self, leases: Iterable[int]) -> None:
        """Those of them that no key has any more."""
        for lease in leases:
            if lease and not self._keys_of.get(lease):
                self._leases.forget(lease)
                self._keys_of.pop(lease, None)

    def _lost(self, gone: set[int]) -> Changes | None:
        keys = sorted(key for lease in gone for key in self._keys_of.get(lease, ()))
        if not keys:
            return None
        log.warning("%d keys of ended leases are still here: their deletion was not heard of", len(keys))
        for key in keys:
            self._hold(key, 0)
        self._forget(gone)
        return Changes([Delete(key, self._revision) for key in keys], self._revision)
