"""What `standoff run` decides about its children: no processes here."""

from __future__ import annotations

import pytest

from cli import tree as policy
from cli.loaderwatch import Standstill
from cli.tree import Announce, Exited, Finish, Kill, Phase, Ready, Say, Start, Stop, StopAsked, Tick, Tree

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
    assert ready.then(Exited("server", status), 5.0) == []
    assert ready.then(Tick(), 5.0 + policy.BACKOFF_FIRST_S) == [Start("server")]
    assert ready.then(Tick(), 100.0) == []


def test_pauses_grow_to_a_limit_and_shrink_after_a_long_life(ready: Story) -> None:
    now, pauses = 100.0, []
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
    assert ready.tree.wake_at() == pytest.approx(now + first)


def test_deaths_of_one_do_not_slow_the_other(ready: Story) -> None:
    for i in range(5):
        ready.then(Exited("loader", 1), 100.0 * i + 2)
        ready.then(Tick(), 100.0 * i + 50)
    ready.then(Exited("server", 1), 1000.0)
    assert ready.tree.wake_at() == pytest.approx(1000.0 + policy.BACKOFF_FIRST_S)


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
    assert ready.then(policy.Stuck("loader", "stands still"), 40.0) == [Kill("loader")]
    assert ready.then(Exited("loader", -9), 40.1) == []
    assert ready.then(policy.Stuck("loader", "stands still"), 40.2) == [], "nobody is there to be killed"
    assert ready.then(Tick(), 40.2) == [Start("loader")], "at once: clients have waited for changes long enough"
    ready.then(Exited("loader", -9), 40.3)
    assert ready.then(Tick(), 40.4) == [], "a death of its own is another matter"


def test_nobody_is_stuck_while_all_are_stopping(ready: Story) -> None:
    ready.then(StopAsked(), 40.0)
    assert ready.then(policy.Stuck("loader", "stands still"), 41.0) == []


# ---------------------------------------------------------------- when a loader is stuck


def look_on(
    standstill: Standstill, *, pid: int = 1, hold: int = 0, beat: int = 0, since: float, seconds: float
) -> list[str]:
    """What is said in so many seconds of looks, ten a second, at words that do not move."""
    looks = (standstill.look(pid, hold, beat, since + i / 10) for i in range(int(10 * seconds) + 1))
    return [why for why in looks if why is not None]


def test_a_loader_that_holds_the_write_lock_is_condemned_once() -> None:
    standstill = Standstill()
    assert look_on(standstill, hold=7, since=100, seconds=0.9) == []
    (why,) = look_on(standstill, hold=7, since=101, seconds=0.5)
    assert why.startswith("has held the write lock for 1.")


def test_a_loader_that_takes_the_lock_again_and_again_is_not() -> None:
    standstill = Standstill()
    assert [standstill.look(1, hold, hold, 100 + hold / 10) for hold in range(100)] == [None] * 100


def test_a_silent_loader_is_given_a_minute() -> None:
    assert look_on(Standstill(), since=100, seconds=59) == []
    (why,) = look_on(Standstill(), since=100, seconds=61)
    assert why == "has shown no sign of life for 60 s"


def test_a_stall_of_the_machine_is_nobodys_fault() -> None:
    standstill = Standstill()
    assert [standstill.look(1, 7, 7, at) for at in (100, 103, 106, 109)] == [None] * 4


def test_a_successor_is_not_blamed() -> None:
    standstill = Standstill()
    assert look_on(standstill, pid=1, hold=7, since=100, seconds=0.9) == []
    assert look_on(standstill, pid=2, hold=7, since=101, seconds=0.9) == []
