"""The TCP load generator's checks, fed with right and wrong servers."""

from __future__ import annotations

import json
import random
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import tcp
from tests.bench.test_generator import BENCH, QUERIES, WARNINGS, address_rr, mixed_set, reply, right, right_rrs

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the load generator is C: it needs gcc")

#: What is to be sent for the queries that have come, frames and all.
Answerer = Callable[[list[bytes]], bytes]


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


def each(function: Callable[[bytes], list[bytes]]) -> Answerer:
    return lambda packets: b"".join(framed(one) for packet in packets for one in function(packet))


def backwards(packets: list[bytes]) -> bytes:
    return b"".join(framed(right(packet)[0]) for packet in reversed(packets))


@contextmanager
def server(answerer: Answerer, piece: int = 1 << 20) -> Iterator[int]:
    """Its port. `piece`: bytes in a send."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = b""
            try:
                while more := self.request.recv(65536):
                    data += more
                    packets = []
                    while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2], "big"):
                        end = 2 + int.from_bytes(data[:2], "big")
                        packets.append(data[2:end])
                        data = data[end:]
                    out = answerer(packets)
                    for at in range(0, len(out), piece):
                        self.request.sendall(out[at : at + piece])
            except OSError:
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tcpflood"
    subprocess.run(["gcc", "-O2", *WARNINGS, "-o", path, BENCH / "tcpflood.c"], check=True)
    return path


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text(QUERIES)
    return path


def flood(tool: Path, port: int, queries: Path, *options: str) -> dict[str, Any]:
    command = [str(tool), "-p", str(port), "-f", str(queries), "-w", "0", "-t", "0.3", "-c", "3", "-d", "6", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    result["stderr"] = done.stderr
    return result


@pytest.mark.parametrize(
    ("answerer", "piece"),
    [(each(right), 1 << 20), (backwards, 1 << 20), (each(right), 1), (each(right), 7)],
    ids=["in order", "backwards", "byte by byte", "in pieces"],
)
def test_a_right_server_gets_no_complaint(tool: Path, queries: Path, answerer: Answerer, piece: int) -> None:
    with server(answerer, piece) as port:
        result = flood(tool, port, queries)
    assert result["sent"] > 36
    assert result["received"] == result["sent"], result
    assert not any(result[fault] for fault in tcp.FAULTS), result
    assert 0 < result["p50_us"] <= result["p99_us"] <= result["max_us"]


@pytest.mark.parametrize(
    ("answerer", "counter", "share"),
    [
        (each(lambda q: [reply(q, [address_rr(10, 0, 0, 9)] if right_rrs(q)[0] else [], right_rrs(q)[1])]), "wrong", 2),
        (each(lambda q: [mixed_set(q, *right_rrs(q))]), "mixed", 1),
        (each(lambda q: [reply(q, *right_rrs(q)).replace(b"example", b"exomple")]), "wrong", 6),
    ],
    ids=["another address", "a mixed set", "another question"],
)
def test_a_wrong_server_is_found_out(tool: Path, queries: Path, answerer: Answerer, counter: str, share: int) -> None:
    with server(answerer) as port:
        result = flood(tool, port, queries)
    assert result["received"] == result["sent"]
    assert result[counter] == pytest.approx(result["sent"] * share / 6, abs=12)
    assert "tcpflood: ID" in result["stderr"]


def test_answers_that_nobody_asked_for(tool: Path, queries: Path) -> None:
    with server(each(lambda q: right(q) * 2)) as port:
        result = flood(tool, port, queries, "-d", "1")
    assert result["unmatched"] > 0


def test_answers_that_do_not_come(tool: Path, queries: Path) -> None:
    draw = random.Random(1)
    with server(each(lambda q: right(q) if draw.random() < 0.9 else [])) as port:
        result = flood(tool, port, queries)
    assert result["lost"] == 18, "in the end every place waits for one that does not come"


def test_a_server_that_hangs_up(tool: Path, queries: Path) -> None:
    def leave(packets: list[bytes]) -> bytes:
        raise OSError

    with server(leave) as port:
        result = flood(tool, port, queries)
    assert result["errors"] == 3


def test_the_summary_compares_within_rounds() -> None:
    def runs(*qps: float) -> list[dict[str, Any]]:
        return [
            {"qps": one, "cpu_us": 1e6 / one, "p50_us": 1, "p99_us": 2, **dict.fromkeys(tcp.FAULTS, 1)} for one in qps
        ]

    found = tcp.summary(
        {"standoff 1": runs(10, 40), "knot 1": runs(20, 20), "standoff 10": runs(5), "knot 10": runs(10)}
    )
    assert found["ratios"]["1"]["ratio"] == {"median": 1.25, "lowest": 0.5, "highest": 2.0}
    assert found["ratios"]["10"]["cpu"]["median"] == pytest.approx(0.5)
    assert found["runs"]["standoff 1"]["faults"] == 2 * len(tcp.FAULTS)
    alone = tcp.summary({"standoff 1": runs(10), "standoff 10": runs(10)})
    assert alone["ratios"] == {}
