"""What the lock costs a worker: its share of the instructions of the loop, at full batches.

    python -m bench.lockcost            counts with callgrind, prints one JSON line
    python -m bench.lockcost loop N     the worker's four lines, N times (what callgrind runs)

Callgrind counts instructions in user space, the same ones every time: those of the lock's way in and out, and those of
receiving, answering and sending a batch of 64, each with all that it calls. Not counted are the interpreter's steps
between them, some hundreds on either side, and the kernel's share, nine tenths of a worker's time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile

BATCH = 64
PASSES = 300
QUERY = bytes.fromhex("123400000001000000000000") + b"\x03www\x07example\x04test\0\0\1\0\1"
LOCK = ("__enter__", "__exit__", "read")
LOOP = ("receive", "answer", "send")
#: A line of callgrind_annotate: instructions, and the C function that Cython made of a method.
_LINE = re.compile(r"^\s*([\d,]+) .*:__pyx_pw_\w*?(?:7Section|5Batch)_\d+(\w+) ")


def main() -> int:
    """Count and print; 1 with the reason on stderr if it cannot be counted here."""
    if len(sys.argv) == 3:
        loop(int(sys.argv[2]))
        return 0
    if shutil.which("valgrind") is None:
        print("lockcost: valgrind is not installed", file=sys.stderr)
        return 1
    print(json.dumps(count()))
    return 0


def count() -> dict[str, float]:
    """Instructions a batch: of the loop's steps, of the lock's; and the lock's share of both. Needs valgrind."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        subprocess.run(
            [*valgrind, "-m", "bench.lockcost", "loop", str(PASSES)],
            capture_output=True, check=True, timeout=300, env=environment,
        )  # fmt: skip
        listing = subprocess.run(
            ["callgrind_annotate", "--inclusive=yes", "--threshold=100", out],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    found = {m[2]: int(m[1].replace(",", "")) / PASSES for m in map(_LINE.match, listing.splitlines()) if m}
    steps = sum(found[name] for name in LOOP)
    lock = sum(found.get(name, 0.0) for name in LOCK)
    return {"loop": steps, "lock": lock, "share": lock / (steps + lock)}


def loop(n: int) -> None:
    """`n` full batches through a worker's loop, in this process."""
    from server._answer import Terms
    from server._batch import Batch
    from server._counters import Counters
    from server.policy import Moment, Policy
    from shm.board import Board
    from shm.layout import SlotKind
    from shm.reading import TableReader
    from shm.rwlock import ReadLock
    from shm.segment import remove_instance

    instance = f"lockcost-{os.getpid()}"
    try:
        board = Board.create_or_attach(instance)
        _publish(board)
        slot = board.claim(SlotKind.WORKER)
        lock, tables = ReadLock(board, slot), TableReader(board, slot)
        tables.refresh()
        terms = Terms(Policy()).at(Moment())
        batch = Batch(terms, lambda *_: None, Counters(slot.words))
        server, client = _sockets()
        sock = server.fileno()
        for _ in range(n):
            for _ in range(BATCH):
                client.send(QUERY)
            batch.receive(sock)
            with lock.read() as live:
                batch.answer(tables.active(live))
            batch.send(sock)
            for _ in range(BATCH):
                client.recv(512)
        lock.close()
    finally:
        remove_instance(instance)


def _publish(board: object) -> None:
    from loader.model import Record
    from loader.names import from_text
    from loader.zone import Zones
    from shm.tables import TableWriter

    zones = Zones([from_text("example.test")])
    zones.apply("www", [Record(None, from_text("www.example.test"), 1, 60, b"\xc0\0\2\1")], 1)
    writer = TableWriter(board)  # type: ignore[arg-type]
    for _ in writer.replace(zones.all_nodes(), 1, {"zones": []}):
        pass
    writer.close()


def _sockets() -> tuple[socket.socket, socket.socket]:
    server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    server.bind(("127.0.0.1", 0))
    client.connect(server.getsockname())
    for sock in (server, client):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return server, client


if __name__ == "__main__":
    sys.exit(main())
