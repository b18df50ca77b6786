"""`standoff run`'s tree with real processes, its parts replaced by small ones. Each case has a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, signal, subprocess, sys, time
from cli.foreground import Foreground, Hooks

def say(text):
    os.write(1, (text + "\\n").encode())

def idle():
    signal.signal(signal.SIGTERM, lambda *_: (say("graceful"), os._exit(0)))
    say(f"idle {os.getpid()}")
    while True:
        time.sleep(10)

def stubborn():
    signal.signal(signal.SIGTERM, lambda *_: say("no"))
    say(f"stubborn {os.getpid()}")
    while True:
        time.sleep(10)

def run(ready=lambda: True, stop_timeout=20.0, hooks={}, **entries):
    sys.exit(Foreground(entries, stop_timeout, Hooks(ready, lambda: say("ready"), **hooks)).run())

class Script:
    # Says what is told it at SIGUSR1, one event at a time.
    pace_s = 0.02
    def __init__(self, *events):
        self.events, self.due = list(events), 0
        signal.signal(signal.SIGUSR1, self.next)
    def next(self, *_):
        self.due += 1
    def look(self, pids):
        due, self.due = self.due, 0
        return [self.events.pop(0) for _ in range(due)]
"""


class Tree:
    """A running tree: what it says, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self, start: str) -> str:
        """The rest of the next line that begins so; other lines are passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line[len(start) :].strip()
        pytest.fail(f"it ended without {start!r}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Status, and what it said until the end."""
        text, _ = self.process.communicate(timeout=30)
        return self.process.returncode, text


@contextmanager
def tree(code: str) -> Iterator[Tree]:
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Tree(process)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def is_gone(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # nobody reaps orphans in some containers
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_graceful(number: int) -> None:
    with tree("run(loader=idle, server=idle)") as running:
        running.line("ready")
        running.signal(number)
        status, text = running.end()
    assert status == 0
    assert text.count("graceful") == 2


def test_the_second_signal_kills() -> None:
    with tree("run(loader=stubborn)") as running:
        pid = int(running.line("stubborn "))
        running.line("ready")
        running.signal(signal.SIGTERM)
        running.line("no")
        running.signal(signal.SIGINT)
        status, _ = running.end()
    assert status == 1
    assert is_gone(pid)


def test_a_stop_that_lasts_kills() -> None:
    with tree("run(loader=stubborn, stop_timeout=0.3)") as running:
        running.line("ready")
        running.signal(signal.SIGTERM)
        status, text = running.end()
    assert status == 1
    assert "not stopped after 0.3 s: killing" in text


def test_a_killed_child_is_started_again() -> None:
    with tree("run(loader=idle)") as running:
        first = int(running.line("idle "))
        running.line("ready")
        os.kill(first, signal.SIGKILL)
        running.line("standoff: the loader was killed by signal 9; starting it again")
        second = int(running.line("idle "))
        assert second != first
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_each_child_has_a_name_of_its_own() -> None:
    with tree("run(first=idle, second_with_a_long_name=idle)") as running:
        found = {Path(f"/proc/{running.line('idle ')}/comm").read_text() for _ in range(2)}
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert found == {"standoff first\n", "standoff second\n"}


def test_a_failed_start_ends_with_its_status() -> None:
    with tree("run(ready=lambda: False, loader=idle, server=lambda: 7)") as running:
        status, text = running.end()
    assert status == 7
    assert "the server ended with status 7 before the service was ready" in text
    assert "ready\n" not in text.replace("was ready", "")


def test_errors_of_ours_are_one_line_and_others_have_a_trace() -> None:
    with tree(
        """
        def ours():
            from shm.errors import SegmentError
            raise SegmentError("no room in /dev/shm")
        run(ready=lambda: False, server=ours)
        """
    ) as running:
        status, text = running.end()
    assert status == 1
    assert "no room in /dev/shm" in text
    assert "Traceback" not in text
    with tree("run(ready=lambda: False, server=lambda: 1 / 0)") as running:
        status, text = running.end()
    assert status == 1
    assert "ZeroDivisionError" in text


def test_no_descendant_outlives_the_tree() -> None:
    """A server that is killed leaves workers; at the end they are gone."""
    with tree(
        """
        def server():
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                say(f"worker {os.getpid()}")
                time.sleep(1000)
            return idle()
        run(server=server)
        """
    ) as running:
        worker = int(running.line("worker "))
        running.line("ready")
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert is_gone(worker)


def test_children_end_when_the_tree_is_killed() -> None:
    with tree("run(loader=idle)") as running:
        pid = int(running.line("idle "))
        running.line("ready")
        running.signal(signal.SIGKILL)
        running.line("graceful")
    assert is_gone(pid)


def test_a_terminals_signals_reach_only_the_parent() -> None:
    with tree("run(loader=idle)") as running:
        pid = int(running.line("idle "))
        running.line("ready")
        assert os.getsid(pid) == pid != running.process.pid
        os.killpg(running.process.pid, signal.SIGINT)
        status, text = running.end()
    assert (status, text.count("graceful")) == (0, 1)


def test_a_hangup_without_a_terminal_stops_nothing() -> None:
    with tree("run(loader=idle)") as running:
        running.line("ready")
        running.signal(signal.SIGHUP)
        running.line("standoff: SIGHUP: nothing to reload")
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_a_hangup_is_passed_on_to_the_child_that_reloads() -> None:
    with tree(
        """
        def server():
            signal.signal(signal.SIGHUP, lambda *_: say("reloaded"))
            return idle()
        run(loader=idle, server=server, hooks={"reloading": "server"})
        """
    ) as running:
        for _ in range(2):
            running.line("idle")
        running.line("ready")
        running.signal(signal.SIGHUP)
        running.line("reloaded")
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_what_is_prepared_in_the_parent_is_there_in_the_child() -> None:
    with tree(
        """
        made = []
        def prepare(name):
            made.append(name)
        def loader():
            say(f"loader has {made} {os.getppid()}")
            return idle()
        run(loader=loader, server=idle, hooks={"prepare": prepare, "become": lambda: made.append("become")})
        """
    ) as running:
        assert running.line("loader has ") == f"['loader', 'become'] {running.process.pid}"


SPARES = """
from cli.tree import Slow, Moving, Stuck
run(loader=idle, hooks={"watch": Script(Slow("loader"), %s)})
"""


def test_a_spare_is_started_and_ends_when_it_is_not_needed() -> None:
    with tree(SPARES % 'Moving("loader")') as running:
        first = int(running.line("idle "))
        running.line("ready")
        running.signal(signal.SIGUSR1)
        spare = int(running.line("idle "))
        running.signal(signal.SIGUSR1)
        running.line("graceful")
        assert is_gone(spare)
        assert not is_gone(first, 0.0)


def test_a_spare_takes_over_at_once() -> None:
    with tree(SPARES % 'Stuck("loader", "stands still")') as running:
        first = int(running.line("idle "))
        running.line("ready")
        running.signal(signal.SIGUSR1)
        spare = int(running.line("idle "))
        running.signal(signal.SIGUSR1)
        running.line("standoff: the loader stands still: replacing it")
        running.line("standoff: the loader was killed by signal 9; its spare takes over")
        assert is_gone(first)
        os.kill(spare, signal.SIGKILL)
        running.line("standoff: the loader was killed by signal 9; starting it again")
        running.line("idle ")


def test_a_stop_reaches_the_spare_as_well() -> None:
    with tree(SPARES % "") as running:
        running.line("idle ")
        running.line("ready")
        running.signal(signal.SIGUSR1)
        running.line("idle ")
        running.signal(signal.SIGTERM)
        status, text = running.end()
    assert (status, text.count("graceful")) == (0, 2)
