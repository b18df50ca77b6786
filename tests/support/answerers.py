"""Both implementations behind one face, for tests that run against each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server._answer import Terms, answer_packet
from server.answer import answer
from server.policy import Moment, Policy
from shm._table import Table

#: (packet, table, stream) -> reply, b"" = silence, None = declined (the hot path only)
Answerer = Callable[[bytes, Table, bool], bytes | None]

MAX_UDP_SIZE = 1232
POLICY = Policy(
    max_udp_size=MAX_UDP_SIZE,
    rotate=True,
    identity="host/0",
    cookie_secrets=(bytes(range(16)), bytes(range(16, 32))),
)
UDP = Moment(now_s=1_700_000_000, turn=7, generation=41)
STREAM = Moment(now_s=1_700_000_000, turn=7, generation=41, stream=True)
TERMS = Terms(POLICY).at(UDP)


def reference(packet: bytes, table: Any, stream: bool = False) -> bytes | None:
    return answer(packet, table, POLICY, STREAM if stream else UDP) or b""


def hot_path(packet: bytes, table: Table, stream: bool = False) -> bytes | None:
    return answer_packet(packet, table, TERMS, STREAM if stream else UDP)


ANSWERERS: dict[str, Answerer] = {"reference": reference, "hot path": hot_path}
