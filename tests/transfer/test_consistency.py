"""A transfer while the table is swapped fifty times a second: one generation, no query lost, no lock reported."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shm.board import Board
from shm.node import pack
from shm.segment import LockFile, Names
from shm.tables import TableWriter
from tests.support.etcd import free_ports
from tests.support.packets import query
from tests.support.processes import child, drive, wait_for
from tests.support.tables import compile_zone, rrset, wire
from tests.transfer.primary import PATIENCE_S, Primary, standoff, transfer, wait_until_published

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOSTS = 400
SWAPS_A_SECOND = 50
TRANSFERS = 30


def version_block(host: int, version: int) -> bytes:
    return pack(wire(f"h{host}.example.test."), 0, [rrset(1, 60, version.to_bytes(4, "big"))])


def content(version: int) -> dict[bytes, bytes]:
    """Every host says the version, and so does the serial."""
    zone = f"@ 300 SOA ns hostmaster {version} 7200 1800 86400 30\n@ 300 NS ns\nns 60 A 192.0.2.53\n"
    blocks = {block[8 : 8 + block[4]]: block for block in compile_zone("example.test.", zone)}
    return blocks | {wire(f"h{host}.example.test."): version_block(host, version) for host in range(HOSTS)}


def swap_on(pipe: Connection, instance: str) -> None:
    """A loader that changes everything, again and again, until it is told to stop."""
    lock = LockFile(Names(instance).lock("writer"))
    assert lock.try_acquire()
    board = Board.create_or_attach(instance)
    writer = TableWriter(board)
    meta = {"zones": [wire("example.test.")]}
    drive(writer.replace(content(1).values(), 1, meta))
    pipe.send("published")
    version, due = 1, time.monotonic()
    while not pipe.poll(max(0.0, due - time.monotonic())):
        due = max(due + 1 / SWAPS_A_SECOND, time.monotonic())
        version += 1
        drive(writer.apply(dict(content(version)), version, meta))
    writer.close()
    board.close()
    pipe.send(version)


class Asker(threading.Thread):
    """One question after the other by UDP; a lost one costs two seconds, and is counted."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._over = threading.Event()
        self.asked = self.lost = 0

    def run(self) -> None:
        packet = query("h7.example.test.", "A")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect(("127.0.0.1", self._port))
            while not self._over.is_set():
                sock.send(packet)
                self.asked += 1
                try:
                    sock.recv(4096)
                except TimeoutError:
                    self.lost += 1
                time.sleep(0.001)

    def stop(self) -> None:
        self._over.set()
        self.join()


@pytest.fixture
def service(tmp_path: Path, instance: str) -> Iterator[tuple[Primary, Board, int]]:
    """A server, and another process that swaps."""
    (port,) = free_ports(1)
    with child(lambda pipe: swap_on(pipe, instance)) as loader:
        assert loader.hear() == "published"
        with standoff("serve", tmp_path, instance, port, "--transfer-allow", "127.0.0.1") as primary:
            board = wait_until_published(instance)
            wait_for("a worker answers", lambda: any(s.get("generation") for s in board.workers()), PATIENCE_S)
            wait_for("the TCP side answers", lambda: _listens(port), PATIENCE_S)
            yield primary, board, loader.pid
            board.close()
        loader.tell("stop")
        loader.hear()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_transfer_is_of_one_generation(service: tuple[Primary, Board, int]) -> None:
    primary, board, _ = service
    asker = Asker(primary.port)
    asker.start()
    try:
        first = board.live >> 1
        seen = []
        for _ in range(TRANSFERS):
            records = transfer(primary.port)
            hosts = {data for name, _, type_, data in records if type_ == "A" and name.startswith("h")}
            serials = {int(data.split()[2]) for _, _, type_, data in records if type_ == "SOA"}
            assert len(hosts) == 1, f"hosts of {len(hosts)} generations in one transfer"
            assert len(serials) == 1
            version = int.from_bytes(socket.inet_aton(hosts.pop()), "big")
            assert serials == {version}
            assert len([record for record in records if record[2] == "A"]) == HOSTS + 1
            seen.append(version)
        last = board.live >> 1
    finally:
        asker.stop()
    print(f"versions {seen}, generations {first} to {last}, {asker.asked} questions, {asker.lost} lost")
    assert seen == sorted(seen)
    assert last - first > TRANSFERS, "the table was not swapped often enough to say anything"
    assert asker.asked > 100
    assert asker.lost == 0
    assert board.supervisor.get("leaks_reported") == 0
    assert board.supervisor.get("workers_condemned") == 0


def test_transfers_at_the_same_time(service: tuple[Primary, Board, int]) -> None:
    primary, board, _ = service
    results: list[int] = []

    def one() -> None:
        records = transfer(primary.port)
        results.append(len({data for name, _, type_, data in records if type_ == "A" and name.startswith("h")}))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 8
    assert board.supervisor.get("leaks_reported") == 0
