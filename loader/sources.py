"""From a source's URL to its feed: which parts are put together for it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

from loader import etcd_url, last_good
from loader.ages import Earlier
from loader.etcd_access import EtcdAccess, client_options
from loader.etcd_source import EtcdSource, SourceStatus
from loader.feed import Feed, FeedStatus, etcd_feed
from loader.files import FileSource
from loader.kept_source import KeptSource
from loader.leased_source import LeasedSource
from loader.skydns import Semantics
from loader.skydns_feed import SkydnsFeed
from loader.snapshot import Refuses, Snapshot
from shm.board import WordView


class SourceSettings(EtcdAccess, Protocol):
    """What sources need of the settings (cli/settings.py)."""

    @property
    def instance(self) -> str: ...
    @property
    def relist_interval(self) -> float: ...
    @property
    def semantics(self) -> Semantics: ...
    @property
    def default_ttl(self) -> int: ...
    @property
    def on_reject(self) -> Literal["keep", "drop"]: ...
    @property
    def state_dir(self) -> Path | None: ...


def feed_of(url: str, settings: SourceSettings, zones: list[bytes]) -> Feed:
    """Raises ValueError for a URL that is none."""
    if not etcd_url.is_etcd_url(url):
        return FileSource(url.removeprefix("file:"), zones)
    parsed = etcd_url.parse(url)
    if parsed.schema == "skydns" and not zones:
        raise ValueError(f"{url}: schema skydns does not tell zones; give them with --zone")
    source = EtcdSource(parsed, client_options(settings, tls=parsed.tls), relist_interval=settings.relist_interval)
    keep = settings.on_reject == "keep"
    refuses = last_good.refuser(parsed.schema, parsed.prefix) if keep else None
    kept = source if settings.state_dir is None else KeptSource(source, _snapshot(settings, url, refuses))
    if parsed.schema == "skydns":
        return SkydnsFeed(kept, parsed.prefix, zones, settings.semantics, default_ttl=settings.default_ttl, keep=keep)
    return etcd_feed(LeasedSource(kept), parsed, keep=keep)


def _snapshot(settings: SourceSettings, url: str, refuses: Refuses | None) -> Snapshot:
    """Of one source of this instance: the name tells sources apart, the URL inside makes sure."""
    assert settings.state_dir is not None
    number = zlib.crc32(url.encode())
    return Snapshot(settings.state_dir / f"{settings.instance}-{number:08x}.sqlite", url, refuses)


def show_watches(words: WordView, states: Iterable[FeedStatus], before: Earlier) -> None:
    """How the watches of all etcd sources are, to the board: the last event of any, the oldest of what each should do
    again and again. before: what counts for one that has not done it yet."""
    etcd = [state for state in states if isinstance(state, SourceStatus)]
    words.set("watch_event_ns", max((state.event_ns for state in etcd), default=0))
    words.set("watch_progress_ns", min((state.progress_ns or before.progress_ns for state in etcd), default=0))
    words.set("relisted_ns", min((state.relisted_ns or before.relisted_ns for state in etcd), default=0))
    words.set("source_alarms", sum(bool(state.alarms) for state in etcd))


def show_unwritten(words: WordView, states: Iterable[FeedStatus], image: str, history: str, held: str) -> list[str]:
    """What cannot be written to state_dir, to the board; and the errors. image, history, held: theirs, or empty."""
    snapshots = [state.unwritten for state in states if isinstance(state, SourceStatus)]
    found = {"snapshot": snapshots, "history": [history], "image": [image], "held": [held]}
    for kind, errors in found.items():
        words.set(f"{kind}_unwritable", sum(map(bool, errors)))
    return [error for errors in found.values() for error in errors if error]


def confirmed(status: FeedStatus, revision: int, wanted: int) -> bool:
    """Whether a source that was taken up to this revision has no more to tell, though it was at `wanted` once.

    Before 3.5.8 and 3.4.25 etcd says that there is nothing new while it is catching up, too. A store that has got as
    far as `wanted` is not believed: it owes us the events up to there.
    """
    if not isinstance(status, SourceStatus):
        return True
    return status.store_revision < wanted and status.progress_ns > status.event_ns and revision >= status.revision
