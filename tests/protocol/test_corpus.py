"""The corpus of packets, and every type there is, against real processes: nothing dies, silence is where it belongs."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import dns.rcode
import pytest

from shm.board import Board
from tests.protocol.running import PATIENCE_S, running
from tests.support.instances import fresh_instance
from tests.support.packets import parsed, query
from tests.support.processes import wait_for
from tests.support.tables import EXAMPLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CASES = sorted((Path(__file__).parents[1] / "corpus").glob("*/*.hex"))
#: Sent behind each packet: its reply says that there is none to come for the packet.
SENTINEL = query("a.example.test.", identifier=0xBEEF)
#: Lines of a log that a flood of odd packets may add: Sparing's ten of each process, and what else happens.
LINES = 40


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    board: Board
    log: Path

    def pids(self) -> list[int]:
        return sorted(slot.get("pid") for slot in self.board.workers())

    def lines(self) -> int:
        return self.log.read_text(errors="replace").count("\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("corpus")
    with (
        fresh_instance() as instance,
        running(folder, instance, "--workers", "1", "--order", "fixed", content=EXAMPLE) as port,
        closing(Board.attach(instance)) as board,
    ):
        wait_for("all answer", lambda: sum(1 for slot in board.workers() if slot.get("generation")) == 2)
        yield Server(port, board, folder / "log")
        assert board.supervisor.get("workers_died") == 0
        assert board.supervisor.get("workers_condemned") == 0
        assert board.supervisor.get("leaks_reported") == 0


def packet_of(path: Path) -> bytes:
    return bytes.fromhex(path.read_text())


def check(path: Path, reply: bytes | None) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())["rcode"]
    name = f"{path.parent.name}/{path.stem}"
    if expected is None:
        assert reply is None, f"{name} is answered"
        return
    assert reply is not None, f"{name} is not answered"
    assert reply[:2] == packet_of(path)[:2], name
    assert dns.rcode.to_text(parsed(reply).rcode()) == expected, name


def test_by_udp(server: Server) -> None:
    pids, lines = server.pids(), server.lines()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", server.port))
        for path in CASES:
            sock.send(packet_of(path))
            sock.send(SENTINEL)
            replies = []
            while (reply := sock.recv(65535))[:2] != SENTINEL[:2]:
                replies.append(reply)
            assert len(replies) <= 1
            check(path, replies[0] if replies else None)
    assert server.pids() == pids
    assert server.lines() - lines < LINES


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


def test_by_tcp(server: Server) -> None:
    """What is no query at all ends its connection; the others' stay."""
    pids, lines = server.pids(), server.lines()
    for path in CASES:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as sock, sock.makefile("rb") as stream:
            sock.sendall(framed(packet_of(path)) + framed(SENTINEL))
            reply = stream.read(int.from_bytes(stream.read(2), "big"))
            check(path, reply or None)
            if reply:
                assert stream.read(int.from_bytes(stream.read(2), "big"))[:2] == SENTINEL[:2]
    assert server.pids() == pids
    assert server.lines() - lines < LINES


def test_the_whole_corpus_thousands_of_times(server: Server) -> None:
    """As fast as it goes, from many sockets: whatever is in a batch together, the good ones are answered."""
    pids, lines = server.pids(), server.lines()
    packets = [packet_of(path) for path in CASES]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", server.port))
        for _ in range(100):
            for packet in packets:
                sock.send(packet)
            sock.send(SENTINEL)
            while sock.recv(65535)[:2] != SENTINEL[:2]:
                pass
    assert server.pids() == pids
    assert server.lines() - lines < LINES, "a peer cannot fill the log"


def test_every_type(server: Server) -> None:
    """65,536 questions on one connection; what the name has not is NODATA."""
    pids = server.pids()
    packet = bytearray(query("a.example.test."))
    answered: Counter[int] = Counter()
    wanted = 0
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as sock, sock.makefile("rb") as stream:
        for start in range(0, 65536, 1024):
            out = b""
            for type_ in range(start, start + 1024):
                packet[:2] = packet[-4:-2] = type_.to_bytes(2, "big")
                out += framed(bytes(packet))
            sock.sendall(out)
            for _ in range(1024):
                reply = stream.read(int.from_bytes(stream.read(2), "big"))
                assert reply[:2] == wanted.to_bytes(2, "big")
                wanted += 1
                answered[reply[3] & 15] += 1
                has_data = int.from_bytes(reply[6:8], "big") > 0
                assert has_data == (wanted - 1 in (1, 255)), wanted - 1
    assert answered[0] >= 65533
    assert answered[5] <= 3, "transfers"
    assert server.pids() == pids
