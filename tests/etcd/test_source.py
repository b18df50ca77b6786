"""The whole source against real servers and a hostile network: nothing is lost, nothing hangs, nothing is made up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from loader.etcd import Etcd
from loader.etcd_channel import ClientOptions
from loader.etcd_source import merge
from loader.model import Changes, Delete, Listing, Put
from shm.layout import LoaderState
from tests.support.etcd import EtcdCluster, EtcdServer, Proxy
from tests.support.mirroring import Mirroring, run_async, write_many


def test_merge() -> None:
    one, two = Put("a", b"", 2), Delete("a", 3)
    assert merge([]) == []
    assert merge([Changes([one], 2), Changes([two], 3)]) == [Changes([one, two], 3)]
    assert merge([Changes([one], 2), Listing([], 3), Changes([two], 4)]) == [Listing([], 3), Changes([two], 4)]


def test_list_then_changes(shared_etcd: EtcdServer, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([shared_etcd.endpoint], prefix) as mirroring:
            await mirroring.until(lambda: len(mirroring.items) == 1)
            assert f"there is no key under {prefix}/ yet" in caplog.text
            revision = await etcd.put(prefix + "/a", b"1")
            await etcd.put(prefix + "-elsewhere/a", b"1")
            await mirroring.until(lambda: len(mirroring.items) == 2)
            assert mirroring.items[0] == Listing([], revision - 1)
            assert mirroring.items[1] == Changes([Put(prefix + "/a", b"1", revision)], revision)
            await etcd.transact([(prefix + "/b", b"2")], [prefix + "/a"])
            await mirroring.until_like(etcd, prefix)
            status = mirroring.source.status
            assert (status.state, status.keys, status.revision) == (LoaderState.FRESH, 1, revision + 2)
            assert time.time_ns() - status.last_seen_ns < 60e9
            assert status.error == ""

    run_async(run())


def test_a_busy_consumer_gets_all_at_once(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([shared_etcd.endpoint], prefix) as mirroring:
            await mirroring.until_fresh()
            mirroring.hold.clear()
            await etcd.put(prefix + "/a", b"1")
            await mirroring.until(lambda: len(mirroring.items) == 2)
            for i in range(20):
                await etcd.put(prefix + "/b", b"%d" % i)
            await asyncio.sleep(0.2)
            mirroring.hold.set()
            await mirroring.until_like(etcd, prefix)
            assert len(mirroring.items) == 3

    run_async(run())


def test_cuts_in_the_middle_of_catching_up_lose_nothing(
    shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]
) -> None:
    """Trap 1: a client that resumes at a header's revision loses most of what it had yet to be sent."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    random = Random(seed)
    proxy = make_proxy(shared_etcd.endpoint)

    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([proxy.endpoint], prefix) as mirroring:
            await mirroring.until_fresh()
            proxy.refuse()
            proxy.cut()
            await write_many(etcd, prefix, 5000, size=100)
            await etcd.transact([(prefix + "/last", b"")], [f"{prefix}/k{i:06}" for i in range(100)])
            proxy.refuse(False)
            # Each message holds up to 1000 events of about 150 bytes; so every cut falls into one.
            for cuts in range(proxy.cuts, proxy.cuts + 6):
                proxy.cut_after(random.randrange(1000, 250_000))
                await mirroring.until(partial(lambda cuts: proxy.cuts > cuts or len(mirroring.content) == 4901, cuts))
            await mirroring.until_like(etcd, prefix)
            assert proxy.cuts > 3
            assert mirroring.source.status.relists == mirroring.source.status.drift == 0
            assert len(mirroring.items) > 3

    run_async(run())


def test_catching_up_above_four_mebibytes(
    shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]
) -> None:
    proxy = make_proxy(shared_etcd.endpoint)

    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([proxy.endpoint], prefix) as mirroring:
            await mirroring.until_fresh()
            proxy.refuse()
            proxy.cut()
            await write_many(etcd, prefix, 1000, size=8000)
            received = proxy.received
            proxy.refuse(False)
            await mirroring.until_like(etcd, prefix)
            assert proxy.received - received > 8_000_000
            assert mirroring.source.status.relists == 0

    run_async(run())


def test_a_message_above_the_limit_leads_to_a_list(
    shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]
) -> None:
    proxy = make_proxy(shared_etcd.endpoint)

    async def run() -> None:
        options = ClientOptions(max_message=100_000)
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([proxy.endpoint], prefix, options) as mirroring:
            await mirroring.until_fresh()
            proxy.refuse()
            proxy.cut()
            await write_many(etcd, prefix, 1000, size=500)
            proxy.refuse(False)
            await mirroring.until_like(etcd, prefix)
            assert mirroring.source.status.relists == 1
            assert mirroring.source.status.drift == 0

    run_async(run())


def test_compaction_while_away(etcd_server: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]) -> None:
    proxy = make_proxy(etcd_server.endpoint)

    async def run() -> None:
        async with Etcd(etcd_server.endpoint) as etcd, Mirroring([proxy.endpoint], prefix) as mirroring:
            await write_many(etcd, prefix, 50)
            await mirroring.until_like(etcd, prefix)
            proxy.refuse()
            proxy.cut()
            await write_many(etcd, prefix, 100, start=25)
            await etcd.delete(prefix + "/k000001")
            await etcd.compact(await etcd.revision())
            items = len(mirroring.items)
            proxy.refuse(False)
            await mirroring.until_like(etcd, prefix)
            status = mirroring.source.status
            assert (status.relists, status.drift) == (1, 0)
            # A gap is closed by the differences alone.
            (item,) = mirroring.items[items:]
            assert isinstance(item, Changes)
            assert len(item.events) == 101

    run_async(run())


def test_far_behind_lists_instead_of_replaying(
    shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]
) -> None:
    proxy = make_proxy(shared_etcd.endpoint)

    async def run() -> None:
        async with (
            Etcd(shared_etcd.endpoint) as etcd,
            Mirroring([proxy.endpoint], prefix, behind_limit=100) as mirroring,
        ):
            await mirroring.until_fresh()
            proxy.refuse()
            proxy.cut()
            for i in range(101):
                await etcd.put(prefix + "/a", b"%d" % i)
            proxy.refuse(False)
            await mirroring.until_like(etcd, prefix)
            assert mirroring.source.status.relists == 1
            assert len(mirroring.items) == 2

    run_async(run())


def test_lease_expiry_arrives_as_a_delete(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([shared_etcd.endpoint], prefix) as mirroring:
            await mirroring.until_fresh()
            lease = await etcd.grant_lease(1)
            await etcd.put(prefix + "/a", b"1", lease)
            await mirroring.until(
                lambda: mirroring.content[prefix + "/a"].lease == lease if mirroring.content else False
            )
            await mirroring.until(lambda: not mirroring.content)
            last = mirroring.items[-1]
            assert isinstance(last, Changes)
            assert last.events == [Delete(prefix + "/a", last.revision)]

    run_async(run())


def test_relists_beside_a_busy_watch_find_no_drift(shared_etcd: EtcdServer, prefix: str) -> None:
    """Invariant 3 for real: lists and events overlap in every way that two streams can."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    random = Random(seed)

    async def run() -> None:
        async with (
            Etcd(shared_etcd.endpoint) as etcd,
            Mirroring([shared_etcd.endpoint], prefix, relist_interval=0.02, settle=0.5) as mirroring,
        ):
            await write_many(etcd, prefix, 500)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                keys = [f"{prefix}/k{random.randrange(600):06}" for _ in range(20)]
                await asyncio.gather(
                    *(etcd.delete(key) if random.random() < 0.3 else etcd.put(key, os.urandom(8)) for key in keys)
                )
            await mirroring.until_like(etcd, prefix)
            status = mirroring.source.status
            assert status.relists > 3
            assert status.drift == 0

    run_async(run())


def test_relist_finds_and_repairs_drift(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with (
            Etcd(shared_etcd.endpoint) as etcd,
            Mirroring([shared_etcd.endpoint], prefix, relist_interval=0.5, settle=0.2) as mirroring,
        ):
            await write_many(etcd, prefix, 100)
            await mirroring.until_like(etcd, prefix)
            # As if two events had been lost, and one made up.
            held = mirroring.source._mirror.content.held
            for key in ("k000001", "k000002"):
                del held[f"{prefix}/{key}"]
                del mirroring.content[f"{prefix}/{key}"]
            held[prefix + "/ghost"] = 0
            mirroring.content[prefix + "/ghost"] = Put(prefix + "/ghost", b"", 1)
            await mirroring.until(lambda: mirroring.source.status.drift > 0)
            await mirroring.until_like(etcd, prefix)
            relists = mirroring.source.status.relists
            await mirroring.until(lambda: mirroring.source.status.relists > relists + 1)
            assert mirroring.source.status.drift == 3

    run_async(run())


@pytest.mark.slow
def test_a_black_hole_and_back(shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]) -> None:
    """The only endpoint stops passing packets: the content goes stale and comes back by itself."""
    proxy = make_proxy(shared_etcd.endpoint)

    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd, Mirroring([proxy.endpoint], prefix) as mirroring:
            await write_many(etcd, prefix, 10)
            await mirroring.until_like(etcd, prefix)
            await mirroring.until_fresh()
            proxy.stall()
            await etcd.put(prefix + "/a", b"1")
            await mirroring.until(lambda: mirroring.source.status.state is LoaderState.STALE)
            assert proxy.endpoint in mirroring.source.status.error or "sign of life" in mirroring.source.status.error
            proxy.resume()
            await mirroring.until_like(etcd, prefix)
            await mirroring.until(lambda: mirroring.source.status.error == "")
            assert mirroring.source.status.state is LoaderState.FRESH

    run_async(run())


def test_a_black_hole_first_costs_about_a_second(
    shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy]
) -> None:
    hole = make_proxy(shared_etcd.endpoint)
    hole.stall()

    async def run() -> None:
        async with Mirroring([hole.endpoint, shared_etcd.endpoint], prefix) as mirroring:
            await mirroring.until_fresh()
            assert mirroring.source.status.endpoint == shared_etcd.endpoint

    run_async(run())


def test_etcd_is_not_there_yet(make_etcd: Callable[..., EtcdServer], prefix: str) -> None:
    server = make_etcd()
    server.kill()

    async def run() -> None:
        async with Mirroring([server.endpoint], prefix) as mirroring:
            await mirroring.until(lambda: "is it running" in mirroring.source.status.error)
            assert mirroring.source.status.state is LoaderState.STARTING
            server.start()
            await mirroring.until_fresh()
            await mirroring.until(lambda: mirroring.source.status.error == "")

    run_async(run())


def test_a_user_that_is_refused_and_then_let_in(make_etcd: Callable[..., EtcdServer], prefix: str) -> None:
    server = make_etcd()

    async def run() -> None:
        async with Etcd(server.endpoint, ClientOptions(user="root", password="root")) as etcd:
            await etcd.enable_auth("root")
            await etcd.put(prefix + "/a", b"1")
            options = ClientOptions(user="dns", password="right")
            async with Mirroring([server.endpoint], prefix, options, backoff_limit=0.5) as mirroring:
                await mirroring.until(lambda: "wrong user 'dns'" in mirroring.source.status.error)
                assert mirroring.source.status.state is LoaderState.STARTING
                await etcd.add_user("dns", "right", prefix)
                await mirroring.until_like(etcd, prefix)
                await mirroring.until(lambda: mirroring.source.status.error == "")

    run_async(run())


def test_a_store_that_was_wiped_gives_a_listing(etcd_server: EtcdServer, prefix: str) -> None:
    """Same cluster id, lower revisions: a plain watch would wait in silence for a revision of the future."""

    async def run() -> None:
        async with Mirroring([etcd_server.endpoint], prefix) as mirroring:
            async with Etcd(etcd_server.endpoint) as etcd:
                await write_many(etcd, prefix, 50)
                await mirroring.until_like(etcd, prefix)
            etcd_server.kill()
            etcd_server.wipe()
            etcd_server.start()
            async with Etcd(etcd_server.endpoint) as etcd:
                await etcd.put(prefix + "/k000001", b"new")
                await mirroring.until_like(etcd, prefix)
            assert isinstance(mirroring.items[-1], Listing)
            assert mirroring.source.status.drift == 0

    run_async(run())


@pytest.mark.slow
def test_the_watched_node_is_killed(etcd_cluster: EtcdCluster, prefix: str) -> None:
    async def run() -> None:
        async with (
            Etcd(etcd_cluster.endpoints[1]) as etcd,
            Mirroring(etcd_cluster.endpoints, prefix) as mirroring,
        ):
            await mirroring.until_fresh()
            for i in range(300):
                if i == 100:
                    etcd_cluster.servers[0].kill()
                while True:
                    try:
                        await etcd.put(f"{prefix}/k{i:06}", b"%d" % i)
                        break
                    except Exception as error:  # while a leader is elected
                        print(i, error)
                        await asyncio.sleep(0.1)
            await mirroring.until_like(etcd, prefix)
            assert mirroring.source.status.endpoint == etcd_cluster.endpoints[1]
            assert len(mirroring.content) == 300

    run_async(run())


@pytest.mark.slow
def test_the_watched_node_is_stopped(etcd_cluster: EtcdCluster, prefix: str) -> None:
    """SIGSTOP: the kernel goes on to acknowledge, only the process is silent. Noticed after 6 s, and 9 s at most."""

    async def run() -> None:
        try:
            async with Mirroring(etcd_cluster.endpoints, prefix) as mirroring:
                await mirroring.until_fresh()
                etcd_cluster.servers[0].signal(signal.SIGSTOP)
                await mirroring.until(lambda: mirroring.source.status.endpoint == etcd_cluster.endpoints[1])
                async with Etcd(etcd_cluster.endpoints[1], ClientOptions(call_timeout=20)) as etcd:
                    await etcd.put(prefix + "/a", b"1")
                    await mirroring.until_like(etcd, prefix)
        finally:
            etcd_cluster.resume()

    run_async(run())


@pytest.mark.slow
def test_a_member_without_a_majority_is_not_believed(etcd_cluster: EtcdCluster, prefix: str) -> None:
    """It answers pings, but no event will ever come from it."""

    async def run() -> None:
        try:
            async with Mirroring(etcd_cluster.endpoints[:1], prefix) as mirroring:
                await mirroring.until_fresh()
                for server in etcd_cluster.servers[1:]:
                    server.signal(signal.SIGSTOP)
                await mirroring.until(lambda: mirroring.source.status.state is LoaderState.STALE)
                etcd_cluster.resume()
                await mirroring.until_fresh()
        finally:
            etcd_cluster.resume()

    run_async(run())
