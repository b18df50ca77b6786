"""Partitions of a cluster whose members are machines of their own (network namespaces); skipped without root."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd.test_production import put_somehow, timed
from tests.support import netns
from tests.support.etcd import EtcdCluster, running
from tests.support.mirroring import Mirroring, run_async
from tests.support.netns import Machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not netns.possible(), reason="network namespaces need root"),
]


@pytest.fixture
def spread(newest_binary: Path, tmp_path: Path) -> Iterator[tuple[EtcdCluster, list[Machine]]]:
    """A cluster, and the machine of each member."""
    with netns.machines(3) as machines:
        flags = ("--heartbeat-interval", "50", "--election-timeout", "500")
        cluster = EtcdCluster(newest_binary, tmp_path, *flags, hosts=[machine.address for machine in machines])
        for server, machine in zip(cluster.servers, machines, strict=True):
            server.inside = machine.inside
        for started in running(cluster):
            yield started, machines


@pytest.mark.parametrize("whom", ["us", "its peers", "all"])
def test_the_watched_member_is_cut_off_from(spread: tuple[EtcdCluster, list[Machine]], prefix: str, whom: str) -> None:
    """From its peers: it goes on to answer us, knows no leader, and would never send an event again."""
    cluster, machines = spread
    first, *others = machines

    async def run() -> None:
        async with Mirroring(cluster.endpoints, prefix) as mirroring:
            await mirroring.until_fresh()
            await asyncio.sleep(4)  # the watch is known to live, as most of the time
            used = mirroring.source.status.endpoint
            assert used == cluster.endpoints[0]
            with timed(f"watched member partitioned from {whom}") as times:
                if whom == "us":
                    first.cut_off(here(first))
                elif whom == "its peers":
                    first.cut_off(*others)
                else:
                    first.cut_off()
                writing = asyncio.ensure_future(put_somehow(cluster.endpoints[1:], prefix + "/a"))
                await mirroring.until(lambda: mirroring.source.status.endpoint != used)
                times.is_("noticed", 25)
                await writing
                await mirroring.until(lambda: prefix + "/a" in mirroring.content)
                times.is_("caught up", 30)
            assert mirroring.source.status.drift == 0

    run_async(run())


def here(machine: Machine) -> Machine:
    """Where this process is."""
    return Machine("", machine.address.rpartition(".")[0] + ".1", "")
