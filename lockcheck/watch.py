"""Locks of `threading`, `multiprocessing`, `posix_ipc` that tell when they are held: `lock = watch(threading.Lock())`.

A watched lock works like the one inside it, and is in the spool (spool.py) while it is held. It may be pickled to a
spawned process if the lock inside may, and is seen there, too.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lockcheck import spool


class WatchedLock:
    """A lock, and one spool entry for each time that it is held."""

    def __init__(self, lock: Any, name: str, mode: str = "") -> None:
        self._watched = lock
        self._name = name
        self._mode = mode
        self._entries: list[Path | None] = []

    def acquire(self, *arguments: Any, **named: Any) -> Any:
        got = self._watched.acquire(*arguments, **named)
        # threading and multiprocessing say whether; posix_ipc returns None, and raises if it does not get it.
        if got is not False:
            self._entries.append(spool.write(self._name, self._mode))
        return got

    def release(self, *arguments: Any) -> Any:
        entry = self._entries.pop() if self._entries else None
        spool.erase(entry)
        return self._watched.release(*arguments)

    def __enter__(self) -> Any:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_watched":
            raise AttributeError(name)
        return getattr(self._watched, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_watched": self._watched, "_name": self._name, "_mode": self._mode, "_entries": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"<watched {self._name}: {self._watched!r}>"


def watch(lock: Any, name: str = "", mode: str = "") -> Any:
    """The lock, watched. `name` and `mode` are for messages."""
    if isinstance(lock, WatchedLock):
        return lock
    return WatchedLock(lock, name or str(getattr(lock, "name", "") or repr(lock)), mode)


class Patch:
    """`module:attribute` made a watched lock, until `undo`."""

    def __init__(self, target: str) -> None:
        """`package.module:LOCK` or `package.module:Class.LOCK`. Raises ValueError, ImportError, AttributeError."""
        module, separator, path = target.partition(":")
        if not separator or not path:
            raise ValueError(f"{target!r} is not of the form module:attribute")
        self._owner: Any = importlib.import_module(module)
        *parents, self._attribute = path.split(".")
        for parent in parents:
            self._owner = getattr(self._owner, parent)
        self._original = getattr(self._owner, self._attribute)
        setattr(self._owner, self._attribute, watch(self._original, target))

    def undo(self) -> None:
        setattr(self._owner, self._attribute, self._original)
