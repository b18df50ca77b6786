"""Does what cli/tree.py decides: forks the children of `standoff run` or `load`, waits, ends. In the parent."""

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
from typing import Protocol

from cli import tree as policy
from cli.output import message
from cli.tree import Announce, Exited, Finish, Kill, Promote, Ready, Say, Start, Stop, StopAsked, Tick
from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: How often to look whether the service is ready: soon enough that a person does not wait for it.
READY_POLL_S = 0.05
COMM_LENGTH = 15  # octets that the kernel keeps of a thread's name
PR_SET_PDEATHSIG = 1  # linux/prctl.h, as the next
PR_SET_CHILD_SUBREAPER = 36
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Entry = Callable[[], int]


class Watch(Protocol):
    """Looks at the children from outside."""

    @property
    def pace_s(self) -> float:
        """When to look again."""
        ...

    def look(self, pids: Mapping[str, int]) -> list[policy.Event]:
        """What is to be said of the children with these pids."""
        ...


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Hooks:
    """What differs between trees.

    is_ready  is asked until it says yes
    announce  then tells people
    watch     looks at the children all the time
    prepare   is called with a child's name right before its fork: what is imported there, it need not import itself
    become    is called in a child right after its fork
    beat      is called in every turn, at least as often as `watch` wants to look
    say       tells people what happens
    stopping  is called when the tree begins to stop
    reloading names the child that a SIGHUP is passed on to, once all is ready
    """

    is_ready: Callable[[], bool]
    announce: Callable[[], None]
    watch: Watch | None = None
    prepare: Callable[[str], None] = _nothing
    become: Callable[[], None] = _nothing
    beat: Callable[[], None] = _nothing
    say: Callable[[str], None] = message
    stopping: Callable[[], None] = _nothing
    reloading: str = ""


class Foreground:
    """A tree of child processes in the foreground. Each entry runs in a child and returns its exit status."""

    def __init__(self, entries: Mapping[str, Entry], stop_timeout: float, hooks: Hooks) -> None:
        self._entries = entries
        self._hooks = hooks
        self._stop_timeout = stop_timeout
        self._pids: dict[str, int] = {}
        self._spares: dict[str, int] = {}
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
        if self._hooks.watch is None:
            return patience
        pace = self._hooks.watch.pace_s
        return pace if patience is None else min(pace, patience)

    def _turn(self) -> None:
        while self._signals:
            self._signal(self._signals.pop(0))
        for pid, status in _reap():
            for spare, pids in ((False, self._pids), (True, self._spares)):
                for name in [name for name, known in pids.items() if known == pid]:
                    del pids[name]
                    self._happen(Exited(name, os.waitstatus_to_exitcode(status), spare))
        self._happen(Tick())
        for event in self._hooks.watch.look(self._pids) if self._hooks.watch is not None else ():
            self._happen(event)
        self._hooks.beat()
        if self._tree.phase is policy.Phase.STARTING and self._hooks.is_ready():
            self._happen(Ready())

    def _signal(self, number: int) -> None:
        # SIGHUP on a terminal says that it is gone; from anywhere else, that somebody expects a reload.
        if number != signal.SIGHUP or self._on_terminal:
            self._happen(StopAsked())
        elif self._tree.phase is policy.Phase.READY and self._hooks.reloading in self._pids:
            os.kill(self._pids[self._hooks.reloading], signal.SIGHUP)
        else:
            self._hooks.say("SIGHUP: nothing to reload; changed settings need a restart")

    def _happen(self, event: policy.Event) -> None:
        before = self._tree.phase
        self._tree, actions = policy.decide(self._tree, event, time.monotonic())
        if self._tree.phase is policy.Phase.STOPPING is not before:
            self._hooks.stopping()
        self._do(actions)

    def _do(self, actions: list[policy.Action]) -> None:
        for action in actions:
            match action:
                case Start(name, spare):
                    self._start(name, spare)
                case Stop(name, spare):
                    os.kill(self._kin(spare)[name], signal.SIGTERM)
                case Kill(name, spare):
                    _kill_group(self._kin(spare)[name])
                case Promote(name):
                    self._pids[name] = self._spares.pop(name)
                case Say(text):
                    self._hooks.say(text)
                case Announce():
                    self._hooks.announce()
                case Finish(status):
                    self._finished = status

    def _kin(self, spare: bool) -> dict[str, int]:
        return self._spares if spare else self._pids

    def _start(self, name: str, spare: bool) -> None:
        self._hooks.prepare(name)
        self._kin(spare)[name] = _fork(name, self._entries[name], self._hooks.become)


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


def _fork(name: str, entry: Entry, become: Callable[[], None]) -> int:
    """Run `entry` in a child that leads a session of its own: what the terminal sends reaches only the parent. `top`
    and `ps -e` show it as "standoff NAME"; its command line is the parent's."""
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
        with suppress(OSError):
            Path("/proc/self/comm").write_text(f"standoff {name}"[:COMM_LENGTH])
        become()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        status = entry()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except StandoffError as error:
        log.error("%s", error)
    except BaseException:
        log.exception("a child failed")
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
