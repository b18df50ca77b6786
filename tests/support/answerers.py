"""Both implementations behind one face, for tests that run against each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server._batch import answer_packet
from server.answer import Policy, answer
from shm._table import Table

#: (packet, table, stream) -> reply, b"" = silence, None = declined (the hot path only)
Answerer = Callable[[bytes, Table, bool], bytes | None]

MAX_UDP_SIZE = 1232
POLICY = Policy(max_udp_size=MAX_UDP_SIZE)


def reference(packet: bytes, table: Any, stream: bool = False) -> bytes | None:
    return answer(packet, table, POLICY, stream=stream) or b""


def hot_path(packet: bytes, table: Table, stream: bool = False) -> bytes | None:
    return answer_packet(packet, table, MAX_UDP_SIZE, stream)


ANSWERERS: dict[str, Answerer] = {"reference": reference, "hot path": hot_path}
