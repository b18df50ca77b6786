"""The guard's clock and hook while a cluster of three loses the member in use, and elects another leader.

What is held is not concerned: no number, no age, no second question to the hook comes of it, and the time is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader.etcd import Etcd
from loader.etcd_channel import ClientOptions, EtcdError
from tests.etcd.test_guard import HOSTS, ZONE, Guarded, key
from tests.etcd.test_running import Asking
from tests.support.etcd import EtcdCluster
from tests.support.instances import fresh_instance
from tests.torture.service import Service, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OLD = "192.0.2.1"
HOLD_S = 8.0
TIMES = ("--heartbeat-interval", "50", "--election-timeout", "500")


class Clustered(Guarded):
    cluster: EtcdCluster

    def begin(self, *options: str) -> None:
        self.change(dict.fromkeys(range(HOSTS), OLD))
        self.service.source = [
            "--source", f"etcd://{','.join(self.cluster.endpoints)}/names?schema=records", "--zone", ZONE,
            "--state-dir", str(self.state), *options,
        ]  # fmt: skip
        self.service.start_run()
        wait_for("the service answers", self.service.ready)
        self.until_host(HOSTS - 1, OLD)

    def change(self, puts: dict[int, str] | None = None, gone: range | list[int] = range(0)) -> None:
        """Through whichever member takes it."""
        values = [(key(number), address.encode()) for number, address in (puts or {}).items()]

        async def body() -> None:
            for attempt in range(100):
                try:
                    async with Etcd(self.cluster.endpoints[attempt % 3], ClientOptions(call_timeout=2)) as client:
                        await client.transact(values, [key(number) for number in gone])
                        return
                except EtcdError:
                    await asyncio.sleep(0.1)
            raise AssertionError("no member takes a change")

        asyncio.run(body())


@pytest.fixture
def clustered(newest_binary: Path, tmp_path: Path) -> Iterator[Clustered]:
    cluster = EtcdCluster(newest_binary, tmp_path, *TIMES, "--max-txn-ops", "2000", "--unsafe-no-fsync").start()
    with fresh_instance() as instance:
        service = Service(instance, free_port(), tmp_path, cluster.servers[0], workers=1)
        made = Clustered(service, cluster.servers[0], tmp_path)
        made.cluster = cluster
        try:
            yield made
        finally:
            service.close()
            cluster.kill()
            print(service.said())


@pytest.mark.parametrize("then", ["approve", "reject"])
def test_members_die_one_after_the_other_while_something_is_held(
    clustered: Clustered, tmp_path: Path, then: str
) -> None:
    told, hook = tmp_path / "told", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho asked >> {told}\nexit 2\n")
    hook.chmod(0o755)
    clustered.begin("--guard-hold-for", f"{HOLD_S:g}", "--guard-then", then, "--guard-hook", str(hook))
    clustered.change(gone=range(300))
    clustered.until_held()
    (before,) = clustered.pending()
    with Asking(clustered, f"h0.{ZONE}") as held:
        for number, server in enumerate(clustered.cluster.servers, 1):
            server.kill()  # one of the three is the leader, one the member in use
            began = time.monotonic()
            clustered.change({HOSTS - 1: f"192.0.2.{100 + number}"})
            clustered.until_host(HOSTS - 1, f"192.0.2.{100 + number}")
            print(f"member {number} killed: a change is answered after {time.monotonic() - began:.2f} s")
            server.start()
            for change in clustered.pending():  # nobody has decided yet, if the machine is quick
                assert (change["change"], change["since"], change["names"]) == (1, before["since"], 300)
        wait_for("the clock decides", lambda: clustered.service.board.loader.get("held_changes") == 0)
        took = time.time() - before["since"]
        print(f"decided {took:.2f} s after it was held")
        assert took + 0.01 >= HOLD_S
        if then == "approve":
            clustered.until_host(0, "NXDOMAIN")
        else:
            wait_for("it is rejected", lambda: clustered.service.board.loader.get("rejected_names") == 300)
    assert held.seen == ([[OLD], ["NXDOMAIN"]] if then == "approve" else [[OLD]]), f"in {held.count} answers"
    assert told.read_text().split() == ["asked"]
