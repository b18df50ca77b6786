"""Whose sockets a worker drains beside its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from server.worker import IDLE_S, NEIGHBOUR_STALE_NS, Worker, WorkerSetup
from shm.board import Board, ClaimedSlot
from shm.layout import SlotKind
from tests.support.instances import fresh_instance


@pytest.fixture
def board() -> Iterator[Board]:
    with fresh_instance() as instance:
        board = Board.create_or_attach(instance)
        yield board
        board.close()


@pytest.fixture
def slots(board: Board) -> Iterator[list[ClaimedSlot]]:
    claimed = [board.claim(SlotKind.WORKER, index) for index in range(2)]
    yield claimed
    for slot in claimed:
        slot.release()


@pytest.fixture
def worker(board: Board, slots: list[ClaimedSlot]) -> Iterator[Worker]:
    """Worker 0 of two, with nothing but what a look at its neighbours takes."""
    sockets = {index: [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)] for index in range(2)}
    for (sock,) in sockets.values():
        sock.bind(("127.0.0.1", 0))
    worker = object.__new__(Worker)
    vars(worker).update(
        _setup=WorkerSetup(board.names.instance, 0, sockets),
        _sockets=sockets,
        _board=board,
        _adopted=2,
        _orphanhood=SimpleNamespace(orphaned=False),
    )
    yield worker
    for (sock,) in sockets.values():
        sock.close()


def drained(worker: Worker, now: int) -> list[int]:
    return [fd for fd, _ in worker._stale_neighbours(now)]


def test_a_neighbour_without_a_heartbeat_is_drained(worker: Worker, slots: list[ClaimedSlot]) -> None:
    now = time.monotonic_ns()
    for slot in slots:
        slot.set("generation", 1)
        slot.set("heartbeat_ns", now)
    assert drained(worker, now + NEIGHBOUR_STALE_NS - 1) == []
    assert drained(worker, now + NEIGHBOUR_STALE_NS) == [worker._sockets[1][0].fileno()]


def test_a_neighbour_that_is_still_starting_is_drained(worker: Worker, slots: list[ClaimedSlot]) -> None:
    """Its claim has shown a heartbeat, but it answers nothing before it has adopted a table."""
    assert drained(worker, slots[1].get("heartbeat_ns")) == [worker._sockets[1][0].fileno()]
    slots[1].set("generation", 1)
    assert drained(worker, slots[1].get("heartbeat_ns")) == []


def test_before_the_first_table_nobody_is_drained_for_having_none(worker: Worker, slots: list[ClaimedSlot]) -> None:
    worker._adopted = 0
    assert drained(worker, slots[1].get("heartbeat_ns")) == []


def test_an_idle_worker_sleeps_no_longer_than_a_neighbours_clients_may_wait(
    worker: Worker, slots: list[ClaimedSlot]
) -> None:
    slots[1].set("generation", 1)
    beat = time.monotonic_ns()
    slots[1].set("heartbeat_ns", beat)
    drained(worker, beat + 1_000_000)
    usual = IDLE_S * 1000
    assert worker._patience_ms(beat + 1_000_000) == usual, "it is well"
    assert worker._patience_ms(beat + NEIGHBOUR_STALE_NS - 5_000_000) == 5.0
    assert worker._patience_ms(beat + NEIGHBOUR_STALE_NS + 5_000_000) == 1.0, "the look at it is due"
    drained(worker, beat + NEIGHBOUR_STALE_NS)
    assert worker._patience_ms(beat + NEIGHBOUR_STALE_NS) == usual, "its sockets are drained already"
