"""An etcd source with a snapshot: begins with what was kept, and keeps what comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from loader.etcd_source import EtcdSource, SourceStatus
from loader.model import Changes, Listing
from loader.snapshot import Snapshot

log = logging.getLogger(__name__)


class KeptSource:
    """Gives what the source gives. If that is away at the start, the snapshot's content comes first."""

    def __init__(self, source: EtcdSource, snapshot: Snapshot) -> None:
        self._source = source
        self._snapshot = snapshot

    @property
    def status(self) -> SourceStatus:
        status = self._source.status
        problem = self._snapshot.error
        return replace(status, error="; ".join(filter(None, (status.error, problem)))) if problem else status

    async def lease_ttl(self, lease: int) -> tuple[int, int]:
        """See EtcdSource."""
        return await self._source.lease_ttl(lease)

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        """Listing first, then Changes (see EtcdSource.run)."""
        saved = await asyncio.to_thread(self._snapshot.load)
        if saved is not None:
            age = time.time() - saved.seen_ns / 1e9
            log.info(
                "snapshot %s: %d keys at revision %d, %.0f s old; going on from there",
                self._snapshot.path, len(saved.listing.entries), saved.listing.revision, age,
            )  # fmt: skip
            self._source.prime(saved.listing, saved.cluster_id, saved.seen_ns)
            yield saved.listing
            saved = None  # its values are not needed any more
        try:
            async with aclosing(self._source.run()) as items:
                async for item in items:
                    status = self._source.status
                    self._snapshot.keep(item, status.cluster_id, status.last_seen_ns)
                    yield item
        finally:
            await asyncio.to_thread(self._snapshot.close)
