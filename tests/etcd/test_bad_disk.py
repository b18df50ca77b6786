"""A state_dir on a disk that is full or read-only: a start answers from what is there, and changes go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd.test_running import Running
from tests.support.disks import Disk, mounted
from tests.support.etcd import EtcdServer
from tests.support.instances import fresh_instance
from tests.torture.service import Service, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
KEY = "/names/example.test/www/A"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as made:
        yield made


@pytest.fixture
def running(newest_binary: Path, tmp_path: Path, disk: Disk) -> Iterator[Running]:
    etcd = EtcdServer(newest_binary, tmp_path / "etcd").start()
    with fresh_instance() as instance:
        made = Running(Service(instance, free_port(), tmp_path, etcd, workers=1), etcd, tmp_path)
        made.state = disk.path / "state"
        yield made
        made.service.close()
        etcd.kill()


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_reboot_without_etcd(running: Running, disk: Disk, how: str) -> None:
    running.put(KEY, b"192.0.2.1")
    running.start()
    running.until("www.example.test", "192.0.2.1")
    wait_for("it is on disk", lambda: running.kept("SELECT value FROM entries"))
    running.service.power_cut()
    running.service.forget()
    running.etcd.kill()
    disk.harm(how)
    running.start()
    running.until("www.example.test", "192.0.2.1")
    running.etcd.start()
    running.put(KEY, b"192.0.2.2")
    running.until("www.example.test", "192.0.2.2")
    running.kill_loader()
    running.put(KEY, b"192.0.2.3")
    running.until("www.example.test", "192.0.2.3")
    for kind in ("snapshot", "history"):  # told as soon as a write has failed
        wait_for(f"{kind} is told of", lambda kind=kind: kind in " ".join(running.status()["verdict"]["reasons"]))
    disk.well()
    wait_for("all is written again", lambda: running.status()["verdict"]["state"] == "ok", 60)
    wait_for("it is on disk", lambda: running.kept("SELECT value FROM entries") == [(b"192.0.2.3",)])
    assert not list(running.state.glob("*.damaged*"))
