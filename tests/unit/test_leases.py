"""loader/leases.py and what loader/skydns_feed.py makes of it: a lease's time, and its end if nobody tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import pytest

from loader import leases as module
from loader import names
from loader.etcd_channel import EtcdUnavailable
from loader.feed import Update
from loader.files import FileStatus
from loader.leases import Leases
from loader.model import Changes, Delete, Listing, Put
from loader.skydns_feed import SkydnsFeed

T = TypeVar("T")
KEY = "/skydns/test/example/www/a"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Etcd:
    """Leases as etcd tells of them: lease -> (left, granted)."""

    def __init__(self, **leases: tuple[int, int]) -> None:
        self.leases = {int(name[1:]): times for name, times in leases.items()}
        self.asked: list[int] = []
        self.away = False
        self.hangs = False

    async def __call__(self, lease: int) -> tuple[int, int]:
        self.asked.append(lease)
        if self.hangs:
            await asyncio.sleep(3600)
        if self.away:
            raise EtcdUnavailable("away")
        return self.leases.get(lease, (-1, 0))


def run(body: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await body()

    return asyncio.run(main())


def test_known_leases_are_asked_for_once() -> None:
    async def body() -> None:
        etcd, clock = Etcd(L1=(50, 60)), Clock()
        leases = Leases(etcd, clock)
        assert (leases.pause(), leases.granted(1)) == (None, 0)
        await leases.learn([1, 1, 0], 1)
        await leases.learn([1], 1)
        assert etcd.asked == [1]
        assert leases.granted(1) == 60
        assert leases.pause() == 53  # with the grace
        assert leases.known() == {1}

    run(body)


def test_a_deadline_is_put_off_as_long_as_the_lease_lives() -> None:
    async def body() -> None:
        etcd, clock = Etcd(L1=(50, 60)), Clock()
        leases = Leases(etcd, clock)
        await leases.learn([1], 1)
        clock.now += 60
        assert leases.pause() == 0
        assert await leases.check() == (set(), set())
        assert leases.pause() == 53
        etcd.leases[1] = (90, 100)
        clock.now += 60
        assert await leases.check() == (set(), {1})
        assert leases.granted(1) == 100
        del etcd.leases[1]
        clock.now += 100
        assert await leases.check() == ({1}, set())
        leases.forget(1)
        assert leases.pause() is None

    run(body)


@pytest.mark.parametrize("how", ["away", "hangs"])
def test_while_etcd_does_not_answer_nothing_is_gone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECK_PATIENCE", 0.01)

    async def body() -> None:
        etcd, clock = Etcd(), Clock()
        setattr(etcd, how, True)
        leases = Leases(etcd, clock)
        await leases.learn([1], 0.01)
        assert leases.granted(1) == 0
        clock.now += 1
        assert await leases.check() == (set(), set())
        setattr(etcd, how, False)
        etcd.leases[1] = (9, 10)
        clock.now += 10
        assert await leases.check() == (set(), {1})

    run(body)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("closed"), EtcdUnavailable("away")])
def test_a_connection_that_closes_under_a_question_ends_nothing(error: BaseException) -> None:
    async def body() -> None:
        async def ask(lease: int) -> tuple[int, int]:
            raise error

        clock = Clock()
        leases = Leases(ask, clock)
        await leases.learn([1, 2], 1)
        clock.now += 1
        assert await leases.check() == (set(), set())
        assert leases.known() == {1, 2}

    run(body)


class Source:
    """Gives what is put into its queue."""

    def __init__(self, etcd: Etcd) -> None:
        self.status = FileStatus()
        self.queue: asyncio.Queue[Listing | Changes] = asyncio.Queue()
        self.lease_ttl = etcd.__call__

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        while True:
            yield await self.queue.get()


def put(lease: int, revision: int, key: str = KEY) -> Put:
    return Put(key, b'{"host":"192.0.2.1"}', revision, lease)


def ttls(update: Update) -> dict[str, set[int]]:
    return {key: {record.ttl for record in records or ()} for key, records in update.records.items()}


def test_a_key_goes_with_its_lease_even_if_the_watch_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.05)
    monkeypatch.setattr(module, "_LEAST_PAUSE", 0.05)

    async def body() -> None:
        etcd = Etcd(L1=(0, 45), L2=(100, 100))
        source = Source(etcd)
        feed = SkydnsFeed(source, "/skydns", [names.from_text("example.test")], "coredns")
        source.queue.put_nowait(Listing([put(1, 3), put(2, 4, KEY + "b"), put(0, 5, KEY + "c")], 9))
        async with aclosing(feed.run()) as updates:
            update = await anext(updates)
            assert ttls(update) == {KEY: {45}, KEY + "b": {100}, KEY + "c": {300}}
            del etcd.leases[1]
            update = await anext(updates)
            assert update.records[KEY] is None or not update.records[KEY]
            assert (update.revision, update.full) == (9, False)
            assert KEY + "b" not in update.records or update.records[KEY + "b"]
            # The watch tells after all: no harm.
            source.queue.put_nowait(Changes([Delete(KEY, 10), put(1, 11)], 11))
            assert (await anext(updates)).revision == 11

    run(body)


def test_a_change_does_not_wait_for_a_slow_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        etcd = Etcd(L1=(50, 60))
        etcd.hangs = True
        source = Source(etcd)
        feed = SkydnsFeed(source, "/skydns", [names.from_text("example.test")], "coredns")
        source.queue.put_nowait(Listing([], 1))
        async with aclosing(feed.run()) as updates:
            await anext(updates)
            source.queue.put_nowait(Changes([put(1, 3)], 3))
            assert ttls(await anext(updates)) == {KEY: {30}}
            etcd.hangs = False
            assert ttls(await anext(updates)) == {KEY: {60}}

    run(body)
