"""Where imports come from and go to: files, standard input, etcd. What is in them is loader/exchange's matter."""

from __future__ import annotations

import codecs
import io
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from loader import etcd_url, jsonlines, names, zonefile
from loader.etcd import Etcd
from loader.etcd_access import EtcdAccess, client_options
from loader.etcd_channel import ClientOptions, EtcdError, EtcdUnavailable
from loader.etcd_discovery import endpoints_of
from loader.etcd_url import EtcdUrl
from loader.exchange import powerdns, route53, written
from loader.exchange.keys import Change, batches
from loader.exchange.sets import Gathered, Remark, gather, join
from loader.exchange.signed import unsign
from loader.feed import Feed, etcd_feed
from loader.files import SUFFIXES, FileStatus
from loader.model import Changes, Listing, Put, Record, Reject
from loader.skydns import Semantics
from loader.skydns_feed import SkydnsFeed

#: Operations of a transaction; etcd takes 128 by default.
BATCH = 100
FORMATS = ("zone", "jsonl", "msgpack", "powerdns", "route53", "etcd")
#: Formats that cannot say attributes (docs/filters.md).
_MUTE = frozenset(("zone", "powerdns", "route53"))
#: What is told of keys from etcd.
_LEASED = "has a lease, and is taken over without: nothing removes it when the lease ends"
_NO_WILDCARD = "is no wildcard as CoreDNS answers; --semantics strict makes it one"
_SUFFIXES = {".jsonl": "jsonl", ".json": "route53", ".msgpack": "msgpack", ".mp": "msgpack", ".pdns": "powerdns"}


def format_of(source: str) -> str:
    """What a source is, by its name: a zone file if nothing else."""
    if etcd_url.is_etcd_url(source):
        return "etcd"
    return _SUFFIXES.get(Path(source).suffix.lower(), "zone")


def read(
    source: str, format: str, zones: Collection[bytes], standard_input: Callable[[], bytes], origin: bytes | None = None
) -> Gathered:
    """Everything that a file, a folder of zone files and JSON lines, or standard input (`-`) gives. origin: of a zone
    file, unless it says $ORIGIN, or its name is that of a zone in there. Raises Reject, OSError."""
    path = Path(source.removeprefix("file:"))
    if format == "zone" and source != "-" and path.is_dir():
        return _folder(path, zones)
    if format == "zone":
        found = _zone_file(source, zones, standard_input, origin)
    else:
        found = _read(source, format, zones, standard_input)
    if format in _MUTE:
        found = unsign(found)
        found.mute = {(one.owner, one.type) for one in found.sets}
    return found


def _read(source: str, format: str, zones: Collection[bytes], standard_input: Callable[[], bytes]) -> Gathered:
    raw = standard_input() if source == "-" else Path(source.removeprefix("file:")).read_bytes()
    if format != "msgpack":
        raw = raw.removeprefix(codecs.BOM_UTF8)
    match format:
        case "jsonl":
            return _json_lines(raw, zones)
        case "msgpack":
            return written.read_packed(raw, zones)
        case "route53":
            return route53.read(raw, zones)
        case "powerdns":
            return powerdns.read(raw.decode(errors="surrogateescape"), zones)
    raise Reject(f"{source} cannot be read as {format}")


def _json_lines(raw: bytes, zones: Collection[bytes]) -> Gathered:
    found, wrong = jsonlines.read(raw.splitlines(keepends=True))
    records = [record for content in found.values() for record in jsonlines.as_list(content)]
    return gather(records, zones, [Remark(f"line {number}", reason) for number, reason in wrong.items()])


def _zone_file(
    source: str, zones: Collection[bytes], standard_input: Callable[[], bytes], origin: bytes | None
) -> Gathered:
    result = zonefile.ZoneFile()
    if source == "-":
        stream = io.TextIOWrapper(io.BytesIO(standard_input()), zonefile.ENCODING, zonefile.ERRORS)
        zonefile.read_stream(stream, origin, zones, result)
    else:
        zonefile.read(Path(source.removeprefix("file:")), zones, result, origin)
    problems = [
        Remark(where, reason, names.from_text(where.rpartition("/")[0])) for where, reason in result.problems.items()
    ]
    return gather([record for held in result.records.values() for record in held], zones, problems)


def _folder(path: Path, zones: Collection[bytes]) -> Gathered:
    parts: list[Gathered] = []
    problems: list[Remark] = []
    other: list[Remark] = []
    for file in sorted(path.iterdir()):
        if file.suffix not in SUFFIXES or file.name.startswith("."):
            other += [Remark(str(file), "is not read: in a folder zone files end in .zone or .db")] * file.is_file()
            continue
        try:
            parts.append(read(str(file), format_of(str(file)), zones, bytes))
        except (Reject, OSError) as error:
            problems.append(Remark(str(file), getattr(error, "strerror", None) or str(error)))
    found = join(parts, zones, problems)
    found.notes += other
    return found


# ---------------------------------------------------------------- etcd


@dataclass(slots=True)
class Written:
    """How far a write has come."""

    done: int = 0
    revision: int = 0


@dataclass(slots=True)
class Place:
    """A prefix in etcd and how to get there. Raises EtcdError where no endpoint answers."""

    url: EtcdUrl
    options: ClientOptions
    _client: Etcd | None = field(default=None, init=False)

    async def __aenter__(self) -> Place:
        last: EtcdError | None = None
        for endpoint in await endpoints_of(self.url):
            client = Etcd(endpoint, self.options, self.url.namespace)
            try:
                await client.open()
                self._client = client
                return self
            except EtcdUnavailable as error:
                await client.close()
                last = error
            except BaseException:
                await client.close()
                raise
        raise last or EtcdUnavailable("no endpoint is named")

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    @property
    def client(self) -> Etcd:
        assert self._client is not None
        return self._client

    async def present(self) -> tuple[list[Put], int]:
        """Every key under the prefix, and the revision that they are of."""
        found: list[Put] = []
        revision = 0
        async with aclosing(self.client.pages(self.url.key_prefix)) as pages:
            async for page in pages:
                found += page.entries
                revision = page.revision
        return found, revision

    async def write(self, changes: list[Change], written: Written, advance: Callable[[int], None]) -> None:
        """Make the changes, in transactions; `written` tells how far it came if this raises."""
        for batch in batches(changes, BATCH):
            puts = [(one.key, one.new) for one in batch if one.new is not None]
            written.revision = await self.client.transact(puts, [one.key for one in batch if one.new is None])
            written.done += len(batch)
            advance(len(batch))


def place_of(url: str, access: EtcdAccess) -> Place:
    """Raises ValueError for a URL or a password file that cannot be used."""
    parsed = etcd_url.parse(url)
    return Place(parsed, client_options(access, tls=parsed.tls))


class _Once:
    """A source (loader/feed.py) that lists once and ends."""

    status = FileStatus()

    def __init__(self, place: Place) -> None:
        self._place = place
        self.lease_ttl = place.client.lease_ttl
        self.leased: list[str] = []

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        puts, revision = await self._place.present()
        self.leased = [put.key for put in puts if put.lease]
        yield Listing(puts, revision)


@dataclass(frozen=True, slots=True)
class Listed:
    """What an etcd prefix gives by its schema: key -> records, key -> the revision of each, key -> why it gives none,
    the keys with a lease, and the revision of all."""

    records: dict[str, list[Record]]
    revisions: dict[str, int]
    problems: dict[str, str]
    leased: list[str]
    revision: int


async def listed(place: Place, zones: Collection[bytes], semantics: Semantics = "coredns") -> Listed:
    """Everything that a prefix gives, as the loader would read it. Raises EtcdError."""
    async with place:
        once = _Once(place)
        feed: Feed
        if place.url.schema == "skydns":
            feed = SkydnsFeed(once, place.url.prefix, zones, semantics)
        else:
            feed = etcd_feed(once, place.url)
        async with aclosing(feed.run()) as updates:
            update = await anext(updates)
            # A full update makes its records while they are read; its problems are there afterwards.
            records = dict(sorted((key, made) for key, made in update.records.items() if made))
            revisions = {key: update.revisions[key] for key in records if key in update.revisions}
            return Listed(records, revisions, dict(update.problems), once.leased, update.revision)


async def read_etcd(place: Place, zones: Collection[bytes], semantics: Semantics = "coredns") -> Gathered:
    """The same as record sets."""
    found = await listed(place, zones, semantics)
    flat = [record for made in found.records.values() for record in made]
    result = gather(flat, zones, [Remark(key, reason) for key, reason in found.problems.items()])
    result.notes += [Remark(key, _LEASED) for key in found.leased]
    if place.url.schema == "skydns" and semantics == "coredns":
        result.notes += [Remark(key, _NO_WILDCARD) for key in found.records if "*" in key.split("/")]
    return result
