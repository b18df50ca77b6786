"""The last good copy of a source on disk, so that a start without etcd answers all the same. SQLite, in WAL mode.

What is stored is what the source gave: keys, values, mod_revisions. A thread writes it, at most WRITE_EVERY_S after it
was told; a write that fails (disk full, read-only) is kept in memory and tried again, and answers go on meanwhile.
After a power cut the file holds some recent revision, whole: one transaction for each write, `synchronous=FULL`.

A snapshot is usable if and only if (tests/unit/test_snapshot.py)
  1. it is an SQLite file with our application_id and this format's user_version;
  2. its source is the one that is configured;
  3. it is complete: a whole listing was written, and nothing was lost since.
A file that breaks 1, or that SQLite finds damaged, is set aside under another name, never deleted.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from loader.model import Changes, Delete, Listing, Put
from shm.errors import StandoffError

log = logging.getLogger(__name__)

APPLICATION_ID = 0x53544E44  # "STND"
FORMAT = 1
#: Bounds what a power cut can take back.
WRITE_EVERY_S = 0.5
#: After a write that failed.
RETRY_S = 5.0

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE state (source TEXT NOT NULL, cluster_id TEXT NOT NULL, revision INTEGER NOT NULL,
    complete INTEGER NOT NULL, seen_ns INTEGER NOT NULL);
"""


class SnapshotError(StandoffError):
    """The snapshot cannot be used. The message says what to do."""


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
    since: float | None = None

    def take(self, item: Listing | Changes, cluster_id: int, seen_ns: int) -> None:
        if isinstance(item, Listing):
            self.listing = item
            self.changes.clear()
        else:
            self.changes.update((event.key, event) for event in item.events)
        self.revision, self.cluster_id, self.seen_ns = item.revision, cluster_id, seen_ns
        if self.since is None:
            self.since = time.monotonic()


class Snapshot:
    """One file for one source. `load` first, then `keep` whatever the source gives, `close` at the end."""

    def __init__(self, path: Path, source: str) -> None:
        """source: what tells it from others, such as the URL. Nothing is opened yet."""
        self.path = path
        self._source = source
        self._queue: queue.SimpleQueue[tuple[Listing | Changes, int, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.error = ""  # for people; empty if the last write went well
        self.written_revision = 0

    def load(self) -> Saved | None:
        """What the file holds; None if there is none, or it is another source's, or incomplete. A file that cannot be
        read is set aside. Raises SnapshotError if even that fails."""
        if not self.path.exists():
            return None
        try:
            with closing(self._connect()) as connection:
                return self._read(connection)
        except sqlite3.DatabaseError as error:
            self._set_aside(str(error))
            return None

    def keep(self, item: Listing | Changes, cluster_id: int, seen_ns: int) -> None:
        """Have it written soon. Returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name="snapshot", daemon=True)
            self._thread.start()
        self._queue.put((item, cluster_id, seen_ns))

    def close(self) -> None:
        """Write what is left, and end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    # ---- the file

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _read(self, connection: sqlite3.Connection) -> Saved | None:
        self._check(connection)
        row = connection.execute("SELECT source, cluster_id, revision, complete, seen_ns FROM state").fetchone()
        if row is None or not row[3]:
            return None
        if row[0] != self._source:
            log.warning("snapshot %s is of %s, not of %s: not used", self.path, row[0], self._source)
            return None
        rows = connection.execute("SELECT key, value, mod_revision, lease FROM entries")
        entries = [Put(key, value, revision, lease) for key, value, revision, lease in rows]
        return Saved(Listing(entries, row[2]), int(row[1]), row[4])

    def _check(self, connection: sqlite3.Connection) -> None:
        found = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found != (APPLICATION_ID, FORMAT):
            raise sqlite3.DatabaseError(f"not a snapshot of this version: {found[0]:x}/{found[1]}")

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        log.error("snapshot %s cannot be used (%s): kept as %s; a new one is begun", self.path, why, aside.name)
        try:
            self.path.rename(aside)
        except OSError as error:
            raise SnapshotError(f"cannot set snapshot {self.path} aside: {error.strerror}; remove it") from error
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))

    # ---- the thread

    def _write_on(self) -> None:
        pending = _Pending()
        closing_down = False
        retry_at = 0.0
        connection: sqlite3.Connection | None = None
        while not closing_down:
            closing_down = self._collect(pending, retry_at)
            if pending.since is None:
                continue
            try:
                if connection is None:
                    connection = self._open()
                self._write(connection, pending)
            except (sqlite3.Error, OSError, SnapshotError) as error:
                if connection is not None:
                    connection.close()
                    connection = None
                self._failed(error)
                retry_at = time.monotonic() + RETRY_S
                continue
            if self.error:
                log.info("snapshot %s is written again", self.path)
            self.error = ""
            self.written_revision = pending.revision
            pending = _Pending()
        if connection is not None:
            connection.close()

    def _collect(self, pending: _Pending, retry_at: float) -> bool:
        """Wait for something to write, and a little longer for more; whether it is time to end."""
        while True:
            due = None if pending.since is None else max(pending.since + WRITE_EVERY_S, retry_at)
            wait = None if due is None else max(0.0, due - time.monotonic())
            try:
                item = self._queue.get(timeout=wait)
            except queue.Empty:
                return False
            if item is None:
                return True
            pending.take(*item)

    def _failed(self, error: Exception) -> None:
        text = f"snapshot {self.path} cannot be written: {error}; answers go on, a restart without the source would not"
        if text != self.error:
            log.error("%s", text)
        self.error = text
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(SnapshotError):
                self._set_aside(str(error))

    def _open(self) -> sqlite3.Connection:
        """The file, made if need be."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = self._connect()
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                connection.executescript(_SCHEMA)
                self.path.chmod(0o640)
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self, connection: sqlite3.Connection, pending: _Pending) -> None:
        """One transaction. A new file that does not begin with a listing is marked incomplete."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._fill(connection, pending)
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

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
