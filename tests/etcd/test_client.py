"""The client against real servers: pages, watches, compaction, authentication, TLS, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from loader import etcd as etcd_module
from loader._etcdpb import PERMISSION_READWRITE
from loader.etcd import Etcd, key_text, prefix_end
from loader.etcd_channel import AuthFailed, ClientOptions, Compacted, EtcdChannel, EtcdError, EtcdUnavailable, TooLarge
from loader.model import Delete, Put
from tests.support.certificates import Authority
from tests.support.etcd import EtcdServer, Proxy, free_ports
from tests.support.mirroring import run_async

ALL = "failed to connect to all addresses; last error: "


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details)


async def keys_of(etcd: Etcd, prefix: str, page_size: int = 50_000, revision: int = 0) -> list[str]:
    return [put.key async for page in etcd.pages(prefix, page_size, revision) for put in page.entries]


def test_prefix_end() -> None:
    assert prefix_end(b"/a") == b"/b"
    assert prefix_end(b"/a\xff\xff") == b"/b"
    assert prefix_end(b"\xff") == b"\0"
    assert prefix_end(b"") == b"\0"


def test_keys_that_are_not_utf8_stay_apart() -> None:
    assert key_text("/é".encode()) == "/é"
    assert key_text(b"/\xff") == "/\\xff\ufffd" != key_text(b"/\\xff")


def test_read_and_write(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd:
            version, cluster_id = await etcd.status()
            assert version.startswith("3.")
            first = await etcd.put(prefix + "/a", b"1")
            second = await etcd.transact([(prefix + "/b", b"2"), (prefix + "/c", b"3")], [prefix + "/a"])
            assert second == first + 1 == await etcd.revision()
            assert await etcd.get(prefix + "/a") is None
            assert await etcd.get(prefix + "/b") == Put(prefix + "/b", b"2", second)
            (page,) = [page async for page in etcd.pages(prefix)]
            assert page.cluster_id == cluster_id
            assert (page.revision, page.total, page.last) == (second, 2, True)
            assert await etcd.delete_prefix(prefix) == second + 1
            assert await keys_of(etcd, prefix) == []

    run_async(run())


def test_pages_are_of_one_revision_while_writes_go_on(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd:
            names = [f"{prefix}/{i:03}" for i in range(100)]
            revision = await etcd.transact((name, b"old") for name in names)
            pages = []
            async for page in etcd.pages(prefix, 7):
                pages.append(page)
                await etcd.transact([(names[-len(pages)], b"new"), (f"{prefix}/x{len(pages)}", b"")], [names[50]])
            assert {page.revision for page in pages} == {revision}
            assert len(pages) == 15
            entries = [put for page in pages for put in page.entries]
            assert entries == [Put(name, b"old", revision) for name in names]
            assert [page.last for page in pages] == [False] * 14 + [True]

    run_async(run())


def test_a_page_too_large_is_asked_for_in_parts(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        options = ClientOptions(max_message=100_000)
        async with Etcd(shared_etcd.endpoint, options) as etcd:
            names = [f"{prefix}/{i:03}" for i in range(300)]
            for name in names:
                await etcd.put(name, b"x" * 1000)
            assert await keys_of(etcd, prefix, page_size=300) == names
            await etcd.put(names[0], b"x" * 110_000)
            with pytest.raises(TooLarge, match="100000 bytes"):
                await keys_of(etcd, prefix)

    run_async(run())


def test_a_slow_line(
    shared_etcd: EtcdServer, prefix: str, make_proxy: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 MB through 1 MB/s, with 6 s for a page: signs of life come through beside it, and pages become smaller."""
    monkeypatch.setattr(etcd_module, "SLOW_PAGE", 1000)
    names = [f"{prefix}/{number:05}" for number in range(8000)]

    async def body() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd:
            for start in range(0, len(names), 500):
                await etcd.transact([(name, bytes(1000)) for name in names[start : start + 500]])
        proxy = make_proxy(shared_etcd.endpoint)
        proxy.delay = 65536 / 1e6
        async with Etcd(proxy.endpoint, ClientOptions(page_timeout=6.0)) as etcd:
            assert await keys_of(etcd, prefix, page_size=8000) == names

    run_async(body())


def test_lists_above_four_mebibytes(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd:
            for i in range(12):
                await etcd.put(f"{prefix}/{i:02}", b"x" * 500_000)
            assert len(await keys_of(etcd, prefix)) == 12
            await etcd.delete_prefix(prefix)

    run_async(run())


def test_watch_delivers_whole_revisions_in_order(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd:
            start = await etcd.revision() + 1
            one = await etcd.put(prefix + "/a", b"1")
            two = await etcd.transact([(prefix + "/b", b"2")], [prefix + "/a"])
            watch = await etcd.watch(prefix, start)
            assert watch.revision >= two
            events: list[Put | Delete] = []
            while len(events) < 3:
                events += await watch.read()
            assert events[0] == Put(prefix + "/a", b"1", one)
            assert sorted(events[1:], key=repr) == [Delete(prefix + "/a", two), Put(prefix + "/b", b"2", two)]
            await watch.ping()
            assert await watch.read() == []
            watch.cancel()

    run_async(run())


def test_compaction_in_both_forms(etcd_server: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(etcd_server.endpoint) as etcd:
            first = await etcd.put(prefix + "/a", b"1")
            for i in range(5):
                await etcd.put(prefix + "/b", b"%d" % i)
            await etcd.compact(first + 3)
            with pytest.raises(Compacted):
                await keys_of(etcd, prefix, revision=first)
            watch = await etcd.watch(prefix, first)
            with pytest.raises(Compacted) as caught:
                await watch.read()
            assert caught.value.revision == first + 3
            watch = await etcd.watch(prefix, first + 4)
            assert await watch.read()
            watch.cancel()

    run_async(run())


def test_a_list_overtaken_by_a_compaction(etcd_server: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(etcd_server.endpoint) as etcd:
            for i in range(10):
                await etcd.put(f"{prefix}/{i}", b"")

            async def list_slowly() -> None:
                async for _ in etcd.pages(prefix, 2):
                    await etcd.compact(await etcd.put(prefix + "/x", b""))

            with pytest.raises(Compacted):
                await list_slowly()

    run_async(run())


def test_leases(shared_etcd: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        async with Etcd(shared_etcd.endpoint) as etcd:
            lease = await etcd.grant_lease(60)
            await etcd.put(prefix + "/a", b"1", lease)
            put = await etcd.get(prefix + "/a")
            assert put is not None
            assert put.lease == lease
            left, granted = await etcd.lease_ttl(lease)
            assert 0 < left <= granted == 60
            await etcd.revoke_lease(lease)
            assert await etcd.lease_ttl(lease) == (-1, 0)
            assert await etcd.get(prefix + "/a") is None

    run_async(run())


@pytest.mark.slow
def test_authentication(make_etcd: Callable[..., EtcdServer], prefix: str) -> None:
    server = make_etcd("--auth-token-ttl", "1")

    async def run() -> None:
        async with Etcd(server.endpoint, ClientOptions(user="dns", password="right")) as early:
            # Not enabled yet: a user is no obstacle.
            await early.add_user("dns", "right", prefix, PERMISSION_READWRITE)
            await early.add_user("other", "right", "/elsewhere")
            await early.enable_auth("root")
            # Connected before authentication was on: the first refusal fetches a token.
            await early.put(prefix + "/a", b"1")
        for options in (ClientOptions(user="dns", password="wrong"), ClientOptions(user="nobody", password="x")):
            with pytest.raises(AuthFailed, match=f"wrong user '{options.user}' or wrong password"):
                await Etcd(server.endpoint, options).open()
        async with Etcd(server.endpoint) as anonymous:
            with pytest.raises(AuthFailed, match="wants a user"):
                await keys_of(anonymous, prefix)
            with pytest.raises(AuthFailed):
                await anonymous.watch(prefix, 1)
        async with Etcd(server.endpoint, ClientOptions(user="other", password="right")) as other:
            with pytest.raises(AuthFailed, match="user 'other' may not do this"):
                await keys_of(other, prefix)
            with pytest.raises(AuthFailed, match="user 'other' may not watch"):
                await other.watch(prefix, 1)
        async with Etcd(server.endpoint, ClientOptions(user="dns", password="right")) as etcd:
            token = etcd.token
            assert token
            watch = await etcd.watch(prefix, 1)
            # Unused tokens expire after a second, checked once a second.
            await asyncio.sleep(2.5)
            await etcd.put(prefix + "/a", b"2")
            assert etcd.token != token
            token = etcd.token
            await asyncio.sleep(2.5)
            again = await etcd.watch(prefix, 1)
            assert etcd.token != token
            for one in (watch, again):
                events: list[Put | Delete] = []
                while len(events) < 2:
                    events += await one.read()
                one.cancel()

    run_async(run())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client certificates, and the CA of somebody else."""
    folder = tmp_path_factory.mktemp("tls")
    Authority(folder, "other")
    Authority(folder).sign("server", "client")
    return folder


def test_mutual_tls(make_etcd: Callable[..., EtcdServer], certificates: Path, prefix: str) -> None:
    def file(name: str) -> str:
        return str(certificates / name)

    server = make_etcd(
        "--cert-file", file("server.pem"), "--key-file", file("server.key"),
        "--client-cert-auth", "--trusted-ca-file", file("ca.pem"), scheme="https",
    )  # fmt: skip

    def ours(cacert: str) -> ClientOptions:
        return ClientOptions(tls=True, cacert=file(cacert), cert=file("client.pem"), key=file("client.key"))

    async def run() -> None:
        async with Etcd(server.endpoint, ours("ca.pem")) as etcd:
            await etcd.put(prefix, b"1")
        with pytest.raises(EtcdUnavailable, match="check cacert"):
            await Etcd(server.endpoint, ours("other.pem")).open()
        with pytest.raises(EtcdUnavailable):
            async with Etcd(server.endpoint, ClientOptions(tls=True, cacert=file("ca.pem"))) as etcd:
                await etcd.put(prefix, b"1")
        with pytest.raises(EtcdUnavailable, match="write etcds://"):
            async with Etcd(server.endpoint) as etcd:
                await etcd.put(prefix, b"1")
        options = ClientOptions(tls=True, cert=file("client.pem"), key=file("nowhere"))
        with pytest.raises(EtcdError, match=r"cannot read the etcd client key .*nowhere: No such file"):
            await Etcd(server.endpoint, options).open()

    run_async(run())


FILES = {"cacert": "ca.pem", "cert": "client.pem", "key": "client.key"}


@pytest.mark.parametrize("broken", ["ca.pem", "client.pem", "client.key"])
@pytest.mark.parametrize("content", [b"", b"no certificate", None], ids=["empty", "junk", "half"])
def test_files_that_are_being_written(certificates: Path, tmp_path: Path, broken: str, content: bytes | None) -> None:
    """Whoever renews them may write them in place. gRPC would end the process for an empty one."""
    for name in ("ca.pem", "client.pem", "client.key"):
        whole = (certificates / name).read_bytes()
        part = whole[: len(whole) // 2] if content is None else content
        (tmp_path / name).write_bytes(part if name == broken else whole)
    options = ClientOptions(tls=True, **{name: str(tmp_path / file) for name, file in FILES.items()})

    async def run() -> None:
        with pytest.raises(EtcdError, match="not a PEM file, or not yet" if content is not None else "etcd"):
            await Etcd("127.0.0.1:1", options).open()

    run_async(run())


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        (f"{ALL}UNKNOWN: ipv4:192.0.2.1:1: Failed to connect to remote host: Connection reset", "connection reset"),
        (f"{ALL}UNAVAILABLE: ipv6:%5B::1%5D:2379: Socket closed", "socket closed"),
        (f"{ALL}UNKNOWN: ipv4:192.0.2.1:1: Ssl handshake failed: why", "ssl handshake failed: why"),
        ("etcdserver: no leader", "etcdserver: no leader"),
        ("Socket closed", "Socket closed"),
        ("", "UNAVAILABLE"),
    ],
)
def test_what_grpc_says_is_cut_to_the_cause(details: str, cause: str) -> None:
    told = EtcdChannel("a:1", ClientOptions(tls=True)).explain(_unavailable(details))
    assert str(told).removeprefix("etcd a:1: ").split("; check")[0].split("; is it")[0] == cause


def test_tls_is_suggested_only_where_nothing_has_worked() -> None:
    channel = EtcdChannel("a:1", ClientOptions())
    assert "etcds://" in str(channel.explain(_unavailable("Socket closed")))
    channel.worked = True
    assert str(channel.explain(_unavailable("Socket closed"))) == "etcd a:1: Socket closed"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"cert": "c", "tls": True}, "belong together"), ({"cacert": "c"}, "etcds://"), ({"password": "x"}, "both")],
)
def test_options_that_contradict_each_other(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(EtcdError, match=complaint):
        ClientOptions(**options)  # type: ignore[arg-type]


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(ClientOptions(user="u", password="secret"))


def test_nobody_listens_and_nobody_answers(shared_etcd: EtcdServer, make_proxy: Callable[[str], Proxy]) -> None:
    async def run() -> None:
        nobody = f"127.0.0.1:{free_ports(1)[0]}"
        with pytest.raises(EtcdUnavailable, match=rf"^etcd {nobody}: connection refused; is it running, [^;]*$"):
            await Etcd(nobody).open()
        hole = make_proxy(shared_etcd.endpoint)
        hole.stall()
        before = time.monotonic()
        with pytest.raises(EtcdUnavailable, match="no answer within 1 s"):
            await Etcd(hole.endpoint).open()
        assert time.monotonic() - before < 20
        with pytest.raises(EtcdUnavailable, match="is closed"):
            await Etcd(nobody).revision()

    run_async(run())
