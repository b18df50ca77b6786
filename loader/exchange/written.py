"""Record sets as zone files, as JSON lines and as msgpack; and the last one read. What each writes reads back the same.

msgpack: a stream of a header map and one array a set, names in wire form.

    {"format": "standoff", "version": 1, ...}    then    [zone, owner, type, ttl, [data, ...]]

A set whose records have attributes has one more element: a map of them for each record, with fields as in JSON lines.
Zone files cannot say attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import msgpack
import msgspec

from loader import names, rdata, wording
from loader.exchange import conditions
from loader.exchange.sets import Gathered, RecordSet, Remark, gather, records_of
from loader.exchange.text import zone_text
from loader.model import DEFAULT_TTL, MAX_TTL, Reject

FORMAT, VERSION = "standoff", 1
#: Octets of one set: an RRset does not outgrow a message, and a message has 64 KiB.
_LARGEST_SET = 1 << 20


def zone_file(sets: Iterable[RecordSet]) -> Iterator[str]:
    """Lines of a zone file of one zone's sets, SOA first, names absolute. Raises Reject."""
    for number, one in enumerate(sets):
        if not number:
            yield f"$ORIGIN {names.to_text(one.zone)}"
        ttl = "" if one.ttl == DEFAULT_TTL else f"{one.ttl}\t"
        head = f"{names.to_text(one.owner)}\t{ttl}IN\t{rdata.type_name(one.type)}\t"
        for data in dict.fromkeys(one.data):
            yield head + zone_text(one.type, data)


def by_zone(sets: Iterable[RecordSet]) -> Iterator[tuple[bytes, list[RecordSet]]]:
    """The sets, which are in canonical order, zone by zone."""
    for zone, group in groupby(sets, lambda one: one.zone):
        yield zone, list(group)


def file_name(zone: bytes) -> str:
    """The file that holds a zone: its origin as loader/zonefile.py reads it from the name."""
    return (names.to_text(zone)[:-1].replace("/", "\\047") or "root") + ".zone"


def json_lines(sets: Iterable[RecordSet]) -> Iterator[bytes]:
    """Lines as loader/jsonlines.py reads them. Raises Reject."""
    for one in sets:
        line: dict[str, object] = {"name": names.to_text(one.owner), "type": rdata.type_name(one.type)}
        if one.ttl != DEFAULT_TTL:
            line["ttl"] = one.ttl
        yield msgspec.json.encode(line | conditions.content(one))


def packed(sets: Iterable[RecordSet], about: dict[str, Any]) -> Iterator[bytes]:
    """A msgpack stream; `about` adds to the header."""
    encode = msgspec.msgpack.encode
    yield encode({"format": FORMAT, "version": VERSION} | about)
    for one in sets:
        pairs = zip(one.attributes, one.data, strict=False)
        given = [[conditions.fields(each, one.type, data) for each, data in pairs]] if one.attributes else []
        yield encode([one.zone, one.owner, one.type, one.ttl, list(one.data), *given])


def read_packed(raw: bytes, zones: Collection[bytes] = ()) -> Gathered:
    """What `packed` wrote. Raises Reject if it is none, or is cut off."""
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=max(len(raw), 1), max_bin_len=_LARGEST_SET)
    unpacker.feed(raw)
    found: list[RecordSet] = []
    problems: list[Remark] = []
    try:
        head = unpacker.unpack()
        if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
            raise Reject(f"this is no msgpack export of version {VERSION}")
        for number, row in enumerate(unpacker, 1):
            if (one := _row(row)) is None:
                problems.append(Remark(f"set {number}", "is not zone, owner, type, TTL and data"))
                continue
            try:
                found.append(_with_attributes(one, row[5:]))
            except Reject as error:
                problems.append(Remark(one.title, str(error), one.owner))
            except msgspec.ValidationError as error:
                problems.append(Remark(one.title, wording.why(error), one.owner))
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        if isinstance(error, Reject):
            raise
        raise Reject(f"this is no msgpack export: {error or type(error).__name__}") from None
    if unpacker.tell() != len(raw):
        raise Reject("the msgpack export is cut off")
    return gather(records_of(found), zones, problems)


def _row(row: Any) -> RecordSet | None:
    try:
        zone, owner, type_, ttl, data, *_ = row
        made = RecordSet(_name(zone), _name(owner), type_, ttl, tuple(data))
    except (TypeError, ValueError):
        return None
    good = isinstance(type_, int) and rdata.storable(type_) and isinstance(ttl, int) and -1 <= ttl <= MAX_TTL
    if not good or not all(isinstance(one, bytes) for one in data) or not names.is_under(made.owner, made.zone):
        return None
    return made


def _with_attributes(one: RecordSet, rest: list[Any]) -> RecordSet:
    """rest: what stands in a row behind the data. Raises Reject, msgspec.ValidationError."""
    if not rest:
        return one
    if len(rest) > 1 or not isinstance(rest[0], list) or len(rest[0]) != len(one.data):
        raise Reject("has not a map of attributes for each record")
    pairs = zip(rest[0], one.data, strict=True)
    return replace(one, attributes=tuple(conditions.read(said, one.type, data) for said, data in pairs))


def _name(raw: Any) -> bytes:
    """Wire form that is a name. Raises ValueError."""
    if not isinstance(raw, bytes) or not raw:
        raise ValueError("no name")
    try:
        labels = list(names.labels(raw))
    except IndexError:
        raise ValueError("no name") from None
    if names.from_labels(labels) != raw or raw != raw.lower():
        raise ValueError("no name")
    return raw
