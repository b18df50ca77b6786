"""loader/feed.py: what etcd says, as Updates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from loader import names
from loader.feed import Update, etcd_feed, schema_parse, update_of
from loader.files import FileStatus
from loader.model import Changes, Delete, Listing, Put, Record

PREFIX = "/standoff"
PARSE = schema_parse("records", PREFIX)
WWW = names.from_text("www.example.test")


def put(name: str, value: str, revision: int) -> Put:
    return Put(f"{PREFIX}/example.test/{name}/A", value.encode(), revision)


def read(update: Update) -> dict[str, tuple[list[Record] | None, str | None, int]]:
    """As the publisher reads it: a key's problem and revision after its records."""
    return {
        key.removeprefix(f"{PREFIX}/example.test/"): (
            records,
            update.problems.get(key),
            update.revisions.get(key, update.revision),
        )
        for key, records in update.records.items()
    }


def test_a_listing_is_a_full_update() -> None:
    update = update_of(Listing([put("www", "192.0.2.1", 3), put("bad", "x", 4)], 9), PARSE)
    assert (update.full, update.revision, len(update.records)) == (True, 9, 2)
    assert {f"{PREFIX}/example.test/www/A", "gone"} - update.records.keys() == {"gone"}
    found = read(update)
    records, problem, revision = found["www/A"]
    assert records is not None
    assert (records[0].owner, problem, revision) == (WWW, None, 3)
    assert found["bad/A"] == (None, "'x' is not an IPv4 address", 4)
    assert set(update.problems) <= set(update.records)


def test_of_several_events_for_a_key_the_last_counts() -> None:
    events: list[Put | Delete] = [
        put("a", "192.0.2.1", 3),
        put("b", "192.0.2.1", 3),
        Delete(f"{PREFIX}/example.test/a/A", 4),
        put("b", "x", 5),
        put("b", "192.0.2.2", 6),
    ]
    update = update_of(Changes(events, 6), PARSE)
    assert (update.full, update.revision, update.problems) == (False, 6, {})
    found = read(update)
    assert found["a/A"] == (None, None, 4)
    records, problem, revision = found["b/A"]
    assert records is not None
    assert (records[0].rdata, problem, revision) == (b"\xc0\x00\x02\x02", None, 6)


def test_a_reject_costs_its_key() -> None:
    update = update_of(Changes([put("a", "x", 3), put("b", "192.0.2.1", 4)], 4), PARSE)
    assert read(update)["a/A"][:2] == (None, "'x' is not an IPv4 address")
    assert read(update)["b/A"][1] is None


def test_a_bug_in_a_schema_costs_its_key(caplog: pytest.LogCaptureFixture) -> None:
    def parse(put: Put) -> list[Record]:
        if put.value == b"x":
            raise ZeroDivisionError
        return []

    with caplog.at_level(logging.CRITICAL):
        update = update_of(Changes([put("a", "x", 3), put("b", "y", 4)], 4), parse)
    assert read(update)["a/A"][:2] == (None, "unexpected error: ZeroDivisionError")
    assert read(update)["b/A"][:2] == ([], None)


def test_a_schema_that_is_none() -> None:
    with pytest.raises(ValueError, match="nope"):
        schema_parse("nope", PREFIX)


@dataclass
class _Place:
    prefix: str = PREFIX
    schema: str = "records"


class _Source:
    status = FileStatus(error="as the source says")
    closed = False

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        try:
            yield Listing([put("www", "192.0.2.1", 3)], 3)
            while True:
                yield Changes([put("www", "192.0.2.2", 4)], 4)
        finally:
            self.closed = True


def test_etcd_feed() -> None:
    source = _Source()

    async def main() -> list[bool]:
        feed = etcd_feed(source, _Place())
        assert feed.status.error == "as the source says"
        seen = []
        async with aclosing(feed.run()) as updates:
            async for update in updates:
                seen.append(update.full)
                if len(seen) == 2:
                    break
        return seen

    assert asyncio.run(main()) == [True, False]
    assert source.closed
