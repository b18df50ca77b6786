"""Many changes a second in etcd: whether the loader keeps up with them, and loses none."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator

from bench.processes import BenchError, Result, Standoff
from loader.etcd import Etcd
from loader.etcd_channel import ClientOptions
from shm import node
from shm.board import Board
from shm.reading import TableObserver

#: Changes a second, and how many of them a transaction of etcd has.
RATE = 20_000
TXN = 100
PATIENCE_S = 120.0

A = 1

#: Number of a host, its address -> key and value that give it.
PutOf = Callable[[int, str], tuple[str, bytes]]


def wait_for(condition: Callable[[], object], what: str) -> float:
    """Seconds until the condition came true."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() > start + PATIENCE_S:
            raise BenchError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.005)
    return time.monotonic() - start


async def write_on(
    endpoint: str, hosts: int, seconds: float, put_of: PutOf, latest: dict[int, int]
) -> tuple[int, float]:
    """RATE changes a second; fills in host -> number of its last change. The last revision, and seconds it took."""
    draw, number, revision = random.Random(2), 0, 0
    async with Etcd(endpoint, ClientOptions(call_timeout=PATIENCE_S)) as etcd:
        start = time.monotonic()
        while number < RATE * seconds:
            await asyncio.sleep(max(0.0, start + number / RATE - time.monotonic()))
            puts = []
            for host in draw.sample(range(hosts), TXN):
                number += 1
                latest[host] = number
                puts.append(put_of(host, changed(number)))
            revision = await etcd.transact(puts)
        return revision, time.monotonic() - start


def changed(number: int) -> str:
    """The address that change `number` gives."""
    return ".".join(map(str, (1 << 31 | number).to_bytes(4, "big")))


def stream(service: Standoff, endpoint: str, hosts: int, seconds: float, put_of: PutOf) -> Result:
    """The service has a table of all hosts h0000000, h0000001 … in zone perf.test."""
    print(f"{RATE} changes a second for {seconds:.0f} s", file=sys.stderr, flush=True)
    latest: dict[int, int] = {}
    before = service.loader_words()
    revision, took = asyncio.run(write_on(endpoint, hosts, seconds, put_of, latest))
    behind = revision - service.loader_words()["revision"]
    lag = wait_for(lambda: service.loader_words()["revision"] >= revision, "all changes")
    after = service.loader_words()
    return {
        "seconds": took,
        "changes": RATE * seconds,
        "rate": RATE * seconds / took,
        "publishes": after["publishes"] - before["publishes"],
        "transactions_behind_at_the_end": behind,
        "applied_after_s": lag,
        "wrong": differences(service.instance, latest),
    }


def differences(instance: str, latest: dict[int, int]) -> int:
    """Names whose answer is not that of their last change."""
    board = Board.attach(instance)
    observer = TableObserver(board)
    try:
        wrong = 0
        for host, number in latest.items():
            block = observer.find(b"\x08h%07d\x04perf\x04test\x00" % host)
            right = socket.inet_aton(changed(number))
            wrong += block is None or not node.unpack(block).rrsets[A].wire.endswith(right)
        return wrong
    finally:
        observer.close()
        board.close()


def rows(result: Result) -> Iterator[tuple[str, str, str]]:
    """What, measured, goal."""
    yield f"changes a second, {result['seconds']:.0f} s", f"{result['rate']:.0f}", str(RATE)
    yield "all applied after the last one", f"{result['applied_after_s']:.2f} s", ""
    yield "names with a wrong answer then", str(result["wrong"]), "0"
