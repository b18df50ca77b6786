"""loader/snapshot.py on a disk that is full or read-only at the start: what is in the file is used, and stays there."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loader import sqlite_file
from loader.model import Changes, Delete, Listing, Put
from loader.snapshot import Snapshot
from tests.support.disks import Disk, mounted

SOURCE = "etcd://127.0.0.1:2379/names?schema=records"
LISTING = Listing([Put("/names/a", b"1", 3), Put("/names/b", b"2", 4)], 5)
WRITTEN = """
import os, sys, time
from pathlib import Path
from loader.model import Listing, Put
from loader.snapshot import Snapshot
snapshot = Snapshot(Path(sys.argv[1]), sys.argv[2])
snapshot.keep(Listing([Put("/names/a", b"1", 3), Put("/names/b", b"2", 4)], 5), 1, 1)
assert snapshot.flush(30)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as made:
        yield made


def written(path: Path, end: str) -> None:
    """By a loader that has come to this end."""
    if end == "clean":
        snapshot = Snapshot(path, SOURCE)
        snapshot.keep(LISTING, 1, 1)
        snapshot.close()
        assert not path.with_name(f"{path.name}-wal").exists()
    else:
        ended = subprocess.run([sys.executable, "-c", WRITTEN, str(path), SOURCE], check=False).returncode
        assert ended == -signal.SIGKILL
        assert path.with_name(f"{path.name}-wal").stat().st_size
        if end == "power cut":  # what is mapped by all is made anew after a boot
            path.with_name(f"{path.name}-shm").unlink()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["clean", "killed", "power cut"])
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_start_goes_on_from_it(disk: Disk, how: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "RETRY_S", 0.05)
    path = disk.path / "default.sqlite"
    written(path, end)
    disk.harm(how)
    snapshot = Snapshot(path, SOURCE)
    saved = snapshot.load()
    assert saved is not None
    assert saved.listing == LISTING
    assert not list(disk.path.glob("*.damaged-*"))
    snapshot.watch()
    snapshot.keep(Changes([Delete("/names/a", 6), Put("/names/c", bytes(100_000), 7)], 7), 1, 1)
    until(lambda: snapshot.error)
    disk.well()
    until(lambda: snapshot.written_revision == 7)
    assert snapshot.error == ""
    snapshot.close()
    saved = Snapshot(path, SOURCE).load()
    assert saved is not None
    assert [put.key for put in saved.listing.entries] == ["/names/b", "/names/c"]
    assert not list(disk.path.glob("*.damaged-*"))


def test_a_damaged_file_that_cannot_be_set_aside_is_no_reason_not_to_start(disk: Disk) -> None:
    path = disk.path / "default.sqlite"
    written(path, "clean")
    with path.open("r+b") as file:
        file.write(os.urandom(4096))
    disk.read_only()
    snapshot = Snapshot(path, SOURCE)
    assert snapshot.load() is None
    snapshot.keep(LISTING, 1, 1)
    until(lambda: snapshot.error)
    snapshot.close()


def test_a_file_that_somebody_keeps_locked_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "default.sqlite"
    written(path, "clean")
    holder = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA locking_mode = EXCLUSIVE'); c.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert Snapshot(path, SOURCE).load() is None
        process.communicate()
    saved = Snapshot(path, SOURCE).load()
    assert saved is not None
    assert saved.listing == LISTING


def test_a_file_without_our_tables_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "default.sqlite"
    written(path, "clean")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE state")
    assert Snapshot(path, SOURCE).load() is None
    assert list(tmp_path.glob("*.damaged-*"))
