"""What was published when, on disk: so that tools can tell what a name answered, and a bad change can be undone.

One entry for each publish (loader/history_format.py), in an SQLite file that a thread writes (loader/sqlite_file.py):
neither a full disk nor a slow one holds up a change. An entry is durable within half a second, or at once if nothing
was written in the half second before. loader/past.py reads.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from loader.history_format import FORMAT, Encoded, encode
from loader.sqlite_file import FileThread, SqliteFile, transaction

#: Octets of changes that may wait to be written, some 200,000 changes; a single publish may have more. What comes then
#: is lost, and the history tells so. It bounds the loader's memory while the disk is full.
MOST_WAITING = 64 << 20
#: The same while the disk takes them: when a million names change at once, theirs is the entry that somebody will want.
MOST_IN_HASTE = 256 << 20
#: Beside the blocks themselves.
_PER_NAME = 100
#: Notes of entries that stand for what is not known.
BEGUN = "the history begins here"
LOST = (
    "what came before is not known: the loader died before it was written, started from an older image, or could not "
    "write as much as changed"
)
TOO_LARGE = "too large to be kept (history_size)"


class Settings(Protocol):
    """What the history needs of the settings (cli/settings.py)."""

    @property
    def instance(self) -> str: ...
    @property
    def state_dir(self) -> Path | None: ...
    @property
    def history(self) -> int: ...
    @property
    def history_size(self) -> int: ...


def history_of(settings: Settings) -> History | None:
    """None if none is to be kept."""
    if settings.state_dir is None or not settings.history:
        return None
    return History(path_of(settings.state_dir, settings.instance), settings.history, settings.history_size << 20)


def path_of(folder: Path, instance: str) -> Path:
    """The history's file of an instance."""
    return folder / f"{instance}-history.sqlite"


class Version(NamedTuple):
    """Of a table: the live word's generation, and the board's published_ns. After a reboot generations begin again;
    both together do not come back. revision: the source's, in the table."""

    generation: int
    published_ns: int
    revision: int


#: Where nothing was published before.
NONE = Version(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Publish:
    """The table went from one version to another. blocks: each name's node block before, in the order of `changes`;
    None if they are not known. names: in the table, if it was made anew."""

    before: Version
    since: Version
    why: str
    note: str = ""
    changes: Mapping[bytes, bytes | None] = field(default_factory=dict)
    blocks: Sequence[bytes | None] | None = None
    names: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """An entry to be, without the blocks: they can go. encoded: None if the changes are not known."""

    before: Version
    since: Version
    why: str
    note: str
    encoded: Encoded | None = None
    names: int = 0


@dataclass(slots=True)
class _Batch:
    """most: octets that an entry may have."""

    most: int
    rows: list[_Row] = field(default_factory=list)
    weight: int = 0

    @property
    def waiting(self) -> bool:
        return bool(self.rows)

    def take(self, item: tuple[Publish, int]) -> None:
        publish, weight = item
        note, names = publish.note, publish.names
        encoded = None if publish.blocks is None else encode(publish.changes, publish.blocks)
        if encoded is not None and len(encoded.blob) > self.most:
            encoded, note, names = None, TOO_LARGE, 0
        self.rows.append(_Row(publish.before, publish.since, publish.why, note, encoded, names))
        self.weight += weight


class History(FileThread[tuple[Publish, int], _Batch]):
    """The file of one instance: the last `entries` publishes (1 at least), of `most_bytes` octets together at most."""

    def __init__(self, path: Path, entries: int, most_bytes: int) -> None:
        """Nothing is opened yet."""
        super().__init__(SqliteFile(path, FORMAT))
        self.path = path
        self._entries = entries
        self._bytes = most_bytes
        self._told = 0  # octets given to the thread, ever
        self._done = 0  # octets that it has written; the thread's
        self._last = 0  # number of the last entry, as far as known; the thread's

    def record(self, publish: Publish) -> None:
        """Keep it; it is lost if too much waits already. Returns at once."""
        weight = _weight(publish)
        waiting = self._told - self._done
        if waiting and waiting + weight > (MOST_WAITING if self.error else MOST_IN_HASTE):
            return  # the next one does not go on from what was written last: so it shows
        self._told += weight
        self.put((publish, weight))

    # ---- the thread

    def _begin(self) -> _Batch:
        return _Batch(self._bytes)

    def _written(self, batch: _Batch) -> None:
        self._done += batch.weight

    def _write(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        with transaction(connection):
            self._go_on(connection)
            *reached, size = connection.execute("SELECT generation, published_ns, bytes FROM state").fetchone()
            for row in batch.rows:
                if row.encoded is not None and [*row.before[:2]] != reached:
                    _insert(connection, _Row(row.before, row.before, "unknown", BEGUN if reached == [-1, 0] else LOST))
                if row.encoded is None or not row.encoded.empty:
                    size += _insert(connection, row)
                reached = [*row.since[:2]]
            size -= self._trim(connection, size)
            connection.execute("UPDATE state SET generation = ?, published_ns = ?, bytes = ?", (*reached, size))
            (self._last,) = connection.execute("SELECT seq FROM sqlite_sequence").fetchone() or (0,)

    def _go_on(self, connection: sqlite3.Connection) -> None:
        """In the place of a file that was set aside or lost, numbers go on: none may mean two things."""
        if connection.execute("SELECT seq FROM sqlite_sequence").fetchone() is None:
            damaged = next(self.path.parent.glob(f"{self.path.name}.damaged-*"), None)
            last = self._last or (int(time.time()) if damaged else 0)  # an entry a second, for years
            if last:
                connection.execute("INSERT INTO sqlite_sequence VALUES ('entries', ?)", (last,))

    def _trim(self, connection: sqlite3.Connection, size: int) -> int:
        """Delete the oldest entries that are too many, or too large with `size` octets in all; the octets deleted."""
        first, last = connection.execute("SELECT min(number), max(number) FROM entries").fetchone()
        if first is None:
            return 0
        keep_from, freed = max(first, last - self._entries + 1), 0
        for number, octets in connection.execute("SELECT number, size FROM entries ORDER BY number"):
            if number >= keep_from and size - freed <= self._bytes:
                break
            freed += octets
            keep_from = max(keep_from, number + 1)
        connection.execute("DELETE FROM entries WHERE number < ?", (keep_from,))
        return freed


def _insert(connection: sqlite3.Connection, row: _Row) -> int:
    """The octets of its changes."""
    made = row.encoded or Encoded(row.names, 0, 0, (), b"")
    some = msgspec.msgpack.encode(made.some)
    values = (
        row.since.published_ns or time.time_ns(), row.since.revision, row.why, row.note, row.encoded is not None,
        made.added, made.removed, made.changed, some, len(made.blob), row.encoded and made.blob,
    )  # fmt: skip
    columns = "time_ns, revision, why, note, known, added, removed, changed, some, size, changes"
    connection.execute(f"INSERT INTO entries ({columns}) VALUES ({', '.join('?' * len(values))})", values)
    return len(made.blob)


def _weight(publish: Publish) -> int:
    """Octets that it keeps in memory, roughly."""
    octets = sum(map(len, filter(None, publish.changes.values()))) + sum(map(len, filter(None, publish.blocks or ())))
    return octets + _PER_NAME * (1 + len(publish.changes))
