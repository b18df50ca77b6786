"""Drills of the read lock: a leak, and workers that stay inside."""

from __future__ import annotations

import os
import re

from drill.instance import Instance, dotted, free_port, version_address, wait_for
from drill.naive_service import NaiveService
from drill.scene import IN_HAND, Scene
from server.faults import signal_of

#: Fault (server/faults.py), what it is, whether the culprit is inside the lock, and what its report has to say.
STUCK = (
    ("stuck-inside", "runs an endless loop inside the read lock", True, "faults.py"),
    ("blocked-inside", "is blocked in a system call inside the read lock", True, "faults.py"),
    ("stopped-inside", "is stopped (SIGSTOP) inside the read lock", True, "stopped by a signal"),
    ("endless-loop", "runs an endless loop outside the lock", False, ""),
)


def leaked_read_lock(scene: Scene) -> None:
    """The incident of 2015, on our lock and on one like theirs, side by side."""
    ours = scene.instance()
    port = free_port()
    naive = NaiveService(port, f"{ours.name}-naive", scene.folder)
    scene.keep(naive.close)
    wait_for("the naive service is ready", lambda: naive.said("ready"))
    clients = scene.client(ours.port, rate=500), scene.client(port, rate=500)
    naive.tell(f"reload {version_address(1)}")
    wait_for("the naive service reloads", lambda: naive.said(f"reloaded {version_address(1)}"))
    scene.pause(0.8)

    pid = ours.worker().get("pid")
    scene.did(f"on both: a worker takes the read lock and never gives it back (ours: worker 0, pid {pid})")
    os.kill(pid, signal_of("leak"))
    naive.tell("leak")
    scene.pause(0.7)

    scene.did("on both: a reload asks for the write lock")
    naive.tell(f"reload {version_address(2)}")
    swap = ours.publish()
    scene.did(f"ours: published {swap.waited_s * 1e3:.1f} ms after it was asked for")
    ours.wait_for_successor(pid)
    scene.pause(1.0)

    seen = scene.saw(clients[0], "clients of Standoff")
    theirs = scene.saw(clients[1], "clients of a lock as in 2015")
    scene.check_clients(seen, lost=IN_HAND, versions=ours.version)
    scene.check_publish(seen, swap)
    scene.check_reported(ours, "the worker that leaked", pid)
    stopped = theirs.between(theirs.end_ns - int(1.5e9), theirs.end_ns)
    answered = sum(asked.until_ns > 0 for asked in stopped)
    scene.check("the lock of 2015 stops: no answer in the end", not answered, f"{answered} of {len(stopped)} answered")
    scene.check("and its reload never comes", not naive.said(f"reloaded {version_address(2)}"), "asked, never done")
    _find_the_line(scene)


def _find_the_line(scene: Scene) -> None:
    """Lock debugging walks the stack at each acquire, so it is off in production, and in what was measured above."""
    folder = scene.folder / "held"
    folder.mkdir()
    debugged = scene.instance(workers=1, environment={"STANDOFF_LOCK_DEBUG": str(folder)})
    pid = debugged.worker().get("pid")
    os.kill(pid, signal_of("leak"))
    debugged.wait_for_successor(pid)
    found = [part for text in debugged.reports() for part in re.findall(r"\(acquired at (.*?)\)", text)]
    right = len(found) == 1 and "server/faults.py:" in found[0]
    scene.check("with lock debugging the report names the line of the leak", right, " | ".join(found) or "no line")


def stuck_worker(scene: Scene) -> None:
    """Workers that do not move any more, in every way there is."""
    ours = scene.instance()
    client = scene.client(ours.port)
    scene.pause(0.5)
    culprits = {}
    swaps = []
    for fault, what, inside, says in STUCK:
        pid = ours.worker().get("pid")
        scene.did(f"worker 0 (pid {pid}) {what}")
        os.kill(pid, signal_of(fault))
        swaps.append(ours.publish())
        scene.did(f"version {version_text(ours)} is published; replaced {ours.wait_for_successor(pid):.1f} s later")
        culprits[pid] = (what, inside, says)
        scene.pause(0.3)
    seen = scene.saw(client)
    scene.check_clients(seen, lost=0, versions=ours.version)
    scene.check_publish(seen, *swaps, what="every publish")
    for pid, (what, inside, says) in culprits.items():
        if inside:
            scene.check_reported(ours, f"the worker that {what}", pid, says)
        else:
            lines = [
                line.message for line in ours.log() if f"pid {pid}" in line.message and "replacing" in line.message
            ]
            scene.check(f"the worker that {what} is told of once", len(lines) == 1, " | ".join(lines) or "no word")


def version_text(instance: Instance) -> str:
    """The current version as clients see it."""
    return dotted(version_address(instance.version))
