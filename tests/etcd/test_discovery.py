"""Endpoints by DNS SRV: a cluster of three, and Standoff itself as the DNS that names its members."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from loader import etcd_source, etcd_url
from loader.etcd import Etcd
from loader.etcd_channel import EtcdUnavailable
from loader.etcd_discovery import endpoints_of, ordered
from tests.etcd.test_production import put_somehow, timed
from tests.support.etcd import EtcdCluster, EtcdServer
from tests.support.instances import fresh_instance
from tests.support.mirroring import Mirroring, run_async
from tests.torture.service import Service, free_port, wait_for

NAME = "_etcd-client._tcp.cluster.test"
HEAD = "$ORIGIN cluster.test.\n@ 5 SOA ns hostmaster {} 60 60 600 5\n@ 5 NS ns\nns 5 A 127.0.0.1\n"


def test_by_priority_and_then_by_weight() -> None:
    draw = random.Random(1).random
    records = [(10, 0, 1, "last"), (10, 60, 2, "often"), (10, 20, 3, "seldom"), (0, 0, 4, "first"), (5, 1, 5, "")]
    orders = Counter(tuple(ordered(records, draw)) for _ in range(2000))
    assert set(orders) == {("first:4", *middle, "last:1") for middle in itertools.permutations(["often:2", "seldom:3"])}
    assert 1400 < orders["first:4", "often:2", "seldom:3", "last:1"] < 1600
    assert ordered([(0, 0, 1, "a"), (1, 0, 1, "a")], draw) == ["a:1"]


class Names:
    """A Standoff of its own that serves the zone of the SRV records from a file."""

    def __init__(self, service: Service, file: Path) -> None:
        self._service, self._file = service, file
        self._serial = 1
        self.resolver = f"127.0.0.1:{service.port}"

    def name(self, *servers: EtcdServer) -> None:
        """The members are these from now on, the first one preferred."""
        self._serial += 1
        records = [f"{NAME}. 5 SRV {n} 0 {server.port} localhost.\n" for n, server in enumerate(servers)]
        fresh = self._file.with_suffix(".new")
        fresh.write_text(HEAD.format(self._serial) + "".join(records))
        fresh.rename(self._file)
        wait_for("the records are served", lambda: self._ports() == [server.port for server in servers])

    def _ports(self) -> list[int] | None:
        query = dns.message.make_query(NAME, "SRV")
        try:
            answer = dns.query.udp(query, "127.0.0.1", port=self._service.port, timeout=1)
        except (OSError, dns.exception.Timeout):
            return None
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return None
        return [rr.port for rr in sorted(rr for rrset in answer.answer for rr in rrset)]


@pytest.fixture
def names(tmp_path: Path, newest_binary: Path) -> Iterator[Names]:
    folder = tmp_path / "names"
    folder.mkdir()
    with fresh_instance() as instance:
        service = Service(instance, free_port(), folder, EtcdServer(newest_binary, folder / "none"), workers=1)
        zone = folder / "cluster.test.zone"
        zone.write_text(HEAD.format(1))
        service.source = ["--source", f"file:{zone}"]
        service.start_run()
        try:
            wait_for("the names are served", service.ready)
            yield Names(service, zone)
        finally:
            service.close()
            print(service.said())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_members_are_found_and_found_again(
    etcd_cluster: EtcdCluster, names: Names, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = etcd_cluster.servers
    names.name(servers[0])

    def uses(mirroring: Mirroring, server: EtcdServer) -> Callable[[], bool]:
        return lambda: mirroring.source.status.endpoint == f"localhost:{server.port}"

    async def run() -> None:
        url = ["etcd+srv://cluster.test"]
        async with Mirroring(url, prefix, query=f"&resolver={names.resolver}") as mirroring:
            await mirroring.until_fresh()
            assert uses(mirroring, servers[0])()
            # Asked again when the connection fails.
            await asyncio.to_thread(names.name, servers[1], servers[2])
            with timed("SRV records changed, and the old member killed") as times:
                servers[0].kill()
                await mirroring.until(uses(mirroring, servers[1]))
                times.is_("noticed", 20)
                await put_somehow(etcd_cluster.endpoints[1:], prefix + "/a")
                await mirroring.until(lambda: prefix + "/a" in mirroring.content)
                times.is_("caught up", 30)
            # The last of them, before it is gone from DNS, too: what DNS said last counts.
            servers[0].start()
            await asyncio.to_thread(names.name)
            servers[1].kill()
            await mirroring.until(uses(mirroring, servers[2]))
            await mirroring.until_fresh()
            servers[1].start()
        # Asked again while all is well.
        monkeypatch.setattr(etcd_source, "RENEW_S", 0.5)
        await asyncio.to_thread(names.name, servers[0], servers[1])
        async with Mirroring(url, prefix, query=f"&resolver={names.resolver}") as mirroring:
            await mirroring.until_fresh()
            assert uses(mirroring, servers[0])()
            await asyncio.to_thread(names.name, servers[2], servers[1])
            await mirroring.until(lambda: not uses(mirroring, servers[0])())
            await mirroring.until_fresh()
            async with Etcd(etcd_cluster.endpoints[0]) as etcd:
                await etcd.put(prefix + "/b", b"1")
                await mirroring.until_like(etcd, prefix)
            assert mirroring.source.status.relists == 0

    run_async(run())


@pytest.mark.slow
def test_what_is_wrong_is_told(names: Names, etcd_server: EtcdServer, prefix: str) -> None:
    async def run() -> None:
        query = f"&resolver={names.resolver}"
        with pytest.raises(EtcdUnavailable, match=r"does not exist: _etcd-client-ssl\._tcp\.cluster\.test\."):
            await endpoints_of(etcd_url.parse(f"etcds+srv://cluster.test/x?schema=records{query}"))
        before = time.monotonic()
        with pytest.raises(EtcdUnavailable, match=r"no etcd endpoints in DNS: .*lifetime expired"):
            await endpoints_of(etcd_url.parse(f"etcd+srv://cluster.test/x?resolver=127.0.0.1:{free_port()}"))
        assert time.monotonic() - before < 20
        async with Mirroring(["etcd+srv://cluster.test"], prefix, query=query) as mirroring:
            await mirroring.until(lambda: NAME in mirroring.source.status.error)
            assert mirroring.source.status.state.name == "STARTING"
            await asyncio.to_thread(names.name, etcd_server)
            await mirroring.until_fresh()
            await mirroring.until(lambda: mirroring.source.status.error == "")

    run_async(run())
