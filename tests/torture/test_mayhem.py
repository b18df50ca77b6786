"""Kills, stops, continues and breaks processes at random, under load and 100 changes a second.

STANDOFF_MAYHEM_S seconds (30), by STANDOFF_TORTURE_SEED. The promise is about any one process, so the schedule
(tests/torture/mayhem.py) leaves one of the three workers well at any time, lets one worker at a time stay inside the
lock on purpose, and hits two workers 120 ms apart at least. What has to hold:

- no answer is wrong, mixed, from the future, or older than what every worker had adopted;
- no UDP query waits for more than 100 ms, but those in the hands of a worker that was killed, that was stopped, or
  that ended for its leak: at most a batch of 64 for each hit. Such a query comes late, if the worker goes on, or never;
- a change is published 1.5 s after it was sent to etcd at the latest. Time in which the loader itself or etcd is
  stopped or dead comes before that: for the loader until its successor's first publish, 5 s at most. A change that
  finds k workers in its way, one after the other (chance may stop one inside), may take k times as long;
- TCP is back 100 ms after the stream worker was killed; after it was stopped, once it goes on or has been replaced;
- every injected leak, and every stay inside that is seen from outside, is reported exactly once, by pid, slot and line.
  Supervisors look every 100 ms: up to 450 ms a stay may be told of, from then on it has to be; below 250 ms it must
  not.

Waits count as in test_kills.py: fairly, without the machine's own standstills. Where the machine stood still for more
than a tenth of the time, losses, waits and publishes are printed but not judged, nor is a report that is missing, for
the supervisor had no turn either; answers, and the reports that there are, always are judged.
"""

from __future__ import annotations

import bisect
import inspect
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drill.scene import UNFIT_SHARE
from server import faults
from tests.support.etcd import EtcdServer
from tests.torture.asking import BROKEN, MS, RIGHT, AdoptionLog, Answers, Asked, Asker
from tests.torture.changing import Change, Changer
from tests.torture.mayhem import ETCD, INSIDE, KILL, LEAK, LOADER, STOP, STREAM, WORKER, Hit, Mayhem, Stay, Watcher
from tests.torture.service import ROOT, Service, wait_for
from tests.torture.test_kills import IN_HAND, LONGEST_WAIT_NS, check_content

pytestmark = [pytest.mark.slow, pytest.mark.lock_left_ok("processes are hit anywhere, and leak on purpose")]

SECONDS = float(os.environ.get("STANDOFF_MAYHEM_S") or 30)
WORKERS = 3
CHANGES_PER_S = 100
ASKED_PER_S = 2000
LONGEST_PUBLISH_NS = 1500 * MS
LONGEST_SUCCESSION_NS = 5000 * MS
#: A query in the hands of a worker was sent not long before: a batch may wait for a core beside an endless loop.
BEFORE_NS = 60 * MS
#: From a signal to what it brings about: a leak comes with the next housekeeping, and is found by the read after it.
TAKES_EFFECT_NS = {KILL: 5 * MS, STOP: 5 * MS, LEAK: 150 * MS}
#: A stopped stream worker is condemned after a second, and its successor has to start.
LONGEST_WITHOUT_TCP_NS = 1500 * MS
#: A stay that must be reported, that may be.
REPORTED_NS, REPORTABLE_NS = 450 * MS, 240 * MS
#: A stay that a publish may have had to wait for.
IN_THE_WAY_NS = 100 * MS

STAYED = re.compile(r"read lock leaked: .* \(pid (\d+), slot (\d+)\) has been inside for .*?(?:; acquired at (\S+))?$")
LEAKED = re.compile(r"read lock leaked: worker \d+ \(pid (\d+)\) went on without leaving: .*\(acquired at (\S+)\)")
HELD = re.compile(r"write lock held by the loader \(pid (\d+)\)")
LEFT = re.compile(r"\(pid (\d+)\) left with status 71$")


@dataclass
class Scene:
    """What was done, and what came of it."""

    answers: Answers
    hits: list[Hit]
    watcher: Watcher
    changes: list[Change]
    log: list[str]

    def hits_on(self, *victims: str) -> list[Hit]:
        return [hit for hit in self.hits if hit.victim in victims]

    def beside(self, at: int) -> str:
        """The hits around a moment, for people."""
        near = sorted(self.hits, key=lambda hit: abs(hit.at_ns - at))[:3]
        return ", ".join(f"{(at - hit.at_ns) / MS:.0f} ms after {hit.victim} {hit.index} {hit.fault}" for hit in near)

    def matches(self, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        return [found for line in self.log if (found := pattern.search(line))]


# ---- clients


def check_queries(scene: Scene) -> str:
    """Every query that came late or never was in the hands of a worker that was hit."""
    answers = scene.answers
    hits = [hit for hit in scene.hits_on(WORKER) if hit.fault in TAKES_EFFECT_NS]
    late = [a for a in answers.udp if a.outcome == RIGHT and _fair(answers, a.since_ns, a.until_ns) > LONGEST_WAIT_NS]
    taken: Counter[int] = Counter()
    for asked in (*answers.lost, *late):
        owner = _in_whose_hands(answers, hits, asked)
        assert owner is not None, f"asked {scene.beside(asked.since_ns)}: " + (
            f"answered after {asked.took_ns / MS:.0f} ms" if asked.until_ns else "never answered"
        )
        taken[hits.index(owner)] += 1
    most = max(taken.values(), default=0)
    assert most <= IN_HAND, f"a hit took {most} queries"
    on_time = set(map(id, late))
    slowest = max((a.took_ns for a in answers.udp if a.outcome == RIGHT and id(a) not in on_time), default=0)
    return (
        f"{len(answers.lost)} queries lost and {len(late)} late in the hands of the hit, by one hit at most {most}; "
        f"all others within {slowest / MS:.1f} ms"
    )


def _fair(answers: Answers, start: int, end: int) -> float:
    """Looked into only where it matters."""
    return answers.fair_ns(start, end) if end - start > LONGEST_WAIT_NS else 0


def _in_whose_hands(answers: Answers, hits: list[Hit], asked: Asked) -> Hit | None:
    for hit in sorted(hits, key=lambda hit: abs(hit.at_ns - asked.since_ns))[:4]:
        if hit.at_ns >= asked.since_ns:
            if answers.fair_ns(asked.since_ns, hit.at_ns) <= BEFORE_NS:
                return hit
        elif answers.fair_ns(hit.at_ns, asked.since_ns) <= TAKES_EFFECT_NS[hit.fault]:
            return hit
    return None


def check_connections(scene: Scene) -> str:
    """From the break of a connection, or from the first query that nobody answered, to the next answer."""
    answers, away_since, longest = scene.answers, 0, {KILL: 0.0, STOP: 0.0}
    for asked in answers.tcp:
        if asked.outcome != RIGHT:
            away_since = away_since or (asked.until_ns if asked.outcome == BROKEN else asked.since_ns)
            continue
        start, away_since = away_since or asked.since_ns, 0
        waited = _fair(answers, start, asked.until_ns)
        if waited <= LONGEST_WAIT_NS:
            longest[KILL] = max(longest[KILL], waited)
            continue
        stops = [hit for hit in scene.hits_on(STREAM) if hit.fault == STOP and hit.at_ns < asked.until_ns]
        stopped = any(start - 2000 * MS < hit.at_ns for hit in stops)
        assert stopped, f"TCP was away for {waited / MS:.0f} ms, {scene.beside(start)}"
        assert waited <= LONGEST_WITHOUT_TCP_NS, f"TCP was away for {waited / MS:.0f} ms, {scene.beside(start)}"
        longest[STOP] = max(longest[STOP], waited)
    assert not away_since, "TCP did not come back"
    return (
        f"TCP was away for {longest[STOP] / MS:.0f} ms at most when the stream worker was stopped, else for "
        f"{longest[KILL] / MS:.0f} ms"
    )


# ---- publishes


def excuses(scene: Scene) -> Iterator[tuple[int, int, Hit]]:
    """Times in which the loader or etcd could do nothing."""
    for hit in scene.hits_on(LOADER, ETCD):
        publishes = [p for p in scene.watcher.publishes if p[0] > hit.at_ns]
        if hit.victim == ETCD:
            yield hit.at_ns, hit.ended_ns, hit
            continue
        successor = next((at for at, _, pid in publishes if pid != hit.pid), 0)
        same = next((at for at, _, pid in publishes if pid == hit.pid and at > hit.ended_ns), 0)
        if hit.fault == STOP and same:
            yield hit.at_ns, hit.ended_ns, hit
            continue
        assert successor, f"no loader published after {hit}"
        took = scene.answers.fair_ns(hit.at_ns, successor)
        assert took <= LONGEST_SUCCESSION_NS, f"the next loader published {took / MS:.0f} ms after {hit}"
        yield hit.at_ns, successor, hit


def check_publishes(scene: Scene) -> str:
    times = [at for at, _, _ in scene.watcher.publishes]
    revisions = [revision for _, revision, _ in scene.watcher.publishes]
    assert revisions == sorted(revisions), "a publish went back"
    excused = sorted(excuses(scene), key=lambda excuse: excuse[0])
    in_the_way = [stay for stay in scene.watcher.stays if stay.until_ns - stay.since_ns > IN_THE_WAY_NS]
    waits = []
    for change in scene.changes:
        position = bisect.bisect_left(revisions, change.revision)
        assert position < len(revisions), f"change {change.number} was never published"
        start, end = change.sent_ns, times[position]
        for since, until, _ in excused:
            if since < end and start < until:
                start = until
        if end <= start:
            continue
        waits.append(end - start)
        blockers = sum(stay.since_ns < end and start < stay.until_ns for stay in in_the_way)
        if end - start > LONGEST_PUBLISH_NS:
            waited = scene.answers.fair_ns(start, end)
            assert waited <= LONGEST_PUBLISH_NS * max(1, blockers), (
                f"change {change.number} took {waited / MS:.0f} ms, {blockers} workers in its way, "
                f"{scene.beside(start)}"
            )
    waits.sort()
    longest_without = max(((until - since) / MS for since, until, hit in excused if hit.victim == LOADER), default=0)
    return (
        f"{len(scene.changes)} changes, {len(times)} swaps: p50 {waits[len(waits) // 2] / MS:.1f} ms, p99 "
        f"{waits[len(waits) * 99 // 100] / MS:.0f} ms, latest {waits[-1] / MS:.0f} ms; without a loader for "
        f"{longest_without:.0f} ms at most"
    )


# ---- reports


def line_of(function: Callable[..., object], text: str) -> str:
    """`file:line` of the line with this text in a function."""
    lines, first = inspect.getsourcelines(function)
    return f"{faults.__file__}:{first + next(i for i, line in enumerate(lines) if text in line)}"


def check_reports(scene: Scene, reported: int, fit: bool) -> str:
    """`reported`: what the supervisor has counted. `fit`: the machine is, so that nothing may be missing."""
    stayed, leaked, held = scene.matches(STAYED), scene.matches(LEAKED), scene.matches(HELD)
    leaks = Counter(hit.pid for hit in scene.hits_on(WORKER) if hit.fault == LEAK)
    assert Counter(int(found[1]) for found in leaked) == leaks
    assert Counter(int(found[1]) for found in scene.matches(LEFT)) == leaks
    assert {found[2] for found in leaked} <= {line_of(faults.Faults._leak, "__enter__")}
    by_pid = {int(found[1]): found for found in stayed}
    for hit in scene.hits_on(WORKER):
        if hit.fault in INSIDE:
            if hit.pid not in by_pid and not fit:
                continue
            assert hit.pid in by_pid, f"{hit} was not reported"
            report = by_pid[hit.pid]
            place = line_of(getattr(faults.Faults, "_" + hit.fault.replace("-", "_")), "with self._lock")
            assert (int(report[2]), report[3]) == (hit.slot, place), report[0]
    injected = {hit.pid for hit in scene.hits_on(WORKER) if hit.fault in INSIDE}
    for report in stayed:  # by chance a stop catches somebody between the acquire and its entry in the spool
        if int(report[1]) not in injected and report[3]:
            assert Path(report[3]).is_relative_to(ROOT / "server"), report[0]
    _match(scene, [int(found[1]) for found in stayed], scene.watcher.stays, "read", fit)
    _match(scene, [int(found[1]) for found in held], scene.watcher.holds, "write", fit)
    assert reported == len(stayed) + len(leaked) + len(held)
    return (
        f"{len(leaked)} leaks of {sum(leaks.values())}, {len(stayed)} stays ({len(injected)} injected) and "
        f"{len(held)} holds of the write lock reported, each once"
    )


def _match(scene: Scene, told: list[int], stays: list[Stay], what: str, fit: bool) -> None:
    """Each stay that was long enough has one report, each report a stay."""
    due: Counter[int] = Counter()
    possible: Counter[int] = Counter()
    for stay in stays:
        due[stay.pid] += fit and _own(scene, stay.since_ns, stay.until_ns) >= REPORTED_NS
        possible[stay.pid] += stay.until_ns - stay.since_ns >= REPORTABLE_NS
    counted = Counter(told)
    for pid in due | counted:
        assert due[pid] <= counted[pid] <= possible[pid], (
            f"{what} lock, pid {pid}: {counted[pid]} reports of {due[pid]} to {possible[pid]} stays "
            f"{[stay for stay in stays if stay.pid == pid]}, {[hit for hit in scene.hits if hit.pid == pid]}"
        )


def _own(scene: Scene, since: int, until: int) -> int:
    return until - since - scene.answers.stalls.within(since, until)


# ---- the test


@pytest.fixture
def spool() -> Iterator[Path]:
    """In memory: each read makes a file there and removes it, and it is not the disk that is to be measured."""
    with tempfile.TemporaryDirectory(prefix="mayhem-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.timeout(SECONDS * 2 + 120)
def test_mayhem(
    etcd: EtcdServer,
    spool: Path,
    service: Service,
    changer: Changer,
    ask: Callable[..., Asker],
    torture_seed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STANDOFF_FAULTS", "1")
    monkeypatch.setenv("STANDOFF_LOCK_DEBUG", str(spool))
    service.set_workers(WORKERS)
    service.start_run()
    wait_for("the service answers", service.ready)
    changer.start(CHANGES_PER_S)
    watcher, adoptions, asker = Watcher(service), AdoptionLog(service), ask(ASKED_PER_S)
    watcher.start()
    adoptions.start()
    mayhem = Mayhem(service, etcd, random.Random(torture_seed))
    try:
        mayhem.rage(SECONDS)
    finally:
        mayhem.end_stops()
    wait_for("the service answers", service.ready)
    changer.stop()
    wait_for("the last change is there", lambda: service.adopted() >= changer.changes()[-1].revision)
    answers = asker.stop()
    watcher.stop()
    adopted = adoptions.stop()
    log = service.log.read_text(errors="replace").splitlines()
    scene = Scene(answers, mayhem.hits, watcher, changer.changes(), log)
    with capsys.disabled():
        counts = Counter(f"{hit.victim} {hit.fault}" for hit in mayhem.hits)
        print(f"\nSTANDOFF_TORTURE_SEED={torture_seed}: {len(mayhem.hits)} hits in {SECONDS:.0f} s: {dict(counts)}")
        print(answers.report())
    assert not answers.faulty
    assert not answers.ahead_of_time(scene.changes)
    assert not answers.too_old(scene.changes, adopted)
    reported = service.board.supervisor.get("leaks_reported")
    unfit = answers.stalls.total_ns > UNFIT_SHARE * (answers.udp[-1].since_ns - answers.udp[0].since_ns)
    judges: list[tuple[bool, Callable[[], str]]] = [
        (not unfit, lambda: check_queries(scene)),
        (not unfit, lambda: check_connections(scene)),
        (not unfit, lambda: check_publishes(scene)),
        (True, lambda: check_reports(scene, reported, not unfit)),
    ]
    failed = []
    for counts_here, judge in judges:
        try:
            verdict = judge()
        except AssertionError as error:
            verdict = str(error) if counts_here else f"UNFIT machine, not judged: {error}"
            failed += [verdict] if counts_here else []
        with capsys.disabled():
            print(verdict)
    assert not failed, "\n".join(failed)
    check_content(service, changer, etcd)
