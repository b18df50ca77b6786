"""The transfer process of a real service, seen by clients: who gets what, how, and after which mishaps."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.tsigkeyring
import pytest

from server.passage import Passage
from shm.board import Board
from tests.support.etcd import free_ports
from tests.support.framing import framed
from tests.support.instances import fresh_instance
from tests.support.packets import query
from tests.support.processes import wait_for
from tests.transfer.primary import PATIENCE_S, Primary, standoff, transfer, wait_until_published
from tests.transfer.secondaries import KEY_NAME, SECRET, ZONE, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOSTS = 2000
TEXT = f"$ORIGIN {ZONE}.\n$TTL 300\n@ SOA ns hostmaster 7 7200 1800 86400 30\n@ NS ns\nns A 192.0.2.53\n" + "".join(
    f"h{i} A 192.0.2.{i % 250}\n" for i in range(HOSTS)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("primary")
    (path / "example.zone").write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def primary(folder: Path) -> Iterator[Primary]:
    """127.0.0.2 may transfer, and who has the key; a secondary at 127.0.0.1 (the tests' own) is notified."""
    ours, theirs = free_ports(2)
    options = [
        "--source", f"file:{folder}/example.zone", "--transfer-allow", "127.0.0.2", "--transfer-allow", KEY_NAME,
        "--notify", f"127.0.0.1:{theirs}#{KEY_NAME}",
    ]  # fmt: skip
    with (
        fresh_instance() as instance,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as secondary,
        standoff("run", folder, instance, ours, *options) as running,
    ):
        secondary.bind(("127.0.0.1", theirs))
        secondary.settimeout(PATIENCE_S)
        board = wait_until_published(instance)
        wait_for(
            "the workers answer", lambda: len([s for s in board.workers() if s.get("generation")]) == 2, PATIENCE_S
        )
        running.notified = secondary
        yield running
        assert board.supervisor.get("leaks_reported") == 0
        board.close()


def connected(primary: Primary, source: str = "127.0.0.2") -> socket.socket:
    return socket.create_connection(("127.0.0.1", primary.port), PATIENCE_S, (source, 0))


def receive(sock: socket.socket) -> dns.message.Message | None:
    """The next message; None at the end."""
    with sock.makefile("rb", buffering=0) as stream:
        head = stream.read(2)
        if not head:
            return None
        left, parts = int.from_bytes(head, "big"), []
        while left:
            part = stream.read(left)
            assert part
            parts.append(part)
            left -= len(part)
    return dns.message.from_wire(b"".join(parts), xfr=True)


def receive_zone(sock: socket.socket) -> int:
    """How many records, both SOAs included."""
    records = soas = 0
    while soas < 2:
        message = receive(sock)
        assert message is not None
        assert message.rcode() == dns.rcode.NOERROR
        for rrset in message.answer:
            records += len(rrset)
            soas += rrset.rdtype == dns.rdatatype.SOA
    return records


def dig(primary: Primary, *arguments: str) -> str:
    command = [program("dig"), "@127.0.0.1", "-p", str(primary.port), "+tries=1", "+time=10", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def test_dig_gets_the_zone(primary: Primary) -> None:
    key = f"hmac-sha256:{KEY_NAME}:{SECRET}"
    for arguments in (["-b", "127.0.0.2", "axfr"], ["-y", key, "axfr"], ["-b", "127.0.0.2", "+tcp", "ixfr=6"]):
        output = dig(primary, ZONE, *arguments)
        assert f"XFR size: {HOSTS + 4} records" in output, output
        assert output.count("IN\tSOA") == 2
        assert "Couldn't verify" not in output
    current = dig(primary, ZONE, "-b", "127.0.0.2", "+tcp", "ixfr=7")
    assert "XFR size: 1 records" in current, current
    assert "IN\tSOA" in dig(primary, ZONE, "-b", "127.0.0.2", "+notcp", "ixfr=6")


def test_dig_is_refused(primary: Primary) -> None:
    for arguments in (["axfr"], ["+tcp", "ixfr=6"], ["-y", "hmac-sha256:transfer:d3Jvbmc=", "axfr"]):
        output = dig(primary, ZONE, *arguments)
        assert "Transfer failed" in output, output
        assert "IN\tA" not in output
    assert "IN\tSOA" not in dig(primary, ZONE, "+notcp", "ixfr=6")


def test_a_zone_that_is_none(primary: Primary) -> None:
    for name in ("elsewhere.test.", f"h1.{ZONE}."):
        with connected(primary) as sock:
            sock.sendall(framed(query(name, "AXFR")))
            message = receive(sock)
            assert message is not None
            assert message.rcode() == dns.rcode.NOTAUTH


def test_one_connection_for_everything(primary: Primary) -> None:
    """Secondaries ask for the SOA first, for several zones in a row, and for other things afterwards."""
    with connected(primary) as sock:
        sock.sendall(framed(query(ZONE, "SOA")))
        first = receive(sock)
        assert first is not None
        assert first.answer[0].rdtype == dns.rdatatype.SOA
        for type_ in ("AXFR", "IXFR"):
            sock.sendall(framed(query(ZONE, type_)))
            assert receive_zone(sock) == HOSTS + 4
        sock.sendall(framed(query(f"h1.{ZONE}.", "A")))
        last = receive(sock)
        assert last is not None
        assert last.answer[0][0].to_text() == "192.0.2.1"


def test_the_first_message_has_an_opt_if_it_was_asked_for(primary: Primary) -> None:
    with connected(primary) as sock:
        sock.sendall(framed(query(ZONE, "AXFR", edns=1232)))
        first, second = receive(sock), receive(sock)
        assert first is not None
        assert second is not None
        assert (first.edns, second.edns) == (0, -1)


def test_a_client_that_does_not_read_holds_up_nobody(primary: Primary) -> None:
    with connected(primary) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(framed(query(ZONE, "AXFR")) * 20)
        assert len(transfer(primary.port, signed=True)) == HOSTS + 3
        with connected(primary, "127.0.0.1") as other:
            other.sendall(framed(query(f"h1.{ZONE}.", "A")))
            assert receive(other) is not None


def test_a_transfer_process_that_dies_is_replaced(primary: Primary) -> None:
    def pid() -> int:
        found = [line for line in primary.log.splitlines() if "transfers: pid" in line]
        return int(found[-1].rpartition(" ")[2])

    before = pid()
    os.kill(before, signal.SIGKILL)
    wait_for("another one is there", lambda: pid() != before, PATIENCE_S)
    assert len(transfer(primary.port, signed=True)) == HOSTS + 3


def test_a_secondary_is_told_until_it_answers(primary: Primary, folder: Path) -> None:
    secondary = primary.notified
    assert secondary is not None
    keyring = dns.tsigkeyring.from_text({KEY_NAME: SECRET})

    def told() -> tuple[dns.message.Message, tuple[str, int]]:
        packet, address = secondary.recvfrom(4096)
        return dns.message.from_wire(packet, keyring=keyring), address

    (folder / "example.zone").write_text(TEXT.replace("hostmaster 7", "hostmaster 8"))
    seen = 0
    while seen < 2:  # of the start, and of restarts, there may be some
        message, address = told()
        assert message.opcode() == dns.opcode.NOTIFY
        assert message.flags & dns.flags.AA
        assert message.had_tsig
        assert address[0] == "127.0.0.1"
        assert message.question[0].name == dns.name.from_text(ZONE)
        seen += message.answer[0][0].serial == 8
    reply = dns.message.make_response(message)
    secondary.sendto(reply.to_wire(), address)
    secondary.settimeout(6.0)  # the next one would come within 4 s
    with pytest.raises(TimeoutError):
        told()


def test_a_full_passage_says_no() -> None:
    passage = Passage()
    near, far = socket.socketpair()
    with near, far:
        assert passage.hand_over(far, b"\x7f\0\0\1", b"query")
        assert not passage.hand_over(far, b"\x7f\0\0\1", bytes(1 << 20))
        while passage.hand_over(far, b"\x7f\0\0\1", bytes(1 << 16)):
            pass
    passage.close()


def test_a_key_that_nobody_has_is_an_error(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "run").mkdir()
    with fresh_instance() as instance:
        with standoff("serve", tmp_path, instance, port, "--transfer-allow", "nobodys.key") as server:
            wait_for("it says so", lambda: "names key nobodys.key." in server.log, PATIENCE_S)
        assert isinstance(Board.create_or_attach(instance), Board)
