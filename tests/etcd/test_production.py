"""etcd as production has it, and how it fails there: how long until it is noticed, and until the loader has caught up.

Each test states both (printed, and appended as a line of JSON to $STANDOFF_ETCD_TIMES): they are the table in
docs/etcd.md. The limits asserted leave room for a machine that is busy.

noticed    from the failure until the source's status tells of it, or another endpoint is in use
caught up  from when that was possible (a failure that others make up for: from the failure) until the content is right
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from loader._etcdpb import PERMISSION_READ
from loader.etcd import Etcd
from loader.etcd_channel import ClientOptions, EtcdError
from loader.etcd_source import LOOK_EVERY_S, EtcdSource
from loader.leased_source import LeasedSource
from loader.model import Changes, Delete, Listing, Put
from shm.layout import LoaderState
from tests.support.certificates import Authority
from tests.support.etcd import EtcdCluster, EtcdServer, Proxy
from tests.support.mirroring import Mirroring, run_async, write_many

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Times:
    """Stopwatches for one failure."""

    def __init__(self, failure: str) -> None:
        self._failure = failure
        self._figures: dict[str, float] = {}
        self._since = time.monotonic()

    def again(self) -> None:
        """From now on."""
        self._since = time.monotonic()

    def is_(self, what: str, limit: float) -> None:
        """It has happened, within so many seconds."""
        self._figures[what] = round(time.monotonic() - self._since, 2)
        assert self._figures[what] < limit

    def tell(self) -> None:
        line = json.dumps({"failure": self._failure, **self._figures})
        print(line)
        if path := os.environ.get("STANDOFF_ETCD_TIMES"):
            with open(path, "a") as file:
                file.write(line + "\n")


@contextmanager
def timed(failure: str) -> Iterator[Times]:
    times = Times(failure)
    yield times
    times.tell()


async def put_somehow(endpoints: list[str], key: str, value: bytes = b"x") -> None:
    """Through whichever member takes it, while a leader is elected, too."""
    for attempt in range(200):
        try:
            async with Etcd(endpoints[attempt % len(endpoints)], ClientOptions(call_timeout=2)) as etcd:
                await etcd.put(key, value)
                return
        except EtcdError as error:
            print(attempt, error)
            await asyncio.sleep(0.1)
    raise AssertionError("no member takes a change")


# ---------------------------------------------------------------- a cluster of three


@pytest.mark.parametrize("failure", ["killed", "stopped", "cut off"])
def test_the_watched_member_fails(
    etcd_cluster: EtcdCluster, make_proxy: Callable[[str], Proxy], prefix: str, failure: str
) -> None:
    """Cut off: connections to it stay, and nothing moves on them (a proxy; the same as a firewall that drops)."""
    proxies = [make_proxy(endpoint) for endpoint in etcd_cluster.endpoints]
    rest = etcd_cluster.endpoints[1:]

    async def run() -> None:
        async with Mirroring([proxy.endpoint for proxy in proxies], prefix) as mirroring:
            await mirroring.until_fresh()
            await asyncio.sleep(4)  # the watch is known to live, as most of the time
            with timed(f"watched member {failure}") as times:
                if failure == "killed":
                    etcd_cluster.servers[0].kill()
                elif failure == "stopped":
                    etcd_cluster.servers[0].signal(signal.SIGSTOP)
                else:
                    proxies[0].stall()
                writing = asyncio.ensure_future(put_somehow(rest, prefix + "/a"))
                await mirroring.until(lambda: mirroring.source.status.endpoint != proxies[0].endpoint)
                times.is_("noticed", 20)
                await writing
                await mirroring.until(lambda: prefix + "/a" in mirroring.content)
                times.is_("caught up", 30)

    try:
        run_async(run())
    finally:
        etcd_cluster.resume()


@pytest.mark.parametrize("failure", ["killed", "stopped"])
def test_another_member_fails(etcd_cluster: EtcdCluster, prefix: str, failure: str) -> None:
    """Each in turn; one of them leads, and a leader is elected."""

    async def run() -> None:
        async with Mirroring(etcd_cluster.endpoints, prefix) as mirroring:
            await mirroring.until_fresh()
            for number in (1, 2):
                server, key = etcd_cluster.servers[number], f"{prefix}/{number}"
                with timed(f"another member {failure}") as times:
                    server.kill() if failure == "killed" else server.signal(signal.SIGSTOP)
                    await put_somehow([etcd_cluster.endpoints[0], etcd_cluster.endpoints[3 - number]], key)
                    await mirroring.until(lambda key=key: key in mirroring.content)  # type: ignore[misc]
                    times.is_("caught up", 30)
                server.start() if failure == "killed" else server.signal(signal.SIGCONT)
                await mirroring.until_fresh()

    try:
        run_async(run())
    finally:
        etcd_cluster.resume()


def test_the_majority_is_away(etcd_cluster: EtcdCluster, prefix: str) -> None:
    """The member that is left answers pings, and no event will ever come from it."""

    async def run() -> None:
        async with Mirroring(etcd_cluster.endpoints, prefix) as mirroring:
            await mirroring.until_fresh()
            with timed("majority away") as times:
                for server in etcd_cluster.servers[1:]:
                    server.signal(signal.SIGSTOP)
                await mirroring.until(lambda: mirroring.source.status.state is LoaderState.STALE)
                times.is_("noticed", 25)
                etcd_cluster.resume()
                times.again()
                await put_somehow(etcd_cluster.endpoints, prefix + "/a")
                await mirroring.until(lambda: prefix + "/a" in mirroring.content)
                times.is_("caught up", 40)

    try:
        run_async(run())
    finally:
        etcd_cluster.resume()


def test_all_members_are_killed_and_come_back(etcd_cluster: EtcdCluster, prefix: str) -> None:
    async def run() -> None:
        async with Mirroring(etcd_cluster.endpoints, prefix) as mirroring:
            await mirroring.until_fresh()
            with timed("all members killed") as times:
                etcd_cluster.kill()
                await mirroring.until(lambda: mirroring.source.status.state is LoaderState.STALE)
                assert mirroring.source.status.error
                times.is_("noticed", 20)
                await asyncio.to_thread(etcd_cluster.start)
                times.again()
                await put_somehow(etcd_cluster.endpoints, prefix + "/a")
                await mirroring.until(lambda: prefix + "/a" in mirroring.content)
                times.is_("caught up", 30)

    run_async(run())


@pytest.mark.parametrize("failure", ["refuses", "is silent"])
def test_the_first_of_the_list_fails_at_the_start(
    etcd_server: EtcdServer, make_proxy: Callable[[str], Proxy], prefix: str, failure: str
) -> None:
    first = make_proxy(etcd_server.endpoint)
    first.refuse() if failure == "refuses" else first.stall()

    async def run() -> None:
        async with Etcd(etcd_server.endpoint) as etcd:
            await etcd.put(prefix + "/a", b"1")
            with timed(f"at the start the first endpoint {failure}") as times:
                async with Mirroring([first.endpoint, etcd_server.endpoint], prefix) as mirroring:
                    await mirroring.until(lambda: mirroring.source.status.endpoint == etcd_server.endpoint)
                    times.is_("noticed", 10)
                    await mirroring.until_like(etcd, prefix)
                    times.is_("caught up", 15)

    run_async(run())


# ---------------------------------------------------------------- another history


def test_restored_from_a_backup(
    etcd_server: EtcdServer, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data as they were some revisions ago, under the same cluster id; and a change since."""
    backup = tmp_path / "backup"

    async def run() -> None:
        async with Mirroring([etcd_server.endpoint], prefix) as mirroring:
            async with Etcd(etcd_server.endpoint) as etcd:
                await write_many(etcd, prefix, 50)
                await mirroring.until_like(etcd, prefix)
            etcd_server.kill()
            shutil.copytree(etcd_server.folder / "data", backup)
            etcd_server.start()
            async with Etcd(etcd_server.endpoint) as etcd:
                await write_many(etcd, prefix, 30, start=40)
                await mirroring.until_like(etcd, prefix)
            etcd_server.kill()
            etcd_server.wipe()
            shutil.copytree(backup, etcd_server.folder / "data")
            etcd_server.start()
            with timed("restored from a backup") as times:
                async with Etcd(etcd_server.endpoint) as etcd:
                    await etcd.put(prefix + "/k000001", b"new")
                    await mirroring.until(lambda: isinstance(mirroring.items[-1], Listing))
                    times.is_("noticed", 20)
                    await mirroring.until_like(etcd, prefix)
                    times.is_("caught up", 20)
            assert len(mirroring.content) == 50

    run_async(run())
    assert "went back from revision" in caplog.text


def test_another_cluster_under_the_same_address(
    make_etcd: Callable[..., EtcdServer], prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_etcd("--initial-cluster-token", "one")

    async def run() -> None:
        async with Mirroring([server.endpoint], prefix) as mirroring:
            async with Etcd(server.endpoint) as etcd:
                await write_many(etcd, prefix, 50)
                await mirroring.until_like(etcd, prefix)
            server.kill()
            server.wipe()
            server.flags = ("--initial-cluster-token", "two")
            server.start()
            with timed("another cluster") as times:
                async with Etcd(server.endpoint) as etcd:
                    await write_many(etcd, prefix, 80, start=10)  # further on than the other
                    await mirroring.until(lambda: isinstance(mirroring.items[-1], Listing) or len(mirroring.items) > 2)
                    times.is_("noticed", 20)
                    await mirroring.until_like(etcd, prefix)
                    times.is_("caught up", 20)
            assert sum(isinstance(item, Listing) for item in mirroring.items) == 2

    run_async(run())
    assert "another cluster than before" in caplog.text


# ---------------------------------------------------------------- quota


def gateway(server: EtcdServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """etcd's API as JSON, for what the client has no need of."""
    request = urllib.request.Request(f"http://{server.endpoint}/v3/{path}", json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


async def overfill(etcd: Etcd) -> None:
    """With a quota of 1 MB; one after the other: the alarm comes with the first that is refused."""
    for number in range(100):
        await etcd.put("/elsewhere", bytes([number]) * 100_000)


def test_quota_exceeded(make_etcd: Callable[..., EtcdServer], prefix: str) -> None:
    server = make_etcd("--quota-backend-bytes", str(1 << 20))

    async def run() -> None:
        async with Etcd(server.endpoint) as etcd, Mirroring([server.endpoint], prefix) as mirroring:
            await etcd.put(prefix + "/a", b"1")
            await mirroring.until_like(etcd, prefix)
            with timed("quota exceeded (NOSPACE)") as times:
                with pytest.raises(EtcdError, match="space exceeded"):
                    await overfill(etcd)
                times.again()
                await mirroring.until(lambda: "NOSPACE" in mirroring.source.status.alarms)
                times.is_("noticed", LOOK_EVERY_S * 2)
                status = mirroring.source.status
                assert status.state is LoaderState.FRESH
                assert "alarm disarm" in status.error
                # What it holds is served, also to who comes now.
                async with Mirroring([server.endpoint], prefix) as late:
                    await late.until_like(etcd, prefix)
                await etcd.compact(await etcd.revision())
                gateway(server, "maintenance/defragment", {})
                for alarm in gateway(server, "maintenance/alarm", {"action": "GET"})["alarms"]:
                    gateway(server, "maintenance/alarm", {**alarm, "action": "DEACTIVATE"})
                times.again()
                await etcd.put(prefix + "/b", b"2")
                await mirroring.until_like(etcd, prefix)
                times.is_("caught up", 20)
            await mirroring.until(lambda: not mirroring.source.status.error)

    run_async(run())


# ---------------------------------------------------------------- access


async def guarded(server: EtcdServer, prefix: str) -> None:
    """Authentication is on, and `dns` may read."""
    async with Etcd(server.endpoint, ClientOptions(user="root", password="root")) as etcd:
        await etcd.add_user("dns", "right", prefix, PERMISSION_READ)
        await etcd.enable_auth("root")


def as_root(server: EtcdServer) -> Etcd:
    return Etcd(server.endpoint, ClientOptions(user="root", password="root"))


def authorised(server: EtcdServer, path: str, body: dict[str, Any]) -> None:
    token = gateway(server, "auth/authenticate", {"name": "root", "password": "root"})["token"]
    request = urllib.request.Request(
        f"http://{server.endpoint}/v3/auth/{path}", json.dumps(body).encode(), {"Authorization": token}
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).close()


def test_the_token_expires(
    make_etcd: Callable[..., EtcdServer], make_proxy: Callable[[str], Proxy], prefix: str
) -> None:
    """A watch needs none once it runs; the next list gets a new one."""
    server = make_etcd("--auth-token-ttl", "1")
    proxy = make_proxy(server.endpoint)

    async def run() -> None:
        await guarded(server, prefix)
        options = ClientOptions(user="dns", password="right")
        async with (
            as_root(server) as etcd,
            Mirroring([proxy.endpoint], prefix, options, relist_interval=2.5) as mirroring,
        ):
            await mirroring.until_fresh()
            with timed("token expired") as times:
                await mirroring.until(lambda: mirroring.source.status.relists >= 3)
                times.is_("relists that needed a new token", 30)
                times.again()
                await etcd.put(prefix + "/a", b"1")
                await mirroring.until_like(etcd, prefix)
                times.is_("caught up", 20)
            status = mirroring.source.status
            assert (status.error, status.drift, proxy.connections) == ("", 0, 1)

    run_async(run())


@pytest.mark.parametrize("what", ["role", "password", "user"])
def test_access_is_lost_in_mid_watch(
    make_etcd: Callable[..., EtcdServer],
    make_proxy: Callable[[str], Proxy],
    prefix: str,
    what: str,
    tmp_path: Path,
) -> None:
    """etcd goes on to send what the watch is for. It is told all the same: a new watch would not begin."""
    server = make_etcd()
    proxy = make_proxy(server.endpoint)
    file = tmp_path / "password"
    file.write_text("right\n")

    async def run() -> None:
        await guarded(server, prefix)
        options = ClientOptions(user="dns", password_file=str(file))
        async with as_root(server) as etcd, Mirroring([proxy.endpoint], prefix, options) as mirroring:
            await mirroring.until_fresh()
            with timed(f"access lost: {what}") as times:
                if what == "role":
                    authorised(server, "user/revoke", {"name": "dns", "role": "dns"})
                elif what == "password":
                    authorised(server, "user/changepw", {"name": "dns", "password": "changed"})
                else:
                    authorised(server, "user/delete", {"name": "dns"})
                await mirroring.until(lambda: "dns" in mirroring.source.status.alarms)
                times.is_("noticed", LOOK_EVERY_S * 2)
                assert mirroring.source.status.state is LoaderState.FRESH
                await etcd.put(prefix + "/a", b"1")
                await mirroring.until_like(etcd, prefix)
                proxy.cut()
                await mirroring.until(lambda: mirroring.source.status.state is LoaderState.STALE)
                if what == "role":
                    authorised(server, "user/grant", {"user": "dns", "role": "dns"})
                elif what == "password":
                    file.write_text("changed\n")
                else:
                    authorised(server, "user/add", {"name": "dns", "password": "right"})
                    authorised(server, "user/grant", {"user": "dns", "role": "dns"})
                times.again()
                await etcd.put(prefix + "/b", b"2")
                await mirroring.until_like(etcd, prefix)
                times.is_("caught up", 30)
            await mirroring.until(lambda: not mirroring.source.status.error)

    run_async(run())


def test_certificates_are_renewed(make_etcd: Callable[..., EtcdServer], tmp_path: Path, prefix: str) -> None:
    """Ours and the authority's, on disk, while we run: used with the next connection. Until then etcd refuses us."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    for authority in (old, new):
        authority.sign("server", "client")
    ours = tmp_path / "ours"
    shutil.copytree(tmp_path / "old", ours)

    def flags(authority: Authority) -> tuple[str, ...]:
        return (
            "--cert-file", authority.path("server.pem"), "--key-file", authority.path("server.key"),
            "--client-cert-auth", "--trusted-ca-file", authority.path("ca.pem"),
        )  # fmt: skip

    def options(folder: Path) -> ClientOptions:
        return ClientOptions(
            tls=True, cacert=str(folder / "ca.pem"), cert=str(folder / "client.pem"), key=str(folder / "client.key")
        )

    server = make_etcd(*flags(old), scheme="https")

    async def run() -> None:
        async with Mirroring([server.endpoint], prefix, options(ours)) as mirroring:
            await mirroring.until_fresh()
            server.kill()
            server.flags = flags(new)
            await asyncio.to_thread(server.start)
            with timed("certificates of another authority") as times:
                await mirroring.until(lambda: "check cacert" in mirroring.source.status.error)
                times.is_("noticed", 20)
                for file in ("client.key", "client.pem", "ca.pem"):
                    shutil.copy(new.path(file), ours / file)
                times.again()
                async with Etcd(server.endpoint, options(new.folder)) as etcd:
                    await etcd.put(prefix + "/a", b"1")
                    await mirroring.until_like(etcd, prefix)
                times.is_("caught up", 30)

    run_async(run())


def test_a_namespace_is_a_world_of_its_own(etcd_server: EtcdServer, prefix: str) -> None:
    """Authentication, too: the user may read nothing else."""

    async def run() -> None:
        async with Etcd(etcd_server.endpoint) as etcd:
            await etcd.put(prefix + "/other", b"theirs")
            await etcd.put(f"/team-a{prefix}/a", b"1")
        async with Etcd(etcd_server.endpoint, namespace="/team-a") as inside:
            await inside.add_user("dns", "right", prefix, PERMISSION_READ)
            await inside.enable_auth("root")
        root = ClientOptions(user="root", password="root")
        options = ClientOptions(user="dns", password="right")
        with timed("in a namespace") as times:
            async with (
                Etcd(etcd_server.endpoint, root, namespace="/team-a") as inside,
                Etcd(etcd_server.endpoint, root) as outside,
                Mirroring([etcd_server.endpoint], prefix, options, "&namespace=/team-a") as mirroring,
            ):
                await mirroring.until_like(inside, prefix)
                assert list(mirroring.content) == [prefix + "/a"]
                times.again()
                await inside.transact([(prefix + "/b", b"2")], [prefix + "/a"])
                await outside.delete_prefix(prefix)
                put = await outside.get(f"/team-a{prefix}/b")
                assert put is not None
                assert put.value == b"2"
                await mirroring.until_like(inside, prefix)
                times.is_("caught up", 20)
                assert list(mirroring.content) == [prefix + "/b"]
                assert mirroring.source.status.error == ""

    run_async(run())


# ---------------------------------------------------------------- leases


class Losing:
    """A source that loses every deletion."""

    def __init__(self, source: EtcdSource) -> None:
        self._source = source
        self.status = source.status
        self.lost = 0

    async def lease_ttl(self, lease: int) -> tuple[int, int]:
        return await self._source.lease_ttl(lease)

    async def run(self) -> AsyncGenerator[Listing | Changes, None]:
        async with aclosing(self._source.run()) as items:
            async for item in items:
                if isinstance(item, Changes):
                    kept: list[Put | Delete] = [event for event in item.events if isinstance(event, Put)]
                    self.lost += len(item.events) - len(kept)
                    yield Changes(kept, item.revision)
                else:
                    yield item


def test_a_lease_ends_and_the_deletion_is_lost(etcd_server: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        mirroring = Mirroring([etcd_server.endpoint], prefix)
        losing = Losing(mirroring.source)
        leased = LeasedSource(losing)

        async def follow() -> None:
            async for item in leased.run():
                mirroring._apply(item)

        task = asyncio.ensure_future(follow())
        try:
            async with Etcd(etcd_server.endpoint) as etcd:
                lease, longer = await etcd.grant_lease(2), await etcd.grant_lease(600)
                await etcd.put(prefix + "/a", b"1", lease)
                await etcd.put(prefix + "/moved", b"1", lease)
                await etcd.put(prefix + "/stays", b"1", longer)
                await etcd.put(prefix + "/moved", b"2", longer)
                mirroring._task = task
                await mirroring.until(lambda: len(mirroring.content) == 3)
                with timed("deletion at a lease's end lost") as times:
                    await mirroring.until(lambda: losing.lost > 0)
                    times.again()
                    await mirroring.until(lambda: prefix + "/a" not in mirroring.content)
                    times.is_("noticed", 25)
                    times.is_("caught up", 25)
                assert sorted(mirroring.content) == [prefix + "/moved", prefix + "/stays"]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run_async(run())
