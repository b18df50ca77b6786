"""A real server, scaled and robbed of its supervisor: no query is lost to a socket that nobody reads."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from server.main import serve
from shm.board import Board
from shm.layout import SlotKind
from shm.tables import TableWriter
from tests.support.answerers import reference
from tests.support.packets import query
from tests.support.processes import Child, drive, wait_for
from tests.support.tables import example_blocks, example_table
from tests.unit.test_sockets import free_port

QUERIES = 60
PACKET = query("a.example.test.")


@dataclass(frozen=True)
class Settings:
    """What server.main wants to know."""

    instance: str
    listen_addresses: list[tuple[str, int]]
    control_path: Path
    workers: int = 2
    metrics_address: tuple[str, int] | None = None
    max_udp_size: int = 1232
    tcp_clients: int = 10
    tcp_clients_per_address: int = 0
    tcp_idle: float = 5.0
    tls_listen_addresses: tuple[tuple[str, int], ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain_timeout: float = 1.0
    log_level: str = "warning"
    freebind: str = "off"
    order: str = "fixed"
    max_answers: int = 0
    chaos: str = "on"
    identity: str = "test"
    cookie_secret: tuple[str, ...] = ()
    cookie_secret_file: Path | None = None
    rrl_rate: float = 0.0
    rrl_slip: int = 2
    rrl_exempt: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    stale_after: float = 0.0
    transfer_allow: tuple[str, ...] = ()
    notify: tuple[str, ...] = ()
    tsig_key: tuple[str, ...] = ()


@pytest.fixture
def settings(instance: str, tmp_path: Path) -> Iterator[Settings]:
    board = Board.create_or_attach(instance)
    writer = TableWriter(board)
    drive(writer.replace(example_blocks(), 7, {}))
    yield Settings(instance, [("127.0.0.1", free_port())], tmp_path / "control")
    for number in board.live_slots():
        os.kill(board.slot(number).get("pid"), signal.SIGKILL)
    wait_for("every process of the test is gone", lambda: not board.live_slots())
    writer.close()
    board.close()


def supervise(settings: Settings) -> Child:
    def run(_: Connection) -> None:
        raise SystemExit(serve(settings))

    return Child(run)


def workers_ready(board: Board, count: int) -> bool:
    slots = [board.slot(number) for number in board.live_slots()]
    return sum(1 for s in slots if s.get("kind") == SlotKind.WORKER and s.get("generation")) == count


def answered(settings: Settings) -> int:
    """Of QUERIES queries from as many clients."""
    count = 0
    for _ in range(QUERIES):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(2.0)
            client.sendto(PACKET, settings.listen_addresses[0])
            try:
                count += client.recv(512) == reference(PACKET, example_table())
            except TimeoutError:
                return count
    return count


def test_down_and_up_again(settings: Settings) -> None:
    board = Board.attach(settings.instance)
    supervisor = supervise(settings)
    try:
        wait_for("two workers answer", lambda: workers_ready(board, 2))
        assert answered(settings) == QUERIES
        for number, count in ((signal.SIGTTOU, 1), (signal.SIGTTIN, 2), (signal.SIGTTIN, 3)):
            supervisor.signal(number)
            wait_for(f"{count} workers answer", partial(workers_ready, board, count))
            assert answered(settings) == QUERIES
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait() == 0
        assert board.live_slots() == []
    finally:
        supervisor.close()
        board.close()


def test_a_supervisor_is_killed_and_another_takes_over(settings: Settings) -> None:
    """Its children answer on until the new ones do, then they leave, the stream worker too."""
    board = Board.attach(settings.instance)
    supervisor = supervise(settings)
    try:
        wait_for("two workers answer", lambda: workers_ready(board, 2))
        old = {board.slot(number).get("pid") for number in board.live_slots()}
        supervisor.kill()
        assert answered(settings) == QUERIES
    finally:
        supervisor.close()
    supervisor = supervise(settings)
    try:
        wait_for("the old ones are gone", lambda: not old & {board.slot(n).get("pid") for n in board.live_slots()})
        wait_for("the new ones answer", lambda: workers_ready(board, 2))
        assert answered(settings) == QUERIES
        with socket.create_connection(settings.listen_addresses[0], 10) as client:
            client.sendall(len(PACKET).to_bytes(2, "big") + PACKET)
            assert client.recv(2)
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait() == 0
    finally:
        supervisor.close()
        board.close()
