"""What can be told of a process that does not move: its state, and the stack it is in now (R6).

A child registers faulthandler on a signal, writing into a memory file that it shares with the supervisor. The
supervisor signals, and reads a moment later: what it finds is where the process is, in Python, also when it is blocked
in a system call or in an endless loop. A stopped process cannot answer; the kernel's word for its state is told
instead.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import traceback
from pathlib import Path

#: Not used by anything else in a child; harmless if it comes without being asked for.
STACK_SIGNAL = signal.SIGUSR2
_LONGEST_STACK = 16 * 1024
#: From here outwards every child's stack is the same.
_SUPERVISOR = "server/supervisor.py:"
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in an uninterruptible system call",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "dead, not yet reaped",
}


class StackFile:
    """A memory file for one child's stacks. Made by the supervisor before the fork, shared by both."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("standoff-stack")

    def listen(self) -> None:
        """In the child: answer STACK_SIGNAL from now on."""
        faulthandler.register(STACK_SIGNAL, file=self._fd, all_threads=False, chain=False)

    def ask(self, pid: int) -> None:
        """In the supervisor: have the child write its stack. Read it with `take` some 10 ms later."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)  # the offset is shared: the child writes where we left it
        try:
            os.kill(pid, STACK_SIGNAL)
        except ProcessLookupError:
            pass

    def take(self) -> list[str]:
        """The stack that was asked for, innermost call first: `file:line in function`. Empty if none was written."""
        text = os.pread(self._fd, _LONGEST_STACK, 0).decode(errors="replace")
        lines = (line.strip() for line in text.splitlines())
        calls = (_shorten(line) for line in lines if line.startswith("File "))
        return list(itertools.takewhile(lambda call: not call.startswith(_SUPERVISOR), calls))

    def close(self) -> None:
        os.close(self._fd)


def stack_of(error: BaseException) -> list[str]:
    """Where an error was raised, innermost call first, as `StackFile.take` gives it."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return [f"{_tail(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames]


def _shorten(line: str) -> str:
    """`File "…/server/worker.py", line 12 in run` as `server/worker.py:12 in run`."""
    path, _, rest = line.removeprefix('File "').partition('", line ')
    number, _, function = rest.partition(" in ")
    return f"{_tail(path)}:{number} in {function}"


def _tail(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def process_state(pid: int) -> str:
    """The kernel's word for what a process does, with the system call it sleeps in where that may be read."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "gone"
    text = _STATES.get(state, f"in state {state}")
    try:
        channel = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        channel = ""
    return f"{text} in {channel}" if channel not in ("", "0") and state in "SD" else text
