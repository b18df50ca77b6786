"""The asker and its judges see what they are there to see: a torture that cannot fail proves nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial

import pytest

from loader.etcd import Etcd
from tests.support.etcd import EtcdServer
from tests.torture.asking import MIXED, MS, NONE, RIGHT, WRONG, Answers, Asked, Asker, Stalls
from tests.torture.changing import ZONE, Change
from tests.torture.service import PREFIX, Service, wait_for

#: What is in etcd, and how every answer to it is to be judged.
SETS = {
    "a generation": (["10.0.1.7", "11.0.1.7", "12.0.1.7", "13.0.1.7"], RIGHT),
    "two generations": (["10.0.1.7", "11.0.1.7", "12.0.1.8", "13.0.1.7"], MIXED),
    "one is missing": (["10.0.1.7", "11.0.1.7", "13.0.1.7"], WRONG),
    "a stranger": (["10.0.1.7", "11.0.1.7", "12.0.1.7", "14.0.1.7"], WRONG),
}


async def put(endpoint: str, addresses: list[str]) -> int:
    async with Etcd(endpoint) as client:
        return await client.put(f"{PREFIX}/{ZONE}/gen/A", json.dumps({"data": addresses}).encode())


def has_adopted(service: Service, revision: int) -> bool:
    return service.adopted() >= revision


def test_answers_are_judged(service: Service, etcd: EtcdServer, ask: Callable[..., Asker]) -> None:
    service.start_server()
    service.start_loader()
    wait_for("the service answers", service.ready)
    for what, (addresses, outcome) in SETS.items():
        revision = asyncio.run(put(etcd.endpoint, addresses))
        wait_for("all have adopted it", partial(has_adopted, service, revision))
        asker = ask(1000)
        time.sleep(0.2)
        answers = asker.stop()
        assert answers.udp, what
        assert answers.tcp, what
        assert {asked.outcome for asked in (*answers.udp, *answers.tcp)} == {outcome}, what
        assert {asked.number for asked in answers.udp if outcome == RIGHT} <= {0x107}


def test_silence_is_lost(service: Service, ask: Callable[..., Asker]) -> None:
    """Nobody listens at all."""
    asker = ask(1000)
    time.sleep(0.2)
    answers = asker.stop()
    assert len(answers.lost) == len(answers.udp) > 100
    assert not [asked for asked in answers.tcp if asked.outcome == RIGHT]


def asked(since_ms: int, until_ms: int, number: int) -> Asked:
    return Asked(since_ms * MS, until_ms * MS, number, 0, RIGHT if until_ms else NONE, 0, 0)


@pytest.fixture
def answers() -> Answers:
    """Without an asker: three changes, asked for at 10, 20 and 30 ms."""
    answers = Answers.__new__(Answers)
    answers.udp = [asked(10, 11, 1), asked(20, 21, 2), asked(30, 131, 1)]
    answers.tcp = []
    answers.stalls = Stalls([(40 * MS, 60 * MS), (50 * MS, 70 * MS)])
    return answers


CHANGES = [Change(number, 10 * number * MS - 5 * MS, 10 * number * MS, 100 + number) for number in (1, 2, 3)]


def test_answers_from_the_future_and_the_past_are_seen(answers: Answers) -> None:
    assert not answers.ahead_of_time(CHANGES)
    answers.udp.append(asked(20, 21, 3))
    assert answers.ahead_of_time(CHANGES) == [answers.udp[-1]]
    assert not answers.too_old(CHANGES, [(19 * MS, 101), (29 * MS, 101)])
    assert answers.too_old(CHANGES, [(19 * MS, 101), (29 * MS, 102)]) == [answers.udp[2]]


def test_only_stalls_are_taken_from_a_wait(answers: Answers) -> None:
    assert answers.stalls.within(0, 200 * MS) == 30 * MS
    assert answers.stalls.within(45 * MS, 65 * MS) == 20 * MS
    assert answers.stalls.within(75 * MS, 200 * MS) == 0
