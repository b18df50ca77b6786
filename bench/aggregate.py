"""What a change beneath a SkyDNS apex with many descendants costs the loader, from etcd's event to the swap.

    python -m bench.aggregate [DESCENDANTS]     default 10000; prints one JSON line, in milliseconds

Keys as ExternalDNS writes them, one random label beneath each name; a third of the changes each alters, deletes and
adds one. In-process: schema, zone model, both tables in shared memory; no workers to wait for. CPU time says what it
costs, wall time also what else the machine did.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

from loader import names
from loader.model import Changes, Delete, Listing, Put
from loader.publisher import Publisher
from loader.skydns_feed import change_update, full_update
from loader.skydns_tree import ServiceTree
from loader.zone import Zones
from shm.board import Board
from shm.segment import remove_instance
from shm.tables import TableWriter

INSTANCE = "bench-aggregate"
CHANGES = 1000


async def measure(count: int, writer: TableWriter) -> dict[str, object]:
    zone = names.from_text("example.test")
    tree = ServiceTree("/skydns", [zone])
    publisher = Publisher(writer, Zones([zone]), 1)
    keys = [f"/skydns/test/example/svc{i}/{i:08x}" for i in range(count)]
    listing = Listing([Put(key, value(i), i + 1) for i, key in enumerate(keys)], count)
    started = time.perf_counter()
    await publisher.take(0, full_update(tree, listing))
    await publisher.publish()
    loaded_s = time.perf_counter() - started
    draw = random.Random(1)
    wall, cpu = [], []
    for number in range(CHANGES):
        revision, at = count + number + 1, draw.randrange(count)
        fresh = Put(f"/skydns/test/example/new{number}/x", value(number), revision)
        event = (Put(keys[at], value(draw.randrange(65536)), revision), Delete(keys[at], revision), fresh)[number % 3]
        before = time.perf_counter(), time.process_time()
        await publisher.take(0, change_update(tree, Changes([event], revision)))
        await publisher.publish()
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return {"descendants": count, "load_s": round(loaded_s, 2), "wall_ms": spread(wall), "cpu_ms": spread(cpu)}


def value(number: int) -> bytes:
    return b'{"host":"10.1.%d.%d","targetstrip":1}' % (number >> 8 & 255, number & 255)


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: ordered[int(len(ordered) * share)] for name, share in at.items()} | {"max": ordered[-1]}
    return {name: round(one * 1000, 2) for name, one in found.items()}


def main(arguments: list[str]) -> None:
    board = Board.create_or_attach(INSTANCE)
    writer = TableWriter(board)
    try:
        print(json.dumps(asyncio.run(measure(int(arguments[0]) if arguments else 10_000, writer))))
    finally:
        writer.close()
        board.close()
        remove_instance(INSTANCE)


if __name__ == "__main__":
    main(sys.argv[1:])
