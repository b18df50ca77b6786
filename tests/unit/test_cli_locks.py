"""`standoff locks` on a board made here: readers inside, waiting, past their gate, dead; a writer that stays."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry, generate_latest

from cli import lockview, view
from cli.commands.locks import duration
from cli.main import standoff
from server import supervision
from server.exporter import BoardCollector
from shm import gates, layout
from shm.board import Board
from shm.layout import SlotKind
from shm.rwlock import ReadLock, RWLock, WriteLock
from shm.segment import LockFile
from tests.support.processes import Child, child, wait_for

ROOT = Path(__file__).parents[2]
MS = 1_000_000


@pytest.fixture
def board(instance: str) -> Iterator[Board]:
    board = Board.create_or_attach(instance)
    yield board
    board.close()


def call(board: Board, *arguments: str) -> Result:
    return CliRunner().invoke(standoff, ["locks", "--instance", board.names.instance, *arguments])


def as_json(board: Board) -> dict[str, Any]:
    result = call(board, "--json")
    assert result.stderr == ""
    answer: dict[str, Any] = msgspec.json.decode(result.stdout)
    return answer


def reader(instance: str, *, stay: bool) -> Any:
    """A worker that goes in, and stays or leaves, and waits for a word."""

    def body(pipe: Connection) -> None:
        board = Board.attach(instance)
        lock = ReadLock(board, board.claim(SlotKind.WORKER, 3))
        section = lock.read()
        section.__enter__()
        if not stay:
            section.__exit__(None, None, None)
        pipe.send("there")
        pipe.recv()

    return body


def there(process: Child) -> Child:
    assert process.hear() == "there"
    return process


# ---------------------------------------------------------------- percentiles


def test_percentiles_are_upper_ends_of_buckets() -> None:
    buckets = [0] * layout.HISTOGRAM_BUCKETS
    buckets[10], buckets[20] = 98, 2  # 98 of about a microsecond, 2 of about a millisecond
    spread = lockview.spread(buckets, 1_100_000)
    assert (spread.count, spread.p50, spread.p99, spread.max) == (100, 2**11 / 1e9, 0.0011, 0.0011)
    assert spread.buckets == [(2**11 / 1e9, 98), (2**21 / 1e9, 2)]


def test_who_did_not_wait_counts_as_zero() -> None:
    buckets = [0] * layout.HISTOGRAM_BUCKETS
    buckets[20] = 2
    assert lockview.spread(buckets, 1_500_000, zeros=97).p50 == 0
    assert lockview.spread(buckets, 1_500_000, zeros=97).p99 == 0.0015
    assert lockview.spread(buckets, 1_500_000, zeros=998).p99 == 0


def test_nothing_has_happened_yet() -> None:
    spread = lockview.spread([0] * layout.HISTOGRAM_BUCKETS, 0)
    assert (spread.count, spread.p50, spread.p99, spread.max, spread.buckets) == (0, 0, 0, 0, [])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0"), (5e-9, "5 ns"), (2.048e-6, "2.05 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (75.0, "75 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_leak_is_the_same_for_all() -> None:
    assert view.LEAK_AFTER_S == supervision.LEAK_AFTER_S


# ---------------------------------------------------------------- what is seen


@pytest.mark.lock_left_ok("the reader stays inside, to be seen there")
def test_a_reader_inside(board: Board) -> None:
    with child(reader(board.names.instance, stay=True)) as process:
        there(process)
        time.sleep(0.3)
        (seen,) = as_json(board)["readers"]
        assert (seen["pid"], seen["worker"], seen["kind"], seen["alive"]) == (process.pid, 3, "worker", True)
        assert 0.3 <= seen["inside"] < 20
        assert (seen["waiting"], seen["reads"]) == (None, 1)
        text = call(board).stdout
        assert re.search(rf"worker 3 +{process.pid} +0 +inside 3\d\d ms|inside \d+(\.\d+)? s", text)
        verdict = view.judge(view.collect(board))
        assert any(
            re.fullmatch(rf"worker 3 \(pid {process.pid}, slot 0\) has been inside the read lock for \d+\.\d\d s", why)
            for why in verdict.reasons
        )


def test_a_reader_that_has_left(board: Board) -> None:
    with child(reader(board.names.instance, stay=False)) as process:
        there(process)
        (seen,) = as_json(board)["readers"]
        assert (seen["inside"], seen["reads"], seen["gate_waits"]) == (None, 1, 0)
        assert seen["hold"]["count"] == seen["wait"]["count"] == seen["wait"]["zeros"] == 1
        assert 0 < seen["hold"]["p50"] <= seen["hold"]["max"] < 1
        assert not [why for why in view.judge(view.collect(board)).reasons if "read lock" in why]


@pytest.mark.lock_left_ok("the reader dies inside")
def test_a_reader_that_died_inside(board: Board) -> None:
    with child(reader(board.names.instance, stay=True)) as process:
        there(process).kill()
        slot = board.claim(SlotKind.STREAM, preferred=5)
        seen, other = as_json(board)["readers"]
        assert (seen["alive"], other["alive"]) == (False, True)
        assert "died inside" in call(board).stdout
        assert not [why for why in view.judge(view.collect(board)).reasons if "read lock" in why], "nobody is there"
        slot.release()


def test_a_reader_that_waits_and_goes_past(board: Board) -> None:
    """A writer that stands still in the lock."""
    page = board.own_page(0)
    lock = WriteLock(board, page)
    turn = LockFile(board.names.lock("writer"))
    assert turn.try_acquire()
    orders: list[Any] = []

    def body(pipe: Connection) -> None:
        own = Board.attach(board.names.instance)
        reading = ReadLock(own, own.claim(SlotKind.WORKER, 0))
        pipe.send("ready")
        pipe.recv()
        with reading.read():
            pass
        pipe.send("there")
        pipe.recv()

    with child(body) as process:
        assert process.hear() == "ready"
        assert lock.try_acquire()
        time.sleep(0.3)
        process.tell()
        orders.append(process.hear())
        seen = as_json(board)
        assert seen["writer"]["holding"] >= 0.3
        assert re.search(r"loader +\S+ +- +writing \d+", call(board).stdout)
        (waiter,) = seen["readers"]
        assert (waiter["gate_waits"], waiter["past_gate"], waiter["reads"]) == (1, 1, 1)
        assert 0.010 <= waiter["wait"]["max"] < 5
        assert (waiter["wait"]["count"], waiter["wait"]["zeros"]) == (1, 0)
        reasons = view.judge(view.collect(board)).reasons
        assert any(re.match(r"the loader \(pid \d+\) has held the write lock for \d\.\d\d s", why) for why in reasons)
        lock.release()
    seen = as_json(board)
    assert seen["writer"]["holding"] is None
    assert seen["writer"]["hold"]["count"] == 1
    assert seen["writer"]["hold"]["max"] >= 0.3
    lock.close()
    page.close()
    turn.release()


def test_who_waits_now(board: Board) -> None:
    slot = board.claim(SlotKind.STREAM)
    slot.set("waiting_since_ns", time.monotonic_ns() - 7 * MS)
    page = board.own_page(0)
    page.store(layout.LOADER_WORDS["write_wait_since_ns"], time.monotonic_ns() - 3000 * MS)
    turn = LockFile(board.names.lock("writer"))
    assert turn.try_acquire()
    seen = as_json(board)
    assert 0.007 <= seen["readers"][0]["waiting"] < 5
    assert 3 <= seen["writer"]["waiting"] < 10
    text = call(board).stdout
    assert re.search(r"stream 0 .*waiting \d", text)
    assert re.search(r"loader .*waiting \d", text)
    turn.release()
    assert as_json(board)["writer"]["waiting"] is None, "a dead writer waits for nothing"
    page.close()
    slot.release()


def test_a_program_of_ones_own(instance: str) -> None:
    lock = RWLock(instance)
    with lock.read():
        pass
    with lock.write() as writing:
        writing.value = 1
    board = Board.attach(instance)
    seen = as_json(board)
    assert [(entry["kind"], entry["pid"], entry["reads"]) for entry in seen["readers"]] == [("other", os.getpid(), 1)]
    assert seen["writer"]["wait"]["count"] == seen["writer"]["hold"]["count"] == 1
    board.close()
    lock.close()


def test_text_fits_a_terminal_of_eighty_columns(board: Board) -> None:
    slot = board.claim(SlotKind.STREAM)
    slot.set("hold_max_ns", 123_456_789)
    gates.record(slot.words, layout.HOLD_HISTOGRAM, 123_456_789)
    lines = call(board).stdout.splitlines()
    slot.release()
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line or "…" in line for line in lines)


# ---------------------------------------------------------------- instances that are not there; --live


def test_no_instance(instance: str) -> None:
    result = CliRunner().invoke(standoff, ["locks", "--instance", instance])
    assert (result.exit_code, result.stdout) == (3, "")


def test_an_instance_that_has_ended(board: Board) -> None:
    for arguments in ((), ("--json",), ("--live", "0.05")):
        result = call(board, *arguments)
        assert result.exit_code == 3
        assert "is not running" in result.stderr


@pytest.mark.parametrize("period", ["0", "-1", "61", "soon"])
def test_wrong_periods(board: Board, period: str) -> None:
    assert call(board, "--live", period).exit_code == 2


def live(board: Board, *arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli.main", "locks", "--instance", board.names.instance, "--live", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    return subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, env=environment)


def test_live_on_a_pipe_is_a_line_a_look(board: Board) -> None:
    slot = board.claim(SlotKind.WORKER)
    with live(board, "0.05", "--json") as process:
        assert process.stdout is not None
        for _ in range(3):
            assert msgspec.json.decode(process.stdout.readline())["instance"] == board.names.instance
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")
    slot.release()


def test_live_on_a_terminal_refreshes_in_place_and_gives_the_screen_back(board: Board) -> None:
    slot = board.claim(SlotKind.WORKER)
    ours, theirs = pty.openpty()
    with live(board, "0.1", stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while shown.count(b"worker 0") < 6:  # it stands three times in a look
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:  # EIO: nobody holds the other end
            pass
        _, errors = process.communicate(timeout=20)
    os.close(ours)
    assert (process.returncode, errors) == (0, b"")
    assert shown.index(b"\x1b[?1049h") < shown.index(b"\x1b[?1049l")
    slot.release()


def test_live_ends_with_the_instance(board: Board) -> None:
    slot = board.claim(SlotKind.WORKER)
    with live(board, "0.05", "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        slot.release()
        wait_for("it ends", lambda: process.poll() is not None)
        assert process.returncode == 3
        process.communicate()


# ---------------------------------------------------------------- metrics


def test_metrics(board: Board) -> None:
    with child(reader(board.names.instance, stay=False)) as process:
        there(process)
        words = board.own_page(layout.SUPERVISOR_PAGE)
        words.store(layout.SUPERVISOR_WORDS["leaks_reported"], 2)
        page = board.own_page(0)
        gates.record(page, layout.WRITE_HOLD_HISTOGRAM, 3000)
        registry = CollectorRegistry()
        registry.register(BoardCollector(board, "test"))
        text = generate_latest(registry).decode()
        words.close()
        page.close()
    for line in (
        "standoff_lock_leaks_total 2.0",
        'standoff_lock_read_wait_seconds_count{server="0"} 1.0',
        'standoff_lock_read_wait_seconds_bucket{le="2.048e-06",server="0"} 1.0',
        'standoff_lock_read_hold_seconds_count{server="0"} 1.0',
        "standoff_lock_write_hold_seconds_count 1.0",
        'standoff_lock_write_hold_seconds_bucket{le="2.048e-06"} 0.0',
        'standoff_lock_write_hold_seconds_bucket{le="4.096e-06"} 1.0',
        "standoff_lock_write_wait_seconds_count 0.0",
        "standoff_lock_grace_seconds_count 0.0",
    ):
        assert line in text.splitlines()
