"""Mutated packets, and what the reference answers to them: `python -m tests.fuzz.oracle --seed S`.

Here is what no sanitizer looks into, at a third of what it costs under them: packets are made and answered by the
reference, and each reply is read by dnspython (replies that differ in their identifier alone are read once). Standard
output is for tests/fuzz/fuzzer.py: frames without end, each of them a batch.
"""

from __future__ import annotations

import argparse
import marshal
import os
import random
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import dns.exception

from server.answer import answer
from shm._table import Table
from tests.support.answerers import POLICY, UDP, reference
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

_LENGTH = struct.Struct("!I")
#: Packets; what the reference answers to each over UDP, b"" = nothing; (packet, reply) of stream messages; what is
#: wrong with a reply; what was read so far.
Frame = tuple[list[bytes], list[bytes], list[tuple[bytes, bytes]], str, str]


def frames(pipe: BinaryIO) -> Iterator[Frame]:
    """Until the oracle ends."""
    while len(head := pipe.read(_LENGTH.size)) == _LENGTH.size:
        yield marshal.loads(pipe.read(_LENGTH.unpack(head)[0]))


def udp_reply(packet: bytes, table: Table, turn: int) -> bytes:
    return answer(packet, table, POLICY, replace(UDP, turn=turn)) or b""


@dataclass(slots=True)
class Oracle:
    table: Table
    done: int = 0
    _seen: set[bytes] = field(default_factory=set)
    _distinct: int = 0
    _rcodes: Counter[int] = field(default_factory=Counter)

    def frame(self, packets: list[bytes]) -> Frame:
        replies, wrong = [], ""
        for turn, packet in enumerate(packets, self.done):
            replies.append(udp_reply(packet[:LONGEST_QUERY], self.table, turn))
            wrong = wrong or self._read(packet, replies[-1])
        streamed = [
            (p, reference(p, self.table, True) or b"") for p in packets[:: STREAM_SHARE * len(packets) // BATCH]
        ]
        for packet, reply in streamed:
            wrong = wrong or self._read(packet, reply)
        self.done += len(packets)
        read = f"{self._distinct} distinct and read, rcodes {dict(sorted(self._rcodes.items()))}"
        return packets, replies, streamed, wrong, read

    def _read(self, packet: bytes, reply: bytes) -> str:
        """What dnspython finds wrong with it."""
        if reply[2:] in self._seen or not reply:
            return ""
        if len(self._seen) < MOST_REMEMBERED:
            self._seen.add(reply[2:])
        self._distinct += 1
        self._rcodes[reply[3] & 15] += 1
        try:
            parsed(reply)
        except (dns.exception.DNSException, ValueError) as error:
            return f"dnspython: {error!r}\npacket {packet.hex()}\nreply  {reply.hex()}"
        return ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--part", type=int, default=0, help="processes of one run differ in it")
    arguments = parser.parse_args()
    mutator = Mutator(random.Random(f"{arguments.seed}/{arguments.part}"))
    oracle = Oracle(example_table())
    try:
        while True:
            raw = marshal.dumps(oracle.frame(list(mutator.packets(BATCH))))
            sys.stdout.buffer.write(_LENGTH.pack(len(raw)) + raw)
    except BrokenPipeError:  # whoever asked has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
