"""Does what cli/tree.py decides: forks the children of `standoff run`, waits, signals, ends. Parent process."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cli import tree as policy
from cli.output import message
from cli.tree import Announce, Exited, Finish, Kill, Ready, Say, Start, Stop, StopAsked, Stuck, Tick
from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: How often to look whether the service is ready: soon enough that a person does not wait for it.
READY_POLL_S = 0.05
#: How often to look whether a child is stuck: a tenth of what makes it so.
WATCH_S = 0.1
PR_SET_PDEATHSIG = 1  # linux/prctl.h, as the next
PR_SET_CHILD_SUBREAPER = 36
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Entry = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Hooks:
    """`is_ready` is asked until it says yes; `announce` then tells people.

    `stuck` is asked all the time with the pids by name: (name, why) of a child that stands still, or None.
    """

    is_ready: Callable[[], bool]
    announce: Callable[[], None]
    stuck: Callable[[Mapping[str, int]], tuple[str, str] | None] | None = None


class Foreground:
    """A tree of child processes in the foreground. Each entry runs in a child and returns its exit status."""

    def __init__(self, entries: Mapping[str, Entry], stop_timeout: float, hooks: Hooks) -> None:
        self._entries = entries
        self._hooks = hooks
        self._stop_timeout = stop_timeout
        self._pids: dict[str, int] = {}
        self._signals: list[int] = []
        self._finished: int | None = None
        self._on_terminal = sys.stderr.isatty()

    def run(self) -> int:
        """Until all is over; the exit status. Installs signal handlers for good: the process ends with this call."""
        # Descendants whose parent dies become our children: none outlives the tree.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, lambda signum, _: self._signals.append(signum))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._tree, actions = policy.begin(tuple(self._entries), self._stop_timeout, time.monotonic())
        self._do(actions)
        while self._finished is None:
            select.select([wake_read], [], [], self._patience())
            _drain(wake_read)
            self._turn()
        _end_orphans()
        return self._finished

    def _patience(self) -> float | None:
        if self._tree.phase is policy.Phase.STARTING:
            return READY_POLL_S
        wake_at = self._tree.wake_at()
        patience = None if wake_at is None else max(0.0, wake_at - time.monotonic())
        if self._hooks.stuck is None:
            return patience
        return WATCH_S if patience is None else min(WATCH_S, patience)

    def _turn(self) -> None:
        while self._signals:
            self._signal(self._signals.pop(0))
        for pid, status in _reap():
            for name in [name for name, known in self._pids.items() if known == pid]:
                del self._pids[name]
                self._happen(Exited(name, os.waitstatus_to_exitcode(status)))
        self._happen(Tick())
        found = self._hooks.stuck(self._pids) if self._hooks.stuck is not None else None
        if found is not None:
            self._happen(Stuck(*found))
        if self._tree.phase is policy.Phase.STARTING and self._hooks.is_ready():
            self._happen(Ready())

    def _signal(self, number: int) -> None:
        # SIGHUP on a terminal says that it is gone; from anywhere else, that somebody expects a reload.
        if number == signal.SIGHUP and not self._on_terminal:
            message("SIGHUP: nothing to reload; changed settings need a restart")
        else:
            self._happen(StopAsked())

    def _happen(self, event: policy.Event) -> None:
        self._tree, actions = policy.decide(self._tree, event, time.monotonic())
        self._do(actions)

    def _do(self, actions: list[policy.Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    self._pids[name] = _fork(self._entries[name])
                case Stop(name):
                    os.kill(self._pids[name], signal.SIGTERM)
                case Kill(name):
                    _kill_group(self._pids[name])
                case Say(text):
                    message(text)
                case Announce():
                    self._hooks.announce()
                case Finish(status):
                    self._finished = status


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not come so far as to lead a group
        os.kill(pid, signal.SIGKILL)


def _drain(fd: int) -> None:
    with suppress(BlockingIOError):
        while os.read(fd, 512):
            pass


def _reap() -> Iterator[tuple[int, int]]:
    """Pid and wait status of every child that has ended, adopted ones as well."""
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, status
    except ChildProcessError:
        return


def _end_orphans() -> None:
    """Kill what the children have left behind, descendants of theirs that we have adopted."""
    for _ in range(100):  # each round may uncover grandchildren
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children:
            return
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _fork(entry: Entry) -> int:
    """Run `entry` in a child that leads a session of its own: what the terminal sends reaches only the parent."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # A signal between the fork and the child's own handlers would be taken by the parent's, and lost.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid
    status = 1
    try:
        _become_child(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        status = entry()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except StandoffError as error:
        log.error("%s", error)
    except BaseException:
        log.exception("a child of standoff run failed")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)


def _become_child(parent: int) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (*HANDLED, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # If the parent is killed, nobody is left to end this tree: the kernel asks us to stop.
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)
