"""The last good copy of a source on disk, so that a start without etcd answers all the same (loader/sqlite_file.py).

What is stored is what the source gave: keys, values, mod_revisions. After a power cut the file holds some recent
revision, whole.

A snapshot is usable if and only if (tests/unit/test_snapshot.py)
  1. it is an SQLite file with our application_id and this format's user_version;
  2. its source is the one that is configured;
  3. it is complete: a whole listing was written, and nothing was lost since.
A file that breaks 1, or that SQLite finds damaged, is set aside under another name, never deleted.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from loader.model import Changes, Delete, Listing, Put
from loader.sqlite_file import FileThread, Format, SqliteFile, transaction

log = logging.getLogger(__name__)

FORMAT = Format(
    kind="snapshot",
    application_id=0x53544E44,  # "STND"
    version=1,
    schema="""
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE state (source TEXT NOT NULL, cluster_id TEXT NOT NULL, revision INTEGER NOT NULL,
    complete INTEGER NOT NULL, seen_ns INTEGER NOT NULL);
""",
    cost="answers go on, a restart without the source would not",
)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a snapshot holds. seen_ns: CLOCK_REALTIME of the source's last sign of life before it was written."""

    listing: Listing
    cluster_id: int
    seen_ns: int


@dataclass(slots=True)
class _Pending:
    """What is to be written: a listing, and then changes, the last one for each key."""

    listing: Listing | None = None
    changes: dict[str, Put | Delete] = field(default_factory=dict)
    revision: int = 0
    cluster_id: int = 0
    seen_ns: int = 0
    waiting: bool = False

    def take(self, item: tuple[Listing | Changes, int, int]) -> None:
        content, self.cluster_id, self.seen_ns = item
        if isinstance(content, Listing):
            self.listing = content
            self.changes.clear()
        else:
            self.changes.update((event.key, event) for event in content.events)
        self.revision = content.revision
        self.waiting = True


class Snapshot(FileThread[tuple[Listing | Changes, int, int], _Pending]):
    """One file for one source. `load` first, then `keep` whatever the source gives, `close` at the end."""

    def __init__(self, path: Path, source: str) -> None:
        """source: what tells it from others, such as the URL. Nothing is opened yet."""
        super().__init__(SqliteFile(path, FORMAT))
        self.path = path
        self._source = source
        self.written_revision = 0

    def load(self) -> Saved | None:
        """What the file holds; None if there is none, or it is another source's, or incomplete. A file that cannot be
        read is set aside. Raises FileError if even that fails."""
        if not self.path.exists():
            return None
        try:
            with closing(self.file.connect()) as connection:
                return self._read(connection)
        except sqlite3.DatabaseError as error:
            self.file.set_aside(str(error))
            return None

    def keep(self, item: Listing | Changes, cluster_id: int, seen_ns: int) -> None:
        """Have it written soon. Returns at once."""
        self.put((item, cluster_id, seen_ns))

    def _read(self, connection: sqlite3.Connection) -> Saved | None:
        self.file.check(connection)
        row = connection.execute("SELECT source, cluster_id, revision, complete, seen_ns FROM state").fetchone()
        if row is None or not row[3]:
            return None
        if row[0] != self._source:
            log.warning("snapshot %s is of %s, not of %s: not used", self.path, row[0], self._source)
            return None
        rows = connection.execute("SELECT key, value, mod_revision, lease FROM entries")
        entries = [Put(key, value, revision, lease) for key, value, revision, lease in rows]
        return Saved(Listing(entries, row[2]), int(row[1]), row[4])

    # ---- the thread

    def _begin(self) -> _Pending:
        return _Pending()

    def _written(self, batch: _Pending) -> None:
        self.written_revision = batch.revision

    def _write(self, connection: sqlite3.Connection, batch: _Pending) -> None:
        """A new file that does not begin with a listing is marked incomplete."""
        with transaction(connection):
            self._fill(connection, batch)

    def _fill(self, connection: sqlite3.Connection, pending: _Pending) -> None:
        row = connection.execute("SELECT complete, source FROM state").fetchone()
        complete = pending.listing is not None or bool(row and row[0] and row[1] == self._source)
        insert = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)"
        if pending.listing is not None:
            connection.execute("DELETE FROM entries")
            puts = pending.listing.entries
            connection.executemany(insert, ((p.key, p.value, p.mod_revision, p.lease) for p in puts))
        changed = [e for e in pending.changes.values() if isinstance(e, Put)]
        connection.executemany(insert, ((p.key, p.value, p.mod_revision, p.lease) for p in changed))
        deleted = [(key,) for key, event in pending.changes.items() if isinstance(event, Delete)]
        connection.executemany("DELETE FROM entries WHERE key = ?", deleted)
        connection.execute("DELETE FROM state")
        state = (self._source, str(pending.cluster_id), pending.revision, complete, pending.seen_ns)
        connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?)", state)
