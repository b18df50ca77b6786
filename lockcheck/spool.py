"""Held locks as files in a folder, so that whoever looks from outside sees them: of any process, alive or dead.

The format. Environment variable STANDOFF_LOCK_DEBUG names a folder; without it nothing is written. Whoever acquires a
lock writes one file *after* it has the lock and removes it *before* it lets go, so that a file never tells of a lock that
is free. The file's name ends in `.held`, is unique in the folder and never used again; it appears whole (written under
another name, then renamed). Its content is one JSON object:

    pid     int     process that acquired
    born    int     start time of that process in clock ticks after boot (field 22 of /proc/PID/stat); 0: not known
    thread  int     native id of the thread
    lock    str     the lock's name
    mode    str     "read", "write", or ""
    site    str     file:line of the acquire, in the caller's code
    stack   [str]   file:line function, innermost first
    since   int     time.time_ns() of the acquire

A file whose process is gone (or has another start time) tells of a lock that was held when the process died.
Whoever writes this format need not import this module: shm/lockdebug.py does not.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

VARIABLE = "STANDOFF_LOCK_DEBUG"
SUFFIX = ".held"
#: Frames that are kept of the stack of an acquire.
STACK_DEPTH = 12

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Entry:
    """One held lock."""

    name: str
    pid: int
    born: int
    thread: int
    lock: str
    mode: str
    site: str
    stack: tuple[str, ...]
    since: int

    @property
    def is_alive(self) -> bool:
        """Whether the process that acquired it still runs."""
        born = birth(self.pid)
        return born is not None and (self.born in (0, born))

    def describe(self) -> str:
        mode = f"{self.mode} lock" if self.mode else "lock"
        who = "this process" if self.pid == os.getpid() else "still running" if self.is_alive else "dead"
        lines = [f"{mode} {self.lock} is still held: acquired at {self.site} by process {self.pid} ({who})"]
        return "\n".join(lines + [f"    {frame}" for frame in self.stack])


def birth(pid: int) -> int | None:
    """The start time of a process in clock ticks after boot, None if it is gone (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        return None if os.path.exists("/proc/self/stat") else _is_there(pid)
    except (ProcessLookupError, PermissionError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _is_there(pid: int) -> int | None:
    """Without /proc: 0 if the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def call_site(skip: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """file:line of the nearest frame outside these modules, and the stack from there."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in skip:
        frame = frame.f_back
    stack: list[str] = []
    while frame is not None and len(stack) < STACK_DEPTH:
        stack.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return (stack[0].rpartition(" ")[0] if stack else "?"), tuple(stack)


_OWN = frozenset({"lockcheck.spool", "lockcheck.watch", "contextlib", "threading", "multiprocessing.synchronize"})


def write(lock: str, mode: str = "", skip: frozenset[str] = frozenset()) -> Path | None:
    """Note that the caller now holds a lock. Returns what `erase` wants; None if nobody wants to know."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    site, stack = call_site(_OWN | skip)
    pid = os.getpid()
    content = {
        "pid": pid,
        "born": birth(pid) or 0,
        "thread": threading.get_native_id(),
        "lock": lock,
        "mode": mode,
        "site": site,
        "stack": stack,
        "since": time.time_ns(),
    }
    path = Path(folder, f"{pid}-{content['since']}-{next(_numbers)}{SUFFIX}")
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(json.dumps(content))
        draft.rename(path)
    except OSError:
        return None  # the folder is gone: the session that asked is over
    return path


def erase(path: Path | None) -> None:
    """Note that the caller is about to let go."""
    if path is not None:
        path.unlink(missing_ok=True)


def read(folder: Path) -> Iterator[Entry]:
    """All locks that are held now, by name of their files."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            content = json.loads(path.read_text())
            yield Entry(
                path.name,
                int(content["pid"]),
                int(content.get("born", 0)),
                int(content.get("thread", 0)),
                str(content["lock"]),
                str(content.get("mode", "")),
                str(content["site"]),
                tuple(map(str, content.get("stack", ()))),
                int(content.get("since", 0)),
            )
        except FileNotFoundError:
            continue  # released meanwhile
