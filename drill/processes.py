"""Drills of processes: a worker killed, a loader killed or stopped."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

from drill.instance import version_address, wait_for
from drill.locks import version_text
from drill.scene import IN_HAND, Scene
from loader.faults import signal_of

#: A loader that died is started again, imports, lists its source, and builds both tables. That takes half a second of
#: processor time, which on a busy machine, at a drill's priority, may be some seconds; clients wait for none of it.
LONGEST_SUCCESSION_S = 10.0
JUST_BEFORE_NS = 50_000_000


def killed_worker(scene: Scene) -> None:
    """SIGKILL to a worker under load, five times."""
    ours = scene.instance()
    client = scene.client(ours.port, rate=2000)
    scene.pause(0.5)
    kills, slowest = [], 0.0
    for i in range(5):
        pid = ours.worker(i % 2).get("pid")
        scene.did(f"kill worker {i % 2} (pid {pid})")
        kills.append(time.monotonic_ns())
        os.kill(pid, signal.SIGKILL)
        slowest = max(slowest, ours.wait_for_successor(pid))
        scene.pause(0.5)
    seen = scene.saw(client)
    scene.check_clients(seen, lost=len(kills) * IN_HAND, versions=ours.version)
    # What dies with a worker had been sent just before.
    lost = [sum(-JUST_BEFORE_NS <= asked.sent_ns - kill < 0.4e9 for asked in seen.lost) for kill in kills]
    scene.check(f"no kill takes more than a batch of {IN_HAND} with it", max(lost) <= IN_HAND, f"{lost} lost")
    died = ours.board.supervisor.get("workers_died")
    scene.check(
        "every death is counted, and made good", died == len(kills), f"{died} deaths, replaced in {slowest:.2f} s"
    )


def killed_loader(scene: Scene) -> None:
    """SIGKILL to the loader at rest, and inside the write lock."""
    ours = scene.instance()
    client = scene.client(ours.port)
    scene.pause(0.5)
    first = ours.loader_pid
    os.kill(first, signal.SIGKILL)
    died = time.monotonic_ns()
    scene.did(f"killed the loader (pid {first}) at rest")
    ours.write_version(ours.version + 1)
    wait_for("a loader publishes again", lambda: len(ours.swaps) == 1)
    swaps = [replace(ours.swaps[0], asked_ns=died)]
    scene.did(
        f"its successor (pid {ours.loader_pid}) has published {version_text(ours)} after {swaps[0].waited_s:.2f} s"
    )
    scene.pause(0.5)

    second = ours.loader_pid
    os.kill(second, signal_of("killed-inside"))
    ours.write_version(ours.version + 1)
    wait_for("the loader dies inside the write lock", lambda: ours.loader_pid != second)
    died = time.monotonic_ns()
    scene.did(f"killed the loader (pid {second}) inside the write lock, every gate taken")
    wait_for("a loader publishes again", lambda: len(ours.swaps) == 2)
    swaps.append(replace(ours.swaps[1], asked_ns=died))
    scene.did(
        f"its successor (pid {ours.loader_pid}) has published {version_text(ours)} after {swaps[1].waited_s:.2f} s"
    )
    scene.pause(0.7)
    seen = scene.saw(client)
    scene.check_clients(seen, versions=ours.version)
    scene.check_publish(seen, *swaps, limit_s=LONGEST_SUCCESSION_S, what="what was asked of the dead")
    past = sum(slot.get("past_gate") for slot in ours.board.workers())
    scene.check(
        "each reader goes past the orphaned gate once", past == len(list(ours.board.workers())), f"{past} times"
    )
    answered = seen.first(version_address(ours.version)) is not None
    scene.check("clients get the last version", answered, version_text(ours))


def stopped_loader(scene: Scene) -> None:
    """SIGSTOP to the loader at rest, which comes back, and inside the write lock, from where it does not."""
    ours = scene.instance()
    client = scene.client(ours.port)
    scene.pause(0.5)
    pid = ours.loader_pid
    os.kill(pid, signal.SIGSTOP)
    scene.did(f"stopped the loader (pid {pid}) at rest")
    ours.write_version(ours.version + 1)
    scene.pause(1.5)
    held = len(ours.swaps) == 0
    os.kill(pid, signal.SIGCONT)
    woken = time.monotonic()
    wait_for("the loader goes on", lambda: len(ours.swaps) == 1)
    scene.did(f"let it go on: published {version_text(ours)} {time.monotonic() - woken:.2f} s later")
    scene.check("nothing is published while it is stopped, and answers go on", held, "answered from the last table")
    scene.pause(0.5)

    os.kill(pid, signal_of("stopped-inside"))
    ours.write_version(ours.version + 1)
    wait_for("the loader stops inside", lambda: ours.board.loader.get("write_hold_since_ns"))
    scene.did(f"the loader (pid {pid}) stops inside the write lock, every gate taken")
    wait_for("the publish goes through", lambda: len(ours.swaps) == 2)
    swap = ours.swaps[1]
    scene.did(
        f"replaced by pid {ours.loader_pid}, which has published {version_text(ours)} after {swap.waited_s:.2f} s"
    )
    scene.pause(0.7)
    seen = scene.saw(client)
    scene.check_clients(seen, versions=ours.version)
    scene.check_publish(seen, swap)
    scene.check_reported(ours, "the loader that stays inside", pid, "stopped by a signal")
    past = sum(slot.get("past_gate") for slot in ours.board.workers())
    scene.check("each reader goes past its gate once", past == len(list(ours.board.workers())), f"{past} times")
