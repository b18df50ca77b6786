"""A process of the incident: `actor.py ROLE LOCK FAULT STAGE NAME`, ROLE = `writer` or a reader's number.

Readers answer from the shared table in a loop; the writer reloads it when it is told to. LOCK is `naive` (the lock of
2015) or `standoff` (shm/rwlock.py). FAULT is what the culprit does once it is told to:
    leak   a code path returns without giving the read lock back; the reader goes on answering
    stall  it stays inside for ever
    die    it is killed inside
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Protocol

from shm.board import Board
from shm.layout import SlotKind
from shm.rwlock import ReadLock, WriteLock
from tests.incident.stage import CULPRIT, FAULT, RELOADS_BEGUN, RELOADS_DONE, RELOADS_WANTED, STOP, Stage
from tests.support.naive_lock import NaiveLock

#: A worker's pause between batches; leaves the machine some room.
PAUSE_S = 0.0005


class Reader(Protocol):
    def enter(self) -> int:
        """Take the read lock; the side to read."""

    def leave(self) -> None: ...


class Writer(Protocol):
    def reload(self, stage: Stage, number: int) -> None:
        """Replace the table's content by `number`."""


class NaiveReader:
    def __init__(self, name: str) -> None:
        self._lock = NaiveLock(name)

    def enter(self) -> int:
        self._lock.acquire_read()
        return 0

    def leave(self) -> None:
        self._lock.release_read()


class NaiveWriter:
    def __init__(self, name: str) -> None:
        self._lock = NaiveLock(name)

    def reload(self, stage: Stage, number: int) -> None:
        with self._lock.write():
            stage.fill(0, number)


class StandoffReader:
    def __init__(self, name: str) -> None:
        board = Board.create_or_attach(name)
        self._lock = ReadLock(board, board.claim(SlotKind.WORKER))

    def enter(self) -> int:
        return self._lock.read().__enter__() & 1

    def leave(self) -> None:
        self._lock.__exit__(None, None, None)


class StandoffWriter:
    def __init__(self, name: str) -> None:
        self._board = Board.create_or_attach(name)
        self._lock = WriteLock(self._board, self._board.own_page(0))

    def reload(self, stage: Stage, number: int) -> None:
        live = self._board.live
        inactive = (live & 1) ^ 1
        stage.fill(inactive, number)
        for pause in itertools.chain(self._lock.swap(((live >> 1) + 1) << 1 | inactive), self._lock.grace()):
            time.sleep(pause)
        stage.fill(inactive ^ 1, number)


def read_on(stage: Stage, lock: Reader, reader: int, fault: str) -> None:
    """A worker's life."""
    struck = False
    while not stage.get(STOP):
        side = lock.enter()
        stage.answer(reader, side)
        if reader == CULPRIT and stage.get(FAULT) and not struck:
            struck = True
            if fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            while fault == "stall":
                time.sleep(1)
            continue  # the code path of 2015: back to work, with the lock in its pocket
        lock.leave()
        time.sleep(PAUSE_S)


def write_on(stage: Stage, lock: Writer) -> None:
    """The reloader's life."""
    done = 0
    while not stage.get(STOP):
        if stage.get(RELOADS_WANTED) > done:
            done += 1
            stage.set(RELOADS_BEGUN, done)
            lock.reload(stage, done)
            stage.set(RELOADS_DONE, done)
        time.sleep(0.002)


def die_with_parent() -> None:
    """A process that waits in a dead lock must not outlive the test."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    die_with_parent()
    role, lock, fault, path, name = sys.argv[1:]
    stage = Stage(Path(path))
    if role == "writer":
        write_on(stage, NaiveWriter(name) if lock == "naive" else StandoffWriter(name))
    else:
        read_on(stage, NaiveReader(name) if lock == "naive" else StandoffReader(name), int(role), fault)


if __name__ == "__main__":
    main()
