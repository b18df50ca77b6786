"""Pipelined queries over TCP and TLS while the answer changes a hundred times a second: none wrong, mixed, old or lost.

Also no answer is older than one before it on the same connection, and certificate and secrets are read again meanwhile.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import threading
import time
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path

import pytest

from shm.layout import ENCRYPTED_COUNTERS, SlotKind
from tests.support.packets import query
from tests.support.selfsigned import make_pair
from tests.torture.asking import MIXED, MS, RIGHT, TCP, WRONG, AdoptionLog, Answers, Asked
from tests.torture.changing import SET, Changer
from tests.torture.service import PATIENCE_S, Service, free_port, wait_for

DURATION_S = float(os.environ.get("STANDOFF_TORTURE_S") or 20)
CHANGES_PER_S = 100
#: Queries in one send; the next ones leave before their answers are read.
DEPTH = 10
CONNECTIONS = 3
PAUSE_S = 0.004
QUESTION = query(f"{SET}.", "A")[2:]
#: QR, AA, RD; NOERROR.
ANSWERED = 0x8500
ANSWER = struct.Struct("!HHHIHB3s")
RELOAD_S = 2.0


class Pipeline(threading.Thread):
    """One connection that always has queries under way."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._over = threading.Event()
        self.asked: list[Asked] = []
        self.fault = ""

    def run(self) -> None:
        try:
            with self._sock.makefile("rb") as stream:
                identifier, under_way = 0, []
                while not self._over.wait(PAUSE_S):
                    batch = [(identifier + i) & 0xFFFF for i in range(DEPTH)]
                    identifier += DEPTH
                    since = time.monotonic_ns()
                    packets = (number.to_bytes(2, "big") + QUESTION for number in batch)
                    self._sock.sendall(b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets))
                    under_way += [(number, since) for number in batch]
                    while len(under_way) > DEPTH:
                        self._take(stream, under_way)
                while under_way:
                    self._take(stream, under_way)
        except Exception as error:
            self.fault = repr(error)

    def _take(self, stream, under_way: list[tuple[int, int]]) -> None:  # type: ignore[no-untyped-def]
        head = stream.read(2)
        reply = stream.read(int.from_bytes(head, "big"))
        until = time.monotonic_ns()
        number, since = under_way.pop(0)
        outcome, generation = judge(reply, number)
        self.asked.append(Asked(since, until, generation, TCP, outcome, 0, reply[3] & 15))

    def stop(self) -> list[Asked]:
        self._over.set()
        self.join(PATIENCE_S)
        assert not self.is_alive(), "an answer does not come"
        assert not self.fault
        return self.asked


def judge(reply: bytes, identifier: int) -> tuple[int, int]:
    """What an answer is worth, and the number of the set in it."""
    body = 2 + len(QUESTION)
    right_head = struct.pack("!6H", identifier, ANSWERED, 1, 4, 0, 0)
    if reply[:12] != right_head or reply[12:body] != QUESTION[10:] or len(reply) != body + 4 * ANSWER.size:
        return WRONG, 0
    records = list(ANSWER.iter_unpack(reply[body:]))
    numbers = {int.from_bytes(record[-1], "big") for record in records}
    if len(numbers) > 1:
        return MIXED, 0
    whole = {record[-2] for record in records} == {10, 11, 12, 13} and {record[:5] for record in records} == {
        (0xC00C, 1, 1, 60, 4)
    }
    return (RIGHT if whole else WRONG), numbers.pop()


@pytest.fixture
def tls_port(service: Service, tmp_path: Path) -> int:
    cert, key = make_pair(tmp_path, "torture.test")
    port = free_port()
    secrets = tmp_path / "secrets"
    secrets.write_text("00" * 16 + "\n")
    service.add_server_options(
        "--tls-listen", f"127.0.0.1:{port}", "--tls-cert", str(cert), "--tls-key", str(key),
        "--cookie-secret-file", str(secrets),
    )  # fmt: skip
    return port


def connect(stack: ExitStack, port: int, encrypted: bool) -> Pipeline:
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = stack.enter_context(context.wrap_socket(sock))
    return Pipeline(sock)


def reload_again_and_again(pid: int, folder: Path, over: threading.Event) -> None:
    number = 0
    while not over.wait(RELOAD_S):
        number += 1
        new = make_pair(folder, f"new{number}.test")
        for path, name in zip(new, ("torture.test.pem", "torture.test.key"), strict=True):
            os.replace(path, folder / name)
        (folder / "secrets").write_text(f"{number:032x}\n" + "00" * 16 + "\n")
        os.kill(pid, signal.SIGHUP)


@pytest.mark.slow
@pytest.mark.timeout(DURATION_S + 60)
def test_pipelined_answers_of_changing_tables(
    service: Service, tls_port: int, changer: Changer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = service.start_run()
    wait_for("the service answers", service.ready)
    published = service.board.loader.get("publishes")
    plain_before, encrypted_before = streamed(service), streamed(service, ENCRYPTED_COUNTERS)
    changer.start(CHANGES_PER_S)
    adoptions = AdoptionLog(service)
    adoptions.start()
    over = threading.Event()
    reloader = threading.Thread(target=reload_again_and_again, args=(run.pid, tmp_path, over))
    reloader.start()
    with ExitStack() as stack:
        pipelines = [
            connect(stack, tls_port if encrypted else service.port, encrypted)
            for encrypted in (False, True)
            for _ in range(CONNECTIONS)
        ]
        for pipeline in pipelines:
            pipeline.start()
        time.sleep(DURATION_S)
        connections = [pipeline.stop() for pipeline in pipelines]
    over.set()
    reloader.join()
    adopted = adoptions.stop()
    changer.stop()
    published = service.board.loader.get("publishes") - published

    answers = Answers(chain.from_iterable(connections))
    slowest = max(asked.took_ns for asked in answers.tcp)
    with capsys.disabled():
        print(
            f"\n{len(answers.tcp)} answers on {len(connections)} connections in {DURATION_S:.0f} s, {published} swaps, "
            f"{len({asked.number for asked in answers.tcp})} versions seen, slowest {slowest / MS:.1f} ms"
        )
    assert not answers.faulty
    changes = changer.changes()
    assert not answers.ahead_of_time(changes)
    assert not answers.too_old(changes, adopted)
    for asked in connections:
        assert all(before.number <= after.number for before, after in pairwise(asked)), "a connection went back"
        assert len({one.number for one in asked}) > published / 10
    assert published > 0.3 * CHANGES_PER_S * DURATION_S
    assert streamed(service) - plain_before == sum(map(len, connections[:CONNECTIONS]))
    assert streamed(service, ENCRYPTED_COUNTERS) - encrypted_before == sum(map(len, connections[CONNECTIONS:]))
    assert "stay in use" not in service.said()
    assert service.total("table_damaged") == 0
    assert run.stop() == 0


def streamed(service: Service, start: int | None = None) -> int:
    """Queries that the stream worker has counted."""
    (slot,) = [slot for slot in service.board.workers() if slot.get("kind") == SlotKind.STREAM]
    return sum((slot.counters() if start is None else slot.counters(start))["requests_family"])


def test_the_judge_is_not_kind() -> None:
    head = struct.pack("!6H", 7, ANSWERED, 1, 4, 0, 0) + QUESTION[10:]

    def reply(*tails: tuple[int, int]) -> bytes:
        return head + b"".join(ANSWER.pack(0xC00C, 1, 1, 60, 4, first, n.to_bytes(3, "big")) for first, n in tails)

    right = reply((12, 5), (13, 5), (10, 5), (11, 5))
    assert judge(right, 7) == (RIGHT, 5)
    assert judge(right, 8)[0] == WRONG
    assert judge(reply((12, 5), (13, 5), (10, 4), (11, 5)), 7)[0] == MIXED
    assert judge(reply((12, 5), (13, 5), (10, 5), (10, 5)), 7)[0] == WRONG
    assert judge(reply((12, 5), (13, 5), (10, 5)), 7)[0] == WRONG
    assert judge(right[:3] + b"\2" + right[4:], 7)[0] == WRONG
