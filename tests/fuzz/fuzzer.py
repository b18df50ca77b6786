"""Mutated packets through both answerers: `python -m tests.fuzz.fuzzer --packets N --seed S`.

Datagrams go the whole way through the compiled batch, over a real socket: recvmmsg, hot path, the reference for what it
declines, sendmmsg. Some go as stream messages. Each reply is compared with the reference's, byte for byte, which comes,
as the packets do, from a process without the sanitizers (oracle.py), and is read by dnspython there.

STANDOFF_FUZZ_SABOTAGE=N spoils the Nth reply, to see that a difference is noticed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server import _batch
from server._batch import Batch
from server._counters import Counters
from server.sockets import UDP_BUFFER_BYTES
from shm._atomic import Words
from shm._table import Table
from shm.layout import PAGE
from tests.fuzz.oracle import LONGEST_QUERY, Frame, frames, udp_reply
from tests.support.answerers import TERMS, hot_path
from tests.support.tables import example_table

#: One packet in so many is answered by the reference here as well: it calls the compiled table.
REFERENCE_SHARE = 16
SABOTAGE = int(os.environ.get("STANDOFF_FUZZ_SABOTAGE", "0"))


class Difference(AssertionError):
    """The answerers disagree, or a reply cannot be read."""


@dataclass(slots=True)
class Fuzzer:
    """One table, one batch, two sockets."""

    table: Table
    done: int = 0
    declined: int = 0
    dropped: int = 0
    replies: int = 0
    _expected: dict[bytes, bytes] = field(default_factory=dict)
    _client: socket.socket = field(init=False)
    _server: socket.socket = field(init=False)
    _batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        self._server, self._client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (self._server, self._client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        self._client.connect(self._server.getsockname())
        self._batch = Batch(TERMS, self._decline, Counters(Words(bytearray(PAGE), writable=True)))

    def _decline(self, packet: bytes, table: Table | None, address: bytes, turn: int, refused: bool) -> bytes | None:
        """The reference, as the batch calls it. A packet that the hot path changed before it declined is a new one."""
        self.declined += 1
        expected = self._expected.get(packet)
        return (udp_reply(packet, self.table, turn) if expected is None else expected) or None

    def run(self, frame: Frame) -> None:
        """A batch. Raises Difference."""
        packets, replies, streamed, wrong, _ = frame
        if wrong:
            raise Difference(wrong)
        expected = []
        self._expected.clear()
        for turn, (packet, reply) in enumerate(zip(packets, replies, strict=True), self.done):
            received = packet[:LONGEST_QUERY]
            if turn % REFERENCE_SHARE == 0 and udp_reply(received, self.table, turn) != reply:
                raise Difference(f"packet {packet.hex()}: the reference says another thing to each of two processes")
            self._expected[received] = reply
            if reply:
                expected.append((received, reply))
            self._client.send(packet)
        count = self._batch.receive(self._server.fileno())
        if count != len(packets):
            raise Difference(f"{count} of {len(packets)} datagrams came: the test's own sockets lose them")
        self._batch.answer(self.table)
        self._batch.send(self._server.fileno())
        for packet, reply in expected:
            try:
                got = self._client.recv(65536)
            except BlockingIOError:
                got = b""
            self._compare(packet, reply, got)
        try:
            raise Difference(f"a reply too many: {self._client.recv(65536).hex()}")
        except BlockingIOError:
            pass
        self.done += len(packets)
        self.dropped += len(packets) - len(expected)
        for packet, whole in streamed:
            answered = hot_path(packet, self.table, True)
            if answered is not None:
                self._compare(packet, whole, answered)

    def _compare(self, packet: bytes, expected: bytes, got: bytes) -> None:
        self.replies += 1
        if self.replies == SABOTAGE:
            got = bytes([*got[:3], got[3] ^ 1, *got[4:]])
        if got != expected:
            raise Difference(f"packet {packet.hex()}\nreference {expected.hex()}\nhot path  {got.hex()}")


@contextmanager
def oracle(seed: int, part: int, folder: str) -> Iterator[Iterator[Frame]]:
    """Its frames, without end. `folder`: where the program lies that is not sanitized."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "PYTHONMALLOC")}
    command = [sys.executable, "-m", "tests.fuzz.oracle", f"--seed={seed}", f"--part={part}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder, env=environment) as process:
        assert process.stdout is not None
        yield frames(process.stdout)
        process.stdout.close()
        if process.wait() != 0:
            raise Difference("the oracle has failed")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--part", type=int, default=0, help="processes of one run differ in it")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long, however many packets that are")
    parser.add_argument("--plain", default=".", help="folder of the program that is not sanitized")
    arguments = parser.parse_args()
    start = time.monotonic()
    end = start + 60 * arguments.minutes
    print(f"seed {arguments.seed}, part {arguments.part}, {_batch.__file__}", flush=True)
    fuzzer = Fuzzer(example_table())
    told = ""
    try:
        with oracle(arguments.seed, arguments.part, arguments.plain) as packets:
            for frame in packets:
                fuzzer.run(frame)
                told = frame[-1]
                if fuzzer.done >= arguments.packets and time.monotonic() >= end:
                    break
    except Difference as difference:
        print(f"after {fuzzer.done} packets:\n{difference}", file=sys.stderr)
        return 1
    seconds, beside = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{fuzzer.done} packets in {seconds:.0f} s, CPU {time.process_time():.0f} s and, of the oracle, "
        f"{beside.ru_utime + beside.ru_stime:.0f} s; {fuzzer.replies} replies, {told}; {fuzzer.declined} packets "
        f"declined by the hot path, {fuzzer.dropped} without an answer"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
