"""More and fewer workers while queries go on, and a worker that is stopped: no query is lost, none waits for long.

A socket is handed to the workers that are there already, new datagrams are steered away from one that is to go, and
what is queued is answered before it goes. A worker that shows no sign of life has its queue drained by its neighbours,
and is replaced.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from shm.layout import SlotKind
from tests.torture.asking import MS, Answers, Asker
from tests.torture.service import Service, wait_for

ASKED_PER_S = 4000
LONGEST_WAIT_NS = 100 * MS
#: A worker that has come or gone has the load for so long before the next change.
SETTLE_S = 0.4
#: CONDEMN_AFTER_S in server/supervision.py is 1 s, looked at ten times a second, and then comes a start.
REPLACED_WITHIN_S = 2.0


@pytest.fixture
def busy(service: Service, ask: Callable[..., Asker]) -> Asker:
    service.start_server()
    service.start_loader()
    wait_for("the service answers", service.ready)
    return ask(ASKED_PER_S)


def wait_for_workers(service: Service, number: int) -> None:
    def there() -> bool:
        slots = service.slots(SlotKind.WORKER)
        return len(slots) == number and all(slot.get("generation") for slot in slots)

    wait_for(f"{number} workers answer", there)


def check(answers: Answers) -> None:
    print(answers.report())
    assert not answers.faulty
    assert not answers.lost
    raw, fair = answers.slowest()
    assert fair < LONGEST_WAIT_NS, f"{raw / MS:.0f} ms"


def check_counters(service: Service, answers: Answers) -> None:
    """Every slot that was ever used, together: what the client sent, and each was answered."""
    assert service.total("requests_family") == len(answers.udp) + len(answers.tcp)
    assert service.total("responses_rcode") == len(answers.udp) + len(answers.tcp)


def test_scale_loses_nothing(service: Service, busy: Asker) -> None:
    for number in (4, 1, 3, 2, 5, 2):
        done = service.standoff("scale", str(number))
        assert done.returncode == 0, done.stderr
        wait_for_workers(service, number)
        time.sleep(SETTLE_S)
    answers = busy.stop()
    check(answers)
    check_counters(service, answers)


def test_signals_scale_by_one(service: Service, busy: Asker) -> None:
    wanted = 2
    for number in (signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU, signal.SIGTTOU):
        wanted += 1 if number == signal.SIGTTIN else -1
        os.kill(service.supervisor_pid, number)
        wait_for_workers(service, wanted)
        time.sleep(SETTLE_S)
    # The last worker stays, whatever is asked.
    os.kill(service.supervisor_pid, signal.SIGTTOU)
    time.sleep(SETTLE_S)
    wait_for_workers(service, 1)
    answers = busy.stop()
    check(answers)
    check_counters(service, answers)


def test_the_load_goes_to_all_workers(service: Service, busy: Asker) -> None:
    """Steered evenly: with many workers none has much more than its share, and a new one has its share at once."""
    service.standoff("scale", "4")
    wait_for_workers(service, 4)
    before = {slot.get("worker"): sum(slot.counters()["requests_family"]) for slot in service.slots(SlotKind.WORKER)}
    time.sleep(1.0)
    shares = [
        sum(slot.counters()["requests_family"]) - before[slot.get("worker")] for slot in service.slots(SlotKind.WORKER)
    ]
    check(busy.stop())
    assert max(shares) < 2 * min(shares), shares


@pytest.mark.lock_left_ok("a worker is stopped, and killed, anywhere")
@pytest.mark.parametrize("workers", [2, 3])
def test_a_stopped_worker_is_drained_by_its_neighbour_and_replaced(service: Service, busy: Asker, workers: int) -> None:
    service.standoff("scale", str(workers))
    wait_for_workers(service, workers)
    victims = service.pids(SlotKind.WORKER)[: workers - 1]
    drained = service.total("neighbour_batches")
    stopped = time.monotonic_ns()
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)

    def replaced() -> bool:
        return not set(victims) & set(service.pids(SlotKind.WORKER))

    took = wait_for("the stopped are replaced", replaced)
    wait_for_workers(service, workers)
    drained = service.total("neighbour_batches") - drained
    time.sleep(SETTLE_S)
    answers = busy.stop()
    print(f"{drained} batches of neighbours, replaced after {took:.2f} s; {answers.report()}")
    assert not answers.faulty
    # What a stopped worker had in its hands is lost when it is killed.
    assert len(answers.lost) <= 64 * len(victims)
    assert all(abs(asked.since_ns - stopped) < 50 * MS for asked in answers.lost)
    assert drained > 0
    raw, fair = answers.slowest()
    assert fair < LONGEST_WAIT_NS, f"{raw / MS:.0f} ms"
    assert 0.7 < took < REPLACED_WITHIN_S * answers.slowness.between(stopped, stopped + 2000 * MS)
    assert service.board.supervisor.get("workers_condemned") == len(victims)
