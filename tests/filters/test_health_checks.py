"""Health checks, end to end: what is answered follows what the backends do, and what an operator says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from loader.health import SILENT_AFTER_S
from tests.filters.stage import Backend, Stage, kill, lives

MakeStage = Callable[..., Stage]
MakeBackend = Callable[[str], Backend]

INTERVAL_S, FALL, RISE = 1.0, 2, 2
ADDRESSES = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]

pytestmark = pytest.mark.timeout(120)


def value(port: int, **check: Any) -> dict[str, Any]:
    url = f"http://{{address}}:{port}/up"
    options = {"url": url, "interval": INTERVAL_S, "timeout": 0.5, "fall": FALL, "rise": RISE, **check}
    return {"ttl": 5, "data": ADDRESSES, "check": options}


@pytest.fixture
def backends(backend: MakeBackend) -> list[Backend]:
    made = [backend(address) for address in ADDRESSES]
    for one in made:
        one.up()
    return made


def known(stage: Stage, up: int) -> None:
    """Until the checker has looked at all."""
    stage.until("all are known", lambda: list(stage.targets().values()).count("up") == up)


def test_answers_follow_the_backends(make_stage: MakeStage, backends: list[Backend], port: int) -> None:
    stage = make_stage()
    stage.put(www=value(port), plain=["192.0.2.1"])
    stage.until("www is there", lambda: stage.of("www") == ADDRESSES)
    known(stage, 3)
    # What an operator is promised: interval * fall + 1 s.
    backends[0].down()
    took = stage.until("a dead backend is gone", lambda: stage.of("www") == ADDRESSES[1:])
    assert took < INTERVAL_S * FALL + 1
    backends[1].status = 503
    took = stage.until("a sick one, too", lambda: stage.of("www") == ADDRESSES[2:])
    assert took < INTERVAL_S * FALL + 1
    backends[2].down()
    took = stage.until("all down means all up", lambda: stage.of("www") == ADDRESSES)
    assert took < INTERVAL_S * FALL + 1
    backends[1].status = 200
    took = stage.until("the first that is back", lambda: stage.of("www") == ADDRESSES[1:2])
    assert took < INTERVAL_S * RISE + 1
    backends[0].up()
    backends[2].up()
    stage.until("all are back", lambda: stage.of("www") == ADDRESSES)
    assert stage.of("plain") == ["192.0.2.1"]
    assert backends[0].requests[0] == ("/up", f"{ADDRESSES[0]}:{port}")
    stage.until("the board tells", lambda: stage.metrics()["standoff_checks_up"] == 3)
    metrics = stage.metrics()
    assert metrics["standoff_checks_down"] == 0
    assert metrics["standoff_check_flips_total"] == 6
    assert metrics["standoff_names_unfiltered"] == 0


def test_a_change_of_a_key_while_a_backend_is_down(make_stage: MakeStage, backends: list[Backend], port: int) -> None:
    stage = make_stage()
    backends[0].down()
    stage.put(www=value(port))
    stage.until("it is found", lambda: stage.of("www") == ADDRESSES[1:])
    stage.put(www=value(port) | {"data": ADDRESSES[:2]}, also=value(port))
    stage.until("the change is there", lambda: stage.of("www") == ADDRESSES[1:2])
    # Another name with the same targets knows at once, and never gave the dead one.
    assert stage.until("the other name", lambda: stage.of("also")) >= 0
    assert stage.of("also") == ADDRESSES[1:]
    stage.put(www=ADDRESSES)
    stage.until("without a check all are answered", lambda: stage.of("www") == ADDRESSES)
    stage.put(also=None)
    stage.until("nobody is looked at", lambda: not stage.targets())


def test_an_operators_word(make_stage: MakeStage, backends: list[Backend], port: int) -> None:
    stage = make_stage()
    stage.put(www=value(port))
    known(stage, 3)
    url = f"http://{ADDRESSES[0]}:{port}/up"
    target = next(one for one in stage.targets() if one.startswith(url))
    assert stage.command("health", "set", url, "down").returncode == 0
    stage.until("it is away", lambda: stage.of("www") == ADDRESSES[1:])
    assert stage.targets()[target] == "down"
    explained = stage.standoff("explain", "www.example.test")
    assert f": health, {target} is down: set by hand\n" in explained
    assert "all targets" not in explained
    listed = stage.standoff("health")
    assert "set by hand (checks say up)" in listed
    assert "www.example.test." in listed
    backends[1].down()
    assert stage.command("health", "set", f"http://{ADDRESSES[1]}:{port}/up", "up").returncode == 0
    # The word outlives the loader, and what its checks found is known to the next from the start.
    backends[2].down()
    stage.until("one is down by its checks", lambda: stage.of("www") == ADDRESSES[1:2])
    kept = stage.folder / "state" / f"{stage.instance}-health.json"
    stage.until("it is on disk", lambda: ADDRESSES[2] in kept.read_text().partition("down")[2])
    before = stage.loader_pid
    kill(before)
    stage.until("another loader", lambda: stage.loader_pid not in (0, before) and len(stage.targets()) == 3)
    stage.throughout(1.0, lambda: stage.of("www") == ADDRESSES[1:2])
    assert stage.command("health", "set", target, "auto").returncode == 0
    stage.until("it is back", lambda: stage.of("www") == ADDRESSES[:2])
    failed = stage.command("health", "set", "http://192.0.2.99/", "up")
    assert failed.returncode == 1
    assert "no target http://192.0.2.99/ is known" in failed.stderr
    assert stage.command("health", "set", target).returncode == 2


def test_that_all_are_answered_because_all_are_down_is_told(
    make_stage: MakeStage, backends: list[Backend], port: int
) -> None:
    stage = make_stage()
    stage.put(www=value(port), plain=["192.0.2.1"])
    known(stage, 3)
    said = "all targets of www.example.test. are down: all are answered"
    for address in ADDRESSES:
        assert said not in stage.command("health").stderr
        last = stage.command("health", "set", f"http://{address}:{port}/up", "down")
    assert said in last.stderr
    assert said in stage.command("health").stderr
    stage.until("all are answered", lambda: stage.of("www") == ADDRESSES)
    explained = stage.standoff("explain", "www.example.test")
    assert "all targets of www.example.test. A are down: all are answered\n" in explained
    assert "all targets" not in stage.standoff("explain", "plain.example.test")


def test_a_checker_that_is_killed_and_one_whose_loader_is(
    make_stage: MakeStage, backends: list[Backend], port: int
) -> None:
    stage = make_stage()
    stage.put(www=value(port))
    known(stage, 3)
    backends[0].down()
    stage.until("it is found", lambda: stage.of("www") == ADDRESSES[1:])
    (first,) = stage.helpers("loader.checker")
    kill(first)
    # What is known stays; and the next one goes on.
    stage.throughout(INTERVAL_S, lambda: stage.of("www") == ADDRESSES[1:])
    stage.until("another one", lambda: stage.helpers("loader.checker") not in ([], [first]))
    backends[0].up()
    stage.until("it is back", lambda: stage.of("www") == ADDRESSES)
    stage.until("the board tells", lambda: stage.metrics()["standoff_check_flips_total"] == 2)
    assert stage.metrics()["standoff_checker_starts_total"] == 2
    (second,) = stage.helpers("loader.checker")
    kill(stage.loader_pid)
    stage.until("it ends with the loader", lambda: not lives(second))


@pytest.mark.slow
def test_a_checker_that_stands_still(make_stage: MakeStage, backends: list[Backend], port: int) -> None:
    stage = make_stage()
    stage.put(www=value(port))
    known(stage, 3)
    (first,) = stage.helpers("loader.checker")
    os.kill(first, signal.SIGSTOP)
    backends[0].down()
    stage.put(other=["192.0.2.1"])
    stage.until("changes flow", lambda: stage.of("other") == ["192.0.2.1"])
    took = stage.until("another one finds it", lambda: stage.of("www") == ADDRESSES[1:])
    assert SILENT_AFTER_S - 2 < took < SILENT_AFTER_S + INTERVAL_S * FALL + 5
    assert not lives(first)


def test_no_checker_without_a_check(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.put(www=["192.0.2.1"], heavy={"data": ["192.0.2.1"], "weight": 1})
    stage.until("they are there", lambda: stage.of("www") and stage.of("heavy"))
    assert stage.helpers("loader.checker") == []
    assert stage.targets() == {}
