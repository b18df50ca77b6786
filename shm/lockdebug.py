"""Lock debugging: each held lock has a file that tells who acquired it where, if STANDOFF_LOCK_DEBUG names a folder.

When it is on, locks are made from the subclasses below; when it is off nothing of this is on anyone's path. One file
for each held lock appears after the acquire and goes away before the release, so that no file tells of a free lock. Its
name ends in `.held`, it appears whole, and it is one JSON object: pid, born (start time of the process, field 22 of
/proc/PID/stat), thread (native id), lock, mode (`read`, `write`), site (file:line of the acquire), stack (file:line
function, innermost first), since (time.time_ns()). The pytest plugin of lockcheck/ reads such a folder at the end of
every test. The format is defined in lockcheck/spool.py; neither imports the other.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType

VARIABLE = "STANDOFF_LOCK_DEBUG"
#: Frames kept of the stack of an acquire.
STACK_DEPTH = 12
#: Modules whose frames are not the caller's.
_OWN = {"shm.lockdebug", "shm.rwlock", "shm._section", "contextlib"}

_numbers = itertools.count()
_variants: dict[type[Any], type[Any]] = {}


def variant(cls: type[Any], mode: str) -> type[Any]:
    """The class to make a lock from: the one given, or its debugging subclass."""
    if not os.environ.get(VARIABLE):
        return cls
    if cls not in _variants:
        mixin = DebuggedRead if mode == "read" else DebuggedWrite
        _variants[cls] = type(f"Debugged{cls.__name__}", (mixin, cls), {"__module__": __name__})
    return _variants[cls]


class Holding:
    """The file of one held lock."""

    def __init__(self, lock: str, mode: str) -> None:
        self.stack = _stack()
        self.site = self.stack[0].rpartition(" ")[0] if self.stack else "?"
        self._path: Path | None = None
        folder = os.environ.get(VARIABLE)
        self._pid = pid = os.getpid()
        if not folder:
            return
        content = {
            "pid": pid,
            "born": _born(pid),
            "thread": threading.get_native_id(),
            "lock": lock,
            "mode": mode,
            "site": self.site,
            "stack": self.stack,
            "since": time.time_ns(),
        }
        path = Path(folder, f"{pid}-{content['since']}-{next(_numbers)}.held")
        draft = path.with_suffix(".draft")
        try:
            draft.write_text(json.dumps(content))
            draft.rename(path)
        except OSError:
            return  # the folder is gone with the test run that asked
        self._path = path

    def end(self) -> None:
        """To be called before the release. A child that was forked inside the section is not the holder."""
        if self._path is not None and self._pid == os.getpid():
            self._path.unlink(missing_ok=True)


def acquired_at(pid: int) -> str:
    """Where a process took the lock that it holds, `file:line`; "" if that is not known. Its newest, if several."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return ""
    try:
        files = list(Path(folder).glob(f"{pid}-*.held"))
        newest = max(files, key=lambda path: int(path.name.split("-")[1]))
        return str(json.loads(newest.read_bytes())["site"])
    except (OSError, ValueError, KeyError):  # it has just left
        return ""


def _stack() -> list[str]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in _OWN:
        frame = frame.f_back
    frames: list[str] = []
    while frame is not None and len(frames) < STACK_DEPTH:
        frames.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return frames


def _born(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


class DebuggedRead:
    """Mixed into ReadLock."""

    _holding: Holding | None = None

    def __enter__(self) -> int:
        live: int = super().__enter__()  # type: ignore[misc]
        self._note()
        return live

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holding is not None:
            self._holding.end()
            self._holding = None
        super().__exit__(kind, error, trace)  # type: ignore[misc]

    def _note(self) -> None:
        slot = self._slot  # type: ignore[attr-defined]
        self._holding = Holding(f"{self._names.instance} slot {slot.number}", "read")  # type: ignore[attr-defined]

    def try_read(self) -> DebuggedTry:
        return DebuggedTry(super().try_read(), self)  # type: ignore[misc]

    def _acquired_at(self) -> str:
        return f" (acquired at {self._holding.site})" if self._holding is not None else ""


class DebuggedTry:
    """`with lock.try_read():`"""

    def __init__(self, attempt: Any, lock: DebuggedRead) -> None:
        self._attempt = attempt
        self._lock = lock

    def __enter__(self) -> int:
        live: int = self._attempt.__enter__()
        self._lock._note()
        return live

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attempt.__exit__(kind, error, trace)


class DebuggedWrite:
    """Mixed into WriteLock."""

    _holding: Holding | None = None

    def try_acquire(self) -> bool:
        had: bool = super().try_acquire()  # type: ignore[misc]
        if had:
            self._holding = Holding(self._board.names.instance, "write")  # type: ignore[attr-defined]
        return had

    def release(self) -> None:
        if self._holding is not None:
            self._holding.end()
            self._holding = None
        super().release()  # type: ignore[misc]
