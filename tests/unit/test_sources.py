"""loader/sources.py: when a source has no more to tell."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from loader import etcd_url
from loader.etcd_channel import ClientOptions
from loader.etcd_source import EtcdSource
from loader.feed import FeedStatus
from loader.files import FileSource
from loader.sources import confirmed


def test_a_source_that_owes_us_events_is_not_believed() -> None:
    """etcd before 3.5.8 says that there is nothing new while it is catching up, too."""

    async def body() -> None:
        source = EtcdSource(etcd_url.parse("etcd://127.0.0.1:1/names?schema=records"), ClientOptions())
        silent = replace(source.status, revision=700)
        assert not confirmed(silent, 700, 892)  # it has said nothing
        ahead = replace(silent, progress_ns=1, store_revision=892)
        assert not confirmed(ahead, 700, 892)
        behind = replace(ahead, store_revision=891)  # restored from a backup
        assert confirmed(behind, 700, 892)
        assert not confirmed(behind, 699, 892)  # we have not taken all yet
        assert not confirmed(replace(behind, event_ns=2), 700, 892)
        files: FeedStatus = FileSource("/nothing", []).status
        assert confirmed(files, 1, 2)

    asyncio.run(body())
