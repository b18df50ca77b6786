"""Two `standoff load` on one machine, the second a standby of the first: a parent and a child each, which die or stand
still together or alone.

A parent's child that dies is started again and becomes the standby's standby; a parent that dies takes its child along;
a child that stands still inside the write lock is replaced by its parent's spare or by the other tree, whoever is
first. Nothing is answered wrongly meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from loader.faults import signal_of
from tests.torture.asking import AdoptionLog, Asker
from tests.torture.changing import Changer
from tests.torture.service import Part, Service, wait_for

pytestmark = pytest.mark.lock_left_ok("loaders are killed anywhere")

SWAPS_PER_S = 50


def passed(service: Service, generation: int) -> bool:
    return service.board.live >> 1 > generation


def kill_both(part: Part) -> None:
    part.kill()


def kill_parent(part: Part) -> None:
    part.process.kill()
    part.process.wait()


def kill_child(part: Part) -> None:
    os.kill(part.loader_pid, signal.SIGKILL)


def start_trees(service: Service) -> tuple[Part, Part]:
    """The one at work, and the standby."""
    service.start_server()
    first = service.start_loader()
    wait_for("the service answers", service.ready)
    second = service.start_loader()
    wait_for("a standby waits", lambda: "standby: another loader holds" in service.said())
    return first, second


@pytest.mark.parametrize("harm", [kill_both, kill_parent, kill_child])
def test_the_first_tree_dies(
    service: Service, changer: Changer, ask: Callable[..., Asker], harm: Callable[[Part], None]
) -> None:
    first, second = start_trees(service)
    changer.start(SWAPS_PER_S)
    adoptions = AdoptionLog(service)
    adoptions.start()
    asker = ask()
    wait_for("swaps go on", partial(passed, service, (service.board.live >> 1) + 20))
    before = service.loader_pid
    assert before == first.loader_pid
    generation, harmed = service.board.live >> 1, time.monotonic()
    harm(first)
    wait_for("a new table is published", partial(passed, service, generation))
    took = time.monotonic() - harmed
    wait_for("swaps go on", partial(passed, service, (service.board.live >> 1) + 20))
    assert service.loader_pid == second.loader_pid
    if harm is kill_child:  # it is the standby now, and takes over in its turn
        wait_for("a child again", lambda: first.loader_pid not in (0, before))
        wait_for("it waits", lambda: service.said().count("standby: another loader holds") == 2)
        generation = service.board.live >> 1
        second.kill()
        wait_for("a new table is published", partial(passed, service, generation + 20))
        assert service.loader_pid == first.loader_pid
    else:
        assert before not in service.processes(), "a parent takes its child along"
    changer.stop()
    last = changer.one()
    assert service.standoff("wait", "--revision", str(last.revision), "--timeout", "5").returncode == 0
    answers, adopted, changes = asker.stop(), adoptions.stop(), changer.changes()
    print(f"{harm.__name__}: took over within {took * 1000:.0f} ms\n{answers.report()}")
    assert not answers.faulty
    assert not answers.lost
    assert not answers.ahead_of_time(changes)
    assert not answers.too_old(changes, adopted)
    assert took < 5


@pytest.mark.parametrize("where", ["anywhere", "inside the lock"])
def test_the_child_stands_still(
    service: Service, changer: Changer, ask: Callable[..., Asker], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Outside the write lock nobody takes over within a minute; when it is killed, the other tree does at once. Inside,
    it is replaced within seconds, by the spare or by the standby."""
    monkeypatch.setenv("STANDOFF_FAULTS", "1")
    first, second = start_trees(service)
    changer.start(SWAPS_PER_S)
    adoptions = AdoptionLog(service)
    adoptions.start()
    asker = ask()
    wait_for("swaps go on", partial(passed, service, (service.board.live >> 1) + 20))
    stopped = first.loader_pid
    halted = time.monotonic()
    os.kill(stopped, signal_of("stopped-inside") if where == "inside the lock" else signal.SIGSTOP)
    if where == "inside the lock":
        wait_for("another loader", lambda: service.loader_pid not in (0, stopped))
        print(f"replaced after {(time.monotonic() - halted) * 1000:.0f} ms")
    else:
        time.sleep(3)
    if service.loader_pid == stopped:  # it was stopped outside the write lock
        generation, killed = service.board.live >> 1, time.monotonic()
        os.kill(stopped, signal.SIGKILL)
        wait_for("a new table is published", partial(passed, service, generation))
        print(f"stopped outside the lock; killed: took over within {(time.monotonic() - killed) * 1000:.0f} ms")
    wait_for("swaps go on", partial(passed, service, (service.board.live >> 1) + 20))
    assert service.loader_pid in (first.loader_pid, second.loader_pid)
    changer.stop()
    last = changer.one()
    assert service.standoff("wait", "--revision", str(last.revision), "--timeout", "5").returncode == 0
    answers, adopted, changes = asker.stop(), adoptions.stop(), changer.changes()
    print(answers.report())
    assert not answers.faulty
    assert not answers.lost
    assert not answers.ahead_of_time(changes)
    assert not answers.too_old(changes, adopted)
