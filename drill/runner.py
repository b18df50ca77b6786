"""Performs drills one after the other, each in a folder of its own, within bounds, and leaves nothing behind."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drill.catalogue import Drill
from drill.scene import Report, Scene, Skipped, Step
from shm.errors import StandoffError

#: No drill takes half as long; one that hangs is ended, and what it has started with it.
LONGEST_DRILL_S = 90
MOST_ATTEMPTS = 3
#: The control socket's path beneath it has to fit into 107 bytes.
LONGEST_TEMPORARY = 40


class Interrupted(BaseException):
    """A signal asks to end; what was started is ended on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _TooLong(Exception):
    pass


def perform(drill: Drill, say: Callable[[Step], None]) -> Report:
    """One drill, once more if it failed while the machine stood still for much of the time, and at most three times.

    `say` hears of each step as it is done. Raises Interrupted; anything else is in the report.
    """
    for attempt in range(1, MOST_ATTEMPTS + 1):
        report = _perform(drill, say)
        report.attempts = attempt
        if report.passed or not report.unfit:
            break
    return report


def _perform(drill: Drill, say: Callable[[Step], None]) -> Report:
    report = Report(drill.name)
    short = None if len(tempfile.gettempdir()) <= LONGEST_TEMPORARY else "/tmp"
    with tempfile.TemporaryDirectory(prefix="standoff-drill-", dir=short) as folder, _bounded():
        scene = Scene(report, Path(folder), say)
        try:
            drill.perform(scene)
        except Skipped as reason:
            report.skipped = str(reason)
        except _TooLong:
            report.error = f"ended after {LONGEST_DRILL_S} s"
        except (StandoffError, OSError) as error:
            report.error = str(error) or repr(error)
        finally:
            signal.alarm(0)
            with _undisturbed():
                scene.close()
    report.seconds = (time.monotonic_ns() - report.started_ns) / 1e9
    return report


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in here, so that everything is cleaned up."""

    def stop(number: int, _: object) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _bounded() -> Iterator[None]:
    """An alarm for the drill; only a process's main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_DRILL_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Impatience must not leave processes behind: a second Ctrl-C waits until all is cleaned up."""
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
