"""Time windows and weights, end to end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.filters.stage import Stage
from tests.support.clock import Clock

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.timeout(120)


def test_a_window_opens_and_closes_and_no_resolver_keeps_it(make_stage: MakeStage) -> None:
    stage = make_stage()
    begin = time.time() + 2
    end = begin + 4
    stage.put(www={"data": [{"data": "192.0.2.1", "not_before": begin, "not_after": end}, "192.0.2.2"], "ttl": 60})
    stage.until("the other one", lambda: stage.of("www") == ["192.0.2.2"])
    assert time.time() < begin
    stage.until("it is open", lambda: stage.of("www") == ["192.0.2.1", "192.0.2.2"])
    assert begin <= time.time() < begin + 1
    stage.until("it is closed", lambda: stage.of("www") == ["192.0.2.2"])
    assert end <= time.time() < end + 1
    # A window in which the name alone stands: the name comes and goes, its zone does not.
    stage.put(only={"data": "192.0.2.3", "not_after": time.time() + 2})
    stage.until("it is there", lambda: stage.of("only") == ["192.0.2.3"])
    stage.until("it is gone", lambda: stage.of("only") == [])
    assert stage.ask("example.test", "SOA")


def test_weights_over_many_names(make_stage: MakeStage) -> None:
    """One moment of many names tells as much as many moments of one: each draws for itself."""
    stage = make_stage()
    count = 300
    weighted = {"data": [{"data": "192.0.2.1", "weight": 3}, {"data": "192.0.2.2", "weight": 1}], "ttl": 5}
    stage.put(**{f"n{number}": weighted for number in range(count)})
    stage.until("they are there", lambda: all(stage.of(f"n{number}") for number in (0, count - 1)))
    first = [stage.of(f"n{number}") for number in range(count)]
    assert {len(one) for one in first} == {1}
    share = Counter(one[0] for one in first)["192.0.2.1"] / count
    assert share == pytest.approx(0.75, abs=0.11)  # four and a half standard deviations of 0.025
    # Within two periods of five seconds the draw is another one.
    stage.until("they draw again", lambda: [stage.of(f"n{number}") for number in range(20)] != first[:20])
    assert stage.metrics()["standoff_names_unfiltered"] == 0


def test_without_filters_attributes_mean_nothing(make_stage: MakeStage) -> None:
    stage = make_stage("--filters", "none")
    stage.put(www={"data": [{"data": "192.0.2.1", "not_after": 5}, {"data": "192.0.2.2", "weight": 0}], "weight": 1})
    stage.until("all are there", lambda: stage.of("www") == ["192.0.2.1", "192.0.2.2"])


def test_a_clock_that_is_set_back(make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that boots with a clock which is ahead closes windows too early."""
    clock = Clock(tmp_path)
    clock.set(7200)
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    stage = make_stage()
    now = time.time()
    stage.put(
        closed={"data": "192.0.2.1", "not_after": now + 3600},
        open={"data": "192.0.2.2", "not_before": now + 3600},
    )
    stage.until("two hours ahead", lambda: stage.of("open") == ["192.0.2.2"])
    assert stage.of("closed") == []
    clock.set(0)
    stage.until("the window is not closed yet", lambda: stage.of("closed") == ["192.0.2.1"])
    assert stage.of("open") == []
    clock.set(86400)
    stage.until("a day ahead", lambda: stage.of("open") == ["192.0.2.2"])
    assert stage.of("closed") == []
