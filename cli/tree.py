"""Decisions of `standoff run`, which keeps a loader and a server as children: (tree, event, now) -> (tree, actions).

Pure: no clock, no process, no signal. cli/foreground.py does what is decided here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

#: First pause before a dead child is started again, doubled with each death in a row.
BACKOFF_FIRST_S = 0.2
#: A child that dies at once costs a start every so often; longer would delay the repair once the cause is gone.
BACKOFF_MAX_S = 10.0
#: A child that has lived so long did come to work: its next death counts as the first. Longer, and a loader that dies
#: three times a minute would be away for ten seconds each time, with nothing wrong about its start.
STABLE_AFTER_S = 5.0
#: What stopping takes besides draining: workers leave their loops within 100 ms, processes end.
STOP_MARGIN_S = 5.0


class Phase(enum.Enum):
    """Where the tree is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Child:
    """`started` is None while it is not running; then it is due at `due`. `stuck`: it was killed for that."""

    name: str
    started: float | None = None
    due: float | None = None
    failures: int = 0
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """`status` is what the tree will exit with; at `kill_at` a stop has lasted too long."""

    children: tuple[Child, ...]
    stop_timeout: float
    phase: Phase = Phase.STARTING
    status: int = 0
    kill_at: float | None = None

    def wake_at(self) -> float | None:
        """When `decide` wants a Tick, if nothing happens before."""
        times = [child.due for child in self.children] + [self.kill_at]
        return min((at for at in times if at is not None), default=None)


@dataclass(frozen=True, slots=True)
class Exited:
    """`status`: exit status, or minus the signal that killed it."""

    name: str
    status: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """A child stands still; `why` is for people."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM or SIGINT came."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Queries are answered for the first time."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Exited | Stuck | StopAsked | Ready | Tick


@dataclass(frozen=True, slots=True)
class Start:
    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask a child to end, gracefully."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End a child and all its descendants, now."""

    name: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell that the service is ready."""


@dataclass(frozen=True, slots=True)
class Say:
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The tree is over: exit with this status."""

    status: int


Action = Start | Stop | Kill | Announce | Say | Finish


def begin(names: tuple[str, ...], stop_timeout: float, now: float) -> tuple[Tree, list[Action]]:
    """A new tree, and the start of its children. `stop_timeout`: seconds a child may take to stop."""
    return Tree(tuple(Child(name, started=now) for name in names), stop_timeout), [Start(name) for name in names]


def decide(tree: Tree, event: Event, now: float) -> tuple[Tree, list[Action]]:
    """What follows from an event. `now`: seconds on a monotonic clock."""
    match event:
        case Exited(name, status):
            return _exited(tree, name, status, now)
        case Stuck(name, why) if tree.phase is not Phase.STOPPING:
            return _condemn(tree, name, why)
        case StopAsked() if tree.phase is Phase.STOPPING:
            return replace(tree, kill_at=None, status=tree.status or 1), [Say("killing"), *_kill_all(tree)]
        case StopAsked():
            return _stop(tree, 0, now)
        case Ready() if tree.phase is Phase.STARTING:
            return replace(tree, phase=Phase.READY), [Announce()]
        case Tick():
            return _tick(tree, now)
    return tree, []


def describe(status: int) -> str:
    """An exit in words."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _exited(tree: Tree, name: str, status: int, now: float) -> tuple[Tree, list[Action]]:
    child = next(child for child in tree.children if child.name == name)
    if tree.phase is Phase.STOPPING:
        tree = _with(tree, replace(child, started=None, due=None))
        running = any(child.started is not None for child in tree.children)
        return tree, [] if running else [Finish(tree.status)]
    # A status of its own before the service was ever ready: wrong settings, a port in use. Again would be no better,
    # and whoever sits in front of it wants the reason, not a loop.
    if tree.phase is Phase.STARTING and status >= 0:
        tree = _with(tree, replace(child, started=None))
        tree, actions = _stop(tree, status or 1, now)
        return tree, [Say(f"the {name} {describe(status)} before the service was ready: stopping"), *actions]
    lived = now - child.started if child.started is not None else 0.0
    failures = 1 if lived >= STABLE_AFTER_S else child.failures + 1
    # To be found stuck takes so long that no pause is needed between two of these.
    pause = 0.0 if child.stuck else min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30))
    tree = _with(tree, replace(child, started=None, due=now + pause, failures=failures, stuck=False))
    return tree, [Say(f"the {name} {describe(status)}; starting it again in {pause:.1f} s")]


def _condemn(tree: Tree, name: str, why: str) -> tuple[Tree, list[Action]]:
    child = next(child for child in tree.children if child.name == name)
    if child.started is None:
        return tree, []
    return _with(tree, replace(child, stuck=True)), [Say(f"the {name} {why}: replacing it"), Kill(name)]


def _stop(tree: Tree, status: int, now: float) -> tuple[Tree, list[Action]]:
    running = [child.name for child in tree.children if child.started is not None]
    children = tuple(replace(child, due=None) for child in tree.children)
    kill_at = now + tree.stop_timeout if running else None
    tree = replace(tree, children=children, phase=Phase.STOPPING, status=status, kill_at=kill_at)
    return tree, [Stop(name) for name in running] if running else [Finish(status)]


def _tick(tree: Tree, now: float) -> tuple[Tree, list[Action]]:
    if tree.phase is Phase.STOPPING:
        if tree.kill_at is None or now < tree.kill_at:
            return tree, []
        text = f"not stopped after {tree.stop_timeout:g} s: killing"
        return replace(tree, kill_at=None, status=tree.status or 1), [Say(text), *_kill_all(tree)]
    actions: list[Action] = []
    for child in tree.children:
        if child.due is not None and now >= child.due:
            tree = _with(tree, replace(child, started=now, due=None))
            actions.append(Start(child.name))
    return tree, actions


def _kill_all(tree: Tree) -> list[Action]:
    return [Kill(child.name) for child in tree.children if child.started is not None]


def _with(tree: Tree, changed: Child) -> Tree:
    return replace(tree, children=tuple(changed if child.name == changed.name else child for child in tree.children))
