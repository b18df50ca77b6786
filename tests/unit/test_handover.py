"""Sockets handed to a worker that was forked before they existed."""

from __future__ import annotations

import socket
from multiprocessing.connection import Connection

import pytest

from server.handover import Handover
from tests.support.processes import child


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_nothing_has_come() -> None:
    ours, theirs = Handover.pair()
    table: dict[int, list[socket.socket]] = {}
    assert theirs.receive_into(table)
    assert table == {}
    ours.close()
    theirs.close()


def test_add_and_drop() -> None:
    ours, theirs = Handover.pair()
    first, second = [udp(), udp()], [udp()]
    ours.add(1, first)
    ours.add(2, second)
    table: dict[int, list[socket.socket]] = {}
    assert theirs.receive_into(table)
    assert {worker: [sock.getsockname() for sock in socks] for worker, socks in table.items()} == {
        1: [sock.getsockname() for sock in first],
        2: [sock.getsockname() for sock in second],
    }
    kept = table[1][0]
    ours.drop(1)
    ours.drop(9)
    assert theirs.receive_into(table)
    assert list(table) == [2]
    assert kept.fileno() == -1
    ours.add(2, first)
    before = table[2][0]
    assert theirs.receive_into(table)
    assert before.fileno() == -1, "those of the same worker are replaced"
    assert len(table[2]) == 2
    for sock in (*first, *second, *table[2]):
        sock.close()
    ours.close()
    theirs.close()


def test_the_supervisor_is_gone() -> None:
    ours, theirs = Handover.pair()
    sock = udp()
    ours.add(1, [sock])
    ours.close()
    table: dict[int, list[socket.socket]] = {}
    assert not theirs.receive_into(table), "what it sent is taken all the same"
    assert list(table) == [1]
    table[1][0].close()
    sock.close()
    theirs.close()


@pytest.mark.parametrize("why", ["gone", "does not read"])
def test_a_worker_that_does_not_take_them_holds_up_nobody(why: str) -> None:
    ours, theirs = Handover.pair()
    if why == "gone":
        theirs.close()
    sock = udp()
    for _ in range(2000):
        ours.add(1, [sock])
        ours.drop(1)
    sock.close()
    ours.close()
    theirs.close()


def test_across_processes() -> None:
    ours, theirs = Handover.pair()

    def worker(pipe: Connection) -> None:
        ours.close()
        pipe.recv()
        table: dict[int, list[socket.socket]] = {}
        assert theirs.receive_into(table)
        pipe.send(table[3][0].recv(64))

    with child(worker) as process:
        theirs.close()
        sock = udp()
        ours.add(3, [sock])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", sock.getsockname())
        sock.close()
        process.tell()
        assert process.hear() == b"hello"
    ours.close()
