"""Changes the set of addresses in etcd again and again: `python -m tests.torture.changing ENDPOINT RATE LOG`.

Change n gives gen.example.test the addresses 10.N, 11.N, 12.N and 13.N, N being n in three bytes: one key.
Every CHURN changes, in the same transaction, a name elsewhere in the zone comes, changes or goes. A line of LOG is
`n SENT_NS DONE_NS REVISION` (CLOCK_MONOTONIC); n goes on from where the log ends. Ends on SIGTERM, with a whole line.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loader.etcd import Etcd
from tests.torture.service import PATIENCE_S, PREFIX, ROOT

ZONE = "example.test"
SET = f"gen.{ZONE}"
CHURN = 3
CHURNED_NAMES = 300


@dataclass(frozen=True, slots=True)
class Change:
    number: int
    sent_ns: int
    done_ns: int
    revision: int


def set_put(number: int) -> tuple[str, bytes]:
    tail = ".".join(map(str, number.to_bytes(3, "big")))
    return f"{PREFIX}/{ZONE}/gen/A", json.dumps({"ttl": 60, "data": [f"{10 + i}.{tail}" for i in range(4)]}).encode()


def churn(number: int, dice: random.Random) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Puts and deletes beside change `number`: names at several depths, so that empty non-terminals come and go."""
    if number % CHURN:
        return [], []
    name = dice.randrange(CHURNED_NAMES)
    key = f"{PREFIX}/{ZONE}/" + (f"n{name}.d{name % 7}/IP" if name % 3 else f"n{name}/TXT")
    if dice.random() < 0.4:
        return [], [key]
    data = [f"192.0.2.{dice.randrange(256)}", f"2001:db8::{number:x}"] if name % 3 else ["x" * dice.randrange(1, 200)]
    return [(key, json.dumps({"ttl": 60, "data": data}).encode())], []


async def change(endpoint: str, rate: float, log: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    done = read_log(log)
    number = done[-1].number if done else 0
    dice = random.Random(number)
    async with Etcd(endpoint) as etcd:
        with log.open("a", buffering=1) as file:
            start, count = time.monotonic(), 0
            while not stop.is_set():
                await asyncio.sleep(max(0.0, start + count / rate - time.monotonic()))
                number += 1
                count += 1
                puts, deletes = churn(number, dice)
                sent = time.monotonic_ns()
                revision = await etcd.transact([set_put(number), *puts], deletes)
                file.write(f"{number} {sent} {time.monotonic_ns()} {revision}\n")


def read_log(log: Path) -> list[Change]:
    if not log.exists():
        return []
    return [Change(*map(int, line.split())) for line in log.read_text().splitlines()]


class Changer:
    """The process, from outside."""

    def __init__(self, endpoint: str, log: Path) -> None:
        self._endpoint, self._log = endpoint, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, rate: float) -> None:
        command = [sys.executable, "-m", "tests.torture.changing", self._endpoint, str(rate), str(self._log)]
        before = len(self.changes())
        self._process = subprocess.Popen(command, cwd=ROOT)
        deadline = time.monotonic() + PATIENCE_S
        while len(self.changes()) == before:
            assert time.monotonic() < deadline, "no change reaches etcd"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            status = self._process.wait(PATIENCE_S)
            self._process = None
            assert status == 0, "the changer failed"

    def changes(self) -> list[Change]:
        return read_log(self._log)

    def one(self) -> Change:
        """One more change, while it is stopped."""
        asyncio.run(_one(self._endpoint, self._log))
        return self.changes()[-1]


async def _one(endpoint: str, log: Path) -> None:
    done = read_log(log)
    number = done[-1].number + 1 if done else 1
    async with Etcd(endpoint) as etcd:
        sent = time.monotonic_ns()
        revision = await etcd.transact([set_put(number)])
        with log.open("a") as file:
            file.write(f"{number} {sent} {time.monotonic_ns()} {revision}\n")


def main() -> None:
    endpoint, rate, log = sys.argv[1:]
    asyncio.run(change(endpoint, float(rate), Path(log)))


if __name__ == "__main__":
    main()
