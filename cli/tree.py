"""Decisions of `standoff run` and `standoff load`, which keep children: (tree, event, now) -> (tree, actions).

Pure: no clock, no process, no signal. cli/foreground.py does what is decided here.

A child that is slow gets a spare: a second process of the same kind, started and ready to take over, which waits for
the lock that the first one holds. If the first one moves again the spare is ended; if it is found stuck it is killed,
and the spare is the child from then on.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

#: First pause before a dead child is started again, doubled with each death in a row.
BACKOFF_FIRST_S = 0.2
#: A child that dies at once costs a start every so often; longer would delay the repair once the cause is gone.
BACKOFF_MAX_S = 10.0
#: A child that has lived so long did come to work: it is started again at once, and its deaths are counted anew.
#: Longer, and a loader that dies three times a minute would be away for ten seconds each time, with nothing wrong about
#: its start.
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
    """`started` is None while it is not running; then it is due at `due`. `stuck`: it was killed for that.

    `spare`: when its spare was started; `spare_leaves`: that has been told to end.
    """

    name: str
    started: float | None = None
    due: float | None = None
    failures: int = 0
    stuck: bool = False
    spare: float | None = None
    spare_leaves: bool = False

    @property
    def processes(self) -> list[bool]:
        """Those that run: False for itself, True for its spare."""
        return [spare for spare, since in ((False, self.started), (True, self.spare)) if since is not None]


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
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Slow:
    """A child has stood still for so long that it may have to be replaced."""

    name: str


@dataclass(frozen=True, slots=True)
class Moving:
    """A child that was slow moves again."""

    name: str


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


Event = Exited | Slow | Moving | Stuck | StopAsked | Ready | Tick


@dataclass(frozen=True, slots=True)
class Start:
    name: str
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask a child to end, gracefully."""

    name: str
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """End a child and all its descendants, now."""

    name: str
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """The spare is the child from now on."""

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


Action = Start | Stop | Kill | Promote | Announce | Say | Finish


def begin(names: tuple[str, ...], stop_timeout: float, now: float) -> tuple[Tree, list[Action]]:
    """A new tree, and the start of its children. `stop_timeout`: seconds a child may take to stop."""
    return Tree(tuple(Child(name, started=now) for name in names), stop_timeout), [Start(name) for name in names]


def decide(tree: Tree, event: Event, now: float) -> tuple[Tree, list[Action]]:
    """What follows from an event. `now`: seconds on a monotonic clock."""
    match event:
        case Exited(name, status, spare):
            return _spare_exited(tree, name) if spare else _exited(tree, name, status, now)
        case Slow(name) if tree.phase is not Phase.STOPPING:
            return _add_spare(tree, name, now)
        case Moving(name) if tree.phase is not Phase.STOPPING:
            return _end_spare(tree, name)
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
    child = _named(tree, name)
    if tree.phase is Phase.STOPPING:
        return _down(_with(tree, replace(child, started=None, due=None)))
    if child.spare is not None and not child.spare_leaves:
        tree = _with(tree, Child(name, started=child.spare))
        return tree, [Promote(name), Say(f"the {name} {describe(status)}; its spare takes over")]
    # A status of its own before the service was ever ready: wrong settings, a port in use. Again would be no better,
    # and whoever sits in front of it wants the reason, not a loop.
    if tree.phase is Phase.STARTING and status >= 0:
        tree = _with(tree, replace(child, started=None))
        tree, actions = _stop(tree, status or 1, now)
        return tree, [Say(f"the {name} {describe(status)} before the service was ready: stopping"), *actions]
    stable = child.started is not None and now - child.started >= STABLE_AFTER_S
    failures = 0 if stable else child.failures + 1
    # After a long life no pause is needed, nor if it was found stuck, which takes long enough.
    pause = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30)) if failures and not child.stuck else 0.0
    tree = _with(tree, replace(child, started=None, due=now + pause, failures=failures, stuck=False))
    return tree, [Say(f"the {name} {describe(status)}; starting it again in {pause:.1f} s")]


def _spare_exited(tree: Tree, name: str) -> tuple[Tree, list[Action]]:
    """Not started again: whom it was for goes on, or is replaced as if there had never been one."""
    tree = _with(tree, replace(_named(tree, name), spare=None, spare_leaves=False))
    return _down(tree) if tree.phase is Phase.STOPPING else (tree, [])


def _down(tree: Tree) -> tuple[Tree, list[Action]]:
    """A stopping tree is over when the last process is gone."""
    return tree, [] if any(child.processes for child in tree.children) else [Finish(tree.status)]


def _add_spare(tree: Tree, name: str, now: float) -> tuple[Tree, list[Action]]:
    child = _named(tree, name)
    if child.started is None or child.spare is not None:
        return tree, []
    return _with(tree, replace(child, spare=now)), [Start(name, spare=True)]


def _end_spare(tree: Tree, name: str) -> tuple[Tree, list[Action]]:
    child = _named(tree, name)
    if child.spare is None or child.spare_leaves or child.stuck:
        return tree, []
    return _with(tree, replace(child, spare_leaves=True)), [Stop(name, spare=True)]


def _condemn(tree: Tree, name: str, why: str) -> tuple[Tree, list[Action]]:
    child = _named(tree, name)
    if child.started is None:
        return tree, []
    return _with(tree, replace(child, stuck=True)), [Say(f"the {name} {why}: replacing it"), Kill(name)]


def _stop(tree: Tree, status: int, now: float) -> tuple[Tree, list[Action]]:
    stops: list[Action] = [Stop(child.name, spare) for child in tree.children for spare in child.processes]
    children = tuple(replace(child, due=None) for child in tree.children)
    kill_at = now + tree.stop_timeout if stops else None
    tree = replace(tree, children=children, phase=Phase.STOPPING, status=status, kill_at=kill_at)
    return tree, stops or [Finish(status)]


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
    return [Kill(child.name, spare) for child in tree.children for spare in child.processes]


def _named(tree: Tree, name: str) -> Child:
    return next(child for child in tree.children if child.name == name)


def _with(tree: Tree, changed: Child) -> Tree:
    return replace(tree, children=tuple(changed if child.name == changed.name else child for child in tree.children))
