"""An operator's choices, and what happens to the source, as clients of real processes see them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import dns.message
import dns.opcode
import pytest

from shm.board import Board
from tests.protocol.running import PATIENCE_S, ROOT, ask, ask_stream, free_port, running
from tests.support.etcd import EtcdServer, binaries
from tests.support.etcd import running as etcd_running
from tests.support.packets import parsed, query
from tests.support.processes import wait_for
from tests.transfer.primary import put

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOST = "127.0.0.1"
QUESTION = query("a.example.test.", edns=1232)


def errors(reply: bytes) -> list[int]:
    """Extended errors (RFC 8914)."""
    return [int.from_bytes((o.to_wire() or b"")[:2], "big") for o in parsed(reply).options if int(o.otype) == 15]


def both(packet: bytes, port: int) -> list[bytes]:
    return [ask(packet, HOST, port), ask_stream(packet, HOST, port)]


def chaos(name: str) -> bytes:
    wire: bytes = dns.message.make_query(name, "TXT", "CH").to_wire()
    return wire


CHAOS_NAMES = (
    "id.server.", "hostname.bind.", "version.server.", "version.bind.", "generation.server.", "revision.server.",
)  # fmt: skip


@pytest.mark.parametrize("setting", ["on", "off"])
def test_chaos(setting: str, tmp_path: Path, instance: str) -> None:
    with running(tmp_path, instance, "--workers", "1", "--chaos", setting) as port:
        for name in CHAOS_NAMES:
            for reply in both(chaos(name), port):
                assert reply[3] & 15 == (0 if setting == "on" else 5), name
                assert bool(parsed(reply).answer) == (setting == "on"), name
        for reply in both(chaos("authors.bind."), port):
            assert reply[3] & 15 == 5
        for reply in both(QUESTION, port):
            assert reply[3] & 15 == 0


@pytest.mark.parametrize("opcode", [dns.opcode.NOTIFY, dns.opcode.UPDATE])
def test_what_others_might_tell_us_is_not_implemented(opcode: dns.opcode.Opcode, tmp_path: Path, instance: str) -> None:
    message = dns.message.make_query("example.test.", "SOA")
    message.set_opcode(opcode)
    with running(tmp_path, instance, "--workers", "1") as port:
        for reply in both(message.to_wire(), port):
            assert reply[3] & 15 == 4
            assert reply[2] & 0x80


def test_an_rrset_is_rotated_by_default(tmp_path: Path, instance: str) -> None:
    with running(tmp_path, instance, "--workers", "1") as port:
        firsts: Counter[str] = Counter()
        for _ in range(50):
            for reply in both(query("five.example.test."), port):
                (rrset,) = parsed(reply).answer
                assert sorted(str(rdata) for rdata in rrset) == [f"192.0.2.{n}" for n in range(11, 16)]
                firsts[str(rrset[0])] += 1
        assert len(firsts) == 5
        assert min(firsts.values()) >= 10


def test_loopback_is_not_limited_by_default(tmp_path: Path, instance: str) -> None:
    with running(tmp_path, instance, "--workers", "1", "--rrl-rate", "1", "--rrl-slip", "0") as port:
        for _ in range(100):
            assert parsed(ask(QUESTION, HOST, port)).answer


def test_several_addresses_and_ports(tmp_path: Path, instance: str) -> None:
    second = free_port([HOST, "127.0.0.9"])
    more = ("--listen", f"{HOST}:{second}", "--listen", f"127.0.0.9:{second}")
    with running(tmp_path, instance, "--workers", "2", *more, listen=f"{HOST},127.0.0.7") as first:
        for address, port in ((HOST, first), ("127.0.0.7", first), (HOST, second), ("127.0.0.9", second)):
            for _ in range(10):
                assert parsed(ask(QUESTION, address, port)).answer
            assert parsed(ask_stream(QUESTION, address, port)).answer
        with pytest.raises(ConnectionRefusedError):
            ask_stream(QUESTION, "127.0.0.9", first)


def test_before_there_is_a_table(tmp_path: Path, instance: str) -> None:
    """A server without a loader: SERVFAIL, not ready (extended error 14)."""
    port = free_port([HOST])
    command = [
        sys.executable, "-m", "cli.main", "serve", "--config", "/dev/null", "--instance", instance,
        "--runtime-dir", str(tmp_path), "--listen", f"{HOST}:{port}", "--workers", "1",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STANDOFF_")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    try:
        replies: list[bytes] = []

        def answered() -> bool:
            with suppress(OSError):
                replies[:] = [ask(QUESTION, HOST, port, patience_s=1.0), ask_stream(QUESTION, HOST, port)]
            return len(replies) == 2

        wait_for("it answers", answered)
        for reply in replies:
            assert reply[3] & 15 == 2
            assert errors(reply) == [14]
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    found = binaries()
    if not found:
        pytest.skip("no etcd")
    yield from etcd_running(EtcdServer(next(iter(found.values())), tmp_path / "etcd"))


def test_answers_say_that_the_source_is_away(tmp_path: Path, instance: str, etcd: EtcdServer) -> None:
    """Extended error 3 once etcd has been silent for `stale_after`, and no more when it is back."""
    put(etcd.endpoint, "/names/example.test/b/A", "192.0.2.2")
    source = f"etcd://{etcd.endpoint}/names?schema=records"
    packet = query("b.example.test.", edns=1232)
    options = ("--workers", "1", "--source", source, "--stale-after", "1")
    with running(tmp_path, instance, *options) as port, closing(Board.attach(instance)) as board:
        wait_for("both sources are there", lambda: parsed(ask(packet, HOST, port)).answer)
        wait_for("nothing is stale", lambda: not any(map(errors, both(packet, port))))
        etcd.signal(signal.SIGSTOP)
        try:
            wait_for("both workers say so", lambda: [errors(r) for r in both(packet, port)] == [[3], [3]], 40.0)
            for reply in both(packet, port):
                assert parsed(reply).answer, "and answer on"
            for reply in both(query("b.example.test."), port):
                assert parsed(reply).options == (), "without EDNS there is no place to say it"
        finally:
            etcd.signal(signal.SIGCONT)
        wait_for("it is over", lambda: not any(map(errors, both(packet, port))), 40.0)
        assert board.supervisor.get("workers_died") == 0


def test_never_a_datagram_larger_than_the_client_said(tmp_path: Path, instance: str) -> None:
    """Nor than max_udp_size; what does not fit is truncated, and whole over TCP."""
    with running(tmp_path, instance, "--workers", "1", "--max-udp-size", "900") as port:
        whole = parsed(ask_stream(query("text.example.test.", "TXT", edns=4096), HOST, port))
        assert whole.answer
        for offered in (None, 0, 100, 512, 513, 700, 900, 901, 1232, 4096, 65535):
            reply = ask(query("text.example.test.", "TXT", edns=offered), HOST, port)
            assert len(reply) <= min(max(512, offered or 0), 900)
            message = parsed(reply)
            assert message.flags & 0x0200
            assert not message.answer, "whole RRsets only"
        for offered in (None, 512, 1232):
            small = ask(query("five.example.test.", edns=offered), HOST, port)
            assert len(small) <= 512
            assert len(parsed(small).answer[0]) == 5


def test_clients_that_leave_at_once(tmp_path: Path, instance: str) -> None:
    """With a reset, before they are answered: nobody else notices."""
    with running(tmp_path, instance, "--workers", "1") as port:
        for _ in range(200):
            sock = socket.create_connection((HOST, port), PATIENCE_S)
            sock.sendall(len(QUESTION).to_bytes(2, "big") + QUESTION)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        for reply in both(QUESTION, port):
            assert parsed(reply).answer
