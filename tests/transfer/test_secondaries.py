"""NSD, Knot and BIND keep a copy of a zone that etcd feeds: first transfer, change, NOTIFY, refresh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer, binaries, free_ports, running
from tests.support.instances import fresh_instance
from tests.support.processes import wait_for
from tests.transfer.primary import PATIENCE_S, put, standoff, transfer, wait_until_published
from tests.transfer.secondaries import KEY_NAME, KINDS, ZONE, program, secondary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CONTENT = {
    "www/A": '["192.0.2.1", "192.0.2.2"]',
    "www/AAAA": "2001:db8::1",
    "@/MX": "10 mail",
    "mail/A": "192.0.2.25",
    "alias/CNAME": "www",
    "*.wild/TXT": '"star"',
    "deep.empty.ent/A": "192.0.2.45",
    "_sip._tcp/SRV": "1 2 5060 www",
    "sub/NS": '["ns1.sub", "ns.elsewhere.test."]',
    "ns1.sub/A": "192.0.2.61",
    "occluded.sub/A": "192.0.2.62",
}


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    found = binaries()
    if not found:
        pytest.skip("no etcd")
    yield from running(EtcdServer(next(iter(found.values())), tmp_path / "etcd"))


@pytest.mark.parametrize("signed", [False, True], ids=["by address", "by key"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_secondary_follows_an_etcd(kind: str, signed: bool, tmp_path: Path, etcd: EtcdServer) -> None:
    program(KINDS[kind].program)
    for key, value in CONTENT.items():
        put(etcd.endpoint, f"/names/{ZONE}/{key}", value)
    ours, theirs = free_ports(2)
    suffix = f"#{KEY_NAME}" if signed else ""
    options = [
        "--source", f"etcd://{etcd.endpoint}/names?schema=records",
        "--transfer-allow", f"127.0.0.1{suffix}", "--notify", f"127.0.0.1:{theirs}{suffix}",
    ]  # fmt: skip
    with (
        fresh_instance() as instance,
        standoff("run", tmp_path, instance, ours, *options) as primary,
        secondary(kind, tmp_path / kind, theirs, ours, signed=signed) as copy,
    ):
        board = wait_until_published(instance)
        try:
            wait_for("the first transfer", copy.serial, PATIENCE_S)
            assert copy.ask(f"www.{ZONE}", "A") == ["192.0.2.1", "192.0.2.2"]
            whole = transfer(ours, signed=signed)
            assert transfer(theirs) == whole
            assert len(whole) >= len(CONTENT) + 4

            before = copy.serial()
            for round_ in range(3):
                put(etcd.endpoint, f"/names/{ZONE}/new{round_}/A", f"192.0.2.{100 + round_}")
            wait_for("the change has arrived", lambda: copy.ask(f"new2.{ZONE}", "A") == ["192.0.2.102"], PATIENCE_S)
            assert copy.serial() > before
            assert copy.serial() == board.loader.get("revision")
            assert transfer(theirs) == transfer(ours, signed=signed)
            assert board.supervisor.get("leaks_reported") == 0
        except BaseException:
            print(primary.log, copy.log, sep="\n----\n")
            raise
        finally:
            board.close()
