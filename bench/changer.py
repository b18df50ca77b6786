"""Changes one set of addresses again and again, and notes when: `python -m bench.changer TARGET RATE LOG`.

TARGET is `etcd://HOST:PORT/PREFIX` (schema records), or the path of a file of JSON lines that is replaced each time.
Change n gives set.perf.test the addresses 10.N, 11.N and 12.N, where N is n in the last three bytes; n goes on from
where the log ends. A line of LOG is `n SENT_NS DONE_NS`, CLOCK_MONOTONIC: when the change was sent, and when the source
had it. Prints "ready" before the first change; ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.zones import ZONE
from loader.etcd import Etcd

SET = f"set.{ZONE}"
SET_SIZE = 3
Write = Callable[[list[str]], Awaitable[None]]


def set_addresses(number: int) -> list[str]:
    """The set's addresses after change `number`."""
    tail = ".".join(map(str, number.to_bytes(3, "big")))
    return [f"{first}.{tail}" for first in (10, 11, 12)[:SET_SIZE]]


def set_key(prefix: str) -> str:
    return f"{prefix}/{ZONE}/set/A"


def set_value(number: int) -> bytes:
    return json.dumps({"ttl": 60, "data": set_addresses(number)}).encode()


def set_lines(addresses: list[str]) -> str:
    """The set as lines of JSON, for a file source."""
    return "".join(json.dumps({"name": f"{SET}.", "type": "A", "ttl": 60, "data": a}) + "\n" for a in addresses)


async def change(write: Write, rate: float, log: Path) -> None:
    """A change is due every 1 / rate seconds; one that is late does not delay the others."""
    lines = log.read_text().split("\n") if log.exists() else []
    number = int(lines[-2].split()[0]) if len(lines) > 1 else 0
    print("ready", flush=True)
    start, done = time.monotonic(), 0
    with log.open("a", buffering=1) as file:
        while True:
            await asyncio.sleep(max(0.0, start + done / rate - time.monotonic()))
            number += 1
            done += 1
            sent = time.monotonic_ns()
            await write(set_addresses(number))
            file.write(f"{number} {sent} {time.monotonic_ns()}\n")


async def change_etcd(target: str, rate: float, log: Path) -> None:
    endpoint, _, prefix = target.removeprefix("etcd://").partition("/")
    async with Etcd(endpoint) as etcd:

        async def write(addresses: list[str]) -> None:
            await etcd.put(set_key(f"/{prefix}"), json.dumps({"ttl": 60, "data": addresses}).encode())

        await change(write, rate, log)


async def change_file(target: Path, rate: float, log: Path) -> None:
    async def write(addresses: list[str]) -> None:
        new = target.with_suffix(".new")
        new.write_text(set_lines(addresses))
        os.replace(new, target)

    await change(write, rate, log)


def main() -> None:
    target, rate, log = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if target.startswith("etcd://"):
        asyncio.run(change_etcd(target, float(rate), Path(log)))
    else:
        asyncio.run(change_file(Path(target), float(rate), Path(log)))


if __name__ == "__main__":
    main()
