"""A second loader waits as a standby, and takes over within a second of the first one's death, while queries go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.support.etcd import EtcdServer
from tests.torture import content
from tests.torture.asking import MS, AdoptionLog, Asker
from tests.torture.changing import Changer
from tests.torture.service import Service, wait_for

pytestmark = pytest.mark.lock_left_ok("loaders are killed anywhere")

SWAPS_PER_S = 50
TAKE_OVER_S = 1.0
#: Deaths in a row. Each time the next standby was started a while before.
DEATHS = 3


def passed(service: Service, generation: int) -> bool:
    return service.board.live >> 1 > generation


def test_a_standby_takes_over_within_a_second(
    service: Service,
    changer: Changer,
    ask: Callable[..., Asker],
    etcd: EtcdServer,
) -> None:
    service.start_server()
    loaders = [service.start_loader()]
    wait_for("the service answers", service.ready)
    changer.start(SWAPS_PER_S)
    adoptions = AdoptionLog(service)
    adoptions.start()
    asker = ask()
    board = service.board
    took = []
    for _ in range(DEATHS):
        assert service.loader_pid == loaders[-1].loader_pid
        loaders.append(service.start_loader())
        wait_for("a standby waits", lambda: service.said().count("standby: another loader holds") == len(loaders) - 1)
        assert service.loader_pid == loaders[-2].loader_pid, "a standby does not write"
        loaders[-2].kill()
        generation, killed = board.live >> 1, time.monotonic_ns()
        wait_for("a new table is published", partial(passed, service, generation))
        took.append((time.monotonic_ns() - killed) / 1e9)
        assert service.loader_pid == loaders[-1].loader_pid
        wait_for("swaps go on", partial(passed, service, generation + 20))
    changer.stop()
    last = changer.one()
    assert service.standoff("wait", "--revision", str(last.revision), "--timeout", "5").returncode == 0
    answers = asker.stop()
    adopted = adoptions.stop()
    changes = changer.changes()
    print(f"took over within {', '.join(f'{seconds * 1000:.0f} ms' for seconds in took)}\n{answers.report()}")
    assert not answers.faulty
    assert not answers.lost
    assert not answers.ahead_of_time(changes)
    assert not answers.too_old(changes, adopted)
    slowness = answers.slowness.between(answers.udp[0].since_ns, answers.udp[-1].since_ns)
    assert max(took) < TAKE_OVER_S * slowness
    _, fair = answers.slowest()
    assert fair < 100 * MS, "a dead writer holds a reader up for 10 ms, once (R1)"
    expected = content.compiled(etcd.endpoint)
    wait_for("both sides are equal", lambda: content.both_sides(board) == [expected, expected], 2.0)
    assert service.total("table_damaged") == 0


def test_a_standby_that_is_told_to_leave_leaves(service: Service) -> None:
    service.start_server()
    first = service.start_loader()
    wait_for("the service answers", service.ready)
    standby = service.start_loader()
    wait_for("a standby waits", lambda: "standby: another loader holds" in service.said())
    assert standby.stop() == 0
    assert service.loader_pid == first.loader_pid
