"""An etcd source with a snapshot: begins with what was kept, and keeps what comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

from loader.etcd_channel import EtcdError
from loader.etcd_source import EtcdSource, SourceStatus
from loader.model import Changes, Listing, Put
from loader.snapshot import Saved, Snapshot

log = logging.getLogger(__name__)

#: How often to ask whether the snapshot wants a listing, in seconds.
SUPPLY_EVERY_S = 1.0


class KeptSource:
    """Gives what the source gives. If that is away at the start, the snapshot's content comes first."""

    def __init__(self, source: EtcdSource, snapshot: Snapshot) -> None:
        self._source = source
        self._snapshot = snapshot

    @property
    def status(self) -> SourceStatus:
        return replace(self._source.status, unwritten=self._snapshot.error)

    async def lease_ttl(self, lease: int) -> tuple[int, int]:
        """See EtcdSource."""
        return await self._source.lease_ttl(lease)

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        """Listing first, then Changes (see EtcdSource.run)."""
        saved = await asyncio.to_thread(self._snapshot.load)
        if saved is not None:
            self._snapshot.watch()
            age = time.time() - saved.seen_ns / 1e9
            log.info(
                "snapshot %s: %d keys at revision %d, %.0f s old; going on from there",
                self._snapshot.path, len(saved.listing.entries), saved.listing.revision, age,
            )  # fmt: skip
            self._source.prime(saved.listing, saved.cluster_id, saved.seen_ns)
            for kept in _as_it_came(saved):
                yield kept
            saved = None  # its values are not needed any more
            del kept
        supplying = asyncio.ensure_future(self._supply())
        try:
            async with aclosing(self._source.run()) as items:
                async for item in items:
                    status = self._source.status
                    self._snapshot.keep(item, status.cluster_id, status.last_seen_ns)
                    handed = [item]
                    del item
                    yield handed.pop()  # and keep nothing of it: a listing may be 300 MB
        finally:
            supplying.cancel()
            with suppress(asyncio.CancelledError):
                await supplying
            await asyncio.to_thread(self._snapshot.close)

    async def _supply(self) -> None:
        """All keys to a snapshot that had to be begun anew, as soon as etcd has them for us."""
        supplied = failed = 0
        while True:
            await asyncio.sleep(SUPPLY_EVERY_S)
            wanted = self._snapshot.wanted
            if wanted in (0, supplied):
                continue
            try:
                listing = await self._source.listing()
            except (EtcdError, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # grpcio cancels us, too, when the connection is closed under us.
                if failed != wanted:
                    log.info("no listing for snapshot %s yet: %s; trying again", self._snapshot.path, error)
                failed = wanted
                continue
            log.info("%d keys listed for snapshot %s", len(listing.entries), self._snapshot.path)
            status = self._source.status
            self._snapshot.supply(listing, wanted, status.cluster_id, status.last_seen_ns)
            supplied = wanted


def _as_it_came(saved: Saved) -> list[Listing | Changes]:
    """The last good values first, then those that were refused: whoever reads this refuses them again."""
    if not saved.last_good:
        return [saved.listing]
    good = {put.key: put for put in saved.last_good}
    refused: list[Put] = []
    entries: list[Put] = []
    for put in saved.listing.entries:
        entries.append(good.get(put.key, put))
        if put.key in good:
            refused.append(put)
    refused.sort(key=lambda put: put.mod_revision)
    return [Listing(entries, saved.listing.revision), Changes(list(refused), saved.listing.revision)]
