"""The lock of 2015, for drills and tests only: a cross-process RW lock in which a waiting writer shuts out new readers.

It is the textbook's: a turnstile that everybody passes, and a number of permits. A reader goes through the turnstile
and takes one permit. The writer stops in the turnstile, so that it does not starve, and takes every permit. That is
fair, short, and deadly: one permit that never comes back, and the first writer closes the turnstile for good. Nothing
in it knows who holds what, so a process that dies with a permit or in the turnstile takes the lock with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import posix_ipc

#: Readers at a time; only has to be more than a drill or a test starts.
PERMITS = 16


class NaiveLock:
    """One process's view of the lock `name`. The first to open it makes it; `unlink` when all is over."""

    def __init__(self, name: str) -> None:
        self._turnstile = posix_ipc.Semaphore(f"/{name}.turnstile", posix_ipc.O_CREAT, initial_value=1)
        self._permits = posix_ipc.Semaphore(f"/{name}.permits", posix_ipc.O_CREAT, initial_value=PERMITS)

    def acquire_read(self) -> None:
        self._turnstile.acquire()
        self._turnstile.release()
        self._permits.acquire()

    def release_read(self) -> None:
        self._permits.release()

    @contextmanager
    def write(self) -> Iterator[None]:
        self._turnstile.acquire()
        for _ in range(PERMITS):
            self._permits.acquire()
        try:
            yield
        finally:
            for _ in range(PERMITS):
                self._permits.release()
            self._turnstile.release()

    def unlink(self) -> None:
        for semaphore in (self._turnstile, self._permits):
            with suppress(posix_ipc.ExistentialError):
                semaphore.unlink()
            semaphore.close()
