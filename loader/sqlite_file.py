"""An SQLite file in WAL mode that a thread writes, so that a slow or full disk holds up nobody.

Whoever gives it something goes on at once. A write that fails (disk full, read-only) is tried again every RETRY_S with
what has come meanwhile; a file that SQLite finds damaged, or that is another program's, is set aside under another
name, never deleted, and a new one is begun. After a power cut the file is as some write left it, whole: one transaction
for each write, `synchronous=FULL`.

SQLite notices damage only in what it reads again, which may be at the next start. So the file is looked through when
somebody else has written to it, and every CHECK_EVERY_S; and whether it is still there at all, every LOOK_EVERY_S.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Protocol, TypeVar

from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: Bounds what a power cut can take back: a write comes so long after the one before it, or at once.
WRITE_EVERY_S = 0.5
#: After a write that failed.
RETRY_S = 5.0
#: How often to ask whether the file is as the last write left it: one stat().
LOOK_EVERY_S = 5.0
#: How often to look through all of it: a second for 100 MB, in the thread.
CHECK_EVERY_S = 3600.0

_BIG_WAL = 16 << 20  # octets that the write-ahead log may keep after one large write
_MEMORY = Path("/dev/shm")

Found = TypeVar("Found")


class FileError(StandoffError):
    """The file cannot be used. The message says what to do."""


class NotYet(FileError):
    """What is to be written cannot be until something else has come."""


class Unreadable(FileError):
    """It may be a good one, but cannot be read now."""


@dataclass(frozen=True, slots=True)
class Format:
    """What tells a kind of file from others. cost: what people lose while it cannot be written. upgrades: older version
    -> what makes the next one of it; such a file can be read as it is."""

    kind: str
    application_id: int
    version: int
    schema: str
    cost: str
    upgrades: Mapping[int, str] = field(default_factory=dict)


class SqliteFile:
    """One file of a format. Opens nothing by itself."""

    def __init__(self, path: Path, format: Format) -> None:
        self.path = path
        self.format = format

    def connect(self) -> sqlite3.Connection:
        """For the one that writes. Raises sqlite3.Error."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_BIG_WAL}")
        return connection

    def read(self, reader: Callable[[sqlite3.Connection], Found]) -> Found:
        """What `reader` finds in the file; also on a full or read-only disk, where SQLite cannot make the files that it
        wants beside it. Raises Unreadable if that says nothing about the file, sqlite3.DatabaseError if it is wrong."""
        try:
            with closing(self.connect()) as connection:
                return reader(connection)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Unreadable(str(error)) from error
        try:
            return self._read_aside(reader)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error

    def _read_aside(self, reader: Callable[[sqlite3.Connection], Found]) -> Found:
        """Nobody writes, and nothing can be written here."""
        log_file = self.path.with_name(f"{self.path.name}-wal")
        if not (log_file.exists() and log_file.stat().st_size):
            self.path.open("rb").close()  # SQLite would not say why it may not
            uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
                return reader(connection)
        with TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            for one in (self.path, log_file):
                shutil.copyfile(one, Path(folder, one.name))
            with closing(sqlite3.connect(Path(folder, self.path.name), isolation_level=None)) as connection:
                return reader(connection)

    def check(self, connection: sqlite3.Connection) -> int:
        """The version, this one or one that can be upgraded. Raises sqlite3.DatabaseError for a file of another
        format."""
        number, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        known = version == self.format.version or version in self.format.upgrades
        if number != self.format.application_id or not known:
            raise sqlite3.DatabaseError(f"not a {self.format.kind} of this version: {number:x}/{version}")
        return int(version)

    def verify(self) -> None:
        """Look through all of it, on a connection that has nothing of it in memory. Raises sqlite3.DatabaseError."""
        with closing(sqlite3.connect(self.path)) as connection:
            self.check(connection)
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(str(found))

    def stamp(self) -> tuple[int, int, int] | None:
        """Changes when somebody writes to the file; None if there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def open(self) -> sqlite3.Connection:
        """The file, made if need be. Raises sqlite3.Error, OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = self.connect()
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                made = self.format
                connection.executescript(
                    f"BEGIN; PRAGMA application_id = {made.application_id}; PRAGMA user_version = {made.version};"
                    f"{made.schema} COMMIT;"
                )
                self.path.chmod(0o640)
            while (version := self.check(connection)) != self.format.version:
                connection.executescript(
                    f"BEGIN; {self.format.upgrades[version]}; PRAGMA user_version = {version + 1}; COMMIT;"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def set_aside(self, why: str) -> None:
        """Out of the way, under a name that tells when. Raises FileError."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        kind = self.format.kind
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        except OSError as error:
            text = f"{kind} {self.path} cannot be used ({why}), nor set aside: {error.strerror}; remove it"
            raise FileError(text) from error
        log.error("%s %s cannot be used (%s): kept as %s; a new one is begun", kind, self.path, why, aside.name)
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


class Batch(Protocol):
    """What is to be written with one transaction."""

    @property
    def waiting(self) -> bool:
        """Whether there is anything to write."""
        ...

    def take(self, item: Any) -> None: ...


Item = TypeVar("Item")
AnyBatch = TypeVar("AnyBatch", bound=Batch)


class FileThread(ABC, Generic[Item, AnyBatch]):
    """Writes one file. `put`, `watch` and `close` are for the owner; what is abstract runs in the thread."""

    def __init__(self, file: SqliteFile) -> None:
        self.file = file
        self.error = ""  # for people; empty if the last write went well
        self._queue: deque[Item | threading.Event | None] = deque()
        self._idle = False  # the thread waits for something to come; it is not woken while it lets more come
        self._urgent = False
        self._wake = threading.Event()
        self._flushes: list[threading.Event] = []  # the thread's
        self._thread: threading.Thread | None = None
        self._stamp: tuple[int, int, int] | None = None  # of the file, as it was read or written last
        self._checked = time.monotonic()

    @abstractmethod
    def _begin(self) -> AnyBatch:
        """An empty batch."""

    @abstractmethod
    def _write(self, connection: sqlite3.Connection, batch: AnyBatch) -> None:
        """Write it, in one transaction. Raises sqlite3.Error, OSError, NotYet; the same batch comes again then,
        grown."""

    def _written(self, batch: AnyBatch) -> None:
        """It is on disk."""

    def _lost(self) -> None:
        """What was in the file is not there any more: the next write goes into a new one."""

    def put(self, item: Item) -> None:
        """Have it written soon. Returns at once."""
        self._begin_thread()
        self._queue.append(item)
        if self._idle:
            self._wake.set()

    def watch(self) -> None:
        """The file is there, and is needed as it is: notice if it is harmed, though nothing is to be written."""
        self._begin_thread()

    def _begin_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name=self.file.format.kind, daemon=True)
            self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put is on disk; False if it is not by then. Blocks: for a thread of its own."""
        if self._thread is None:
            return True
        flushed = threading.Event()
        self._hurry(flushed)
        return flushed.wait(timeout_s)

    def close(self) -> None:
        """Write what is left, and end. What cannot be written then is lost."""
        if self._thread is not None:
            self._hurry(None)
            self._thread.join()
            self._thread = None

    def _hurry(self, what: threading.Event | None) -> None:
        self._queue.append(what)
        self._urgent = True
        self._wake.set()

    # ---- the thread

    def _write_on(self) -> None:
        batch = self._begin()
        closing_down = False
        due = 0.0  # on the monotonic clock: not before
        connection: sqlite3.Connection | None = None
        while not closing_down:
            closing_down = self._collect(batch, due)
            try:
                self._look()
                if not batch.waiting:
                    self._flushed()
                    continue
                if connection is None or self._stamp is None:
                    _close(connection)
                    connection = self.file.open()
                self._write(connection, batch)
            except NotYet:
                due = time.monotonic() + RETRY_S
                continue
            except (sqlite3.Error, OSError, FileError) as error:
                _close(connection)
                connection = None
                self._failed(error)
                due = time.monotonic() + RETRY_S
                continue
            if self.error:
                log.info("%s %s is written again", self.file.format.kind, self.file.path)
            self.error = ""
            self._stamp = self.file.stamp()
            self._written(batch)
            self._flushed()
            batch = self._begin()
            due = time.monotonic() + WRITE_EVERY_S
        _close(connection)

    def _look(self) -> None:
        """Whether the file is still the one that we have written. Raises sqlite3.Error."""
        if self._stamp is None:
            return
        stamp, now = self.file.stamp(), time.monotonic()
        if stamp is None or stamp[0] != self._stamp[0]:
            log.error("%s %s was taken away: a new one is begun", self.file.format.kind, self.file.path)
            self._stamp = None
            self._lost()
        elif stamp != self._stamp or now - self._checked > CHECK_EVERY_S:
            self._stamp, self._checked = stamp, now
            self.file.verify()

    def _collect(self, batch: AnyBatch, due: float) -> bool:
        """Wait until it is time to write, or to look; take what has come. Whether it is time to end.

        The thread wakes once for all that comes before `due`: a thousand times a second would cost its owner more than
        the writing does.
        """
        if not batch.waiting:
            self._idle = True
            if not self._queue:  # asked after _idle is set: `put` appends, and then looks at it
                self._wake.wait(LOOK_EVERY_S)
            self._idle = False
            self._wake.clear()
        while (batch.waiting or self._queue) and not self._urgent and (wait := due - time.monotonic()) > 0:
            if self._wake.wait(wait):
                break
        self._urgent = False
        self._wake.clear()
        while self._queue:
            item = self._queue.popleft()
            if item is None:
                return True
            if isinstance(item, threading.Event):
                self._flushes.append(item)
                return False
            batch.take(item)
        return False

    def _flushed(self) -> None:
        for event in self._flushes:
            event.set()
        self._flushes.clear()

    def _failed(self, error: Exception) -> None:
        made = self.file.format
        text = f"{made.kind} {self.file.path} cannot be written: {error}; {made.cost}"
        if text != self.error:
            log.error("%s", text)
        self.error = text
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self._stamp = None
            with suppress(FileError):
                self.file.set_aside(str(error))
            self._lost()


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with suppress(sqlite3.Error):  # of a damaged file
            connection.close()
