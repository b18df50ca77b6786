"""What a drill works with: it tells what it does, starts instances and clients, and checks what was promised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from drill.client import Client
from drill.instance import HOSTS, VERSION_NAME, DrillFailed, Instance, Swap, host_address, version_address
from drill.timeline import Asked, Outcome, Timeline, Wait

#: The promise to clients: a neighbour drains a worker's socket once it has shown no sign of life for 50 ms, and a
#: reader waits for a writer 10 ms at most.
LONGEST_WAIT_S = 0.100
#: A batch: what a worker has in its hands at most, and what may be lost with it.
IN_HAND = 64
#: R6: a second until the culprit is condemned, and what it takes to see and to do it.
LONGEST_PUBLISH_S = 1.5
#: A machine that stands still for more than this share of a drill cannot keep promises in milliseconds for anybody.
UNFIT_SHARE = 0.10
#: Of an instance's log, for a drill that fails.
LOG_LINES = 20


class Skipped(Exception):
    """The drill cannot be done here, and why."""


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, and what was measured."""

    promise: str
    passed: bool
    measured: str


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done, or happened."""

    at_ns: int
    text: str


@dataclass(slots=True)
class Seen:
    """What one client saw."""

    title: str
    timeline: Timeline


@dataclass(slots=True)
class Report:
    """How a drill went."""

    name: str
    started_ns: int = field(default_factory=time.monotonic_ns)
    steps: list[Step] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    log: list[str] = field(default_factory=list)  # the end of what the instances said
    skipped: str = ""
    error: str = ""
    seconds: float = 0.0
    attempts: int = 1

    @property
    def unfit(self) -> bool:
        """The machine stood still for so much of the time that nothing can be said of the server."""
        return any(seen.timeline.stalled_share > UNFIT_SHARE for seen in self.seen)

    @property
    def passed(self) -> bool:
        return not self.error and not self.skipped and bool(self.checks) and all(c.passed for c in self.checks)


class Scene:
    """One drill's. Everything that it starts ends with it."""

    def __init__(self, report: Report, folder: Path, say: Callable[[Step], None]) -> None:
        self.report = report
        self.folder = folder
        self._say = say
        self._stack = ExitStack()
        self._instances: list[Instance] = []

    def close(self) -> None:
        for instance in self._instances:
            self.report.log += [line.message for line in instance.log()[-LOG_LINES:]]
        self._stack.close()

    def keep(self, close: Callable[[], object]) -> None:
        """To be called at the end, whatever happens; the last first."""
        self._stack.callback(close)

    def did(self, text: str) -> None:
        """Tell of a step, now."""
        step = Step(time.monotonic_ns(), text)
        self.report.steps.append(step)
        self._say(step)

    def check(self, promise: str, passed: bool, measured: object) -> None:
        self.report.checks.append(Check(promise, passed, str(measured)))

    def pause(self, seconds: float) -> None:
        """Let clients go on asking."""
        time.sleep(seconds)

    # ---- parts

    def instance(self, *, workers: int = 2, source: str = "", environment: Mapping[str, str] | None = None) -> Instance:
        """A throw-away instance that answers."""
        made = Instance(self.folder, workers=workers, source=source, environment=environment)
        self.keep(made.close)
        self._instances.append(made)
        made.wait_until_ready()
        self.did(f"started instance {made.name} on 127.0.0.1:{made.port}, {workers} workers")
        return made

    def client(self, port: int, names: Sequence[str] = (VERSION_NAME, *HOSTS), *, rate: float = 1000) -> Client:
        """One that asks, from 16 source ports."""
        made = Client(port, self.folder, list(names), rate=rate)
        self.keep(made.close)
        return made

    def saw(self, client: Client, title: str = "clients") -> Timeline:
        """Stop a client and keep what it saw."""
        timeline = client.stop()
        self.report.seen.append(Seen(title, timeline))
        if not timeline.asked:
            raise DrillFailed("the client asked nothing")
        return timeline

    # ---- promises that several drills make

    def check_clients(self, seen: Timeline, *, lost: int = 0, versions: int, servfail: bool = False) -> None:
        """Nobody waits, nobody is lost beyond the batch in hand, and every answer is right."""
        slowest = seen.slowest()
        self.check(f"no client waits over {LONGEST_WAIT_S * 1e3:.0f} ms", slowest.fair <= LONGEST_WAIT_S, slowest)
        gone = len(seen.lost)
        promise = f"at most {lost} queries are lost" if lost else "no query is lost"
        self.check(promise, gone <= lost, f"{gone} of {len(seen.asked)}")
        names = (VERSION_NAME, *HOSTS)
        wrong = [asked for asked in seen.asked if not _right(asked, names, versions, servfail)]
        what = "every answer is right, or SERVFAIL" if servfail else "every answer is right"
        self.check(what, not wrong, f"{len(wrong)} wrong of {len(seen.asked) - gone}")

    def check_publish(
        self, seen: Timeline, *swaps: Swap, limit_s: float = LONGEST_PUBLISH_S, what: str = "the publish"
    ) -> None:
        """The slowest of these, without the machine's stalls."""
        raw = max(swap.waited_s for swap in swaps)
        fair = max(seen.fair_s(swap.asked_ns, swap.done_ns) for swap in swaps)
        self.check(f"{what} goes through within {limit_s:g} s", fair <= limit_s, Wait(raw, fair))

    def check_reported(self, instance: Instance, who: str, pid: int, *needed: str) -> None:
        """Exactly one report names this process, and says what is needed."""
        reports = [text for text in instance.reports() if f"pid {pid}" in text]
        right = len(reports) == 1 and all(part in reports[0] for part in needed)
        self.check(f"the lock names {who} once, with its pid", right, " | ".join(reports) or "no report")


def _right(asked: Asked, names: Sequence[str], versions: int, servfail: bool) -> bool:
    if asked.outcome is Outcome.LOST:
        return True  # counted elsewhere
    if asked.outcome is Outcome.SERVFAIL:
        return servfail
    if asked.outcome is not Outcome.ANSWERED:
        return False
    if names[asked.name] == VERSION_NAME:
        return version_address(1) <= asked.address <= version_address(versions)
    return asked.address == host_address(asked.name - 1)
