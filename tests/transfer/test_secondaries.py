"""NSD, Knot and BIND keep a copy of a zone that etcd feeds: first transfer, change, NOTIFY, refresh."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm.layout import ENCRYPTED_COUNTERS, SlotKind
from tests.support.etcd import EtcdServer, binaries, free_ports, running
from tests.support.instances import fresh_instance
from tests.support.processes import wait_for
from tests.support.selfsigned import make_pair
from tests.transfer.primary import PATIENCE_S, put, standoff, wait_until_both_give, wait_until_published
from tests.transfer.secondaries import KEY_NAME, KINDS, PRIMARY_NAME, ZONE, program, secondary

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
            whole = wait_until_both_give(theirs, ours, signed=signed)
            assert len(whole) >= len(CONTENT) + 4

            before = copy.serial()
            for round_ in range(3):
                put(etcd.endpoint, f"/names/{ZONE}/new{round_}/A", f"192.0.2.{100 + round_}")
            wait_for("the change has arrived", lambda: copy.ask(f"new2.{ZONE}", "A") == ["192.0.2.102"], PATIENCE_S)
            assert copy.serial() > before
            assert copy.serial() == board.loader.get("revision")
            wait_until_both_give(theirs, ours, signed=signed)
            assert board.supervisor.get("leaks_reported") == 0
        except BaseException:
            print(primary.log, copy.log, sep="\n----\n")
            raise
        finally:
            board.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "knot"])
def test_a_secondary_over_tls(kind: str, tmp_path: Path) -> None:
    """It checks the primary's name. The first transfer, a change with its NOTIFY, and the next transfer."""
    program(KINDS[kind].program)
    certificate, key = make_pair(tmp_path, PRIMARY_NAME)
    ours, theirs, encrypted = free_ports(3)
    source = tmp_path / "zone.jsonl"

    def write(serial: int) -> None:
        soa = f"ns.{ZONE}. hostmaster.{ZONE}. {serial} 7200 1800 86400 30"
        hosts = {f"h{i}.": ("A", f"192.0.2.{serial}") for i in range(2000)}
        records = {"": ("SOA", soa), "ns.": ("A", "192.0.2.53")} | hosts
        lines = [{"name": f"{n}{ZONE}.", "type": t, "ttl": 60, "data": d} for n, (t, d) in records.items()]
        lines.append({"name": f"{ZONE}.", "type": "NS", "ttl": 60, "data": f"ns.{ZONE}."})
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(1)
    options = [
        "--source", f"file:{source}", "--transfer-allow", f"127.0.0.1#{KEY_NAME}",
        "--notify", f"127.0.0.1:{theirs}#{KEY_NAME}", "--tls-listen", f"127.0.0.1:{encrypted}",
        "--tls-cert", str(certificate), "--tls-key", str(key),
    ]  # fmt: skip
    with (
        fresh_instance() as instance,
        standoff("run", tmp_path, instance, ours, *options) as primary,
        secondary(kind, tmp_path / kind, theirs, encrypted, signed=True, certificate=certificate) as copy,
    ):
        board = wait_until_published(instance)
        try:
            wait_for("the first transfer", lambda: copy.ask(f"h7.{ZONE}", "A") == ["192.0.2.1"], PATIENCE_S)
            write(2)
            wait_for("the change has arrived", lambda: copy.ask(f"h7.{ZONE}", "A") == ["192.0.2.2"], PATIENCE_S)
            (stream,) = [slot for slot in board.workers() if slot.get("kind") == SlotKind.STREAM]
            assert sum(stream.counters(ENCRYPTED_COUNTERS)["requests_family"]) >= 2
            assert sum(stream.counters()["requests_family"]) == 0, "nothing of it went in the clear"
            wait_until_both_give(theirs, ours, signed=True)
        except BaseException:
            print(primary.log, copy.log, sep="\n----\n")
            raise
        finally:
            board.close()
