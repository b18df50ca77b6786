"""Every drill: its name, what it does, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drill import damage, locks, processes, source
from drill.scene import Scene


@dataclass(frozen=True, slots=True)
class Drill:
    """A drill, and what it is for people."""

    name: str
    summary: str
    perform: Callable[[Scene], None]


DRILLS = (
    Drill(
        "leaked-read-lock",
        "A worker takes the read lock and never gives it back; then a publish. Beside it a lock of 2015, which stops.",
        locks.leaked_read_lock,
    ),
    Drill(
        "stuck-worker",
        "A worker loops, blocks or is stopped inside the lock, or loops outside it: neighbours answer, it is replaced.",
        locks.stuck_worker,
    ),
    Drill(
        "killed-worker", "SIGKILL to a worker, five times: at most a batch is lost with it.", processes.killed_worker
    ),
    Drill(
        "killed-loader",
        "SIGKILL to the loader, at rest and inside the write lock: answers go on, its successor publishes.",
        processes.killed_loader,
    ),
    Drill(
        "stopped-loader",
        "SIGSTOP to the loader, at rest and inside the write lock: readers go past it, it is replaced.",
        processes.stopped_loader,
    ),
    Drill("etcd-down", "etcd is killed, and stopped, and comes back. Needs an etcd.", source.etcd_down),
    Drill(
        "damaged-table",
        "Bytes of the live table are overwritten: SERVFAIL, no crash, an alarm, and a new table.",
        damage.damaged_table,
    ),
)
NAMES = tuple(drill.name for drill in DRILLS)


def named(name: str) -> Drill:
    """Raises KeyError."""
    return {drill.name: drill for drill in DRILLS}[name]
