"""The load generator's checks, fed with right and wrong servers: counting wrong answers measures nothing."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
QUERIES = """# name type want
a.example A 10.0.0.1
set.example A set:3
nothing.example A nxdomain
a.example TXT nodata
a.example A
a.example A any
"""
HEADER = struct.Struct("!HHHHHH")
AUTHORITATIVE = 0x8400

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the load generator is C: it needs gcc")

Result = dict[str, Any]
Answerer = Callable[[bytes], list[bytes]]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for tool in ("flood", "echo"):
        subprocess.run(["gcc", "-O2", *WARNINGS, "-o", folder / tool, BENCH / f"{tool}.c"], check=True)
    return folder


def address_rr(*address: int) -> bytes:
    return b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes(address)


def reply(query: bytes, rrs: list[bytes], rcode: int = 0, flags: int = AUTHORITATIVE, ident: int = 0) -> bytes:
    number = HEADER.unpack_from(query)[0] ^ ident
    return HEADER.pack(number, flags | rcode, 1, len(rrs), 0, 0) + query[12:] + b"".join(rrs)


def right_rrs(query: bytes) -> tuple[list[bytes], int]:
    """Answer section and RCODE that QUERIES asks for."""
    name = query[12:].split(b"\0")[0]
    if name.startswith(b"\x03set"):
        return [address_rr(first, 1, 2, 3) for first in (10, 11, 12)], 0
    if name.startswith(b"\x07nothing"):
        return [], 3
    return ([] if query[-4:-2] == b"\0\x10" else [address_rr(10, 0, 0, 1)]), 0


def right(query: bytes) -> list[bytes]:
    return [reply(query, *right_rrs(query))]


def spoilt(spoil: Callable[[bytes, list[bytes], int], bytes]) -> Answerer:
    return lambda query: [spoil(query, *right_rrs(query))]


def mixed_set(query: bytes, rrs: list[bytes], rcode: int) -> bytes:
    return reply(query, [*rrs[:-1], address_rr(12, 1, 2, 4)] if len(rrs) == 3 else rrs, rcode)


WRONG: dict[str, tuple[Answerer, str, int]] = {
    # what is wrong: server, counter that must show it, in how many of the six queries
    "another address": (spoilt(lambda q, rrs, rc: reply(q, [address_rr(10, 0, 0, 9)] if rrs else [], rc)), "wrong", 2),
    "a mixed set": (spoilt(mixed_set), "mixed", 1),
    "part of a set": (spoilt(lambda q, rrs, rc: reply(q, rrs[:1], rc)), "wrong", 1),
    "no data for all": (spoilt(lambda q, rrs, rc: reply(q, [], 0)), "wrong", 4),
    "SERVFAIL": (spoilt(lambda q, rrs, rc: reply(q, [], 2)), "wrong", 5),
    "QR not set": (spoilt(lambda q, rrs, rc: reply(q, rrs, rc, flags=0)), "wrong", 6),
    "another question": (
        spoilt(lambda q, rrs, rc: reply(q, rrs, rc).replace(b"example", b"exomple")),
        "wrong",
        6,
    ),
    "an RR cut short": (spoilt(lambda q, rrs, rc: reply(q, rrs, rc)[: None if not rrs else -3]), "wrong", 3),
    "another ID": (spoilt(lambda q, rrs, rc: reply(q, rrs, rc, ident=0x8000)), "unmatched", 6),
    "every answer twice": (lambda q: right(q) * 2, "unmatched", 6),
    "a short packet": (lambda q: [q[:7], *right(q)], "unmatched", 6),
    "silence": (lambda q: [], "lost", 6),
}


class Responder:
    """A UDP server in a thread, as right or wrong as its function."""

    def __init__(self, answerer: Answerer) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port: int = self._socket.getsockname()[1]
        self._answerer = answerer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                query, peer = self._socket.recvfrom(1500)
            except TimeoutError:
                continue
            for answer in self._answerer(query):
                self._socket.sendto(answer, peer)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def responder() -> Iterator[Callable[[Answerer], Responder]]:
    running: list[Responder] = []

    def start(answerer: Answerer) -> Responder:
        running.append(Responder(answerer))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text(QUERIES)
    return path


def flood(tools: Path, port: int, queries: Path, *options: str) -> Result:
    """A short closed loop by default: 12 queries under way, so two of each kind."""
    command = [str(tools / "flood"), "-p", str(port), "-f", str(queries), "-w", "0", "-t", "0.3", "-c", "2", "-W", "12"]
    command += options
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    result: Result = json.loads(done.stdout)
    result["stderr"] = done.stderr
    return result


@pytest.mark.parametrize("options", [(), ("-r", "300"), ("-g", "8"), ("-e",)], ids=["closed", "open", "gso", "edns"])
def test_a_right_server_gets_no_complaint(
    tools: Path, responder: Callable[[Answerer], Responder], queries: Path, options: tuple[str, ...]
) -> None:
    def answerer(query: bytes) -> list[bytes]:
        question_end = query.index(b"\0", 12) + 5
        return right(query[:question_end])

    result = flood(tools, responder(answerer).port, queries, *options)
    assert result["sent"] > 20
    assert result["answered"] == result["sent"], result
    assert not any(result[fault] for fault in ("lost", "wrong", "mixed", "back", "unmatched", "errors")), result
    assert 0 < result["p50_us"] <= result["p99_us"] <= result["p999_us"] <= result["max_us"]
    assert 0 < result["server_p50_us"] <= result["server_max_us"] <= result["max_us"] + 1000
    assert result["set_number"] == 0x010203
    if options == ("-r", "300"):
        assert result["sent"] == pytest.approx(90, abs=2)


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_server_is_found_out(
    tools: Path, responder: Callable[[Answerer], Responder], queries: Path, fault: str
) -> None:
    """Open loop, so that six kinds of query come in equal parts."""
    answerer, counter, kinds = WRONG[fault]
    result = flood(tools, responder(answerer).port, queries, "-r", "200")
    assert result["sent"] == pytest.approx(60, abs=6)
    assert result[counter] == pytest.approx(result["sent"] * kinds / 6, abs=4), result
    if counter in ("wrong", "mixed"):
        assert "flood: wrong answer" in result["stderr"]
    if counter != "mixed":
        assert result["mixed"] == 0, result


def test_a_set_that_goes_back_is_found_out(
    tools: Path, responder: Callable[[Answerer], Responder], queries: Path
) -> None:
    queries.write_text("set.example A set:1\n")
    numbers = iter([*range(1, 21), 5, *range(21, 100_000)])
    server = responder(
        lambda query: [reply(query, [address_rr(10, 0, n >> 8 & 255, n & 255)]) for n in [next(numbers)]]
    )
    assert flood(tools, server.port, queries, "-c", "1", "-W", "1")["back"] == 1


def test_open_loop_latency_counts_from_the_intended_time(
    tools: Path, responder: Callable[[Answerer], Responder], queries: Path
) -> None:
    """A server that stops for 100 ms: every query that fell due meanwhile has felt it, not just one."""
    stall = threading.Event()
    seen = [0]

    def answerer(query: bytes) -> list[bytes]:
        seen[0] += 1
        if seen[0] == 100:
            stall.wait(0.1)
        return right(query)

    result = flood(tools, responder(answerer).port, queries, "-r", "1000", "-t", "0.5")
    assert result["lost"] == result["wrong"] == 0
    assert result["max_us"] >= 95_000
    assert result["gap_us"] >= 95_000
    assert result["p99_us"] >= 85_000, "a fifth of the queries fell due in the stall"


def test_echo_answers_what_flood_asks(tools: Path, tmp_path: Path) -> None:
    queries = tmp_path / "any.txt"
    queries.write_text("a.example A any\nb.example TXT nodata\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([tools / "echo", "127.0.0.1", str(port)], stdout=subprocess.PIPE, text=True) as echo:
        try:
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            result = flood(tools, port, queries, "-t", "0.5", "-W", "128")
        finally:
            echo.terminate()
    assert result["answered"] == result["sent"] > 1000
    assert result["wrong"] == result["lost"] == 0


def test_a_bad_query_file_is_refused(tools: Path, tmp_path: Path) -> None:
    queries = tmp_path / "bad.txt"
    queries.write_text("a.example A 10.0.0.1\na..example A\n")
    done = subprocess.run([tools / "flood", "-p", "1", "-f", queries], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{queries}:2: not a query" in done.stderr
