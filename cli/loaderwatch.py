"""Whether the loader of `standoff run` stands still. Under systemd the unit's watchdog asks this."""

from __future__ import annotations

import time
from collections.abc import Mapping

from shm.board import Board
from shm.errors import StandoffError

#: The write lock is held for microseconds; as with readers (R6), a second of it condemns.
CONDEMN_AFTER_S = 1.0
#: A loader beats ten times a second, but not while it parses a large file: as patient as the unit's WatchdogSec.
SILENT_AFTER_S = 60.0
#: The most that one look adds to a standstill: when the whole machine stood still, nobody is to blame.
LONGEST_LOOK_S = 0.25


class Standstill:
    """For how long two words of the loader have not moved. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._looked = 0.0
        self._seen = (0, 0, 0)
        self._holding_s = self._silent_s = 0.0

    def look(self, pid: int, hold_since_ns: int, heartbeat_ns: int, now: float) -> str | None:
        """Why the loader has to be replaced, once for each standstill."""
        passed = min(now - self._looked, LONGEST_LOOK_S)
        before, self._seen, self._looked = self._seen, (pid, hold_since_ns, heartbeat_ns), now
        same = before[0] == pid
        self._holding_s = self._holding_s + passed if same and hold_since_ns and before[1] == hold_since_ns else 0.0
        self._silent_s = self._silent_s + passed if same and before[2] == heartbeat_ns else 0.0
        why = None
        if self._holding_s >= CONDEMN_AFTER_S:
            why = f"has held the write lock for {self._holding_s:.1f} s"
        elif self._silent_s >= SILENT_AFTER_S:
            why = f"has shown no sign of life for {self._silent_s:.0f} s"
        if why is not None:
            self._holding_s = self._silent_s = 0.0
        return why


class LoaderWatch:
    """Looks at an instance's board. Runs in the parent of `standoff run`."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._board: Board | None = None
        self._standstill = Standstill()

    def stuck(self, pids: Mapping[str, int]) -> tuple[str, str] | None:
        """("loader", why) if the loader among these children has to be replaced."""
        if self._board is None:
            try:
                self._board = Board.attach(self._instance)
            except StandoffError:  # the children have not made it yet
                return None
        words = self._board.loader
        pid = words.get("loader_pid")
        if pid != pids.get("loader"):
            return None  # it has just begun, or waits for another to end
        hold, heartbeat = words.get("write_hold_since_ns"), words.get("loader_heartbeat_ns")
        why = self._standstill.look(pid, hold, heartbeat, time.monotonic())
        return None if why is None else ("loader", f"(pid {pid}) {why}")
