"""`standoff drill all`, for real; its way out on Ctrl-C; and what a timeline and its plot are made of."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli.main import standoff
from drill import catalogue, plot
from drill.child import scrubbed
from drill.client import judge, question
from drill.instance import version_address
from drill.runner import perform
from drill.scene import Report, Scene, Seen, Step
from drill.timeline import MS, RECORD, Asked, Outcome, Timeline
from shm.segment import SHM_FOLDER
from tests.support.etcd import binaries

ROOT = Path(__file__).parents[2]
#: What the issue allows for all of them.
LONGEST_ALL_S = 180.0
#: A machine that stands still makes drills be repeated.
PATIENCE_S = 400.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files: with a short name, for a socket is among them."""
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        yield Path(folder)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(standoff, ["drill", *arguments])


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """In a process group and a temporary folder of its own, as from a terminal."""
    variables = {**scrubbed({}), "TMPDIR": str(folder), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "drill", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, start_new_session=True,
    )  # fmt: skip


def left_by(pid: int) -> list[str]:
    """Files in shared memory of a drill's instances."""
    return [path.name for path in SHM_FOLDER.iterdir() if f"drill-{pid}-" in path.name]


def processes_of(pid: int) -> list[str]:
    """Command lines with the name of a drill's instances in them."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"drill-{pid}-" in text:
            found.append(text)
    return found


def expect_nothing_left(pid: int, folder: Path) -> None:
    assert left_by(pid) == []
    assert processes_of(pid) == []
    assert list(folder.iterdir()) == []


# ---------------------------------------------------------------- for real


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S + 30)
def test_all(folder: Path) -> None:
    """In a hostile environment: nothing of a live instance's settings may count."""
    hostile = {"STANDOFF_INSTANCE": "live", "STANDOFF_LISTEN": "127.0.0.1:1", "STANDOFF_RUNTIME_DIR": "/nonexistent"}
    etcd = binaries()
    if etcd:
        hostile["STANDOFF_ETCD"] = str(etcd[min(etcd)])
    began = time.monotonic()
    with start(folder, "all", "--json", **hostile) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    took = time.monotonic() - began
    result: dict[str, Any] = msgspec.json.decode(output)
    print(describe(result, took))
    assert [drill["name"] for drill in result["drills"]] == list(catalogue.NAMES)
    failed = [drill for drill in result["drills"] if not drill["passed"] and not drill["skipped"]]
    assert not failed, msgspec.json.format(msgspec.json.encode(failed)).decode()
    assert (result["passed"], process.returncode, errors) == (True, 0, "")
    if all(drill["attempts"] == 1 for drill in result["drills"]):
        assert took < LONGEST_ALL_S
    skipped = [drill["name"] for drill in result["drills"] if drill["skipped"]]
    assert skipped == ([] if etcd else ["etcd-down"])
    expect_nothing_left(process.pid, folder)


def describe(result: dict[str, Any], took: float) -> str:
    """The figures, for the test's log."""
    lines = [f"all drills: {took:.0f} s"]
    for drill in result["drills"]:
        for client in drill["clients"]:
            lines.append(
                f"{drill['name']} ({drill['seconds']} s), {client['title']}: {client['asked']} asked, "
                f"{client['lost']} lost, slowest {client['slowest'] * 1e3:.1f} ms, "
                f"{client['slowest_without_stalls'] * 1e3:.1f} ms without stalls ({client['stalled']:.2f} s of them)"
            )
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    """While a worker is stopped in the lock: it has to be gone as well. A second signal changes nothing."""
    with start(folder, "stuck-worker") as process:
        wait_until_running(process)
        time.sleep(1.0)
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors.endswith("standoff: interrupted; everything that was started is gone\n")
    expect_nothing_left(process.pid, folder)


@pytest.mark.slow
def test_killed_it_takes_its_processes_with_it(folder: Path) -> None:
    """SIGKILL leaves files, which the kernel cannot know of; but no process, and the shared memory goes with them."""
    with start(folder, "killed-worker") as process:
        wait_until_running(process)
        process.kill()
        process.communicate(timeout=10)
    deadline = time.monotonic() + 20
    while (processes_of(process.pid) or left_by(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(process.pid) == []
    assert left_by(process.pid) == []


def wait_until_running(process: subprocess.Popen[str]) -> None:
    """Its instance has a table."""
    deadline = time.monotonic() + 20
    while not any(".table." in name for name in left_by(process.pid)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            pytest.fail(f"the drill did not start: {process.communicate(timeout=20)}")
        time.sleep(0.02)


# ---------------------------------------------------------------- the command


def test_list() -> None:
    lines = call("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "leaked-read-lock", "stuck-worker", "killed-worker", "killed-loader", "stopped-loader", "etcd-down",
        "damaged-table",
    ]  # fmt: skip
    assert all(len(line.split()) > 5 for line in lines)
    assert [row["name"] for row in msgspec.json.decode(call("--list", "--json").stdout)] == list(catalogue.NAMES)


@pytest.mark.parametrize(("arguments", "said"), [([], "name a drill, or all"), (["stuck-workers"], "no drill")])
def test_wrong_use(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_without_etcd_its_drill_fails_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("STANDOFF_ETCD", raising=False)
    result = call("etcd-down")
    assert result.exit_code == 1
    assert "skipped: no etcd: put one on PATH, or name it in $STANDOFF_ETCD" in result.stdout
    monkeypatch.setattr(catalogue, "DRILLS", [catalogue.named("etcd-down")])
    assert call("all").exit_code == 0


def test_without_matplotlib_it_says_so_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("leaked-read-lock", "--plot", str(tmp_path / "plots"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install matplotlib" in result.stderr


# ---------------------------------------------------------------- timelines

SECOND = 1000 * MS


def asked(sent_ms: float, took_ms: float, outcome: Outcome = Outcome.ANSWERED, address: int = 1) -> Asked:
    sent = int(sent_ms * MS)
    until = sent + int(took_ms * MS) if outcome is not Outcome.LOST else 0
    return Asked(sent, until, address, 0, 0, outcome)


def stall(start_ms: float, end_ms: float) -> Asked:
    return Asked(int(start_ms * MS), int(end_ms * MS), 0, 0, 0, Outcome.STALL)


def test_a_timeline_survives_its_file() -> None:
    records = [asked(1, 2), asked(3, 0, Outcome.LOST), stall(5, 15), asked(4, 1, Outcome.SERVFAIL, 0)]
    raw = b"".join(RECORD.pack(a.sent_ns, a.until_ns, a.address, a.source, a.name, a.outcome) for a in records)
    read = Timeline.parse(raw)
    assert read.asked == [records[0], records[1], records[3]]
    assert (read.stalls.total_ns, read.stalls.longest_ns) == (10 * MS, 10 * MS)
    assert len(read.lost) == len(read.of(Outcome.SERVFAIL)) == 1


def test_stalls_are_counted_once_and_only_within() -> None:
    line = Timeline([asked(100, 150), stall(90, 130), stall(110, 140), stall(300, 400)])
    slowest = line.slowest()
    assert (slowest.raw, slowest.fair) == (0.150, 0.110)
    assert line.stalls.total_ns == 150 * MS


def test_another_query_may_be_the_slowest_without_stalls() -> None:
    line = Timeline([asked(0, 200), stall(0, 190), asked(500, 80)])
    assert (line.slowest().raw, line.slowest().fair) == (0.200, 0.080)


def test_a_stall_excuses_no_more_than_there_was() -> None:
    dice = random.Random(1)
    for _ in range(200):
        query = asked(dice.uniform(0, 100), dice.uniform(1, 100))
        stalls = [stall(start := dice.uniform(0, 200), start + dice.uniform(5, 50)) for _ in range(dice.randrange(6))]
        marks = bytearray(250 * 100)  # hundredths of a millisecond
        for s in stalls:
            marks[s.sent_ns // 10_000 : s.until_ns // 10_000] = b"\1" * (s.until_ns // 10_000 - s.sent_ns // 10_000)
        excused = sum(marks[query.sent_ns // 10_000 : query.until_ns // 10_000]) / 1e5
        assert Timeline([query, *stalls]).slowest().fair == pytest.approx(query.took_ns / 1e9 - excused, abs=2e-4)


def test_a_share_and_a_span_without_stalls() -> None:
    line = Timeline([asked(0, 1), asked(999, 1), stall(100, 300), stall(2000, 9000)])
    assert line.stalled_share == 0.2
    assert line.fair_s(200 * MS, 600 * MS) == 0.3


def drilled(*outcomes: tuple[bool, bool]) -> tuple[Report, int]:
    """The report of a drill that passes or not, on a machine that is fit or not; and how often it was performed."""
    left = list(outcomes)

    def play(scene: Scene) -> None:
        good, fit = left.pop(0)
        scene.check("it works", good, good)
        records = [asked(0, 1), asked(999, 1), *([] if fit else [stall(0, 500)])]
        scene.report.seen.append(Seen("clients", Timeline(records)))

    return perform(catalogue.Drill("x", "", play), lambda _: None), len(outcomes) - len(left)


def test_only_an_unfit_machine_makes_a_failed_drill_be_repeated() -> None:
    good, bad, fit, unfit = True, False, True, False
    for outcomes, passed, attempts in (
        ([(good, unfit), (bad, fit)], True, 1),
        ([(bad, fit), (good, fit)], False, 1),
        ([(bad, unfit), (good, fit)], True, 2),
        ([(bad, unfit), (bad, fit), (good, fit)], False, 2),
        ([(bad, unfit)] * 4, False, 3),
    ):
        report, performed = drilled(*outcomes)
        assert (report.passed, report.attempts, performed) == (passed, attempts, attempts)


def test_the_first_answer_with_a_version() -> None:
    line = Timeline([asked(0, 1, address=7), asked(10, 5, address=8), asked(11, 1, address=8)])
    assert line.first(8) == 12 * MS
    assert line.first(9) is None


def test_percentiles_without_the_lost() -> None:
    line = Timeline([*(asked(i, 1) for i in range(99)), asked(99, 50), asked(100, 0, Outcome.LOST)])
    assert (line.percentile(0.5), line.percentile(0.99)) == (0.001, 0.050)
    assert Timeline([]).percentile(0.5) == 0.0


def test_replies_are_judged() -> None:
    sent = question("a.test")
    assert sent.endswith(b"\1a\4test\0\0\1\0\1")
    answer = b"\0\1\x84\0\0\1\0\1\0\0\0\0" + sent[10:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\0\0\7"
    assert judge(answer, sent) == (Outcome.ANSWERED, version_address(7))
    assert judge(answer[:3] + b"\2" + answer[4:], sent) == (Outcome.SERVFAIL, 0)
    assert judge(answer[:3] + b"\3" + answer[4:], sent) == (Outcome.OTHER, 0)
    assert judge(answer, question("b.test")) == (Outcome.OTHER, 0)
    assert judge(answer[:-1], sent) == (Outcome.OTHER, 0)


# ---------------------------------------------------------------- plots


@pytest.fixture
def seen() -> tuple[Seen, list[Step]]:
    """A second: fast, then 400 ms in which queries are lost, one slow query, one refused, a stall."""
    records = [asked(i, 0.2) for i in range(400)]
    records += [asked(i, 0, Outcome.LOST) for i in range(400, 800, 10)]
    records += [asked(810, 150), asked(900, 1, Outcome.SERVFAIL), stall(950, 990), asked(1000, 0)]
    return Seen("clients", Timeline(records)), [Step(400 * MS, "strike"), Step(5 * SECOND, "after it is over")]


def test_text(seen: tuple[Seen, list[Step]]) -> None:
    lines = plot.text(*seen, width=50)
    assert lines[0].startswith("  clients: 443 asked, 40 lost; p50 0.20 ms")
    (lost,) = [line for line in lines if line.startswith("     lost")]
    body = lost.split("|")[1]
    assert body == " " * 20 + "x" * 20 + " " * 5 + "!" + " " * 4
    (hundred,) = [line for line in lines if line.startswith("   100 ms")]
    assert hundred.split("|")[1].count("#") == 1
    assert "~" in next(line for line in lines if "+" in line and "-" in line)
    assert next(line for line in lines if line.strip() == "a").index("a") == 11 + 20
    assert lines[-1] == "        a   0.40 s  strike"


def test_png(seen: tuple[Seen, list[Step]], tmp_path: Path) -> None:
    report = Report("x")
    report.seen, report.steps = [seen[0], seen[0]], seen[1]
    plot.png(report, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
