"""A secondary follows a rollback, and the resume after it: serials grow with both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer, binaries, free_ports, running
from tests.support.instances import fresh_instance
from tests.support.processes import wait_for
from tests.transfer.primary import PATIENCE_S, put, standoff, wait_until_both_give, wait_until_published
from tests.transfer.secondaries import KINDS, ROOT, ZONE, program, secondary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    found = binaries()
    if not found:
        pytest.skip("no etcd")
    yield from running(EtcdServer(next(iter(found.values())), tmp_path / "etcd"))


@pytest.mark.parametrize("kind", ["nsd", "knot"])
def test_a_secondary_follows(kind: str, tmp_path: Path, etcd: EtcdServer) -> None:
    program(KINDS[kind].program)
    key = f"/names/{ZONE}/www/A"
    put(etcd.endpoint, key, "192.0.2.1")
    ours, theirs = free_ports(2)
    options = [
        "--source", f"etcd://{etcd.endpoint}/names?schema=records", "--state-dir", str(tmp_path / "state"),
        "--transfer-allow", "127.0.0.1", "--notify", f"127.0.0.1:{theirs}",
    ]  # fmt: skip

    def command(*arguments: str) -> None:
        place = ["--instance", instance, "--runtime-dir", str(tmp_path / "run")]
        subprocess.run([sys.executable, "-m", "cli.main", *arguments, *place], cwd=ROOT, check=True, timeout=PATIENCE_S)

    with (
        fresh_instance() as instance,
        standoff("run", tmp_path, instance, ours, *options) as primary,
        secondary(kind, tmp_path / kind, theirs, ours, signed=False) as copy,
    ):
        board = wait_until_published(instance)

        def arrives(address: str) -> int:
            wait_for(f"{address} arrives", lambda: copy.ask(f"www.{ZONE}", "A") == [address], PATIENCE_S)
            wait_until_both_give(theirs, ours)
            return copy.serial()

        try:
            good = arrives("192.0.2.1")
            revision = board.loader.get("revision")
            put(etcd.endpoint, key, "192.0.2.66")
            bad = arrives("192.0.2.66")
            command("rollback", str(revision), "--yes", "--state-dir", str(tmp_path / "state"))
            back = arrives("192.0.2.1")
            put(etcd.endpoint, key, "192.0.2.3")
            command("resume")
            assert good < bad < back < arrives("192.0.2.3")
        except BaseException:
            print(primary.log, copy.log, sep="\n----\n")
            raise
        finally:
            board.close()
