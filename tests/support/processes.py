"""Second processes for tests: forked, talked to over a pipe, killed with the test."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from typing import Any

#: Seconds; for tests that hang, not a claim about speed.
PATIENCE_S = 20.0
_PR_SET_PDEATHSIG = 1

Body = Callable[[Connection], None]


class Child:
    """A forked process that runs `body(pipe)` and leaves."""

    def __init__(self, body: Body) -> None:
        self.pipe, theirs = Pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == parent:
                    self.pipe.close()
                    body(theirs)
                    status = 0
            except SystemExit as leave:
                status = leave.code if isinstance(leave.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        self._status: int | None = None

    def tell(self, what: Any = None) -> None:
        self.pipe.send(what)

    def hear(self, patience_s: float = PATIENCE_S) -> Any:
        """What the child says next. Fails the test if it says nothing."""
        assert self.pipe.poll(patience_s), f"process {self.pid} said nothing for {patience_s} s"
        return self.pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGSTOP; returns when it stands."""
        self.signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Exit status, negative for a signal."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close(self) -> None:
        if self._status is None:
            self.kill()
        self.pipe.close()


@contextmanager
def child(body: Body) -> Iterator[Child]:
    process = Child(body)
    try:
        yield process
    finally:
        process.close()


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.002)


def drive(steps: Iterator[float]) -> None:
    """Run a generator of pauses (shm/rwlock.py) to its end."""
    for pause in steps:
        time.sleep(pause)
