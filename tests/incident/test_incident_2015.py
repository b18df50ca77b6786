"""The incident that this project exists for, replayed with real processes, on the lock of 2015 and on ours.

Readers answer from a shared table. One code path takes the read lock and never gives it back. Nothing breaks, until the
reload asks for the write lock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shm.segment import remove_instance
from tests.incident.stage import CULPRIT, FAULT, READERS, RELOADS_BEGUN, RELOADS_DONE, RELOADS_WANTED, STOP, Stage
from tests.support.naive_lock import NaiveLock

pytestmark = pytest.mark.lock_left_ok("the incident is a leak, and its processes are killed")

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ("leak", "stall", "die")
#: How long answers are counted. Hundreds are due in it, from each reader.
WINDOW_S = 0.4
#: A pause without any answer from a healthy reader that the test accepts: R1's 10 ms, and a busy machine's whims.
LONGEST_SILENCE_S = 0.25
PATIENCE_S = 15.0


def wait_for(what: str, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.005)


class Play:
    """Three readers and a writer on one lock."""

    def __init__(self, lock: str, fault: str, folder: Path) -> None:
        self.lock, self.fault = lock, fault
        self.name = f"incident-{os.getpid()}-{lock}"
        self._path = folder / "stage"
        self._errors = folder / "errors"
        self.stage = Stage(self._path, create=True)
        self.readers = [self._start(str(i)) for i in range(READERS)]
        self.writer = self._start("writer")
        self.healthy = [i for i in range(READERS) if i != CULPRIT]

    def wait_until_all_answer(self) -> None:
        wait_for("every reader answers", lambda: all(map(self.stage.answers, range(READERS))))

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        arguments = [role, self.lock, self.fault, str(self._path), self.name]
        command = [sys.executable, "-m", "tests.incident.actor", *arguments]
        with self._errors.open("ab") as errors:
            return subprocess.Popen(command, cwd=ROOT, stderr=errors)

    def errors(self) -> str:
        return self._errors.read_text()

    def answered(self, readers: list[int], window_s: float = WINDOW_S) -> int:
        """How many answers these readers give in a window."""
        before = [self.stage.answers(i) for i in readers]
        time.sleep(window_s)
        return sum(map(self.stage.answers, readers)) - sum(before)

    def longest_silence(self, readers: list[int], window_s: float = WINDOW_S) -> float:
        """Seconds: the longest time in the window in which one of these readers gave no answer."""
        now = time.monotonic()
        end, longest = now + window_s, 0.0
        last = {i: (self.stage.answers(i), now) for i in readers}
        while now < end:
            time.sleep(0.002)
            now = time.monotonic()
            for i in readers:
                if self.stage.answers(i) != last[i][0]:
                    last[i] = (self.stage.answers(i), now)
                longest = max(longest, now - last[i][1])
        return longest

    def ask_for_reload(self) -> None:
        """Returns when the writer wants the lock, not when it has it."""
        wanted = self.stage.get(RELOADS_WANTED) + 1
        self.stage.set(RELOADS_WANTED, wanted)
        wait_for("the writer asks for the lock", lambda: self.stage.get(RELOADS_BEGUN) == wanted)

    def reloaded(self) -> bool:
        return self.stage.get(RELOADS_DONE) == self.stage.get(RELOADS_WANTED)

    def strike(self) -> None:
        """The culprit takes the faulty path; returns when it has."""
        before = self.stage.answers(CULPRIT)
        self.stage.set(FAULT, 1)
        wait_for("the culprit meets the faulty path", lambda: self.stage.answers(CULPRIT) > before)
        time.sleep(0.05)

    def close(self) -> None:
        self.stage.set(STOP, 1)
        for process in (*self.readers, self.writer):
            process.kill()
            process.wait()
        self.stage.close()
        if self.lock == "naive":
            NaiveLock(self.name).unlink()
        else:
            remove_instance(self.name)


@pytest.fixture
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Play]:
    lock, fault = request.param
    play = Play(lock, fault, tmp_path)
    try:
        play.wait_until_all_answer()
        yield play
    finally:
        play.close()


def on(lock: str, *faults: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("play", [pytest.param((lock, f), id=f"{lock}-{f}") for f in faults], indirect=True)


@pytest.mark.parametrize(
    "play", [pytest.param((lock, "leak"), id=lock) for lock in ("naive", "standoff")], indirect=True
)
def test_without_a_fault_reloads_go_unnoticed(play: Play) -> None:
    """Both locks pass the test that the team of 2015 had, and the one that it lacked, as long as nothing leaks."""
    for _ in range(20):
        play.ask_for_reload()
        wait_for("the reload is done", play.reloaded)
    assert play.answered([CULPRIT]) > 0
    assert play.answered(play.healthy) > 0
    assert play.stage.torn() == 0


@on("naive", *FAULTS)
def test_2015_one_lost_read_lock_and_a_reload_stop_every_answer(play: Play) -> None:
    play.strike()
    assert play.answered(play.healthy) > 0, "nothing breaks yet: that is why nobody noticed"
    if play.fault == "leak":
        assert play.answered([CULPRIT]) > 0, "even the culprit answers"

    play.ask_for_reload()
    time.sleep(0.2)
    assert play.answered(list(range(READERS))) == 0, "the standoff: not one answer while the writer waits"
    assert not play.reloaded()

    play.writer.kill()
    play.writer.wait()
    assert play.answered(list(range(READERS))) == 0, "killing the reloader does not help: the turnstile stays shut"


@on("standoff", *FAULTS)
def test_ours_answers_never_stop(play: Play) -> None:
    play.strike()
    play.ask_for_reload()
    assert play.longest_silence(play.healthy) < LONGEST_SILENCE_S, "a waiting writer shuts nobody out"
    assert play.answered(play.healthy) > 0

    if play.fault == "stall":
        assert not play.reloaded(), "the writer keeps trying: it must not edit what the culprit still reads"
        play.readers[CULPRIT].kill()  # what the supervisor does to a condemned worker (R6)
    wait_for("the reload is done once the culprit is dead", play.reloaded)
    if play.fault == "leak":
        assert play.readers[CULPRIT].wait(PATIENCE_S) == 1
        assert "NestedRead" in play.errors(), "the leak is loud at the culprit's next step, not at the reload"

    play.ask_for_reload()
    wait_for("later reloads are done as well", play.reloaded)
    assert play.longest_silence(play.healthy) < LONGEST_SILENCE_S
    assert play.stage.torn() == 0


@on("standoff", "leak")
def test_ours_goes_on_when_the_writer_is_killed_in_mid_reload(play: Play) -> None:
    play.strike()
    play.ask_for_reload()
    play.writer.kill()
    play.writer.wait()
    assert play.longest_silence(play.healthy) < LONGEST_SILENCE_S
    assert play.answered(play.healthy) > 0
