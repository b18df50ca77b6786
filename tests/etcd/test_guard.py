"""The guard in a running service with a real etcd: what is held, what flows, what a person decides; seen by clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.etcd import Etcd
from tests.etcd.test_running import Running
from tests.support.etcd import EtcdServer
from tests.support.instances import fresh_instance
from tests.torture.service import Service, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ZONE = "example.test"
HOSTS = 500


def key(number: int) -> str:
    return f"/names/{ZONE}/h{number}/A"


class Guarded(Running):
    """500 hosts in one zone."""

    def begin(self, *options: str) -> None:
        self.change(dict.fromkeys(range(HOSTS), "192.0.2.1"))
        self.start("records", *options)
        self.until(f"h{HOSTS - 1}.{ZONE}", "192.0.2.1")

    def change(self, puts: dict[int, str] | None = None, gone: range | list[int] = range(0)) -> None:
        """In one transaction of etcd."""

        async def body() -> None:
            async with Etcd(self.etcd.endpoint) as client:
                values = [(key(n), address.encode()) for n, address in (puts or {}).items()]
                await client.transact(values, [key(n) for n in gone])

        asyncio.run(body())

    def host(self, number: int) -> list[str]:
        return self.ask(f"h{number}.{ZONE}")

    def until_host(self, number: int, *expected: str) -> None:
        self.until(f"h{number}.{ZONE}", *expected)

    def serial(self) -> int:
        return int(self.ask(ZONE, "SOA")[0].split()[2])

    def standoff(self, *arguments: str) -> dict[str, Any]:
        done = self.service.standoff(*arguments, "--json", *self._runtime)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def pending(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.standoff("pending", *arguments)["changes"]
        return found

    def until_held(self, changes: int = 1) -> None:
        wait_for(f"{changes} changes are held", lambda: self.service.board.loader.get("held_changes") == changes)


@pytest.fixture
def make_guarded(newest_binary: Path, tmp_path: Path) -> Iterator[Callable[..., Guarded]]:
    with fresh_instance() as instance:
        made: list[Guarded] = []

        def make(kind: type[Guarded] = Guarded) -> Guarded:
            flags = ("--max-txn-ops", "2000", "--unsafe-no-fsync")
            etcd = EtcdServer(newest_binary, tmp_path / "etcd", *flags).start()
            made.append(kind(Service(instance, free_port(), tmp_path, etcd, workers=1), etcd, tmp_path))
            return made[-1]

        yield make
        for one in made:
            one.service.close()
            one.etcd.kill()
            print(one.service.said())


def test_most_names_deleted(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin()
    seen = guarded.serial()
    guarded.change(gone=range(300))
    guarded.until_held()
    assert guarded.host(0) == ["192.0.2.1"]
    assert guarded.serial() == seen
    started = time.monotonic()
    guarded.change({499: "192.0.2.99"})
    guarded.until_host(499, "192.0.2.99")
    print(f"another name's change flowed after {time.monotonic() - started:.3f} s")
    assert guarded.host(0) == ["192.0.2.1"]
    (change,) = guarded.pending()
    assert change["names"] == 300
    assert change["reasons"] == ["300 of 501 names would be lost: 60%, guard_removed allows 30%"]
    found = guarded.standoff("pending")
    assert len(found["differences"]) == 300
    assert found["complete"]
    assert found["differences"][0]["removed"] == ["300 A 192.0.2.1"]
    text = guarded.service.standoff("pending", "--limit", "2", *guarded._runtime)
    assert "2 of 300 names are shown" in text.stderr
    assert text.stdout.count("  - h") == 2
    told = guarded.service.standoff("explain", f"h0.{ZONE}", *guarded._runtime).stdout
    assert f"h0.{ZONE}. does not follow the source: pending in change 1; the source says nothing; 300 of 501" in told
    assert "does not follow" not in guarded.service.standoff("explain", f"h499.{ZONE}", *guarded._runtime).stdout
    status = guarded.status()
    assert status["verdict"]["state"] == "degraded"
    assert "HELD: the guard holds back a change (300 names" in status["verdict"]["reasons"][0]
    seen = guarded.serial()
    assert guarded.standoff("approve", str(change["change"]))["decided"][0]["names"] == 300
    guarded.until_host(0, "NXDOMAIN")
    assert guarded.host(299) == ["NXDOMAIN"]
    assert guarded.host(300) == ["192.0.2.1"]
    assert guarded.serial() > seen
    wait_for("all is well", lambda: guarded.status()["verdict"]["state"] == "ok")
    assert guarded.pending() == []
    assert guarded.metric("standoff_guard_held_names") == 0


def test_rejected(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin()
    guarded.change(gone=range(300))
    guarded.until_held()
    assert guarded.metric("standoff_guard_held_names") == 300
    assert guarded.metric("standoff_guard_held_seconds") > 0
    assert guarded.standoff("reject", "--all")["decided"][0]["names"] == 300
    wait_for("the board tells", lambda: guarded.metric("standoff_guard_rejected_names") == 300)
    assert guarded.metric("standoff_guard_held_changes") == 0
    assert guarded.host(0) == ["192.0.2.1"]
    assert "300 names are answered against the source's word" in guarded.status()["verdict"]["reasons"][0]
    guarded.change({0: "192.0.2.2"})
    guarded.until_host(0, "192.0.2.2")
    assert guarded.host(1) == ["192.0.2.1"]
    assert guarded.pending("--rejected")[0]["names"] == 299
    assert guarded.standoff("approve", "--all", "--rejected")["decided"][0]["names"] == 299
    guarded.until_host(1, "NXDOMAIN")
    assert guarded.host(0) == ["192.0.2.2"]


def test_a_canary_is_lost_and_a_hook_decides(make_guarded: Callable[..., Guarded], tmp_path: Path) -> None:
    told, answer = tmp_path / "told", tmp_path / "answer"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {told}.new; mv {told}.new {told}; echo thinking >&2; exit $(cat {answer})\n")
    hook.chmod(0o755)
    answer.write_text("1")
    guarded = make_guarded()
    guarded.begin("--guard-canary", f"h7.{ZONE} A 192.0.2.1", "--guard-hook", str(hook))
    guarded.change({7: "192.0.2.7"})
    wait_for("it is rejected", lambda: guarded.service.board.loader.get("rejected_names") == 1)
    assert guarded.host(7) == ["192.0.2.1"]
    asked = json.loads(told.read_text())
    assert asked["reasons"] == [f"canary h7.{ZONE} A 192.0.2.1 would be answered otherwise"]
    assert asked["differences"] == [
        {"name": f"h7.{ZONE}.", "removed": ["300 A 192.0.2.1"], "added": ["300 A 192.0.2.7"]}
    ]
    answer.write_text("2")
    guarded.change({7: "192.0.2.8"})
    guarded.until_held()
    wait_for("the hook was asked", lambda: "192.0.2.8" in told.read_text())
    assert guarded.host(7) == ["192.0.2.1"]
    answer.write_text("0")
    guarded.change({7: "192.0.2.1"})
    guarded.until_held(0)
    guarded.change(gone=range(300))
    guarded.until_host(0, "NXDOMAIN")
    assert guarded.host(7) == ["NXDOMAIN"]


def test_nobody_decides(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin("--guard-hold-for", "2", "--guard-then", "approve", "--guard-order", "strict")
    guarded.change(gone=range(300))
    guarded.until_held()
    assert 0 < guarded.pending()[0]["left"] <= 2
    guarded.change({499: "192.0.2.99"})
    guarded.until_host(0, "NXDOMAIN")
    guarded.until_host(499, "192.0.2.99")


def test_strict_order(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin("--guard-order", "strict")
    guarded.change(gone=range(300))
    guarded.until_held()
    guarded.change({499: "192.0.2.99"})
    wait_for("it waits, too", lambda: guarded.service.board.loader.get("held_names") == 301)
    assert guarded.host(499) == ["192.0.2.1"]
    guarded.standoff("approve", "--all")
    guarded.until_host(499, "192.0.2.99")


def test_a_drip_of_deletions(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin()
    for start in range(0, 400, 10):
        guarded.change(gone=range(start, start + 10))
    guarded.until_held()
    gone = sum(guarded.host(n) == ["NXDOMAIN"] for n in range(400))
    assert 100 <= gone <= 160
    wait_for("the rest is held", lambda: guarded.service.board.loader.get("held_names") == 400 - gone)
    guarded.change({450: "192.0.2.45"})
    guarded.until_host(450, "192.0.2.45")
    guarded.standoff("approve", "--all")
    guarded.until_host(399, "NXDOMAIN")


def test_a_zone_is_emptied(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin("--guard-removed", "1")
    guarded.change(gone=range(HOSTS))
    guarded.until_held()
    assert guarded.pending()[0]["reasons"] == [f"zone {ZONE}. would be empty: it loses {HOSTS} names"]
    assert guarded.host(0) == ["192.0.2.1"]
    guarded.change(dict.fromkeys(range(HOSTS), "192.0.2.1"))  # the source takes it back
    guarded.until_held(0)
    assert guarded.status()["verdict"]["state"] == "ok"


def test_restored_from_a_backup(make_guarded: Callable[..., Guarded], tmp_path: Path) -> None:
    """etcd with the data of some time ago, under the same cluster id: what differs is held and explained."""
    guarded = make_guarded()
    guarded.begin()
    data, backup = guarded.etcd.folder / "data", tmp_path / "backup"
    guarded.etcd.kill()
    shutil.copytree(data, backup)
    guarded.etcd.start()
    guarded.change(dict.fromkeys(range(10), "192.0.2.5"))
    guarded.until_host(9, "192.0.2.5")
    guarded.etcd.kill()
    shutil.rmtree(data)
    shutil.copytree(backup, data)
    guarded.etcd.start()
    guarded.until_held()
    (change,) = guarded.pending()
    assert change["names"] == 10
    assert "the store went back from revision" in change["reasons"][0]
    assert guarded.host(0) == ["192.0.2.5"]
    guarded.change({20: "192.0.2.20"})
    guarded.until_host(20, "192.0.2.20")
    guarded.standoff("approve", str(change["change"]))
    guarded.until_host(0, "192.0.2.1")


def test_the_loader_is_killed_while_something_is_held(make_guarded: Callable[..., Guarded]) -> None:
    guarded = make_guarded()
    guarded.begin()
    guarded.change(gone=range(300))
    guarded.until_held()
    guarded.change({7: "192.0.2.7", 499: "192.0.2.99"})  # 7 is held: it was deleted
    guarded.until_host(499, "192.0.2.99")
    since = guarded.pending()[0]["since"]
    wait_for("it is on disk", (guarded.state / f"{guarded.service.instance}.held").exists)
    guarded.kill_loader()
    guarded.change({498: "192.0.2.98"})
    guarded.until_host(498, "192.0.2.98")
    assert guarded.host(0) == ["192.0.2.1"]
    assert guarded.host(7) == ["192.0.2.1"]
    (change,) = guarded.pending()
    assert (change["change"], change["since"], change["names"]) == (1, since, 300)
    guarded.standoff("reject", "1")
    wait_for("the board tells", lambda: guarded.service.board.loader.get("rejected_names") == 300)
    pid = guarded.service.loader_pid
    os.kill(pid, signal.SIGTERM)  # in order: what is held is kept
    wait_for("another loader is at work", lambda: guarded.service.loader_pid not in (0, pid))
    guarded.change({498: "192.0.2.8"})
    guarded.until_host(498, "192.0.2.8")
    wait_for("the board tells again", lambda: guarded.service.board.loader.get("rejected_names") == 300)
    assert guarded.host(0) == ["192.0.2.1"]


def test_names_deleted_while_no_loader_ran(make_guarded: Callable[..., Guarded]) -> None:
    """A table without a loader, then one that finds most names gone; without a state_dir."""
    guarded = make_guarded()
    guarded.change(dict.fromkeys(range(HOSTS), "192.0.2.1"))
    guarded.service.source = ["--source", f"etcd://{guarded.etcd.endpoint}/names?schema=records", "--state-dir", ""]
    guarded.service.start_server()
    loader = guarded.service.start_loader()
    wait_for("the service answers", guarded.service.ready)
    loader.kill()
    guarded.change({499: "192.0.2.99"}, gone=range(300))
    guarded.service.start_loader()
    guarded.until_held()
    assert guarded.host(0) == ["192.0.2.1"]
    assert guarded.host(499) == ["192.0.2.1"]
    guarded.standoff("approve", "--all")
    guarded.until_host(0, "NXDOMAIN")
    guarded.until_host(499, "192.0.2.99")
