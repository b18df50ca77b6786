"""Who stays inside the lock is told of once, by name, and replaced; meanwhile clients and the publish hardly wait.

Each case breaks one process of a real service under load and measures how long clients waited, how long the next
publish waited for the lock, and what was said. The figures are printed (pytest -s, and with every failure). "Without
stalls" is without times in which this machine did not run a thread that only wanted to wake up (drill/client.py).
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli import view
from drill.child import launch
from drill.client import Client
from drill.instance import HOSTS, VERSION_NAME, Instance, Swap, free_port, version_address, wait_for
from drill.scene import IN_HAND, LONGEST_PUBLISH_S, LONGEST_WAIT_S, UNFIT_SHARE
from drill.timeline import Outcome, Timeline
from loader import faults as loader_faults
from server import faults
from server.supervision import ALL_SILENT_AFTER_S, CONDEMN_AFTER_S, LEAK_AFTER_S
from shm.layout import SlotKind

pytestmark = pytest.mark.slow

#: How late a report may be: the supervisor looks ten times a second, and waits 50 ms for the stack.
LATE_S = 0.5


@dataclass
class Case:
    """A service under load."""

    instance: Instance
    client: Client
    metrics_port: int
    seen: Timeline | None = None

    def verdict(self) -> view.Verdict:
        return view.judge(view.collect(self.instance.board))

    def metric(self, name: str) -> float:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def reports_on(self, pid: int) -> list[str]:
        return [report for report in self.instance.reports() if f"pid {pid}" in report]


@pytest.fixture
def case() -> Iterator[Case]:
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        port = free_port()
        instance = Instance(Path(folder), workers=3, options=["--metrics", f"127.0.0.1:{port}"])
        try:
            instance.wait_until_ready()
            client = Client(instance.port, Path(folder), [VERSION_NAME, *HOSTS])
            try:
                time.sleep(0.5)
                yield Case(instance, client, port)
            finally:
                client.close()
        finally:
            for line in instance.log():
                print(line.message)
            instance.close()


def line_of(function: Callable[..., object], text: str) -> int:
    """The number of the line with this text in a function."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def watch_verdict(case: Case, over: Callable[[], bool]) -> list[str]:
    """Every reason of `standoff status` until it is over."""
    reasons: list[str] = []
    deadline = time.monotonic() + 20
    while not over():
        assert time.monotonic() < deadline
        reasons += [reason for reason in case.verdict().reasons if reason not in reasons]
        time.sleep(0.02)
    return reasons


def finish(case: Case, what: str, pid: int, swap: Swap, struck: float) -> Timeline:
    """After a while in which nothing more may be said: stop the client, print, and check what clients were promised."""
    instance = case.instance
    wait_for("all is well again", lambda: case.verdict().state == "ok")
    recovered = time.monotonic() - struck
    time.sleep(0.6)
    seen = case.client.stop()
    slowest = seen.slowest()
    print(
        f"MEASURED {what}: clients waited at most {slowest}, {len(seen.lost)} of {len(seen.asked)} lost; "
        f"the publish waited {swap.waited_s:.3f} s for the lock; all well after {recovered:.2f} s; "
        f"machine stood still for {seen.stalls.total_ns / 1e9:.2f} s, {seen.stalls.longest_ns / 1e6:.0f} ms at once"
    )
    print(f"REPORTED {case.reports_on(pid)}")
    if seen.stalled_share > UNFIT_SHARE:
        print(
            f"UNFIT: the machine stood still for {seen.stalled_share:.0%} of the time; waits of clients are not judged"
        )
    else:
        assert slowest.fair <= LONGEST_WAIT_S, f"a client waited for {slowest}"
    assert not seen.of(Outcome.SERVFAIL)
    assert not seen.of(Outcome.OTHER)
    assert seen.first(version_address(instance.version)) is not None, "clients get what was published"
    return seen


# ---------------------------------------------------------------- workers

INSIDE = {
    "stuck-inside": ("it is running", line_of(faults.Faults._stuck_inside, "while True"), "_stuck_inside"),
    "blocked-inside": ("it is sleeping", line_of(faults.Faults._blocked_inside, "os.read"), "_blocked_inside"),
    "stopped-inside": ("it is stopped by a signal", 0, ""),
}


@pytest.mark.parametrize("fault", INSIDE)
def test_a_worker_that_stays_inside(case: Case, fault: str) -> None:
    """An endless loop, a system call that does not return, a SIGSTOP."""
    state, line, function = INSIDE[fault]
    instance = case.instance
    slot = instance.worker(0)
    pid, number = slot.get("pid"), slot.number
    os.kill(pid, faults.signal_of(fault))
    struck = time.monotonic()
    instance.write_version(instance.version + 1)  # the loader sees it within half a second: the culprit is inside
    wait_for("the report", lambda: case.reports_on(pid))
    told = time.monotonic() - struck
    reasons = [reason for reason in case.verdict().reasons if "read lock" in reason]
    wait_for("the publish goes through", lambda: len(instance.swaps) == 1)
    (swap,) = instance.swaps
    instance.wait_for_successor(pid)
    seen = finish(case, fault, pid, swap, struck)

    (report,) = case.reports_on(pid)
    said = re.match(r"read lock leaked: worker 0 \(pid (\d+), slot (\d+)\) has been inside for ([\d.]+) s; ", report)
    assert said, report
    assert (int(said[1]), int(said[2])) == (pid, number)
    stalled = seen.stalls.total_ns / 1e9
    assert LEAK_AFTER_S <= float(said[3]) <= LEAK_AFTER_S + LATE_S + stalled
    assert told <= LEAK_AFTER_S + LATE_S + stalled + 0.5, "half a second for a busy machine"
    assert state in report
    if function:
        # A loop's line changes from moment to moment; its function does not.
        place = re.search(rf"now at server/faults\.py:(\d+) in {function} < .* < server/worker\.py:\d+ in run ", report)
        assert place, report
        assert line <= int(place[1]) <= line + 1
    assert len(reasons) == 1
    assert re.match(rf"worker 0 \(pid {pid}, slot {number}\) has been inside the read lock for \d\.\d\d s", reasons[0])
    assert seen.fair_s(swap.asked_ns, swap.done_ns) <= LONGEST_PUBLISH_S
    assert seen.lost == [], "neighbours drain its socket"
    assert case.metric("standoff_lock_leaks_total") == 1
    assert case.metric("standoff_children_condemned_total") == 1


def test_a_worker_that_leaks_and_goes_on(case: Case) -> None:
    """The code path of 2015: its next read tells, so that it is gone before anybody has to wait for it."""
    instance = case.instance
    pid = instance.worker(0).get("pid")
    os.kill(pid, faults.signal_of("leak"))
    struck = time.monotonic()
    wait_for("the report", lambda: case.reports_on(pid))
    swap = instance.publish()
    instance.wait_for_successor(pid)
    seen = finish(case, "leak", pid, swap, struck)
    (report,) = case.reports_on(pid)
    assert re.match(
        rf"read lock leaked: worker 0 \(pid {pid}\) went on without leaving: .*; now at \S+:\d+ in ", report
    )
    assert seen.fair_s(swap.asked_ns, swap.done_ns) <= LONGEST_PUBLISH_S
    assert len(seen.lost) <= IN_HAND
    assert case.metric("standoff_lock_leaks_total") == 1


def test_with_lock_debugging_a_leak_is_told_with_its_line(tmp_path: Path) -> None:
    """Where the lock was taken and not given back: at the price of a stack walk at each acquire."""
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        instance = Instance(Path(folder), workers=1, environment={"STANDOFF_LOCK_DEBUG": str(tmp_path)})
        try:
            instance.wait_until_ready()
            pid = instance.worker(0).get("pid")
            os.kill(pid, faults.signal_of("leak"))
            instance.wait_for_successor(pid)
            (report,) = [report for report in instance.reports() if f"pid {pid}" in report]
        finally:
            instance.close()
    print(f"REPORTED {report}")
    line = line_of(faults.Faults._leak, "__enter__")
    assert f"never left (acquired at {faults.__file__}:{line})" in report


def test_a_worker_in_an_endless_loop_outside_the_lock(case: Case) -> None:
    """It is in nobody's way: no publish waits for it, and a leak it is not."""
    instance = case.instance
    pid = instance.worker(0).get("pid")
    os.kill(pid, faults.signal_of("endless-loop"))
    struck = time.monotonic()
    swap = instance.publish()
    instance.wait_for_successor(pid)
    replaced = time.monotonic() - struck
    seen = finish(case, "endless loop", pid, swap, struck)
    told = [line.message for line in instance.log() if f"(pid {pid})" in line.message and "replacing" in line.message]
    assert len(told) == 1
    assert "no sign of life for 1." in told[0]
    assert "it is running; now at server/faults.py:" in told[0]
    assert " in _endless_loop < server/faults.py:" in told[0]
    assert re.search(r" < server/worker\.py:\d+ in run ", told[0])
    assert replaced >= CONDEMN_AFTER_S
    assert seen.fair_s(swap.asked_ns, swap.done_ns) <= 0.5
    assert seen.lost == []
    assert (case.reports_on(pid), case.metric("standoff_lock_leaks_total")) == ([], 0)


def test_a_worker_stopped_anywhere(case: Case) -> None:
    """SIGSTOP at whatever it does: mostly outside the lock, now and then inside. What it has in hand dies with it."""
    instance = case.instance
    pid = instance.worker(1).get("pid")
    os.kill(pid, signal.SIGSTOP)
    struck = time.monotonic()
    swap = instance.publish()
    instance.wait_for_successor(pid)
    seen = finish(case, "SIGSTOP", pid, swap, struck)
    assert seen.fair_s(swap.asked_ns, swap.done_ns) <= LONGEST_PUBLISH_S
    assert len(seen.lost) <= IN_HAND
    assert len(case.reports_on(pid)) <= 1
    assert case.metric("standoff_children_condemned_total") == 1


def test_two_workers_at_once(case: Case) -> None:
    """Each is told of by its own name; the third answers for all."""
    instance = case.instance
    pids = [instance.worker(number).get("pid") for number in (0, 1)]
    for pid in pids:
        os.kill(pid, faults.signal_of("blocked-inside"))
    struck = time.monotonic()
    swap = instance.publish()
    for pid in pids:
        instance.wait_for_successor(pid)
    seen = finish(case, "two blocked inside", pids[0], swap, struck)
    assert [len(case.reports_on(pid)) for pid in pids] == [1, 1]
    assert seen.fair_s(swap.asked_ns, swap.done_ns) <= LONGEST_PUBLISH_S
    assert seen.lost == []
    assert case.metric("standoff_lock_leaks_total") == 2


def test_all_at_once(case: Case) -> None:
    """Every worker and the stream worker are stopped, as if the machine stood still: patience first, then they go."""
    instance = case.instance
    pids = [
        slot.get("pid") for slot in instance.board.workers() if slot.get("kind") in (SlotKind.WORKER, SlotKind.STREAM)
    ]
    assert len(pids) == instance.workers + 1
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    struck = time.monotonic()
    for pid in pids:
        instance.wait_for_successor(pid)
    replaced = time.monotonic() - struck
    seen = case.client.stop()
    print(f"MEASURED all were replaced after {replaced:.2f} s")
    told = [line.message for line in instance.log() if line.message.endswith("; replacing it")]
    assert len(told) == len(pids)
    assert "it is stopped by a signal; now at an unknown place" in told[0]
    assert replaced >= ALL_SILENT_AFTER_S
    assert replaced <= ALL_SILENT_AFTER_S + LATE_S + CONDEMN_AFTER_S + seen.stalls.total_ns / 1e9
    assert instance.publish().waited_s < LONGEST_PUBLISH_S + 1.0


def test_all_stand_still_for_a_moment(case: Case) -> None:
    """For longer than condemns one alone: nobody is replaced, as long as they go on."""
    instance = case.instance
    pids = [slot.get("pid") for slot in instance.board.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(CONDEMN_AFTER_S + 0.7)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    instance.publish()
    assert {slot.get("pid") for slot in instance.board.workers()} == set(pids)
    assert case.metric("standoff_children_condemned_total") == 0


# ---------------------------------------------------------------- the loader


LOADER_INSIDE = {"stopped-inside": "stopped by a signal", "stuck-inside": "running", "blocked-inside": "sleeping"}


@pytest.mark.parametrize("fault", LOADER_INSIDE)
def test_a_loader_that_stays_inside_the_write_lock(case: Case, fault: str) -> None:
    """Every gate is taken, and nobody gives them back: each reader waits for 10 ms, once.

    The loader is condemned after a second as well. Its successor was started when it was reported, and takes over.
    """
    instance = case.instance
    pid = strike_loader(instance, fault)
    struck = time.monotonic()
    reasons = watch_verdict(case, lambda: len(instance.swaps) == 1)
    swap = instance.swaps[0]
    seen = finish(case, f"loader {fault}", pid, swap, struck)

    (report,) = case.reports_on(pid)
    said = re.match(rf"write lock held by the loader \(pid {pid}\) for ([\d.]+) s; it is (.*)\. Readers go", report)
    assert said, report
    assert said[2].startswith(LOADER_INSIDE[fault])
    stalled = seen.stalls.total_ns / 1e9
    assert LEAK_AFTER_S <= float(said[1]) <= LEAK_AFTER_S + LATE_S + stalled
    held = re.compile(rf"the loader \(pid {pid}\) has held the write lock for \d\.\d\d s")
    assert any(map(held.match, reasons)), reasons
    assert seen.fair_s(swap.asked_ns, swap.done_ns) <= LONGEST_PUBLISH_S
    assert seen.lost == []
    assert instance.loader_pid not in (0, pid)
    assert case.metric("standoff_lock_leaks_total") == 1
    assert case.metric("standoff_children_condemned_total") == 0, "no worker had to be replaced for it"
    workers = list(instance.board.workers())
    assert [slot.get("past_gate") for slot in workers] == [1] * len(workers), "each went past once"
    longest = max(slot.get("gate_wait_max_ns") for slot in workers) / 1e9
    print(f"MEASURED longest wait of a reader for its gate: {longest * 1e3:.1f} ms")
    assert 0.010 <= longest <= 0.1 + stalled


def strike_loader(instance: Instance, fault: str) -> int:
    """Have it commit a fault at a swap; the pid of the loader, which is inside the write lock now."""
    pid = instance.loader_pid
    os.kill(pid, loader_faults.signal_of(fault))
    instance.write_version(instance.version + 1)
    wait_for("it is inside", lambda: instance.board.loader.get("write_hold_since_ns"))
    return pid


def loaders_of(instance: Instance) -> list[int]:
    """The children of the process that keeps the loader, but for the server."""
    keeper = (instance.processes.get("load") or instance.processes["run"]).pid
    children = map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split())
    return [pid for pid in children if pid != instance.board.supervisor.get("supervisor_pid")]


def test_a_loader_that_goes_on_needs_no_spare(case: Case) -> None:
    """Stopped inside the write lock for half a second: nobody is killed, and its spare, started meanwhile, ends."""
    instance = case.instance
    pid = strike_loader(instance, "stopped-inside")
    struck = time.monotonic()
    wait_for("a spare is there", lambda: len(loaders_of(instance)) == 2 and case.reports_on(pid))
    os.kill(pid, signal.SIGCONT)
    wait_for("the publish goes through", lambda: len(instance.swaps) == 1)
    (swap,) = instance.swaps
    wait_for("the spare is gone", lambda: loaders_of(instance) == [pid])
    instance.publish()
    seen = finish(case, "loader goes on", pid, swap, struck)
    assert instance.loader_pid == pid
    assert len(case.reports_on(pid)) == 1
    assert not [line.message for line in instance.log() if "replacing" in line.message]
    assert seen.lost == []


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Two endless loops for each core."""
    loops = [launch("tests.support.spin") for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def test_the_successor_is_in_time_on_a_busy_machine(case: Case, busy_machine: None) -> None:
    instance = case.instance
    pid = strike_loader(instance, "stopped-inside")
    wait_for("the publish goes through", lambda: len(instance.swaps) == 1)
    (swap,) = instance.swaps
    seen = case.client.stop()
    fair = seen.fair_s(swap.asked_ns, swap.done_ns)
    print(f"MEASURED the publish went through after {swap.waited_s:.3f} s, {fair:.3f} s without stalls")
    assert instance.loader_pid not in (0, pid)
    assert fair <= LONGEST_PUBLISH_S


# ---------------------------------------------------------------- server and loader apart


@pytest.fixture
def apart() -> Iterator[Instance]:
    """`standoff serve` and `standoff load`, as two units have them."""
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        instance = Instance(Path(folder), apart=True)
        try:
            instance.wait_until_ready()
            yield instance
        finally:
            for line in instance.log():
                print(line.message)
            instance.close()


def test_apart_a_stuck_loader_is_replaced_as_well(apart: Instance) -> None:
    pid = strike_loader(apart, "stuck-inside")
    wait_for("the publish goes through", lambda: len(apart.swaps) == 1)
    (swap,) = apart.swaps
    print(f"MEASURED the publish went through after {swap.waited_s:.3f} s")
    stall = 1.0  # there is no client here that would measure it
    assert CONDEMN_AFTER_S <= swap.waited_s <= LONGEST_PUBLISH_S + stall
    assert apart.loader_pid not in (0, pid)
    assert loaders_of(apart) == [apart.loader_pid]
    assert [text for text in apart.reports() if f"pid {pid}" in text]
    assert apart.publish().waited_s <= LONGEST_PUBLISH_S + stall


def test_apart_a_killed_loader_is_started_again(apart: Instance) -> None:
    pid = apart.loader_pid
    os.kill(pid, signal.SIGKILL)
    wait_for("a loader publishes", lambda: len(apart.swaps) == 1)
    assert apart.loader_pid not in (0, pid)
    assert apart.processes["load"].poll() is None


def test_apart_the_loader_ends_with_its_parent(apart: Instance) -> None:
    """Whatever ends the parent, nobody goes on writing beside the next loader; and a signal reaches the child."""
    pid = apart.loader_pid
    apart.processes["load"].kill()
    wait_for("the loader is gone", lambda: not Path(f"/proc/{pid}").exists())
    assert apart.loader_pid == 0
    assert apart.all_answer(), "from the last table"
