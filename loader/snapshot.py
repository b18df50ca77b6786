"""The last good copy of a source on disk, so that a start without etcd answers all the same (loader/sqlite_file.py).

What is stored is what the source gave: keys, values, mod_revisions. After a power cut the file holds some recent
revision, whole.

A snapshot is usable if and only if (tests/unit/test_snapshot.py)
  1. it is an SQLite file with our application_id and a user_version that we know;
  2. its source is the one that is configured;
  3. it is complete: a whole listing was written, and nothing was lost since;
  4. each row is as it was written: SQLite does not see damage within a value, and it would be answered.
A file that breaks 1 or 4, or that SQLite finds damaged, is set aside under another name, never deleted.

A file that is lost while we run is begun anew, which takes all keys once more, and nobody here holds them. `wanted`
says so; whoever reads it gives them (`supply`), and changes wait in memory until then.

Table last_good: of keys whose value in `entries` is refused, the last one that was not (on_reject = keep). Version 1 of
the format had no such table. Column seal: a checksum over the row; version 2 had none, and what it wrote has none.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from loader._seals import seal, unsealed
from loader.model import Changes, Delete, Listing, Put
from loader.sqlite_file import FileError, FileThread, Format, NotYet, SqliteFile, Unreadable, transaction

log = logging.getLogger(__name__)

_COLUMNS = "key TEXT PRIMARY KEY, value BLOB NOT NULL, mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL"
_TABLES = ("entries", "last_good", "state")
FORMAT = Format(
    kind="snapshot",
    application_id=0x53544E44,  # "STND"
    version=3,
    schema=f"""
CREATE TABLE entries ({_COLUMNS}, seal INTEGER) WITHOUT ROWID;
CREATE TABLE last_good ({_COLUMNS}, seal INTEGER) WITHOUT ROWID;
CREATE TABLE state (source TEXT NOT NULL, cluster_id TEXT NOT NULL, revision INTEGER NOT NULL,
    complete INTEGER NOT NULL, seen_ns INTEGER NOT NULL, seal INTEGER);
""",
    cost="answers go on, a restart without the source would not",
    upgrades={
        1: f"CREATE TABLE last_good ({_COLUMNS}) WITHOUT ROWID",
        2: ";".join(f"ALTER TABLE {table} ADD COLUMN seal INTEGER" for table in _TABLES),
    },
)
_SEALED = 3

#: Whether a schema refuses a value.
Refuses = Callable[[Put], bool]
#: What the source gave, the cluster id, when the source was seen last; and if it was `wanted`, that number, else 0.
_Item = tuple[Listing | Changes, int, int, int]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a snapshot holds. seen_ns: CLOCK_REALTIME of the source's last sign of life before it was written.
    last_good: of keys in the listing whose value is refused, the value to go on with."""

    listing: Listing
    cluster_id: int
    seen_ns: int
    last_good: list[Put] = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    """What is to be written: a listing, and then changes, the last one for each key.

    wanted   the number that a listing must have to be put under changes that are here already
    refused  keys whose last change is refused; good: the last change of a key that is not, since the listing (a
             Delete: what came before does not count). Both are kept only with `refuses`
    earlier  what `good` was when the listing came
    """

    wanted: Callable[[], int]
    refuses: Refuses | None
    listing: Listing | None = None
    changes: dict[str, Put | Delete] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    good: dict[str, Put | Delete] = field(default_factory=dict)
    earlier: dict[str, Put | Delete] = field(default_factory=dict)
    revision: int = 0
    cluster_id: int = 0
    seen_ns: int = 0
    waiting: bool = False

    def take(self, item: _Item) -> None:
        content, cluster_id, seen_ns, wanted = item
        if wanted and (wanted != self.wanted() or not isinstance(content, Listing)):
            return
        on_top: list[Put | Delete] = []
        if wanted:  # asked for after the changes had begun: what is newer in them stays
            on_top = [event for event in self.changes.values() if event.mod_revision > content.revision]
        else:
            self.revision = 0
        self.cluster_id, self.seen_ns, self.waiting = cluster_id, seen_ns, True
        self.revision = max(self.revision, content.revision)
        if isinstance(content, Changes):
            self._change(content.events)
            return
        self.listing = content
        self.earlier.update(self.good)
        for book in (self.changes, self.refused, self.good):
            book.clear()
        self._change(on_top)

    def _change(self, events: Iterable[Put | Delete]) -> None:
        self.changes.update((event.key, event) for event in events)
        if self.refuses is None:
            return
        for event in events:
            if isinstance(event, Put) and self.refuses(event):
                self.refused.add(event.key)
            else:
                self.good[event.key] = event
                self.refused.discard(event.key)


class _SealedFile(SqliteFile):
    def verify(self) -> None:
        super().verify()
        with closing(sqlite3.connect(self.path)) as connection:
            if self.check(connection) >= _SEALED:
                for table in ("entries", "last_good"):
                    _check_seals(connection, table)


class Snapshot(FileThread[_Item, _Pending]):
    """One file for one source. `load` first, `watch` what it has found, `keep` whatever the source gives, `close` at
    the end."""

    def __init__(self, path: Path, source: str, refuses: Refuses | None = None) -> None:
        """source: what tells it from others, such as the URL. refuses: keep the last good value of what it refuses.
        Nothing is opened yet."""
        super().__init__(_SealedFile(path, FORMAT))
        self.path = path
        self._source = source
        self._refuses = refuses
        self._good: dict[str, Put] = {}  # what last_good holds, lest it be lost with the file
        self._wants = 0  # times that a listing was
        self.wanted = 0  # not 0: a listing is, for `supply`
        self.written_revision = 0

    def load(self) -> Saved | None:
        """What the file holds; None if there is none, or it is another source's, or incomplete. A file that is
        damaged is set aside. None of what may be wrong with the disk is a reason not to start."""
        try:
            if not self.path.exists():
                return None
            saved = self.file.read(self._read)
        except sqlite3.DatabaseError as error:
            try:
                self.file.set_aside(str(error))
            except FileError as failed:  # it is tried again before the first write
                log.error("%s", failed)
            return None
        except (Unreadable, OSError) as error:
            log.error("snapshot %s cannot be read: %s; going on without", self.path, error)
            return None
        if saved is not None:
            self._stamp = self.file.stamp()
            self._good = {put.key: put for put in saved.last_good}
        return saved

    def keep(self, item: Listing | Changes, cluster_id: int, seen_ns: int) -> None:
        """Have it written soon. Returns at once."""
        self.put((item, cluster_id, seen_ns, 0))

    def supply(self, listing: Listing, wanted: int, cluster_id: int, seen_ns: int) -> None:
        """The listing that was wanted, asked for after `wanted` had this number. It need not be the newest."""
        self.put((listing, cluster_id, seen_ns, wanted))

    def _read(self, connection: sqlite3.Connection) -> Saved | None:
        version = self.file.check(connection)
        row = connection.execute("SELECT * FROM state").fetchone()
        if row is None or not row[3]:
            return None
        if row[5:] not in ((), (None,), (_seal_of_state(row[:5]),)):
            raise sqlite3.DatabaseError("it does not say any more of what and when it is")
        if row[0] != self._source:
            log.warning("snapshot %s is of %s, not of %s: not used", self.path, row[0], self._source)
            return None
        sealed = version >= _SEALED
        entries = _puts(connection, "entries", sealed=sealed)
        good = _puts(connection, "last_good", sealed=sealed) if self._refuses is not None and version > 1 else []
        return Saved(Listing(entries, row[2]), int(row[1]), row[4], good)

    # ---- the thread

    def _begin(self) -> _Pending:
        return _Pending(lambda: self.wanted, self._refuses)

    def _written(self, batch: _Pending) -> None:
        self.wanted = 0
        self.written_revision = batch.revision

    def _lost(self) -> None:
        if not self.wanted:
            self._wants += 1
            self.wanted = self._wants

    def _write(self, connection: sqlite3.Connection, batch: _Pending) -> None:
        with transaction(connection):
            self._fill(connection, batch)

    def _fill(self, connection: sqlite3.Connection, pending: _Pending) -> None:
        if pending.listing is not None:
            self._replace(connection, pending.listing, pending.earlier)
        else:
            row = connection.execute("SELECT complete, source FROM state").fetchone()
            if row is None or not row[0] or row[1] != self._source:
                self._lost()
                raise NotYet(f"snapshot {self.path} does not hold what came before")
        if self._refuses is None:
            connection.execute("DELETE FROM last_good")
        else:
            self._keep_good(connection, pending, self._refuses)
        changed = [event for event in pending.changes.values() if isinstance(event, Put)]
        _insert(connection, "entries", changed)
        deleted = [(key,) for key, event in pending.changes.items() if isinstance(event, Delete)]
        connection.executemany("DELETE FROM entries WHERE key = ?", deleted)
        connection.execute("DELETE FROM state")
        state = (self._source, str(pending.cluster_id), pending.revision, 1, pending.seen_ns)
        connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", (*state, _seal_of_state(state)))

    def _replace(self, connection: sqlite3.Connection, listing: Listing, earlier: dict[str, Put | Delete]) -> None:
        """All entries are these now. What was good stays, of keys that the listing names with a value that is not."""
        good: list[Put] = []
        if self._refuses is not None:
            before = dict(self._good)
            before.update((put.key, put) for table in ("entries", "last_good") for put in _puts(connection, table))
            for key, event in earlier.items():
                before.pop(key, None)
                if isinstance(event, Put):
                    before[key] = event
            bad = [put for put in listing.entries if before and put.key in before and self._refuses(put)]
            good = [old for put in bad if not self._refuses(old := before[put.key])]
        connection.execute("DELETE FROM entries")
        connection.execute("DELETE FROM last_good")
        _insert(connection, "entries", listing.entries)
        _insert(connection, "last_good", good)
        self._good = {put.key: put for put in good}

    def _keep_good(self, connection: sqlite3.Connection, pending: _Pending, refuses: Refuses) -> None:
        """Before the changes are made: where one is refused, what it would overwrite is the last good value."""
        over = [(key,) for key in pending.changes if key not in pending.refused or key in pending.good]
        connection.executemany("DELETE FROM last_good WHERE key = ?", over)
        for (key,) in over:
            self._good.pop(key, None)
        for key in pending.refused:
            good = pending.good.get(key)
            if good is None:
                found = _puts(connection, "entries", "WHERE key = ?", key)
                good = found[0] if found and not refuses(found[0]) else None
            if isinstance(good, Put):
                _insert(connection, "last_good", [good])
                self._good[key] = good


def _puts(
    connection: sqlite3.Connection, table: str, where: str = "", *arguments: str, sealed: bool = True
) -> list[Put]:
    """sealed: the table has seals. Raises sqlite3.DatabaseError if one is broken."""
    seal_ = "seal" if sealed else "NULL"
    rows = connection.execute(f"SELECT key, value, mod_revision, lease, {seal_} FROM {table} {where}", arguments)
    return _unsealed(rows)


def _unsealed(rows: Iterable[Any]) -> list[Put]:
    try:
        return unsealed(rows, Put)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"what it says of key {error.args[0]!r:.200} is not what was written") from error
    except (TypeError, OverflowError) as error:  # a number in place of a text
        raise sqlite3.DatabaseError(f"it does not hold what was written: {error}") from error


def _check_seals(connection: sqlite3.Connection, table: str) -> None:
    """All of a table, a piece at a time: it may be large, and others want to work. Raises sqlite3.DatabaseError."""
    rows = connection.execute(f"SELECT key, value, mod_revision, lease, seal FROM {table}")
    while piece := rows.fetchmany(1000):
        _unsealed(piece)


def _seal_of_state(state: Iterable[str | int]) -> int:
    return crc32("\0".join(map(str, state)).encode())


def _insert(connection: sqlite3.Connection, table: str, puts: Iterable[Put]) -> None:
    rows = (
        (put.key, put.value, put.mod_revision, put.lease, seal(put.key, put.value, put.mod_revision, put.lease))
        for put in puts
    )
    connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", rows)
