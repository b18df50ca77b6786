"""Addresses that others listen on are refused; those of this instance's own workers, left by a dead server, are not."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from server import vacancy
from server.sockets import Address, BindError, open_tcp, open_udp
from server.vacancy import open_sockets
from shm.board import Board
from shm.layout import SlotKind
from shm.segment import remove_instance
from tests.unit.test_sockets import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacancy, "PATIENCE_S", 0.1)


@pytest.fixture
def board(instance: str) -> Board:
    return Board.create_or_attach(instance)


def opened(board: Board, address: Address, *, tls: bool = False, freebind: bool = False) -> None:
    plain, encrypted = ((), (address,)) if tls else ((address,), ())
    open_sockets(board, plain, encrypted, 2, freebind=freebind).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("freebind", [False, True])
@pytest.mark.parametrize(("open_", "tls"), [(open_udp, False), (open_tcp, False), (open_tcp, True)])
def test_another_instance_listens_there(
    board: Board, open_: Callable[[Address], socket.socket], tls: bool, host: str, freebind: bool
) -> None:
    address = Address(host, free_port())
    opened(board, address, tls=tls, freebind=freebind)
    said = rf"cannot listen on {re.escape(str(address))}: .*another program or instance .*--listen"
    with open_(address), pytest.raises(BindError, match=said):
        opened(board, address, tls=tls, freebind=freebind)
    opened(board, address, tls=tls, freebind=freebind)


def test_an_address_that_comes_later(board: Board) -> None:
    opened(board, Address("192.0.2.1", free_port()), freebind=True)
    with pytest.raises(BindError, match="no interface"):
        opened(board, Address("192.0.2.1", free_port()))


@pytest.mark.parametrize("kind", [SlotKind.WORKER, SlotKind.STREAM, SlotKind.OTHER])
def test_workers_of_a_dead_server_may_stay(board: Board, kind: SlotKind) -> None:
    address = Address("127.0.0.1", free_port())
    with open_udp(address):
        slot = board.claim(kind)
        if kind == SlotKind.OTHER:
            with pytest.raises(BindError):
                opened(board, address)
        else:
            opened(board, address)
        slot.release()
        with pytest.raises(BindError):
            opened(board, address)


def test_sockets_that_go_in_a_moment_are_waited_for(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacancy, "PATIENCE_S", 20.0)
    address = Address("127.0.0.1", free_port())
    timer = threading.Timer(0.2, open_udp(address).close)
    timer.start()
    opened(board, address)
    timer.join()


def test_servers_bind_one_after_the_other(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that stands still in between keeps nobody out for good."""
    address = Address("127.0.0.1", free_port())
    order: list[str] = []

    def second() -> None:
        with vacancy._our_turn():
            order.append("second")

    monkeypatch.setattr(vacancy, "TURN_PATIENCE_S", 20.0)
    with vacancy._our_turn():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setattr(vacancy, "TURN_PATIENCE_S", 0.1)
    with vacancy._our_turn():
        opened(board, address)


def test_a_server_says_so_and_ends(instance: str, tmp_path: Path) -> None:
    address = Address("127.0.0.1", free_port())
    command = [sys.executable, "-m", "cli.main", "serve", "--instance", instance, "--listen", str(address)]
    command += ["--runtime-dir", str(tmp_path), "--workers", "1"]
    with open_udp(address), open_tcp(address):
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    remove_instance(instance)
    assert result.returncode == 1
    assert len(lines := result.stderr.splitlines()) == 1
    assert f"cannot listen on {address}: Address already in use" in lines[0]
