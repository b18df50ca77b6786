"""What every kind of source comes down to: Updates, records by key. The publisher needs to know no more.

A file has records already; for etcd a schema makes them of values. A value that gives none costs its key alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from loader import records
from loader._books import Books
from loader._plain import Short
from loader._short import Plain
from loader.compiler import Gift, Given
from loader.last_good import rounds
from loader.model import NO_UTF8, Changes, Listing, Put, Record, Reject
from shm.layout import LoaderState

log = logging.getLogger(__name__)

Parse = Callable[[Put], list[Record]]
Swap = tuple[Plain, list[bytes]]

#: What is refused in its place would be a riddle.
NOT_TEXT = "the key is not UTF-8"


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
    why        what breaks the source's history before it, for people: another cluster, revisions that went back
    kept       on_reject = keep: key that has a problem, but keeps what it gave before -> revision of the value refused.
               In records that is its last good value, or None: the same as before. Looked up as problems are
    usual      the same as records, revisions and problems, a short way through them for who has none of the keys yet
    by_name    another one, through records and marks
    swaps      keys that are in nothing of the above: what is kept of each now, and the names that it gives to, which it
               gave to before, alone. To be taken before the records
    """

    records: Mapping[str, list[Record] | None]
    revision: int
    full: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    causes: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[bytes, bool] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    usual: Usual | None = None
    why: str = ""
    by_name: ByName | None = None
    swaps: Sequence[Swap] = ()


class Usual(Protocol):
    """A full update in parts: of most keys a gift (loader/compiler.py) is all there is to know."""

    def keys(self, start: int, stop: int) -> Sequence[str]:
        """The keys with these numbers, in the order of the records."""
        ...

    def gifts(self, start: int, stop: int, prefix: str, default_ttl: int) -> Iterator[tuple[bytes, Gift] | None]:
        """For each of them its gift and the name that gets it; None: the rest has it. prefix: of the gift's key;
        default_ttl: seconds, for what has none."""
        ...

    def rest(self, numbers: Sequence[int]) -> Update:
        """What there is to know of the keys with these numbers."""
        ...


class ByName(Protocol):
    """The records and marks of a full update, name by name: what each is given, and whether it is an aggregate.

    left: keys that are to be taken from the records, besides; known when all names have been gone through.
    """

    left: set[str]

    def place(self, books: Books, step: int) -> Iterator[None]:
        """Enters most of the names itself, `step` at a time."""
        ...

    def __iter__(self) -> Iterator[Given]:
        """The other names, after that."""
        ...


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
    return _EtcdFeed(source, schema_parse(place.schema, place.prefix), keep, place.prefix)


def schema_parse(schema: str, prefix: str) -> Parse:
    """The parser for keys under `prefix` of a schema that reads each key by itself. Raises ValueError for another."""
    if schema == "records":
        return partial(records.parse, prefix)
    raise ValueError(f"there is no schema {schema!r} that reads each key by itself: take records")


class _EtcdFeed:
    def __init__(self, source: Source, parse: Parse, keep: bool, prefix: str) -> None:
        self._source = source
        self._parse = parse
        self._keep = keep
        self._prefix = prefix

    @property
    def status(self) -> FeedStatus:
        return self._source.status

    async def run(self) -> AsyncGenerator[Update, None]:
        async with aclosing(self._source.run()) as items:
            before = 0
            async for item in items:
                parts = rounds(item, before) if self._keep and isinstance(item, Changes) else (item,)
                for part in parts:
                    yield update_of(part, self._parse, keep=self._keep, prefix=self._prefix)
                before = item.revision


def update_of(item: Listing | Changes, parse: Parse, *, keep: bool = False, prefix: str | None = None) -> Update:
    """A source's item as an Update. Of several events for a key the last one counts. prefix: of the keys, for schema
    records, which knows a short way."""
    problems: dict[str, str] = {}
    if isinstance(item, Listing):
        puts = _Puts(item.entries)
        kept: Mapping[str, int] = _Kept(puts, problems) if keep else {}
        rest = partial(_rest, item.revision, parse, keep)
        usual = None if prefix is None else _UsualRecords(item.entries, prefix, rest)
        parsed = _Parsed(puts, parse, problems)
        return Update(
            parsed, item.revision, True, problems, _Revisions(puts), kept=kept, usual=usual, why=item.why
        )  # fmt: skip
    last = {event.key: event for event in item.events}
    found = {key: _try(parse, event, problems) if isinstance(event, Put) else None for key, event in last.items()}
    revisions = {key: event.mod_revision for key, event in last.items()}
    kept = {key: revisions[key] for key in problems} if keep else {}
    return Update(found, item.revision, False, problems, revisions, kept=kept)


def _rest(revision: int, parse: Parse, keep: bool, puts: list[Put]) -> Update:
    """All the puts' records are made at once: they are few."""
    return update_of(Changes(list(puts), revision), parse, keep=keep)


class _UsualRecords:
    """The short way through a listing in schema records (loader/_plain.pyx)."""

    def __init__(self, puts: list[Put], prefix: str, rest: Callable[[list[Put]], Update]) -> None:
        self._puts = puts
        self._base = prefix.rstrip("/") + "/"
        self._rest = rest
        self._short: Short | None = None

    def keys(self, start: int, stop: int) -> list[str]:
        return [put.key for put in self._puts[start:stop]]

    def gifts(self, start: int, stop: int, prefix: str, default_ttl: int) -> Iterator[tuple[bytes, Gift] | None]:
        if self._short is None:
            self._short = Short(self._base, prefix, default_ttl)
        gift = self._short.gift
        return (gift(put.key, put.value, put.mod_revision) for put in self._puts[start:stop])

    def rest(self, numbers: Sequence[int]) -> Update:
        return self._rest([self._puts[number] for number in numbers])


class _Puts:
    """A listing's puts by key; the dictionary is made when somebody asks."""

    def __init__(self, entries: list[Put]) -> None:
        self.entries = entries
        self._by_key: dict[str, Put] | None = None

    @property
    def by_key(self) -> dict[str, Put]:
        if self._by_key is None:
            self._by_key = {put.key: put for put in self.entries}
        return self._by_key


def _try(parse: Parse, put: Put, problems: dict[str, str]) -> list[Record] | None:
    """The records of a value; None with a note in `problems`."""
    try:
        return parse(put)
    except Reject as reject:
        problems[put.key] = NOT_TEXT if put.key.endswith(NO_UTF8) else str(reject)
    except Exception as error:
        # A bug in a schema must cost this key, not the source.
        log.exception("key %s: unexpected error", put.key)
        problems[put.key] = f"unexpected error: {type(error).__name__}"
    return None


class _Parsed(Mapping[str, list[Record] | None]):
    """Records made as they are read: a million of them at once would be 300 MB beside those that the model keeps."""

    def __init__(self, puts: _Puts, parse: Parse, problems: dict[str, str]) -> None:
        self._puts = puts
        self._parse = parse
        self._problems = problems

    def __getitem__(self, key: str) -> list[Record] | None:
        return _try(self._parse, self._puts.by_key[key], self._problems)

    def __contains__(self, key: object) -> bool:
        return key in self._puts.by_key

    def __iter__(self) -> Iterator[str]:
        return iter(self._puts.by_key)

    def __len__(self) -> int:
        return len(self._puts.entries)


class _Kept(Mapping[str, int]):
    """The refused puts' mod_revisions, as far as the records have been read."""

    def __init__(self, puts: _Puts, problems: dict[str, str]) -> None:
        self._puts = puts
        self._problems = problems

    def __getitem__(self, key: str) -> int:
        if key not in self._problems:
            raise KeyError(key)
        return self._puts.by_key[key].mod_revision

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)


class _Revisions(Mapping[str, int]):
    """The puts' mod_revisions, without a dictionary of their own."""

    def __init__(self, puts: _Puts) -> None:
        self._puts = puts

    def __getitem__(self, key: str) -> int:
        return self._puts.by_key[key].mod_revision

    def __iter__(self) -> Iterator[str]:
        return iter(self._puts.by_key)

    def __len__(self) -> int:
        return len(self._puts.entries)
