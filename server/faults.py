"""Faults on demand, for drills and tests: a worker that is told to misbehaves as its namesake would.

Only in a process with STANDOFF_FAULTS=1 in its environment; a signal chooses the fault. Nothing of this is loaded
otherwise.
"""

from __future__ import annotations

import os
import signal
import time

from shm.rwlock import ReadLock

VARIABLE = "STANDOFF_FAULTS"

#: Signal -> fault.
SIGNALS = {
    signal.SIGRTMIN + 1: "leak",
    signal.SIGRTMIN + 2: "stuck-inside",
    signal.SIGRTMIN + 3: "blocked-inside",
    signal.SIGRTMIN + 4: "endless-loop",
    signal.SIGRTMIN + 5: "stopped-inside",
}


def signal_of(fault: str) -> int:
    """The signal that brings a fault about. Raises KeyError."""
    return {name: number for number, name in SIGNALS.items()}[fault]


class Faults:
    """The faults of one worker. `strike` commits what has been asked for; the signal handler only notes it."""

    def __init__(self, lock: ReadLock) -> None:
        self._lock = lock
        self._asked: list[str] = []
        for number, fault in SIGNALS.items():
            signal.signal(number, lambda _number, _frame, fault=fault: self._asked.append(fault))  # type: ignore[misc]

    def strike(self) -> None:
        while self._asked:
            getattr(self, "_" + self._asked.pop(0).replace("-", "_"))()

    def _leak(self) -> None:
        """The code path of 2015: it takes the read lock and returns without giving it back."""
        self._lock.read().__enter__()  # lockcheck: ok this is the fault

    def _stuck_inside(self) -> None:
        """An endless loop inside the lock."""
        with self._lock.read():
            while True:
                pass

    def _blocked_inside(self) -> None:
        """A system call that does not return, inside the lock."""
        reader, _writer = os.pipe()
        with self._lock.read():
            os.read(reader, 1)  # lockcheck: ok this is the fault

    def _stopped_inside(self) -> None:
        """SIGSTOP inside the lock: what a debugger does, or a container that is paused."""
        with self._lock.read():
            os.kill(os.getpid(), signal.SIGSTOP)

    def _endless_loop(self) -> None:
        """An endless loop, the lock not held."""
        while True:
            time.monotonic()


def faults_for(lock: ReadLock) -> Faults | None:
    """Faults if this process is to have them."""
    return Faults(lock) if os.environ.get(VARIABLE) == "1" else None
