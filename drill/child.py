"""Processes of a drill: in a session of their own, of lower priority, and never longer alive than the drill.

    python -m drill.child SIGNAL PARENT PROGRAM ARGUMENT...

is how each begins: it asks the kernel for SIGNAL should PARENT die, and becomes PROGRAM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Where the packages lie: in a checkout, Python finds them only from there.
ROOT = Path(__file__).resolve().parent.parent
#: A live instance beside the drill goes first.
NICENESS = 5
_PR_SET_PDEATHSIG = 1


def launch(
    program: str,
    *arguments: str,
    signal_: int = signal.SIGKILL,
    environment: Mapping[str, str] | None = None,
    **more: Any,
) -> subprocess.Popen[bytes]:
    """Start `python -m PROGRAM`, or the file PROGRAM if that is a path. It gets `signal_` when this process dies."""
    command = [program] if "/" in program else [sys.executable, "-m", program]
    prelude = [sys.executable, "-m", "drill.child", str(int(signal_)), str(os.getpid())]
    return subprocess.Popen(
        [*prelude, *command, *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, env=scrubbed(environment or {}), **more,
    )  # fmt: skip


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """Our environment without any setting of Standoff's or etcd's: they are the live instance's."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("STANDOFF_", "ETCD_"))}
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "JOURNAL_STREAM"):
        ours.pop(name, None)  # a manager's: it must not hear from a throw-away instance
    return {**ours, **environment}


def main() -> None:
    number, parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != int(parent):
        sys.exit(1)
    os.nice(NICENESS)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
