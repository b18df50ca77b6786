"""What the processes of the incident share: a table with two sides, orders from the test, and a counter per reader."""

from __future__ import annotations

import mmap
from pathlib import Path

from shm._atomic import Words

READERS = 3
#: The reader that takes the faulty code path.
CULPRIT = 0

#: Words of the page of orders: written by the test.
FAULT, RELOADS_WANTED, STOP = 0, 8, 16
#: Written by the writer.
RELOADS_BEGUN, RELOADS_DONE = 64, 72
#: Written by reader i: answers given, and answers from a half-made table.
ANSWERS, TORN = 128, 136
READER_LINE = 64

TABLE = mmap.PAGESIZE
TABLE_WORDS = 512
SIZE = 3 * mmap.PAGESIZE


class Stage:
    """The shared file, mapped. Every word has one writer."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)
        self.words = Words(self._map, writable=True)

    def get(self, word: int) -> int:
        return self.words.load(word)

    def set(self, word: int, value: int) -> None:
        self.words.store(word, value)

    def answers(self, reader: int) -> int:
        return self.get(ANSWERS + READER_LINE * reader)

    def torn(self) -> int:
        return sum(self.get(TORN + READER_LINE * reader) for reader in range(READERS))

    def fill(self, side: int, number: int) -> None:
        """Edit a side: all its words become `number`, one after the other."""
        for i in range(TABLE_WORDS):
            self.words.store(TABLE + mmap.PAGESIZE * side + 8 * i, number)

    def answer(self, reader: int, side: int) -> None:
        """Read a side from both ends, as a reader does that holds the lock; count the answer."""
        base = TABLE + mmap.PAGESIZE * side
        if self.words.load(base) != self.words.load(base + 8 * (TABLE_WORDS - 1)):
            self.words.add(TORN + READER_LINE * reader)
        self.words.add(ANSWERS + READER_LINE * reader)

    def close(self) -> None:
        self.words.close()
        self._map.close()
