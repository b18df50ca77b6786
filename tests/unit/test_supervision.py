"""What the supervisor decides, whatever happens in whatever order. Pure: time is a number here."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.supervision import (
    ALL_SILENT_AFTER_S,
    CONDEMN_AFTER_S,
    FIRST_BACK_OFF_S,
    KILL_GRACE_S,
    LEAK_AFTER_S,
    LONGEST_BACK_OFF_S,
    MOST_WORKERS,
    SILENT_S,
    SPARED,
    STEADY_S,
    Action,
    Close,
    Finish,
    Kill,
    Kind,
    Look,
    Question,
    Report,
    Role,
    Start,
    Steer,
    Supervision,
    Terminate,
)

DRAIN_S = 5.0
TICK_S = 0.1


class World:
    """Does what the supervisor is told, as the operating system would."""

    def __init__(self, workers: int, *, exporter: bool = False) -> None:
        self.tree = Supervision(workers, exporter=exporter, drain_timeout_s=DRAIN_S)
        self.now = 1000.0
        self.next_pid = 1
        self.open = set(range(workers))  # workers with sockets
        self.told: set[int] = set()
        self.killed: set[int] = set()
        self.reported: list[int] = []
        self.questioned: list[int] = []
        self.finished = False
        self.starts: list[tuple[float, Role]] = []
        self.can_fork = True

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(role):
                    assert not self.tree.stopping, "nobody is started while we stop"
                    assert self.tree.running(role) is None, "two children in one role"
                    self.starts.append((self.now, role))
                    if not self.can_fork:
                        self.tree.start_failed(role, self.now)
                        continue
                    if role.kind is Kind.WORKER:
                        self.open.add(role.index)
                    self.tree.started(role, self.next_pid, self.now)
                    self.next_pid += 1
                case Terminate(pid):
                    assert pid in self.tree.children
                    self.told.add(pid)
                case Kill(pid, role, reason):
                    assert pid in self.tree.children
                    assert pid not in self.killed, "killed twice"
                    assert reason
                    assert self.tree.children[pid].role == role
                    self.killed.add(pid)
                case Close(role):
                    assert self.tree.running(role) is None, "its sockets are closed under it"
                    assert role.kind is Kind.WORKER
                    assert role.index >= self.tree.wanted
                    self.open.discard(role.index)
                case Report(pid, role):
                    assert self.tree.children[pid].role == role
                    self.reported.append(pid)
                case Question(pid):
                    assert pid not in self.killed
                    self.questioned.append(pid)
                case Steer(workers):
                    assert workers == self.tree.wanted
                case Finish():
                    assert not self.tree.children
                    assert self.tree.stopping
                    self.finished = True

    def tick(self, seconds: float = TICK_S) -> None:
        self.now += seconds
        self.do(self.tree.tick(self.now))

    def exit(self, pid: int) -> None:
        self.do(self.tree.exited(pid, self.now))

    def reap(self) -> None:
        """Whoever was told to go, or killed, goes."""
        for pid in [pid for pid in self.tree.children if pid in self.told | self.killed]:
            self.exit(pid)

    def settle(self) -> None:
        """Let time pass until back-offs are over."""
        for _ in range(3):
            self.reap()
            self.tick(LONGEST_BACK_OFF_S + 1)

    def pid_of(self, role: Role) -> int:
        child = self.tree.running(role)
        assert child is not None
        return child.pid

    @property
    def roles(self) -> list[Role]:
        return [child.role for child in self.tree.children.values()]

    @property
    def wanted_roles(self) -> set[Role]:
        return {Role(Kind.STREAM), *(Role(Kind.WORKER, i) for i in range(self.tree.wanted))}


class Chaos(RuleBasedStateMachine):
    @initialize(workers=st.integers(1, 5))
    def start(self, workers: int) -> None:
        self.world = World(workers)
        self.world.tick()

    @rule(seconds=st.sampled_from([0.0, 0.05, TICK_S, 1.0, 7.5, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @precondition(lambda self: self.world.tree.children)
    @rule(data=st.data())
    def a_child_dies(self, data: st.DataObject) -> None:
        self.world.exit(data.draw(st.sampled_from(sorted(self.world.tree.children))))

    @rule(pid=st.integers(10_000, 10_010))
    def a_stranger_dies(self, pid: int) -> None:
        assert self.world.tree.exited(pid, self.world.now) == []

    @precondition(lambda self: self.world.tree.children)
    @rule(data=st.data(), heartbeat=st.integers(0, 2), section=st.integers(0, 2))
    def a_look(self, data: st.DataObject, heartbeat: int, section: int) -> None:
        pid = data.draw(st.sampled_from(sorted(self.world.tree.children)))
        self.world.do(self.world.tree.observed(pid, Look(heartbeat, section), self.world.now))

    @rule(workers=st.integers(1, 6))
    def scale(self, workers: int) -> None:
        self.world.do(self.world.tree.scale(workers, self.world.now))

    @rule(works=st.booleans())
    def fork(self, works: bool) -> None:
        self.world.can_fork = works

    @rule()
    def the_told_go(self) -> None:
        self.world.reap()

    @rule()
    def stop(self) -> None:
        self.world.do(self.world.tree.stop(self.world.now))

    @invariant()
    def one_child_a_role(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.roles) == len(set(self.world.roles))

    def teardown(self) -> None:
        """Whatever went before: it converges to what is wanted, or to nothing."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.can_fork = True
        world.settle()
        if world.tree.stopping:
            assert world.finished
            assert world.roles == []
        else:
            assert set(world.roles) == world.wanted_roles
            assert world.open >= set(range(world.tree.wanted))
            assert world.open == set(range(world.tree.wanted)), "sockets of workers that are gone"


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_everybody_is_started_at_once() -> None:
    world = World(3, exporter=True)
    world.tick(0)
    assert set(world.roles) == {*world.wanted_roles, Role(Kind.EXPORTER)}


def test_a_single_death_is_replaced_at_once() -> None:
    world = World(2)
    world.tick()
    world.tick(60)
    world.exit(world.pid_of(Role(Kind.WORKER, 1)))
    assert set(world.roles) == world.wanted_roles


def test_back_off_grows_and_is_bounded() -> None:
    world = World(1)
    world.tick()
    role = Role(Kind.WORKER, 0)
    del world.starts[:]
    for _ in range(12 + SPARED):
        world.exit(world.pid_of(role))
        for _ in range(2000):
            if world.tree.running(role):
                break
            world.tick(0.01)
    times = [at for at, started in world.starts if started == role]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert max(pauses[: SPARED - 1]) == 0, "the first ones are replaced at once"
    grown = [pause for pause in pauses if pause]
    assert grown[0] == pytest.approx(FIRST_BACK_OFF_S, abs=0.02)
    assert all(later >= earlier - 0.02 for earlier, later in pairwise(grown))
    assert grown[-1] == pytest.approx(LONGEST_BACK_OFF_S, abs=0.02)


def test_back_off_resets_for_who_lived_long() -> None:
    world = World(1)
    world.tick()
    role = Role(Kind.WORKER, 0)
    for _ in range(6):
        world.exit(world.pid_of(role))
        world.tick(LONGEST_BACK_OFF_S)
    world.tick(STEADY_S)
    world.exit(world.pid_of(role))
    assert world.tree.running(role) is not None, "at once again"


def test_one_that_cannot_be_forked_is_tried_again() -> None:
    world = World(1)
    world.can_fork = False
    world.tick()
    assert world.roles == []
    tries = len(world.starts)
    for _ in range(100):
        world.tick(0.1)
    assert tries < len(world.starts) < 40, "again, but not in a hurry"
    world.can_fork = True
    world.settle()
    assert set(world.roles) == world.wanted_roles


def look_often(world: World, looks: dict[int, list[Look]]) -> None:
    """Look at every child once a tick."""
    for at_once in zip(*looks.values(), strict=True):
        world.now += TICK_S
        for pid, look in zip(looks, at_once, strict=True):
            world.do(world.tree.observed(pid, look, world.now))


TICKS = int(CONDEMN_AFTER_S / TICK_S) + 2


def test_silence_is_condemned_and_movement_is_not() -> None:
    world = World(2)
    world.tick()
    silent, lively = (world.pid_of(Role(Kind.WORKER, i)) for i in range(2))
    look_often(world, {silent: [Look(7, 2)] * TICKS, lively: [Look(i + 1, 2) for i in range(TICKS)]})
    assert world.killed == {silent}
    assert world.questioned == [silent], "where it is has been asked, once"
    assert world.tree.running(Role(Kind.WORKER, 0)) is not None, "it is replaced when it is gone, not before"
    world.reap()
    assert world.pid_of(Role(Kind.WORKER, 0)) != silent


def test_a_reader_that_stays_inside_is_reported_once_then_condemned() -> None:
    """R6, though its heart beats: it is stuck inside the lock."""
    world = World(2)
    world.tick()
    stuck, passing = (world.pid_of(Role(Kind.WORKER, i)) for i in range(2))
    few = int(LEAK_AFTER_S / TICK_S) + 2
    look_often(
        world, {stuck: [Look(i + 1, 3) for i in range(few)], passing: [Look(i + 1, 2 * i + 1) for i in range(few)]}
    )
    assert world.reported == [stuck]
    assert not world.killed
    look_often(world, {stuck: [Look(i + 100, 3) for i in range(TICKS)]})
    assert world.reported == [stuck]
    assert world.killed == {stuck}


def test_a_stall_of_the_machine_condemns_nobody() -> None:
    world = World(1)
    world.tick()
    pid = world.pid_of(Role(Kind.WORKER, 0))
    for _ in range(2):
        world.do(world.tree.observed(pid, Look(7, 1), world.now))
        world.now += 60  # nobody ran
    world.do(world.tree.observed(pid, Look(8, 3), world.now))
    assert not world.killed


def look_for(world: World, seconds: float, moving: set[Role]) -> dict[float, set[int]]:
    """Who was killed when, in so much time in which only these move; the killed are reaped, and start moving."""
    killed: dict[float, set[int]] = {}
    start, known = world.now, set(world.tree.children)
    while world.now < start + seconds:
        world.now += TICK_S
        before = set(world.killed)
        for child in list(world.tree.children.values()):
            beats = child.role in moving or child.pid not in known
            world.do(world.tree.observed(child.pid, Look(int(world.now * 100) if beats else 7, 2), world.now))
        if world.killed != before:
            killed[round(world.now - start, 1)] = world.killed - before
        world.reap()
    return killed


ALL = [Role(Kind.WORKER, 0), Role(Kind.WORKER, 1), Role(Kind.STREAM)]


@pytest.mark.parametrize("moving", ALL)
def test_one_that_moves_shows_that_the_others_are_to_blame(moving: Role) -> None:
    world = World(2)
    world.tick()
    silent = {world.pid_of(role) for role in ALL if role != moving}
    killed = look_for(world, 2.0, {moving})
    assert set().union(*killed.values()) == silent
    assert all(CONDEMN_AFTER_S <= at <= CONDEMN_AFTER_S + 3 * TICK_S for at in killed)


def test_when_all_are_silent_it_takes_longer_and_one_goes_first() -> None:
    world = World(2)
    world.tick()
    pids = {world.pid_of(role) for role in ALL}
    killed = look_for(world, 6.0, set())
    (first, one), *rest = killed.items()
    assert ALL_SILENT_AFTER_S <= first <= ALL_SILENT_AFTER_S + 3 * TICK_S
    assert len(one) == 1
    assert set().union(*killed.values()) == pids
    assert all(at <= first + SILENT_S + 3 * TICK_S for at, _ in rest), "its successor moves: it is not the machine"


def test_when_no_successor_comes_they_go_one_after_the_other() -> None:
    world = World(2)
    world.tick()
    first = set(world.tree.children)
    times: list[float] = []
    for _ in range(60):
        world.now += TICK_S
        before = len(world.killed)
        for pid in first & set(world.tree.children):
            world.do(world.tree.observed(pid, Look(7, 2), world.now))
        assert len(world.killed) - before <= 1
        times += [world.now] * (len(world.killed) - before)
        world.reap()
    assert len(times) == len(first)
    assert all(later - earlier >= SILENT_S - 0.01 for earlier, later in pairwise(times))


def test_a_pause_of_the_machine_condemns_nobody() -> None:
    """All stood still for less than the patience, then one after the other goes on."""
    world = World(2)
    world.tick()
    assert look_for(world, ALL_SILENT_AFTER_S - 0.5, set()) == {}
    assert look_for(world, 0.3, set(ALL[:1])) == {}
    assert look_for(world, 2.0, set(ALL)) == {}


def test_stop_asks_then_kills_then_finishes() -> None:
    world = World(2)
    world.tick()
    world.do(world.tree.stop(world.now))
    assert world.told == set(world.tree.children)
    for _ in range(5):
        world.tick(1)
        world.do(world.tree.stop(world.now))  # an impatient operator
    assert not world.killed
    world.tick(DRAIN_S + KILL_GRACE_S - 5)
    assert world.killed == world.told, "asking again does not put it off"
    assert not world.finished
    world.reap()
    assert world.finished


def test_stop_with_nobody_there() -> None:
    world = World(1)
    world.do(world.tree.stop(world.now))
    assert world.finished


def test_scale_down_steers_first_and_closes_last() -> None:
    world = World(3)
    world.tick()
    actions = world.tree.scale(1, world.now)
    assert actions[0] == Steer(1)
    assert [type(action) for action in actions[1:]] == [Terminate, Terminate]
    world.do(actions)
    assert world.open == {0, 1, 2}, "they drain their sockets"
    world.reap()
    assert world.open == {0}
    assert set(world.roles) == world.wanted_roles


def test_scale_down_and_up_while_the_old_one_drains() -> None:
    world = World(2)
    world.tick()
    old = world.pid_of(Role(Kind.WORKER, 1))
    world.do(world.tree.scale(1, world.now))
    world.do(world.tree.scale(2, world.now))
    assert world.pid_of(Role(Kind.WORKER, 1)) == old
    world.reap()
    world.tick()
    assert world.pid_of(Role(Kind.WORKER, 1)) != old
    assert world.open == {0, 1}


@pytest.mark.parametrize("workers", [0, -1, MOST_WORKERS + 1])
def test_scale_out_of_range(workers: int) -> None:
    world = World(2)
    with pytest.raises(ValueError, match="1 to"):
        world.tree.scale(workers, world.now)
    assert world.tree.wanted == 2


@given(st.integers(1, MOST_WORKERS), st.integers(1, MOST_WORKERS))
def test_scale_to_anything(before: int, after: int) -> None:
    world = World(before)
    world.tick()
    world.do(world.tree.scale(after, world.now))
    world.settle()
    assert set(world.roles) == world.wanted_roles
    assert world.open == set(range(after))
