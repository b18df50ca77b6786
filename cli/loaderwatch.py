"""Whether the loader among our children stands still. Runs in the parent of `standoff run` and of `standoff load`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cli.tree import Event, Moving, Slow, Stuck
from shm.board import Board
from shm.errors import StandoffError

#: A hold of this long is reported by the server (R6), and a spare loader is started: what it needs to be ready to take
#: over fits into the time until its predecessor is condemned.
SLOW_AFTER_S = 0.25
#: The write lock is held for microseconds; as with readers (R6), a second of it condemns.
CONDEMN_AFTER_S = 1.0
#: A loader beats ten times a second, but not while it parses a large file: as patient as the unit's WatchdogSec.
SILENT_AFTER_S = 60.0
#: The spare of a silent loader is started so long before that is replaced.
SPARE_BEFORE_S = 2.0
#: The most that one look adds to a standstill: when the whole machine stood still, nobody is to blame.
LONGEST_LOOK_S = 0.25
#: How often to look: a tenth of what makes a loader stuck; and while it holds the lock.
PACE_S = 0.1
CLOSE_PACE_S = 0.02


@dataclass(frozen=True, slots=True)
class Finding:
    """`slow`: it may have to be replaced soon. `why` it has to be now, told once for each standstill."""

    slow: bool = False
    why: str | None = None


class Standstill:
    """For how long two words of the loader have not moved. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._looked = 0.0
        self._seen = (0, 0, 0)
        self._holding_s = self._silent_s = 0.0

    def look(self, pid: int, hold_since_ns: int, heartbeat_ns: int, now: float) -> Finding:
        """What follows from two words of the board. Only time in which we looked counts."""
        passed = min(now - self._looked, LONGEST_LOOK_S)
        before, self._seen, self._looked = self._seen, (pid, hold_since_ns, heartbeat_ns), now
        same = before[0] == pid
        if not same or not hold_since_ns:
            self._holding_s = 0.0
        elif before[1] == hold_since_ns:
            self._holding_s += passed
        else:  # it began since we looked last
            self._holding_s = min(passed, max(0.0, now - hold_since_ns / 1e9))
        self._silent_s = self._silent_s + passed if same and before[2] == heartbeat_ns else 0.0
        slow = self._holding_s >= SLOW_AFTER_S or self._silent_s >= SILENT_AFTER_S - SPARE_BEFORE_S
        why = None
        if self._holding_s >= CONDEMN_AFTER_S:
            why = f"has held the write lock for {self._holding_s:.1f} s"
        elif self._silent_s >= SILENT_AFTER_S:
            why = f"has shown no sign of life for {self._silent_s:.0f} s"
        if why is not None:
            self._holding_s = self._silent_s = 0.0
        return Finding(slow, why)


class LoaderWatch:
    """Looks at an instance's board."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._board: Board | None = None
        self._standstill = Standstill()
        self._slow = 0  # the pid of a loader that was found slow, and does not move yet
        self.pace_s = PACE_S

    def look(self, pids: Mapping[str, int]) -> list[Event]:
        """What there is to say of "loader" among these children."""
        if self._board is None:
            try:
                self._board = Board.attach(self._instance)
            except StandoffError:  # the children have not made it yet
                return []
        words = self._board.loader
        pid = words.get("loader_pid")
        if pid != pids.get("loader"):
            self.pace_s = PACE_S
            return []  # it has just begun, or waits for another to end
        hold, heartbeat = words.get("write_hold_since_ns"), words.get("loader_heartbeat_ns")
        found = self._standstill.look(pid, hold, heartbeat, time.monotonic())
        self.pace_s = CLOSE_PACE_S if hold or found.slow else PACE_S
        if found.why is not None:
            self._slow = 0
            return [Stuck("loader", f"(pid {pid}) {found.why}")]
        before, self._slow = self._slow, pid if found.slow else 0
        if found.slow:
            return [Slow("loader")] if before != pid else []
        return [Moving("loader")] if before == pid else []
