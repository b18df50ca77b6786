"""Runs tests/support/asker.c and reads what it wrote: every query, what became of it, and how the machine was."""

from __future__ import annotations

import bisect
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from drill.timeline import Stalls
from tests.torture.changing import SET, Change
from tests.torture.service import PATIENCE_S, Service

_RECORD = struct.Struct("=QQIBBBB")
UDP, TCP, STALL, WORK = range(4)
NONE, RIGHT, MIXED, WRONG, BROKEN = range(5)
MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A query. `until_ns`: when it was answered, or its connection broke; 0 if nothing came."""

    since_ns: int
    until_ns: int
    number: int
    kind: int
    outcome: int
    first: int
    detail: int

    @property
    def took_ns(self) -> int:
        return self.until_ns - self.since_ns


class Slowness:
    """How many times as long as alone a piece of work took, measured thirty times a second. 1 on an idle machine."""

    AROUND_NS = 250 * MS

    def __init__(self, works: Iterable[Asked]) -> None:
        found = sorted((work.since_ns, work.took_ns / (1000 * work.number)) for work in works)
        self._times = [at for at, _ in found]
        self._ratios = [ratio for _, ratio in found]

    def between(self, start: int, end: int) -> float:
        """The mean around that time, at least 1."""
        first = bisect.bisect_left(self._times, start - self.AROUND_NS)
        last = bisect.bisect_right(self._times, end + self.AROUND_NS)
        ratios = self._ratios[first:last]
        return max(1.0, sum(ratios) / len(ratios)) if ratios else 1.0

    @property
    def mean(self) -> float:
        return sum(self._ratios) / max(1, len(self._ratios))


class Answers:
    """What an asker has written, or anybody else."""

    @classmethod
    def read(cls, log: Path) -> Answers:
        return cls(Asked(*fields) for fields in _RECORD.iter_unpack(log.read_bytes()))

    def __init__(self, asked: Iterable[Asked]) -> None:
        raw = list(asked)
        self.udp = [asked for asked in raw if asked.kind == UDP]
        self.tcp = [asked for asked in raw if asked.kind == TCP]
        self.stalls = Stalls((asked.since_ns, asked.until_ns) for asked in raw if asked.kind == STALL)
        self.slowness = Slowness(asked for asked in raw if asked.kind == WORK)

    @property
    def faulty(self) -> list[Asked]:
        """Answers that are not right, mixed ones among them. Zero is the only pass."""
        return [asked for asked in (*self.udp, *self.tcp) if asked.outcome in (MIXED, WRONG)]

    @property
    def lost(self) -> list[Asked]:
        return [asked for asked in self.udp if asked.outcome == NONE]

    def fair_ns(self, start: int, end: int) -> float:
        """How long that would have been, at a guess, on a machine that neither stands still nor does other work."""
        return (end - start - self.stalls.within(start, end)) / self.slowness.between(start, end)

    def slowest(self, since: int = 0, until: int = 1 << 63) -> tuple[int, float]:
        """Of the UDP queries of a time: the longest wait for an answer by the clock, and fairly. In ns."""
        raw, fair = 0, 0.0
        for asked in self.udp:
            if since <= asked.since_ns < until and asked.outcome == RIGHT:
                raw = max(raw, asked.took_ns)
                if asked.took_ns > fair:
                    fair = max(fair, self.fair_ns(asked.since_ns, asked.until_ns))
        return raw, fair

    def silence(self, queries: Sequence[Asked]) -> tuple[int, float]:
        """The longest time between two answers, by the clock and fairly, in ns. Broken connections are in it."""
        arrivals = sorted(asked.until_ns for asked in queries if asked.outcome == RIGHT)
        raw, fair = 0, 0.0
        for before, after in pairwise(arrivals):
            raw = max(raw, after - before)
            if after - before > fair:
                fair = max(fair, self.fair_ns(before, after))
        return raw, fair

    def ahead_of_time(self, changes: Sequence[Change]) -> list[Asked]:
        """Answers with a number that nobody had put before they came."""
        sent = {0: 0} | {change.number: change.sent_ns for change in changes}  # 0 was there from the beginning
        return [a for a in (*self.udp, *self.tcp) if a.outcome == RIGHT and a.until_ns < sent.get(a.number, 1 << 63)]

    def too_old(self, changes: Sequence[Change], adoptions: Sequence[tuple[int, int]]) -> list[Asked]:
        """Answers older than what every worker had adopted before they were asked for.

        `adoptions`: (time in ns, revision). This is what `standoff wait` promises.
        """
        revisions = [change.revision for change in changes]
        times, numbers, newest = [], [], 0
        for at, revision in adoptions:
            position = bisect.bisect_right(revisions, revision)
            newest = max(newest, changes[position - 1].number if position else 0)
            times.append(at)
            numbers.append(newest)
        old = []
        for asked in (*self.udp, *self.tcp):
            known = bisect.bisect_left(times, asked.since_ns)
            if asked.outcome == RIGHT and known and asked.number < numbers[known - 1]:
                old.append(asked)
        return old

    def report(self) -> str:
        raw, fair = self.slowest()
        answered = sorted(asked.took_ns for asked in self.udp if asked.outcome == RIGHT)
        udp_gap, _ = self.silence(self.udp)
        tcp_gap, tcp_fair = self.silence(self.tcp)
        return (
            f"UDP: {len(self.udp)} asked, {len(self.lost)} lost, p50 {answered[len(answered) // 2] / MS:.2f} ms, p99.9 "
            f"{answered[len(answered) * 999 // 1000] / MS:.1f} ms, slowest {raw / MS:.1f} ms (fairly {fair / MS:.1f} "
            f"ms), longest silence {udp_gap / MS:.1f} ms; TCP: {len(self.tcp)} asked, "
            f"{sum(a.outcome == BROKEN for a in self.tcp)} broken, longest silence {tcp_gap / MS:.1f} ms "
            f"(fairly {tcp_fair / MS:.1f} ms); faulty {len(self.faulty)}; "
            f"machine: {self.stalls.total_ns / MS:.0f} ms of stalls, work took {self.slowness.mean:.2f} times its time"
        )


class Asker:
    """A running asker."""

    def __init__(self, binary: Path, port: int, log: Path, *, rate: float, tcp_every_ms: float) -> None:
        self._log = log
        command = [str(binary), "-p", str(port), "-n", SET, "-r", str(rate), "-i", str(tcp_every_ms), "-o", str(log)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def stop(self) -> Answers:
        """Ask no more, wait a second for what is under way, and read."""
        self.kill(signal.SIGTERM)
        return Answers.read(self._log)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


class AdoptionLog(threading.Thread):
    """Writes down, some times a second, which revision every live worker has adopted."""

    PERIOD_S = 0.1

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._over = threading.Event()
        self.adoptions: list[tuple[int, int]] = []

    def run(self) -> None:
        while not self._over.wait(self.PERIOD_S):
            try:
                revision = self._service.adopted()
            except ValueError:  # its board is closed: a test has failed before it could stop us
                return
            if revision:
                self.adoptions.append((time.monotonic_ns(), revision))

    def stop(self) -> list[tuple[int, int]]:
        self._over.set()
        self.join()
        return self.adoptions


def per_event(lost: Iterable[Asked], events: Sequence[int], before_ns: int) -> Iterator[tuple[int, list[Asked]]]:
    """(index of the event, or -1; queries) : each query goes to the first event that follows it within `before_ns`."""
    groups: dict[int, list[Asked]] = {}
    for asked in lost:
        i = bisect.bisect_left(events, asked.since_ns)
        groups.setdefault(i if i < len(events) and events[i] - asked.since_ns <= before_ns else -1, []).append(asked)
    yield from sorted(groups.items())
