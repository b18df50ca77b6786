"""The lock as the board shows it: who is inside or waiting, since when, and what it has cost so far. Plain values."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import msgspec

from shm import layout
from shm.board import Board, SlotView
from shm.layout import SlotKind
from shm.segment import is_held


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of durations in seconds.

    `count` of them, of which `zeros` took no time. Percentiles are upper ends of log2 buckets, never above `max`, the
    longest ever. `buckets`: (upper end, number) of those that are not empty.
    """

    count: int
    zeros: int
    p50: float
    p99: float
    max: float
    buckets: list[tuple[float, int]]


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """A slot. `inside` and `waiting`: for how many seconds, None if it is not. Counts outlive the slot's holders."""

    slot: int
    kind: str
    worker: int
    pid: int
    alive: bool
    inside: float | None
    waiting: float | None
    reads: int
    gate_waits: int
    past_gate: int
    hold: Spread
    wait: Spread

    @property
    def title(self) -> str:
        return f"{self.kind} {self.worker}"


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """The loader. `holding` and `waiting` in seconds, None if it does not."""

    alive: bool
    pid: int
    holding: float | None
    waiting: float | None
    publishes: int
    retries: int
    dead_skipped: int
    wait: Spread
    hold: Spread
    grace: Spread


class Locks(msgspec.Struct, frozen=True, kw_only=True):
    """The whole lock at one moment. `leaks`: how many were reported, `condemned`: replaced for being stuck, ever."""

    instance: str
    generation: int
    leaks: int
    condemned: int
    writer: Writer
    readers: list[Reader]

    @property
    def running(self) -> bool:
        return self.writer.alive or any(reader.alive for reader in self.readers)


def collect(board: Board) -> Locks:
    """Read the board. Each word is whole, but they are not all of one instant."""
    return Locks(
        instance=board.names.instance,
        generation=board.live >> 1,
        leaks=board.supervisor.get("leaks_reported"),
        condemned=board.supervisor.get("workers_condemned"),
        writer=_writer(board),
        readers=[reader for number in board.slots if (reader := _reader(board, board.slot(number))) is not None],
    )


def spread(buckets: Sequence[int], longest_ns: int, zeros: int = 0) -> Spread:
    """Of a log2 histogram of nanoseconds (shm/layout.py)."""
    count = zeros + sum(buckets)
    return Spread(
        count=count,
        zeros=zeros,
        p50=_percentile(buckets, longest_ns, zeros, 0.50),
        p99=_percentile(buckets, longest_ns, zeros, 0.99),
        max=longest_ns / 1e9,
        buckets=[(2.0 ** (i + 1) / 1e9, n) for i, n in enumerate(buckets) if n],
    )


def _percentile(buckets: Sequence[int], longest_ns: int, zeros: int, share: float) -> float:
    """Seconds; 0 if there is nothing."""
    rank = math.ceil(share * (zeros + sum(buckets)))
    passed = zeros
    if rank <= passed:
        return 0.0
    for i, number in enumerate(buckets):
        passed += number
        if passed >= rank:
            return min(2.0 ** (i + 1), longest_ns) / 1e9
    return longest_ns / 1e9


def _reader(board: Board, slot: SlotView) -> Reader | None:
    """None for a slot that nobody holds, unless its last holder died inside."""
    section = slot.get("section")
    since = slot.get("since_ns")
    waiting = slot.get("waiting_since_ns")
    inside = bool(section & 1) and slot.get("section") == section  # or `since` may be another stay's
    alive = bool(slot.get("kind")) and board.is_alive(slot.number)
    if not alive and not inside:
        return None
    holds = slot.histogram(layout.HOLD_HISTOGRAM)
    waits = slot.histogram(layout.GATE_WAIT_HISTOGRAM)
    reads = sum(holds) + inside
    return Reader(
        slot=slot.number,
        kind=_kind(slot.get("kind")),
        worker=slot.get("worker"),
        pid=slot.get("pid"),
        alive=alive,
        inside=_age(since) if inside else None,
        waiting=_age(waiting),
        reads=reads,
        gate_waits=slot.get("gate_waits"),
        past_gate=slot.get("past_gate"),
        hold=spread(holds, slot.get("hold_max_ns")),
        # Who found the gate free did not wait: that is most of them, and part of the picture.
        wait=spread(waits, slot.get("gate_wait_max_ns"), max(0, reads - sum(waits))),
    )


def _writer(board: Board) -> Writer:
    words = board.loader
    alive = is_held(board.names.lock("writer"))
    return Writer(
        alive=alive,
        pid=words.get("loader_pid"),
        holding=_age(words.get("write_hold_since_ns")),
        waiting=_age(words.get("write_wait_since_ns")) if alive else None,
        publishes=words.get("publishes"),
        retries=words.get("write_retries"),
        dead_skipped=words.get("dead_skipped"),
        wait=spread(_histogram(board, layout.WRITE_WAIT_HISTOGRAM), words.get("write_wait_max_ns")),
        hold=spread(_histogram(board, layout.WRITE_HOLD_HISTOGRAM), words.get("write_hold_max_ns")),
        grace=spread(_histogram(board, layout.GRACE_HISTOGRAM), words.get("grace_max_ns")),
    )


def _histogram(board: Board, offset: int) -> list[int]:
    """One of the writer's, in page 0."""
    return [board.words.load(offset + 8 * i) for i in range(layout.HISTOGRAM_BUCKETS)]


def _kind(value: int) -> str:
    try:
        return SlotKind(value).name.lower()
    except ValueError:
        return f"unknown ({value})"


def _age(then_ns: int) -> float | None:
    return max(0, time.monotonic_ns() - then_ns) / 1e9 if then_ns else None
