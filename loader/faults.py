"""Faults on demand, for drills and tests: a loader that is told to stops where it hurts most.

Only in a process with STANDOFF_FAULTS=1 in its environment; a signal chooses the fault. Nothing of this is loaded
otherwise. Workers have theirs in server/faults.py.
"""

from __future__ import annotations

import os
import signal

from shm.tables import TableWriter

#: Signal -> fault.
SIGNALS = {
    signal.SIGRTMIN + 1: "stopped-inside",
    signal.SIGRTMIN + 2: "killed-inside",
    signal.SIGRTMIN + 3: "stuck-inside",
    signal.SIGRTMIN + 4: "blocked-inside",
}


def signal_of(fault: str) -> int:
    """The signal that brings a fault about. Raises KeyError."""
    return {name: number for number, name in SIGNALS.items()}[fault]


def arm(writer: TableWriter) -> None:
    """From now on a signal makes the next swap end inside the write lock, every gate taken, nothing stored yet."""
    lock = writer.lock
    store = lock.store
    asked: list[str] = []

    def faulty_store(live: int) -> None:
        if asked:
            _commit(asked.pop())
        store(live)

    lock.store = faulty_store  # type: ignore[method-assign]
    for number, fault in SIGNALS.items():
        signal.signal(number, lambda _number, _frame, fault=fault: asked.append(fault))  # type: ignore[misc]


def _commit(fault: str) -> None:
    if fault == "stopped-inside":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "killed-inside":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stuck-inside":
        while True:
            pass
    elif fault == "blocked-inside":
        reader, _writer = os.pipe()
        os.read(reader, 1)
