"""What `standoff run` decides about its children: no processes here."""

from __future__ import annotations

import pytest

from cli import tree as policy
from cli.loaderwatch import Finding, Standstill
from cli.tree import (
    Announce,
    Exited,
    Finish,
    Kill,
    Moving,
    Phase,
    Promote,
    Ready,
    Say,
    Slow,
    Start,
    Stop,
    StopAsked,
    Stuck,
    Tick,
    Tree,
)

NAMES = ("loader", "server")
STOP_S = 10.0


def without_talk(actions: list[policy.Action]) -> list[policy.Action]:
    return [action for action in actions if not isinstance(action, Say)]


class Story:
    """A tree and what it has done."""

    def __init__(self) -> None:
        self.tree, self.did = policy.begin(NAMES, STOP_S, 0.0)

    def then(self, event: policy.Event, now: float) -> list[policy.Action]:
        self.tree, actions = policy.decide(self.tree, event, now)
        self.did = without_talk(actions)
        return self.did


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def ready(story: Story) -> Story:
    assert story.then(Ready(), 1.0) == [Announce()]
    return story


def test_it_begins_with_all(story: Story) -> None:
    assert story.did == [Start("loader"), Start("server")]
    assert story.tree.wake_at() is None


def test_ready_is_announced_once(ready: Story) -> None:
    assert ready.then(Ready(), 2.0) == []


def test_a_status_before_it_is_ready_ends_it(story: Story) -> None:
    """A port in use: the reason, and not a loop."""
    assert story.then(Exited("server", 2), 0.5) == [Stop("loader")]
    assert story.then(Exited("loader", 0), 0.6) == [Finish(2)]


def test_an_end_without_a_reason_before_it_is_ready_is_a_failure(story: Story) -> None:
    story.then(Exited("server", 0), 0.5)
    assert story.then(Exited("loader", 0), 0.6) == [Finish(1)]


def test_a_crash_before_it_is_ready_is_repaired(story: Story) -> None:
    assert story.then(Exited("loader", -9), 0.5) == []
    assert story.tree.wake_at() == 0.5 + policy.BACKOFF_FIRST_S
    assert story.then(Tick(), 0.6) == []
    assert story.then(Tick(), 0.7) == [Start("loader")]


@pytest.mark.parametrize("status", [0, 1, -9, -15])
def test_once_ready_every_end_is_repaired(ready: Story, status: int) -> None:
    assert ready.then(Exited("server", status), 4.0) == []
    assert ready.then(Tick(), 4.0) == []
    assert ready.then(Tick(), 4.0 + policy.BACKOFF_FIRST_S) == [Start("server")]
    assert ready.then(Tick(), 100.0) == []


def test_pauses_grow_to_a_limit_and_shrink_after_a_long_life(ready: Story) -> None:
    now, pauses = 1.5, []
    for _ in range(9):
        ready.then(Exited("loader", 1), now)
        due = ready.tree.wake_at()
        assert due is not None
        pauses.append(due - now)
        now = due
        assert ready.then(Tick(), now) == [Start("loader")]
    first = policy.BACKOFF_FIRST_S
    assert pauses[:4] == pytest.approx([first, 2 * first, 4 * first, 8 * first])
    assert pauses[-1] == pytest.approx(policy.BACKOFF_MAX_S)
    now += policy.STABLE_AFTER_S
    ready.then(Exited("loader", 1), now)
    assert ready.tree.wake_at() == now, "at once: it was no broken start"
    assert ready.then(Tick(), now) == [Start("loader")]
    ready.then(Exited("loader", 1), now + 0.1)
    assert ready.tree.wake_at() == pytest.approx(now + 0.1 + first)


def test_deaths_of_one_do_not_slow_the_other(ready: Story) -> None:
    for i in range(5):
        ready.then(Exited("loader", 1), 3 + i / 10)
        ready.then(Tick(), 3 + i / 10 + 0.05)
    ready.then(Exited("server", 1), 4.0)
    assert ready.tree.children[1].due == pytest.approx(4.0 + policy.BACKOFF_FIRST_S)


def test_a_stop_asks_all_and_waits_for_all(ready: Story) -> None:
    assert ready.then(StopAsked(), 5.0) == [Stop("loader"), Stop("server")]
    assert ready.then(Exited("loader", 0), 5.1) == []
    assert ready.then(Exited("server", -15), 5.2) == [Finish(0)]


def test_a_second_stop_kills_what_is_left(ready: Story) -> None:
    ready.then(StopAsked(), 5.0)
    ready.then(Exited("loader", 0), 5.1)
    assert ready.then(StopAsked(), 5.2) == [Kill("server")]
    assert ready.then(Exited("server", -9), 5.3) == [Finish(1)]


def test_a_stop_that_lasts_kills(ready: Story) -> None:
    ready.then(StopAsked(), 5.0)
    assert ready.tree.wake_at() == 5.0 + STOP_S
    assert ready.then(Tick(), 14.9) == []
    assert ready.then(Tick(), 15.0) == [Kill("loader"), Kill("server")]
    assert ready.tree.wake_at() is None
    ready.then(Exited("loader", -9), 15.1)
    assert ready.then(Exited("server", -9), 15.1) == [Finish(1)]


def test_a_stop_starts_nobody_again(ready: Story) -> None:
    ready.then(Exited("loader", 1), 5.0)
    assert ready.then(StopAsked(), 5.1) == [Stop("server")]
    assert ready.then(Tick(), 9.0) == []
    assert ready.then(Exited("server", 0), 9.1) == [Finish(0)]


def test_a_stop_while_all_are_dead_ends_at_once(ready: Story) -> None:
    ready.then(Exited("loader", 1), 5.0)
    ready.then(Exited("server", 1), 5.0)
    assert ready.then(StopAsked(), 5.1) == [Finish(0)]


def test_readiness_while_stopping_is_not_announced(story: Story) -> None:
    story.then(StopAsked(), 0.5)
    assert story.then(Ready(), 0.6) == []
    assert story.tree.phase is Phase.STOPPING


def test_deaths_are_told_with_their_cause() -> None:
    tree = Tree((policy.Child("loader", started=0.0),), STOP_S, Phase.READY)
    _, actions = policy.decide(tree, Exited("loader", -11), 3.0)
    assert Say("the loader was killed by signal 11; starting it again in 0.2 s") in actions
    assert policy.describe(3) == "ended with status 3"


def test_a_child_that_is_stuck_is_killed_and_started_again(ready: Story) -> None:
    assert ready.then(Stuck("loader", "stands still"), 40.0) == [Kill("loader")]
    assert ready.then(Exited("loader", -9), 40.1) == []
    assert ready.then(Stuck("loader", "stands still"), 40.2) == [], "nobody is there to be killed"
    assert ready.then(Tick(), 40.2) == [Start("loader")], "at once: clients have waited for changes long enough"
    ready.then(Exited("loader", -9), 40.3)
    assert ready.then(Tick(), 40.4) == [], "a death of its own is another matter"


def test_nobody_is_stuck_while_all_are_stopping(ready: Story) -> None:
    ready.then(StopAsked(), 40.0)
    assert ready.then(Stuck("loader", "stands still"), 41.0) == []


# ---------------------------------------------------------------- spares


@pytest.fixture
def spared(ready: Story) -> Story:
    assert ready.then(Slow("loader"), 40.0) == [Start("loader", spare=True)]
    return ready


def test_a_slow_child_has_one_spare(spared: Story) -> None:
    assert spared.then(Slow("loader"), 40.1) == []


def test_a_spare_takes_over_from_the_stuck(spared: Story) -> None:
    assert spared.then(Stuck("loader", "stands still"), 40.7) == [Kill("loader")]
    assert spared.then(Moving("loader"), 40.7) == [], "too late"
    assert spared.then(Exited("loader", -9), 40.8) == [Promote("loader")]
    assert spared.then(Tick(), 60.0) == [], "there is nobody to be started"
    assert spared.then(Slow("loader"), 61.0) == [Start("loader", spare=True)], "it may have a spare of its own"


def test_a_spare_takes_over_from_one_that_dies_by_itself(spared: Story) -> None:
    assert spared.then(Exited("loader", -11), 40.8) == [Promote("loader")]


def test_a_child_that_moves_again_needs_no_spare(spared: Story) -> None:
    assert spared.then(Moving("loader"), 40.5) == [Stop("loader", spare=True)]
    assert spared.then(Moving("loader"), 40.5) == []
    assert spared.then(Exited("loader", 0, spare=True), 40.6) == []
    assert spared.then(Slow("loader"), 50.0) == [Start("loader", spare=True)]


def test_a_spare_that_leaves_does_not_take_over(spared: Story) -> None:
    spared.then(Moving("loader"), 40.5)
    assert spared.then(Exited("loader", -9), 40.6) == []
    assert spared.then(Exited("loader", 0, spare=True), 40.6) == []
    assert spared.then(Tick(), 40.6) == [Start("loader")]


def test_a_spare_that_dies_is_not_missed(spared: Story) -> None:
    assert spared.then(Exited("loader", 1, spare=True), 40.5) == []
    assert spared.then(Stuck("loader", "stands still"), 40.7) == [Kill("loader")]
    spared.then(Exited("loader", -9), 40.8)
    assert spared.then(Tick(), 40.8) == [Start("loader")]


def test_a_stop_stops_spares_and_waits_for_them(spared: Story) -> None:
    assert spared.then(StopAsked(), 40.5) == [Stop("loader"), Stop("loader", spare=True), Stop("server")]
    assert spared.then(Slow("loader"), 40.5) == []
    assert spared.then(StopAsked(), 40.6) == [Kill("loader"), Kill("loader", spare=True), Kill("server")]
    assert spared.then(Exited("loader", 0), 40.7) == []
    assert spared.then(Exited("server", 0), 40.7) == []
    assert spared.then(Exited("loader", 0, spare=True), 40.8) == [Finish(1)]


def test_who_is_not_there_has_no_spare(ready: Story) -> None:
    ready.then(Exited("loader", 1), 40.0)
    assert ready.then(Slow("loader"), 40.1) == []
    assert ready.then(Moving("loader"), 40.1) == []


# ---------------------------------------------------------------- when a loader is stuck


def look_on(
    standstill: Standstill, *, pid: int = 1, hold: float = 0, beat: int = 0, since: float, seconds: float
) -> list[Finding]:
    """What is found in so many seconds of looks, ten a second, at words that do not move. `hold`: begun when."""
    return [standstill.look(pid, int(hold * 1e9), beat, since + i / 10) for i in range(int(10 * seconds) + 1)]


def reasons(findings: list[Finding]) -> list[str]:
    return [found.why for found in findings if found.why is not None]


def test_a_loader_that_holds_the_write_lock_is_condemned_once() -> None:
    standstill = Standstill()
    assert reasons(look_on(standstill, hold=7, since=100, seconds=0.9)) == []
    (why,) = reasons(look_on(standstill, hold=7, since=101, seconds=0.5))
    assert why.startswith("has held the write lock for 1.")


def test_a_loader_is_slow_long_before() -> None:
    standstill = Standstill()
    standstill.look(1, 0, 0, 100.0)
    findings = look_on(standstill, hold=100.02, since=100.1, seconds=0.8)
    assert [found.slow for found in findings] == [False, False, True, True, True, True, True, True, True]
    assert not standstill.look(1, 0, 1, 101.0).slow, "it moves again"


def test_the_part_of_a_hold_before_the_first_look_counts() -> None:
    standstill = Standstill()
    standstill.look(1, 0, 0, 100.0)
    condemned = [i for i in range(20) if standstill.look(1, int(100.01e9), 0, 100.1 + i / 50).why]
    assert condemned == [], "0.4 s"
    assert standstill.look(1, int(100.01e9), 0, 100.73).slow
    assert standstill.look(1, int(100.01e9), 0, 100.93).why is None
    assert standstill.look(1, int(100.01e9), 0, 101.02).why is not None


def test_a_loader_that_takes_the_lock_again_and_again_is_not() -> None:
    standstill = Standstill()
    findings = [standstill.look(1, int((100 + i / 10) * 1e9), i, 100 + i / 10) for i in range(100)]
    assert findings == [Finding()] * 100


def test_a_silent_loader_is_given_a_minute() -> None:
    assert reasons(look_on(Standstill(), since=100, seconds=59)) == []
    findings = look_on(Standstill(), since=100, seconds=61)
    assert reasons(findings) == ["has shown no sign of life for 60 s"]
    assert 10 <= [found.slow for found in findings].count(True) <= 30, "a spare, a little before"


def test_a_stall_of_the_machine_is_nobodys_fault() -> None:
    standstill = Standstill()
    assert reasons([standstill.look(1, 7, 7, at) for at in (100, 103, 106, 109)]) == []


def test_a_successor_is_not_blamed() -> None:
    standstill = Standstill()
    assert reasons(look_on(standstill, pid=1, hold=7, since=100, seconds=0.9)) == []
    assert reasons(look_on(standstill, pid=2, hold=7, since=101, seconds=0.9)) == []
