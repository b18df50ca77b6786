"""A DNS service as simple as that of 2015, on the lock of 2015: workers that answer, a reload, and one leak.

    python -m drill.naive_service PORT NAME WORKERS

Workers answer every query with one address, which they read under the read lock; on stdin, "leak" makes the first
worker keep its next read lock and go on, "reload N" makes the reloader write address N under the write lock. It says
"ready", then "reloaded N" for each reload that got through. It ends with its stdin.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from drill.child import NICENESS, ROOT, scrubbed
from drill.naive import NaiveLock

_ADDRESS = struct.Struct("=I")
_PR_SET_PDEATHSIG = 1


def answer(packet: bytes, address: int) -> bytes:
    """The question, and one A record."""
    header = packet[:2] + b"\x84\0\0\1\0\1\0\0\0\0"
    return header + packet[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + address.to_bytes(4, "big")


def work(sock: socket.socket, name: str, table: mmap.mmap) -> None:
    """A worker's life."""
    lock = NaiveLock(name)
    leaks: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: leaks.append(1))
    while True:
        packet, client = sock.recvfrom(4096)
        lock.acquire_read()
        (address,) = _ADDRESS.unpack_from(table)
        if leaks:
            leaks.clear()  # the code path of 2015: it returns without giving the lock back
        else:
            lock.release_read()
        sock.sendto(answer(packet, address), client)


def reload(orders: int, name: str, table: mmap.mmap) -> None:
    """The reloader's life."""
    lock = NaiveLock(name)
    with os.fdopen(orders) as lines:
        for line in lines:
            with lock.write():
                _ADDRESS.pack_into(table, 0, int(line))
            print(f"reloaded {line.strip()}", flush=True)


def fork(body: object, *arguments: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        body(*arguments)  # type: ignore[operator]
    finally:
        os._exit(1)


def main() -> None:
    port, name, workers = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICENESS)
    table = mmap.mmap(-1, mmap.PAGESIZE)
    sockets = []
    for _ in range(workers):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        sockets.append(sock)
    orders, give = os.pipe()
    pids = [fork(work, sock, name, table) for sock in sockets]
    pids.append(fork(reload, orders, name, table))
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            command, _, number = line.strip().partition(" ")
            if command == "leak":
                os.kill(pids[0], signal.SIGUSR1)
            elif command == "reload":
                os.write(give, f"{number}\n".encode())
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


class NaiveService:
    """The service, from outside."""

    def __init__(self, port: int, name: str, folder: Path, workers: int = 2) -> None:
        self._name = name
        self._said = folder / "naive.out"
        with self._said.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "drill.naive_service", str(port), name, str(workers)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=out, start_new_session=True, env=scrubbed({}),
            )  # fmt: skip

    def said(self, line: str) -> bool:
        return line in self._said.read_text().splitlines()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Its workers die with it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        NaiveLock(self._name).unlink()


if __name__ == "__main__":
    main()
