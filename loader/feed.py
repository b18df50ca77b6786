"""What every kind of source comes down to: Updates, records by key. The publisher needs to know no more.

A file has records already; for etcd a schema makes them of values. A value that gives none costs its key alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from loader import records
from loader.last_good import rounds
from loader.model import Changes, Listing, Put, Record, Reject
from shm.layout import LoaderState

log = logging.getLogger(__name__)

Parse = Callable[[Put], list[Record]]


@dataclass(frozen=True, slots=True)
class Update:
    """News of one source.

    records    key -> its records from now on; None or none: the key is gone, or gives nothing
    revision   of the source, with this update applied
    full       records is the whole content: a key that it does not name is gone
    problems   key -> why it gives nothing, in one line. Every key in here is in records, too. Records may be made while
               they are read (a full listing of etcd): look a key's problem up after its records
    revisions  key -> the revision of its last change; of a key that is not in here: `revision`
    causes     key -> the revision of another key's change, if it is that one's fault that this key gives something else
    marks      names that become aggregates (loader/zone.py: Zones.mark), or are none any more
    kept       on_reject = keep: key that has a problem, but keeps what it gave before -> revision of the value refused.
               In records that is its last good value, or None: the same as before. Looked up as problems are
    """

    records: Mapping[str, list[Record] | None]
    revision: int
    full: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    causes: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[bytes, bool] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)


class FeedStatus(Protocol):
    """How a source is: what all kinds can tell."""

    @property
    def state(self) -> LoaderState: ...
    @property
    def last_seen_ns(self) -> int: ...  # CLOCK_REALTIME of the last sign of life, 0 = none yet
    @property
    def relists(self) -> int: ...
    @property
    def drift(self) -> int: ...
    @property
    def error(self) -> str: ...  # for people; empty if all is well


class Feed(Protocol):
    """A source as the loader sees it. The first Update is full; run() ends only when it is closed."""

    @property
    def status(self) -> FeedStatus: ...
    def run(self) -> AsyncGenerator[Update, None]: ...


class Source(Protocol):
    """loader/etcd_source.py, or what a test puts in its place."""

    @property
    def status(self) -> FeedStatus: ...
    def run(self) -> AsyncGenerator[Listing | Changes, None]: ...


class _Place(Protocol):
    """Where in etcd, and in which schema (loader/etcd_url.py)."""

    @property
    def prefix(self) -> str: ...
    @property
    def schema(self) -> str: ...


def etcd_feed(source: Source, place: _Place, *, keep: bool = False) -> Feed:
    """An etcd source in a schema that reads each key by itself; of the other one: loader/skydns_feed.py. keep: see
    loader/last_good.py. Raises ValueError."""
    return _EtcdFeed(source, schema_parse(place.schema, place.prefix), keep)


def schema_parse(schema: str, prefix: str) -> Parse:
    """The parser for keys under `prefix` of a schema that reads each key by itself. Raises ValueError for another."""
    if schema == "records":
        return partial(records.parse, prefix)
    raise ValueError(f"there is no schema {schema!r} that reads each key by itself: take records")


class _EtcdFeed:
    def __init__(self, source: Source, parse: Parse, keep: bool) -> None:
        self._source = source
        self._parse = parse
        self._keep = keep

    @property
    def status(self) -> FeedStatus:
        return self._source.status

    async def run(self) -> AsyncGenerator[Update, None]:
        async with aclosing(self._source.run()) as items:
            before = 0
            async for item in items:
                parts = rounds(item, before) if self._keep and isinstance(item, Changes) else (item,)
                for part in parts:
                    yield update_of(part, self._parse, keep=self._keep)
                before = item.revision


def update_of(item: Listing | Changes, parse: Parse, *, keep: bool = False) -> Update:
    """A source's item as an Update. Of several events for a key the last one counts."""
    problems: dict[str, str] = {}
    if isinstance(item, Listing):
        puts = {put.key: put for put in item.entries}
        kept = _Kept(puts, problems) if keep else {}
        return Update(_Parsed(puts, parse, problems), item.revision, True, problems, _Revisions(puts), kept=kept)
    last = {event.key: event for event in item.events}
    found = {key: _try(parse, event, problems) if isinstance(event, Put) else None for key, event in last.items()}
    revisions = {key: event.mod_revision for key, event in last.items()}
    kept = {key: revisions[key] for key in problems} if keep else {}
    return Update(found, item.revision, False, problems, revisions, kept=kept)


def _try(parse: Parse, put: Put, problems: dict[str, str]) -> list[Record] | None:
    """The records of a value; None with a note in `problems`."""
    try:
        return parse(put)
    except Reject as reject:
        problems[put.key] = str(reject)
    except Exception as error:
        # A bug in a schema must cost this key, not the source.
        log.exception("key %s: unexpected error", put.key)
        problems[put.key] = f"unexpected error: {type(error).__name__}"
    return None


class _Parsed(Mapping[str, list[Record] | None]):
    """Records made as they are read: a million of them at once would be 300 MB beside those that the model keeps."""

    def __init__(self, puts: dict[str, Put], parse: Parse, problems: dict[str, str]) -> None:
        self._puts = puts
        self._parse = parse
        self._problems = problems

    def __getitem__(self, key: str) -> list[Record] | None:
        return _try(self._parse, self._puts[key], self._problems)

    def __contains__(self, key: object) -> bool:
        return key in self._puts

    def __iter__(self) -> Iterator[str]:
        return iter(self._puts)

    def __len__(self) -> int:
        return len(self._puts)


class _Kept(Mapping[str, int]):
    """The refused puts' mod_revisions, as far as the records have been read."""

    def __init__(self, puts: dict[str, Put], problems: dict[str, str]) -> None:
        self._puts = puts
        self._problems = problems

    def __getitem__(self, key: str) -> int:
        if key not in self._problems:
            raise KeyError(key)
        return self._puts[key].mod_revision

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)


class _Revisions(Mapping[str, int]):
    """The puts' mod_revisions, without a dictionary of their own."""

    def __init__(self, puts: dict[str, Put]) -> None:
        self._puts = puts

    def __getitem__(self, key: str) -> int:
        return self._puts[key].mod_revision

    def __iter__(self) -> Iterator[str]:
        return iter(self._puts)

    def __len__(self) -> int:
        return len(self._puts)
