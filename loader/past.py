"""What the history tells (loader/history.py writes it): for tools, also while the loader is dead, and for a rollback.

The state at number N is the table as entry N left it; that before the oldest entry kept has the number before it. All
of it is read in one transaction: what the loader adds or drops meanwhile changes nothing.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from loader.history_format import FORMAT, Change, Entry, decode, frames
from loader.sqlite_file import SqliteFile
from shm.errors import NotRunning, StandoffError

_COLUMNS = "number, time_ns, revision, why, note, known, added, removed, changed, some"
_NUMBER = re.compile(r"[#n](\d+)")
_AGO = re.compile(r"(\d+)(s|min|m|h|d)")
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
#: Publishes whose entries may not be written yet: how long they may take, in seconds, and how often to look.
SETTLE_S = 2.0
_SETTLE_POLL_S = 0.02

HOW = "a revision, n12 for entry 12 of `standoff history`, a time as 10m (ago) or 2026-01-31T12:00, or now"


class HistoryError(StandoffError):
    """The history does not tell that. The message says why."""


class NotKnown(HistoryError):
    """It does not reach back so far, or something between is missing."""


class Past:
    """The history in a file. To be used in a `with` statement."""

    def __init__(self, path: Path) -> None:
        """Raises NotRunning if there is none, HistoryError if it cannot be read."""
        self.path = path
        if not os.path.exists(path):  # Path.exists() raises where one may not look
            raise NotRunning(f"there is no history at {path}: has a loader with this state_dir published anything?")
        if not os.access(path, os.R_OK):
            raise HistoryError(f"the history {path} is not yours to read: its owner and group may, and root")
        try:
            self._connection = _connect(path)
            SqliteFile(path, FORMAT).check(self._connection)
            self._connection.execute("BEGIN")
            row = self._connection.execute("SELECT min(number), max(number) FROM entries").fetchone()
        except sqlite3.Error as error:
            raise HistoryError(f"the history {path} cannot be read: {error}") from error
        self.first: int = row[0] or 1
        self.last: int = row[1] or 0
        self.behind = False  # see `settled`
        self.published = 0  # the revision of the table beside it; publishes that changed nothing have no entry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def oldest(self) -> int:
        """The number of the oldest state that is known."""
        entry = self.entry(self.first)
        return self.first - 1 if entry is None or entry.known else self.first

    @property
    def version(self) -> tuple[int, int]:
        """(generation, published_ns) of the last table that the history knows of, its empty changes included."""
        generation, published_ns = self._one("SELECT generation, published_ns FROM state")
        return int(generation), int(published_ns)

    @property
    def generation(self) -> int:
        """Of that table."""
        return self.version[0]

    def entry(self, number: int) -> Entry | None:
        """None if it is not kept."""
        return next(self.entries(number, number), None)

    def entries(self, newest: int | None = None, oldest: int = 0) -> Iterator[Entry]:
        """From the newest to the oldest of these numbers, both included. Raises HistoryError if the file is damaged."""
        newest = self.last if newest is None else newest
        query = f"SELECT {_COLUMNS} FROM entries WHERE number BETWEEN ? AND ? ORDER BY number DESC"
        for number, time_ns, revision, why, note, known, added, removed, changed, some in self._all(
            query, (oldest, newest)
        ):
            names = tuple(msgspec.msgpack.decode(some, type=list[bytes]))
            yield Entry(number, time_ns, revision, why, note, bool(known), added, removed, changed, names)

    def changes(self, number: int, about: Collection[bytes] = ()) -> Iterator[Change]:
        """What an entry changed. about: only these names, quickly; empty: all. Raises NotKnown, HistoryError."""
        row = self._one("SELECT known, changes FROM entries WHERE number = ?", (number,))
        if row is None or not row[0]:
            raise self._not_known(number)
        try:
            for frame in frames(row[1]):
                if about and not any(name in frame for name in about):
                    continue
                for change in decode(frame):
                    if not about or change[0] in about:
                        yield change
        except ValueError as error:
            raise HistoryError(f"entry n{number} of the history {self.path} is damaged: {error}") from error

    def between(self, start: int, end: int) -> dict[bytes, tuple[bytes | None, bytes | None]]:
        """Each name that differs between two states -> its blocks at `start` and at `end`. Either may be the older.
        Raises NotKnown, HistoryError."""
        found: dict[bytes, tuple[bytes | None, bytes | None]] = {}
        older, newer = sorted((start, end))
        for number in range(older + 1, newer + 1):
            for name, before, since in self.changes(number):
                held = found.get(name)
                found[name] = (held[0] if held else before, since)
        differ = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
        return differ if start <= end else {name: (since, before) for name, (before, since) in differ.items()}

    def blocks_at(
        self, number: int, names: Collection[bytes], now: Mapping[bytes, bytes | None] | None
    ) -> tuple[dict[bytes, bytes | None], str]:
        """The blocks of names at a state, as far as they can be told, and why not all can: empty if all can.

        now: their blocks in the live table, read before this history was opened (what is changed in between is in the
        history, then); None if there is no table.
        """
        found: dict[bytes, bytes | None] = {}
        missing = ""
        if now is None:
            missing = "no table is published, and the history has no change of it"
        elif self.behind:
            missing = "the last changes are not in the history: is the loader alive, and its disk full?"
        for later in range(number + 1, self.last + 1):
            try:
                for name, before, _ in self.changes(later, names):
                    found.setdefault(name, before)
            except NotKnown as error:
                missing = str(error)
                break
        if not missing:
            return {**(now or {}), **found}, ""
        for earlier in range(number, self.first - 1, -1):
            left = set(names) - found.keys()
            if not left:
                return found, ""
            try:
                found.update((name, since) for name, _, since in self.changes(earlier, left))
            except NotKnown:
                break
        return found, missing if set(names) - found.keys() else ""

    def point(self, text: str, now: float | None = None) -> int:
        """The number of the state that people mean: HOW. A revision stands for the last state that it gave, before any
        rollback from it. Raises NotKnown for what is not kept or is to come, ValueError for what is none of these."""
        if text == "now":
            return self.last
        if match := _NUMBER.fullmatch(text):
            return self._kept(int(match[1]))
        if text.isdecimal():
            return self._at_revision(int(text))
        now = time.time() if now is None else now
        return self._at_time(moment(text, now), text, now)

    # ---- steps

    def _kept(self, number: int) -> int:
        if number > self.last:
            raise NotKnown(f"there is no entry n{number} yet: the last one is n{self.last}")
        if number < self.oldest:
            raise NotKnown(f"n{number} is not kept any more: {self._reach()}")
        return number

    def _at_revision(self, revision: int) -> int:
        """Of the states whose revision is the greatest that is not beyond it, the last."""
        query = "SELECT max(revision) FROM entries WHERE revision <= ?"
        nearest = self._one(query, (revision,))[0]
        if nearest is None:
            raise NotKnown(f"revision {revision} is older than the history: {self._reach()}")
        if revision > nearest:
            newest = max(self.published, self._one("SELECT max(revision) FROM entries")[0])
            if revision > newest:
                raise NotKnown(f"there is no revision {revision} yet: the newest that was published is {newest}")
        query = "SELECT max(number) FROM entries WHERE revision = ?"
        if nearest == revision:
            number = self._one(f"{query} AND why != 'rollback'", (nearest,))[0]
            if number is not None:
                return int(number)
        return int(self._one(query, (nearest,))[0])

    def _at_time(self, moment: float, text: str, now: float) -> int:
        newest = self.entry(self.last)
        if newest is not None and moment > max(now, newest.time_ns / 1e9):
            about = f"n{self.last} (revision {newest.revision}, {_clock(newest)})"
            raise NotKnown(f"{text} is in the future: the newest state is {about}")
        number = self._one("SELECT max(number) FROM entries WHERE time_ns <= ?", (int(moment * 1e9),))[0]
        if number is None:
            raise NotKnown(f"{text} is before the history begins: {self._reach()}")
        return int(number)

    def _reach(self) -> str:
        entry = self.entry(self.first)
        if entry is None:
            return "it is empty"
        before = "" if self.oldest == self.first else f"; n{self.oldest} is the table before that"
        return f"it begins with n{self.first} (revision {entry.revision}, {_clock(entry)}){before}"

    def _not_known(self, number: int) -> NotKnown:
        entry = self.entry(number)
        if entry is None:
            return NotKnown(f"n{number} is not kept: {self._reach()}")
        reason = entry.note or "the table was made anew"
        return NotKnown(f"not known before n{number} (revision {entry.revision}): {reason}")

    def _one(self, query: str, values: tuple[object, ...] = ()) -> Any:
        """The first row. Raises HistoryError."""
        return next(self._all(query, values), None)

    def _all(self, query: str, values: tuple[object, ...] = ()) -> Iterator[Any]:
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise HistoryError(f"the history {self.path} cannot be read: {error}") from error


def settled(path: Path, generation: int, revision: int = 0) -> Past:
    """The history, once it knows of that generation of the table, which is of that revision of the source: its last
    changes may not be written yet. After SETTLE_S it is `behind`. Raises as Past does."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        past = Past(path)
        past.behind = past.generation < generation
        past.published = revision
        if not past.behind or time.monotonic() > deadline:
            return past
        past.close()
        time.sleep(_SETTLE_POLL_S)


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of a time as people write it: 10m is ten minutes ago. Raises ValueError."""
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _SECONDS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(f"{text!r} is not {HOW}") from None


def _clock(entry: Entry) -> str:
    """When it was published, local time."""
    return datetime.fromtimestamp(entry.time_ns / 1e9).strftime("%F %T")


def _connect(path: Path) -> sqlite3.Connection:
    """Read-only. Raises sqlite3.Error."""
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("SELECT * FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        # Nobody writes, and in this folder we may not make the file that readers and writers would share.
        connection = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return connection
