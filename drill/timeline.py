"""What clients saw: every query, what became of it, and when the machine itself stood still. Pure."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

#: sent, until, address or 0, source, name, outcome: as drill/client.py writes it.
RECORD = struct.Struct("=QQIHHB")
MS = 1_000_000


class Outcome(IntEnum):
    """What became of a query. STALL is none: from `sent` to `until` the machine did not run who wanted to run."""

    LOST = 0
    ANSWERED = 1  # an address
    SERVFAIL = 2
    OTHER = 3  # anything else, a denial for instance
    STALL = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A query. Times are CLOCK_MONOTONIC; `until_ns` 0: nothing came. `address`: of the answer, as a number."""

    sent_ns: int
    until_ns: int
    address: int
    source: int
    name: int
    outcome: Outcome

    @property
    def took_ns(self) -> int:
        return self.until_ns - self.sent_ns


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds: by the clock, and by the clock of a machine that does not stand still."""

    raw: float
    fair: float

    def __str__(self) -> str:
        return f"{self.raw * 1e3:.1f} ms ({self.fair * 1e3:.1f} ms without the machine's stalls)"


class Stalls:
    """When some core, or the one who asks, did not run a thread that wanted to run. Overlaps are merged."""

    def __init__(self, intervals: Iterable[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(intervals):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def within(self, start: int, end: int) -> int:
        """Nanoseconds of standstill between two moments."""
        total = 0
        for i in range(bisect.bisect_right(self._ends, start), len(self._starts)):
            if self._starts[i] >= end:
                break
            total += min(end, self._ends[i]) - max(start, self._starts[i])
        return total

    @property
    def total_ns(self) -> int:
        return sum(self._ends) - sum(self._starts)

    @property
    def longest_ns(self) -> int:
        return max((end - start for start, end in zip(self._starts, self._ends, strict=True)), default=0)


class Timeline:
    """The queries of one client, in the order of their sending."""

    def __init__(self, records: Sequence[Asked]) -> None:
        self.asked = sorted((a for a in records if a.outcome is not Outcome.STALL), key=lambda a: a.sent_ns)
        self.stalls = Stalls((a.sent_ns, a.until_ns) for a in records if a.outcome is Outcome.STALL)
        self.start_ns = self.asked[0].sent_ns if self.asked else 0
        self.end_ns = max((max(a.sent_ns, a.until_ns) for a in self.asked), default=self.start_ns)

    @classmethod
    def parse(cls, raw: bytes) -> Timeline:
        return cls([Asked(s, u, a, src, n, Outcome(o)) for s, u, a, src, n, o in RECORD.iter_unpack(raw)])

    def between(self, since_ns: int, until_ns: int) -> list[Asked]:
        """Queries sent in a time."""
        return [asked for asked in self.asked if since_ns <= asked.sent_ns < until_ns]

    @property
    def lost(self) -> list[Asked]:
        return self.of(Outcome.LOST)

    def of(self, outcome: Outcome) -> list[Asked]:
        return [asked for asked in self.asked if asked.outcome is outcome]

    def slowest(self) -> Wait:
        """The longest wait for a reply."""
        raw = fair = 0
        for asked in self.asked:
            if asked.outcome is not Outcome.LOST and asked.took_ns > max(raw, fair):
                raw = asked.took_ns
            if asked.outcome is not Outcome.LOST and asked.took_ns > fair:
                fair = max(fair, asked.took_ns - self.stalls.within(asked.sent_ns, asked.until_ns))
        return Wait(raw / 1e9, fair / 1e9)

    def fair_s(self, start_ns: int, end_ns: int) -> float:
        """Seconds between two moments, by the clock of a machine that does not stand still."""
        return max(0, end_ns - start_ns - self.stalls.within(start_ns, end_ns)) / 1e9

    @property
    def stalled_share(self) -> float:
        """Of the time, how much the machine stood still: 0 to 1."""
        return self.stalls.within(self.start_ns, self.end_ns) / max(1, self.end_ns - self.start_ns)

    def percentile(self, share: float) -> float:
        """Seconds until the reply, of those that had one."""
        took = sorted(asked.took_ns for asked in self.asked if asked.outcome is not Outcome.LOST)
        return took[min(len(took) - 1, int(share * len(took)))] / 1e9 if took else 0.0

    def first(self, address: int) -> int | None:
        """When the first answer with this address came, in ns."""
        return min((a.until_ns for a in self.asked if a.address == address and a.until_ns), default=None)

    def summary(self) -> dict[str, float | int]:
        """For JSON; durations in seconds."""
        slowest = self.slowest()
        return {
            "asked": len(self.asked),
            "answered": len(self.of(Outcome.ANSWERED)),
            "lost": len(self.lost),
            "servfail": len(self.of(Outcome.SERVFAIL)),
            "other": len(self.of(Outcome.OTHER)),
            "p50": self.percentile(0.5),
            "p99": self.percentile(0.99),
            "slowest": slowest.raw,
            "slowest_without_stalls": slowest.fair,
            "stalled": self.stalls.total_ns / 1e9,
            "longest_stall": self.stalls.longest_ns / 1e9,
        }
