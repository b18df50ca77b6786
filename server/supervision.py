"""What the supervisor decides, without doing it: (state, event, now) -> actions. Pure; `supervisor.py` does the rest.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

#: Bounds `scale`; slots beyond it are for the stream worker and for replacements that overlap.
MOST_WORKERS = 60
#: A child that dies at once, again and again, is started after these pauses, doubled with every death, so that a broken
#: set-up does not eat the machine.
FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 10.0
#: A child that lived this long had come to work: what killed it was no broken set-up, and clients wait for its
#: replacement. Several times what a start takes, and four forks a second at most.
STEADY_S = 0.25
#: Early deaths in a row that are replaced at once, all the same: chance may hit a replacement as well.
SPARED = 3
#: R6: a reader inside the lock for this long is reported, with its name.
LEAK_AFTER_S = 0.25
#: R6: a reader inside, or a child without a sign of life, for this long is replaced.
CONDEMN_AFTER_S = 1.0
#: A child without a sign of life for this long is asked where it is, in time for the report of its end.
QUESTION_AFTER_S = 0.75
#: When all are silent at once it is the machine that stands still, more likely than all of them: killing every worker
#: would then make a bad moment worse. So the first is replaced after this long, others one a CONDEMN_AFTER_S.
ALL_SILENT_AFTER_S = 3.0
#: Silence of this long makes a child one of "all". As soon as one moves, be it a successor, the others have as long to
#: do so, too.
SILENT_S = 0.5
#: The most that one look adds to a child's silence: some ticks of the supervisor.
LONGEST_LOOK_S = 0.25
#: After SIGTERM a child has the drain time-out and this much; then SIGKILL.
KILL_GRACE_S = 2.0


class Kind(Enum):
    """What a child does."""

    WORKER = "worker"
    STREAM = "stream"
    EXPORTER = "exporter"
    TRANSFERS = "transfers"


@dataclass(frozen=True, slots=True, order=True)
class Role:
    """One place in the tree: `Role(Kind.WORKER, 1)`."""

    kind: Kind = field(compare=True)
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind.value} {self.index}" if self.kind is Kind.WORKER else self.kind.value


# ---- actions


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a child for the role (its sockets are opened first if there are none yet)."""

    role: Role


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM: answer what is queued, then leave."""

    pid: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL, with the reason for the log."""

    pid: int
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell who does not leave the read lock, and where it is. Once for each stay."""

    pid: int
    role: Role


@dataclass(frozen=True, slots=True)
class Question:
    """Ask a silent child for its stack. Once for each silence."""

    pid: int


@dataclass(frozen=True, slots=True)
class Steer:
    """Send new datagrams to the first `workers` workers only."""

    workers: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close the sockets of a worker that is gone for good."""

    role: Role


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything is down: leave."""


Action = Start | Terminate | Kill | Report | Question | Steer | Close | Finish


# ---- state


@dataclass(frozen=True, slots=True)
class Look:
    """What the board says of a child: its heartbeat's value, and its section's (odd = inside the read lock)."""

    heartbeat: int
    section: int


@dataclass(slots=True)
class Child:
    """A running child."""

    role: Role
    pid: int
    started: float
    kill_at: float | None = None  # set when it was told to go
    killed: bool = False
    heartbeat: int = 0  # as last looked at, and for how long it has not moved
    quiet_s: float = 0.0
    section: int = 0  # the same of its section, while it is inside
    inside_s: float = 0.0
    reported: bool = False
    questioned: bool = False
    looked: float = 0.0


@dataclass(slots=True)
class Place:
    """A role that is to be filled."""

    deaths: int = 0
    start_at: float = 0.0


class Supervision:
    """The tree that is wanted, and the tree that is."""

    def __init__(self, workers: int, *, exporter: bool, transfers: bool = False, drain_timeout_s: float = 5.0) -> None:
        self.wanted = workers
        self.drain_timeout_s = drain_timeout_s
        self.stopping = False
        self.children: dict[int, Child] = {}
        self._all_silent = False
        self._condemn_at = 0.0  # not before, for all were silent
        self._places: dict[Role, Place] = {Role(Kind.WORKER, i): Place() for i in range(workers)}
        self._places[Role(Kind.STREAM)] = Place()
        if exporter:
            self._places[Role(Kind.EXPORTER)] = Place()
        if transfers:
            self._places[Role(Kind.TRANSFERS)] = Place()

    def running(self, role: Role) -> Child | None:
        """The child in a role, if there is one."""
        return next((child for child in self.children.values() if child.role == role), None)

    def tick(self, now: float) -> list[Action]:
        """Whatever is due."""
        if self.stopping:
            return [*self._overdue(now), *([] if self.children else [Finish()])]
        return [*self._overdue(now), *self._due(now)]

    def started(self, role: Role, pid: int, now: float) -> None:
        """A `Start` was done."""
        self.children[pid] = Child(role, pid, now)

    def start_failed(self, role: Role, now: float) -> None:
        """A `Start` could not be done."""
        self._back_off(self._places[role], now)

    def exited(self, pid: int, now: float) -> list[Action]:
        """A child is gone."""
        child = self.children.pop(pid, None)
        if child is None:
            return []
        place = self._places.get(child.role)
        if place is None:
            return [Close(child.role), *self.tick(now)]
        if now - child.started >= STEADY_S:
            place.deaths = 0
        self._back_off(place, now)
        return self.tick(now)

    def observed(self, pid: int, look: Look, now: float) -> list[Action]:
        """A look at a child: it lives if its heartbeat moves, and leaves the lock if its section does.

        Only time in which the supervisor itself looked counts: after a stall of the whole machine nobody has moved, and
        nobody is to blame.
        """
        child = self.children.get(pid)
        if child is None or child.killed:
            return []
        passed = min(now - child.looked, LONGEST_LOOK_S)
        child.looked = now
        if child.heartbeat != look.heartbeat:
            child.quiet_s, child.questioned = 0.0, False
        else:
            child.quiet_s += passed
        if child.section != look.section:
            child.inside_s, child.reported = 0.0, False
        elif look.section & 1:
            child.inside_s += passed
        child.heartbeat, child.section = look.heartbeat, look.section
        actions: list[Action] = []
        if child.inside_s >= LEAK_AFTER_S and not child.reported:
            child.reported = True
            actions.append(Report(pid, child.role))
        elif child.quiet_s >= QUESTION_AFTER_S and not child.questioned and not look.section & 1:
            child.questioned = True
            actions.append(Question(pid))
        if max(child.quiet_s, child.inside_s) >= CONDEMN_AFTER_S and not self._spared(child, now):
            child.killed = True
            why = "inside the read lock" if look.section & 1 else "no sign of life"
            actions.append(Kill(pid, child.role, f"{why} for {max(child.quiet_s, child.inside_s):.1f} s"))
        return actions

    def _spared(self, child: Child, now: float) -> bool:
        """Whether a child that would be condemned is not, because nobody else moves either, or did until just now."""
        watched = [other for other in self.children.values() if other.looked and not other.killed]
        if len(watched) == 1 or any(other.quiet_s < SILENT_S for other in watched):
            if self._all_silent:
                self._all_silent, self._condemn_at = False, now + SILENT_S
            return now < self._condemn_at
        self._all_silent = True
        if child.quiet_s < ALL_SILENT_AFTER_S or now < self._condemn_at:
            return True
        self._condemn_at = now + CONDEMN_AFTER_S
        return False

    def scale(self, workers: int, now: float) -> list[Action]:
        """Change the number of workers. Raises ValueError out of 1..MOST_WORKERS."""
        if not 1 <= workers <= MOST_WORKERS:
            raise ValueError(f"the number of workers must be 1 to {MOST_WORKERS}, not {workers}")
        for index in range(self.wanted, workers):
            self._places[Role(Kind.WORKER, index)] = Place()
        leaving = [Role(Kind.WORKER, index) for index in range(workers, self.wanted)]
        self.wanted = workers
        actions: list[Action] = [Steer(workers)] if leaving else []
        for role in leaving:
            del self._places[role]
            child = self.running(role)
            actions.append(self._send_off(child, now) if child is not None else Close(role))
        return [*actions, *self.tick(now)]

    def stop(self, now: float) -> list[Action]:
        """SIGTERM to all; `Finish` follows when all are gone."""
        self.stopping = True
        return [*(self._send_off(child, now) for child in self.children.values()), *self.tick(now)]

    def _send_off(self, child: Child, now: float) -> Action:
        if child.kill_at is None:  # asking again does not put it off
            child.kill_at = now + self.drain_timeout_s + KILL_GRACE_S
        return Terminate(child.pid)

    def _overdue(self, now: float) -> Iterator[Action]:
        for child in self.children.values():
            if child.kill_at is not None and now >= child.kill_at and not child.killed:
                child.killed = True
                yield Kill(child.pid, child.role, "it did not leave when told to")

    def _due(self, now: float) -> Iterator[Action]:
        occupied = {child.role for child in self.children.values()}
        for role, place in self._places.items():
            if role not in occupied and now >= place.start_at:
                yield Start(role)

    def _back_off(self, place: Place, now: float) -> None:
        pause = FIRST_BACK_OFF_S * 2 ** (place.deaths - SPARED) if place.deaths >= SPARED else 0.0
        place.start_at = now + min(pause, LONGEST_BACK_OFF_S)
        place.deaths += 1
