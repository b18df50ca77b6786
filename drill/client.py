"""A client that asks at a steady rate from several source ports, in a process of its own, and writes down what it saw.

    python -m drill.client PORT RATE SOURCES FILE NAME...

It asks for an A record of each name in turn, never twice, never waiting for an answer, until SIGTERM; then it lingers
for a second and writes FILE (drill/timeline.py). Beside it a thread on each core does nothing but sleep for 2 ms and
look how long that took: when one, or the client itself, comes late by 5 ms, the machine stood still, and no server can
be blamed for that time. A server that is slow by itself gains nothing from it: the sleepers need hardly any time, so
the kernel wakes them before anything that is busy.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from drill.child import launch
from drill.timeline import MS, RECORD, Outcome, Timeline

#: The sleepers' turn, and how late one has to be: above what timers and a busy scheduler do all the time.
NAP_S = 0.002
LATE_NS = 5 * MS
LINGER_S = 1.0
#: Cores that are watched; a drill keeps no more busy.
MOST_SLEEPERS = 8
_A_QUESTION = b"\0\1\0\1"


def question(name: str) -> bytes:
    """Header without its id, and question, for an A record."""
    labels = [label.encode() for label in name.rstrip(".").split(".")]
    return b"\0\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + _A_QUESTION


def judge(packet: bytes, asked: bytes) -> tuple[Outcome, int]:
    """What a reply says, and the address in it."""
    rcode = packet[3] & 15
    if rcode == 2:
        return Outcome.SERVFAIL, 0
    answer = 2 + len(asked)
    if rcode or packet[6:8] == b"\0\0" or packet[12:answer] != asked[10:] or len(packet) < answer + 16:
        return Outcome.OTHER, 0
    return Outcome.ANSWERED, int.from_bytes(packet[answer + 12 : answer + 16], "big")


class Asking:
    """The client's process."""

    def __init__(self, port: int, rate: float, sources: int, names: list[str]) -> None:
        self._questions = [question(name) for name in names]
        self._interval_ns = int(1e9 / rate)
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(sources)]
        self._epoll = select.epoll()
        for i, sock in enumerate(self._sockets):
            sock.setblocking(False)
            sock.connect(("127.0.0.1", port))
            self._epoll.register(sock, select.EPOLLIN)
            self._sockets[i] = sock
        self._by_fd = {sock.fileno(): i for i, sock in enumerate(self._sockets)}
        self._records: list[list[int]] = []  # sent, until, address, source, name, outcome
        self._open: dict[tuple[int, int], list[int]] = {}
        self._stalls: list[tuple[int, int]] = []
        self._over = False

    def run(self, file: Path) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_over", True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the drill's to handle
        sys.setswitchinterval(0.0005)
        for cpu in sorted(os.sched_getaffinity(0))[:MOST_SLEEPERS]:
            threading.Thread(target=self._sleep_on, args=(cpu,), daemon=True).start()
        print("ready", flush=True)
        due = time.monotonic_ns()
        while not self._over:
            now = time.monotonic_ns()
            while due <= now:
                self._ask()
                due += self._interval_ns
            self._wait_until(due)
        end = time.monotonic_ns() + int(LINGER_S * 1e9)
        while self._open and time.monotonic_ns() < end:
            self._wait_until(end)
        with file.open("wb") as out:
            for record in self._records:
                out.write(RECORD.pack(*record))
            for start, until in list(self._stalls):
                out.write(RECORD.pack(start, until, 0, 0, 0, Outcome.STALL))

    def _sleep_on(self, cpu: int) -> None:
        with suppress(OSError):
            os.sched_setaffinity(threading.get_native_id(), {cpu})
        while True:
            due = time.monotonic_ns() + int(NAP_S * 1e9)
            time.sleep(NAP_S)
            self._note(due, time.monotonic_ns())

    def _note(self, due: int, woke: int) -> None:
        if woke - due > LATE_NS:
            self._stalls.append((due, woke))

    def _ask(self) -> None:
        number = len(self._records)
        source, name = number % len(self._sockets), number % len(self._questions)
        id_ = number // len(self._sockets) & 0xFFFF
        record = [time.monotonic_ns(), 0, 0, source, name, Outcome.LOST]
        self._records.append(record)
        self._open[source, id_] = record
        with suppress(OSError):  # nobody listens, says the kernel: then nothing will come
            self._sockets[source].send(id_.to_bytes(2, "big") + self._questions[name])

    def _wait_until(self, due: int) -> None:
        start = time.monotonic_ns()
        events = self._epoll.poll(max(0, due - start) / 1e9)
        woke = time.monotonic_ns()
        self._note(max(due, start) + MS, woke)  # epoll counts in milliseconds
        for fd, _ in events:
            self._take(self._by_fd[fd])
        self._note(woke, time.monotonic_ns())

    def _take(self, source: int) -> None:
        with suppress(OSError):
            while True:
                packet = self._sockets[source].recv(4096)
                until = time.monotonic_ns()
                record = self._open.pop((source, int.from_bytes(packet[:2], "big")), None)
                if record is not None and len(packet) >= 12:
                    record[5], record[2] = judge(packet, self._questions[record[4]])
                    record[1] = until


class Client:
    """A running client, from outside."""

    def __init__(self, port: int, folder: Path, names: list[str], *, rate: float = 1000, sources: int = 16) -> None:
        self._file = folder / f"client-{port}"
        arguments = [str(port), str(rate), str(sources), str(self._file), *names]
        self._process = launch("drill.client", *arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the drill's client did not start")

    def stop(self) -> Timeline:
        """Ask no more, wait a second for what is under way."""
        self._process.terminate()
        self._process.wait(LINGER_S + 30)
        return Timeline.parse(self._file.read_bytes())

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main() -> None:
    port, rate, sources, file, *names = sys.argv[1:]
    Asking(int(port), float(rate), int(sources), names).run(Path(file))


if __name__ == "__main__":
    main()
