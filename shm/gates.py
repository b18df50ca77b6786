"""Making and removing gates, the semaphores of shm/rwlock.py; and its histograms. For that module only."""

from __future__ import annotations

import os

import posix_ipc

from shm import layout
from shm._atomic import Words
from shm.errors import LockError
from shm.segment import SHARED_MODE


def create(name: str) -> None:
    """A free gate under a name that was not used before; a leftover of that name is removed."""
    old_umask = os.umask(0)  # sem_open applies it, and there is no fchmod for semaphores
    try:
        for _ in range(2):
            try:
                posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=SHARED_MODE, initial_value=1).close()
            except posix_ipc.ExistentialError:
                posix_ipc.unlink_semaphore(name)
            else:
                return
        raise LockError(f"another process keeps making {name}: is the slot taken twice?")
    finally:
        os.umask(old_umask)


def unlink(name: str) -> None:
    try:
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.ExistentialError:
        pass


def record(words: Words, histogram: int, nanoseconds: int) -> None:
    bucket = min(nanoseconds.bit_length() - 1, layout.HISTOGRAM_BUCKETS - 1) if nanoseconds > 0 else 0
    words.add(histogram + 8 * bucket)
