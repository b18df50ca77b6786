"""Mutated packets through both answerers: `python -m tests.fuzz.fuzzer --packets N --seed S`.

Datagrams go the whole way through the compiled batch, over a real socket: recvmmsg, hot path, the reference for what it
declines, sendmmsg. Some go as stream messages. Each reply is compared with the reference's, byte for byte, and read by
dnspython (replies that differ in their identifier alone are read once).

STANDOFF_FUZZ_SABOTAGE=N spoils the Nth reply, to see that a difference is noticed.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import time
from dataclasses import dataclass, field, replace

import dns.exception

from server import _batch
from server._batch import Batch
from server._counters import Counters
from server.answer import answer
from server.sockets import UDP_BUFFER_BYTES
from shm._atomic import Words
from shm._table import Table
from shm.layout import PAGE
from tests.support.answerers import POLICY, TERMS, UDP, hot_path, reference
from tests.support.mutation import Mutator
from tests.support.packets import parsed
from tests.support.tables import example_table

BATCH = 64
#: What the batch's receive buffers take; the rest of a longer datagram is cut off.
LONGEST_QUERY = 2048
#: One packet in so many goes as a stream message too: their replies are long.
STREAM_SHARE = 50
#: Bounds the memory of a long run; a reply that is not remembered is read again.
MOST_REMEMBERED = 1_000_000
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
    distinct: int = 0
    rcodes: dict[int, int] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)
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
        return (self._reference(packet, turn) if expected is None else expected) or None

    def _reference(self, packet: bytes, turn: int) -> bytes:
        return answer(packet, self.table, POLICY, replace(UDP, turn=turn)) or b""

    def run(self, packets: list[bytes]) -> None:
        """A batch. Raises Difference."""
        expected = []
        self._expected.clear()
        for turn, packet in enumerate(packets, self.done):
            received = packet[:LONGEST_QUERY]
            reply = self._reference(received, turn)
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
        for packet in packets[:: max(1, STREAM_SHARE * len(packets) // BATCH)]:
            whole = reference(packet, self.table, True) or b""
            answered = hot_path(packet, self.table, True)
            if answered is not None:
                self._compare(packet, whole, answered)

    def _compare(self, packet: bytes, expected: bytes, got: bytes) -> None:
        self.replies += 1
        if self.replies == SABOTAGE:
            got = bytes([*got[:3], got[3] ^ 1, *got[4:]])
        if got != expected:
            raise Difference(f"packet {packet.hex()}\nreference {expected.hex()}\nhot path  {got.hex()}")
        if got[2:] in self._seen or not got:
            return
        if len(self._seen) < MOST_REMEMBERED:
            self._seen.add(got[2:])
        self.distinct += 1
        rcode = got[3] & 15
        self.rcodes[rcode] = self.rcodes.get(rcode, 0) + 1
        try:
            parsed(got)
        except (dns.exception.DNSException, ValueError) as error:
            raise Difference(f"dnspython: {error!r}\npacket {packet.hex()}\nreply  {got.hex()}") from error


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--part", type=int, default=0, help="processes of one run differ in it")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long, however many packets that are")
    arguments = parser.parse_args()
    start = time.monotonic()
    end = start + 60 * arguments.minutes
    print(f"seed {arguments.seed}, part {arguments.part}, {_batch.__file__}", flush=True)
    mutator = Mutator(random.Random(f"{arguments.seed}/{arguments.part}"))
    fuzzer = Fuzzer(example_table())
    try:
        while fuzzer.done < arguments.packets or time.monotonic() < end:
            fuzzer.run(list(mutator.packets(BATCH)))
    except Difference as difference:
        print(f"after {fuzzer.done} packets:\n{difference}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - start
    print(
        f"{fuzzer.done} packets in {seconds:.0f} s, CPU {time.process_time():.0f} s; {fuzzer.replies} replies", end=", "
    )
    print(f"{fuzzer.distinct} distinct and read; {fuzzer.declined} packets declined by the hot path,", end=" ")
    print(f"{fuzzer.dropped} without an answer; rcodes {dict(sorted(fuzzer.rcodes.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
