"""loader/snapshot.py: what is kept comes back, whatever happens to the file or to the process that writes it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from loader import snapshot as module
from loader import sqlite_file
from loader.model import Changes, Delete, Listing, Put
from loader.snapshot import Saved, Snapshot

SOURCE = "etcd://127.0.0.1:2379/names?schema=records"
LISTING = Listing([Put("/names/a", b"1", 3), Put("/names/b", b"\xff\0", 4, lease=7)], 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "default.sqlite"


def keep(path: Path, *items: Listing | Changes, source: str = SOURCE) -> Snapshot:
    snapshot = Snapshot(path, source)
    for item in items:
        snapshot.keep(item, 2**63 + 1, 123)
    snapshot.close()
    return snapshot


def content(saved: Saved | None) -> dict[str, bytes]:
    assert saved is not None
    return {put.key: put.value for put in saved.listing.entries}


def test_what_is_kept_comes_back(path: Path) -> None:
    assert Snapshot(path, SOURCE).load() is None
    keep(path, LISTING)
    saved = Snapshot(path, SOURCE).load()
    assert saved == Saved(LISTING, 2**63 + 1, 123)


def test_changes_follow_the_listing(path: Path) -> None:
    keep(path, LISTING, Changes([Put("/names/c", b"2", 6), Delete("/names/a", 7), Put("/names/c", b"3", 8)], 8))
    saved = Snapshot(path, SOURCE).load()
    assert content(saved) == {"/names/b": b"\xff\0", "/names/c": b"3"}
    assert saved is not None
    assert saved.listing.revision == 8


def test_changes_of_a_later_run_follow_as_well(path: Path) -> None:
    keep(path, LISTING)
    keep(path, Changes([Delete("/names/b", 9)], 9))
    assert content(Snapshot(path, SOURCE).load()) == {"/names/a": b"1"}


def test_a_listing_replaces_everything(path: Path) -> None:
    keep(path, LISTING)
    keep(path, Listing([Put("/names/z", b"9", 1)], 2))
    assert content(Snapshot(path, SOURCE).load()) == {"/names/z": b"9"}


def test_condition_1_a_file_of_another_kind_is_set_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"precious")
    assert Snapshot(path, SOURCE).load() is None
    assert [p.read_bytes() for p in path.parent.glob("*.damaged-*")] == [b"precious"]
    keep(path, LISTING)
    assert content(Snapshot(path, SOURCE).load()) == {"/names/a": b"1", "/names/b": b"\xff\0"}


def test_condition_1_another_format_is_set_aside(path: Path) -> None:
    keep(path, LISTING)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {module.FORMAT.version + 1}")
    assert Snapshot(path, SOURCE).load() is None
    assert list(path.parent.glob("*.damaged-*"))


def test_condition_2_another_source_is_not_used(path: Path) -> None:
    keep(path, LISTING)
    assert Snapshot(path, SOURCE + "2").load() is None
    assert content(Snapshot(path, SOURCE).load())


def test_condition_3_changes_without_a_listing_are_incomplete(path: Path) -> None:
    keep(path, Changes([Put("/names/c", b"2", 6)], 6))
    assert Snapshot(path, SOURCE).load() is None


def test_condition_3_another_sources_rows_do_not_become_ours(path: Path) -> None:
    keep(path, LISTING)
    keep(path, Changes([Put("/names/c", b"2", 6)], 6), source=SOURCE + "2")
    assert Snapshot(path, SOURCE + "2").load() is None


def test_a_damaged_file_is_set_aside(path: Path) -> None:
    keep(path, Listing([Put(f"/names/{i}", b"v" * 200, i + 1) for i in range(2000)], 2001))
    raw = bytearray(path.read_bytes())
    raw[4096 : len(raw) // 2] = os.urandom(len(raw) // 2 - 4096)
    path.write_bytes(raw)
    assert Snapshot(path, SOURCE).load() is None
    assert list(path.parent.glob("*.damaged-*"))


def test_a_write_that_fails_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk full, read-only: nothing is lost, and the source's note says so meanwhile."""
    monkeypatch.setattr(sqlite_file, "RETRY_S", 0.05)
    monkeypatch.setattr(sqlite_file, "WRITE_EVERY_S", 0.01)
    failures = iter([sqlite3.OperationalError("database or disk is full")] * 3)
    write = Snapshot._write

    def failing(self: Snapshot, connection: sqlite3.Connection, pending: module._Pending) -> None:
        for error in failures:
            raise error
        write(self, connection, pending)

    monkeypatch.setattr(Snapshot, "_write", failing)
    snapshot = Snapshot(path, SOURCE)
    snapshot.keep(LISTING, 1, 2)
    deadline = time.monotonic() + 10
    while not snapshot.error and time.monotonic() < deadline:
        time.sleep(0.001)
    assert "disk is full" in snapshot.error
    snapshot.keep(Changes([Put("/names/c", b"2", 6)], 6), 1, 2)
    while snapshot.written_revision != 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert snapshot.error == ""
    snapshot.close()
    assert content(Snapshot(path, SOURCE).load()) == {"/names/a": b"1", "/names/b": b"\xff\0", "/names/c": b"2"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    snapshot = keep(tmp_path / "x" / "y.sqlite", LISTING)
    assert "cannot be written" in snapshot.error


WRITER = """
import sys
from pathlib import Path
from loader import snapshot as module
from loader import sqlite_file
from loader.model import Changes, Listing, Put
module.WRITE_EVERY_S = 0.0
kept = module.Snapshot(Path(sys.argv[1]), "x")
kept.keep(Listing([Put(f"k{i}", b"0", 1) for i in range(8)], 1), 1, 1)
n = 1
while True:
    n += 1
    kept.keep(Changes([Put(f"k{i}", str(n).encode(), n) for i in range(8)], n), 1, 1)
    while kept.written_revision < n: pass
    print(n, flush=True)
"""


def test_killed_or_cut_off_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL of the writer, and a copy of its files as a power cut would leave them: always one whole revision, and
    none older than what was reported as written."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for round_ in range(6):
        path = tmp_path / f"{round_}.sqlite"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        written = int(process.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.1))
        cut = tmp_path / f"cut{round_}"
        cut.mkdir()
        process.send_signal(signal.SIGSTOP)  # a power cut is one moment for all files
        os.waitpid(process.pid, os.WUNTRACED)
        for name in ("", "-wal"):
            if os.path.exists(f"{path}{name}"):
                shutil.copy(f"{path}{name}", cut / f"s.sqlite{name}")
        process.send_signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        # The last line may have been cut off.
        reported = [written, *map(int, process.stdout.read().rpartition("\n")[0].split())]
        process.wait()
        process.stdout.close()
        for file, oldest in ((path, reported[-1]), (cut / "s.sqlite", written)):
            saved = Snapshot(file, "x").load()
            assert len(set(content(saved).values())) == 1, "one revision, whole"
            assert saved is not None
            assert saved.listing.revision >= oldest


# ---------------------------------------------------------------- last good values


def refuses(put: Put) -> bool:
    return put.value.startswith(b"bad")


def keep_good(path: Path, *items: Listing | Changes) -> Saved:
    """A run of its own for these, and what a start would find."""
    snapshot = Snapshot(path, SOURCE, refuses)
    for item in items:
        snapshot.keep(item, 1, 1)
    snapshot.close()
    saved = Snapshot(path, SOURCE, refuses).load()
    assert saved is not None
    return saved


def test_the_last_good_value_of_a_refused_key_is_kept(path: Path) -> None:
    keep_good(path, LISTING)
    saved = keep_good(path, Changes([Put("/names/a", b"bad", 6)], 6))
    assert content(saved)["/names/a"] == b"bad"
    assert saved.last_good == [Put("/names/a", b"1", 3)]
    saved = keep_good(path, Changes([Put("/names/a", b"bad again", 7), Put("/names/c", b"bad", 8)], 8))
    assert saved.last_good == [Put("/names/a", b"1", 3)]
    saved = keep_good(path, Changes([Put("/names/a", b"2", 9)], 9))
    assert saved.last_good == []


def test_the_last_good_value_may_be_one_that_was_never_written(path: Path) -> None:
    events: list[Put | Delete] = [
        Put("/names/a", b"2", 6), Put("/names/a", b"bad", 7),
        Delete("/names/b", 8), Put("/names/b", b"bad", 9),
        Put("/names/c", b"3", 10), Delete("/names/c", 11),
    ]  # fmt: skip
    saved = keep_good(path, LISTING, Changes(events, 11))
    assert saved.last_good == [Put("/names/a", b"2", 6)]
    assert content(saved) == {"/names/a": b"bad", "/names/b": b"bad"}
    assert keep_good(path, Changes([Delete("/names/a", 12)], 12)).last_good == []


def test_another_history_keeps_what_was_good(path: Path) -> None:
    keep_good(path, LISTING, Changes([Put("/names/a", b"bad", 6), Put("/names/c", b"3", 7)], 7))
    other = Listing([Put("/names/a", b"bad", 2), Put("/names/b", b"ok", 2), Put("/names/c", b"bad", 2)], 2)
    saved = keep_good(path, other)
    assert saved.last_good == [Put("/names/a", b"1", 3), Put("/names/c", b"3", 7)]
    assert content(saved) == {"/names/a": b"bad", "/names/b": b"ok", "/names/c": b"bad"}


def test_without_keep_nothing_is_kept_nor_left_over(path: Path) -> None:
    keep_good(path, LISTING, Changes([Put("/names/a", b"bad", 6)], 6))
    saved = Snapshot(path, SOURCE).load()
    assert saved is not None
    assert saved.last_good == []
    keep(path, Changes([Put("/names/c", b"2", 7)], 7))
    assert keep_good(path).last_good == []


def downgrade(path: Path, version: int) -> None:
    tables = ("entries", "last_good", "state")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join(f"ALTER TABLE {table} DROP COLUMN seal" for table in tables))
        connection.executescript(f"{'DROP TABLE last_good;' * (version == 1)} PRAGMA user_version = {version}")


@pytest.mark.parametrize("version", [1, 2])
def test_formats_before_are_read_and_then_upgraded(path: Path, version: int) -> None:
    keep(path, LISTING)
    downgrade(path, version)
    saved = Snapshot(path, SOURCE, refuses).load()
    assert saved is not None
    assert (saved.listing, saved.last_good) == (LISTING, [])
    assert keep_good(path, Changes([Put("/names/a", b"bad", 6)], 6)).last_good == [Put("/names/a", b"1", 3)]


# ---------------------------------------------------------------- rows that are not as they were written


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE entries SET value = x'3233' WHERE key = '/names/b'",
        "UPDATE entries SET value = 'text' WHERE key = '/names/b'",
        "UPDATE entries SET key = '/names/d' WHERE key = '/names/b'",
        "UPDATE entries SET lease = 5 WHERE key = '/names/b'",
        "UPDATE entries SET mod_revision = 'x' WHERE key = '/names/b'",
        "UPDATE last_good SET value = x'3233'",
        "UPDATE state SET revision = 4711",
        "UPDATE state SET seal = NULL, source = 'x'",
    ],
)
def test_a_row_that_was_harmed(path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    keep_good(path, LISTING, Changes([Put("/names/a", b"bad", 6)], 6))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(harm).rowcount == 1
        connection.commit()
    assert Snapshot(path, SOURCE, refuses).load() is None
    assert path.exists() == ("source" in harm), "set aside, unless it may be another source's"


def test_what_an_older_version_wrote_has_no_seals(path: Path) -> None:
    keep(path, LISTING)
    downgrade(path, 2)
    keep(path, Changes([Put("/names/c", b"3", 6)], 6))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*), count(seal) FROM entries").fetchone() == (3, 1)
        connection.execute("UPDATE entries SET value = x'33' WHERE key = '/names/b'")
        connection.commit()
    saved = Snapshot(path, SOURCE).load()
    assert saved is not None
    assert {put.key: put.value for put in saved.listing.entries}["/names/b"] == b"3"


# ---------------------------------------------------------------- lost while running


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_S", "LOOK_EVERY_S"):
        monkeypatch.setattr(sqlite_file, name, 0.05)
    monkeypatch.setattr(sqlite_file, "WRITE_EVERY_S", 0.0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def harm(path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
    else:
        raw = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(4096)
            if how == "a value":
                file.write(raw[4096:].replace(b"vvv", b"vwv", 1))  # of itself SQLite would not see it
            else:
                file.write(os.urandom(len(raw) - 4096))


@pytest.mark.parametrize("how", ["removed", "damaged", "a value"])
def test_a_file_lost_while_running_becomes_complete_again(path: Path, how: str, hurried: None) -> None:
    """What was changed before the listing that is asked for, and after it, is in the new file as the store has it."""
    snapshot = Snapshot(path, SOURCE)
    many = [Put(f"/names/{i}", b"v" * 200, i + 1) for i in range(2000)]
    snapshot.keep(Listing(many, 2001), 1, 1)
    until(lambda: snapshot.written_revision == 2001)
    # To the file itself, so that there is something to damage.
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harm(path, how)
    until(lambda: snapshot.wanted != 0)
    changes: list[Put | Delete] = [Put("/names/0", b"before", 2002), Delete("/names/1", 2003)]
    snapshot.keep(Changes(changes, 2003), 1, 1)
    wanted = snapshot.wanted
    after: list[Put | Delete] = [Put("/names/2", b"after", 2005), Delete("/names/3", 2006)]
    snapshot.keep(Changes(after, 2006), 1, 1)
    listed = [*many[2:], Put("/names/0", b"before", 2002), Put("/names/x", b"unheard", 2004)]
    snapshot.supply(Listing([], 1), wanted + 7, 1, 1)  # an answer to another question
    snapshot.supply(Listing(listed, 2004), wanted, 1, 1)
    until(lambda: snapshot.wanted == 0)
    snapshot.keep(Changes([Put("/names/y", b"later", 2007)], 2007), 1, 1)
    snapshot.close()
    saved = Snapshot(path, SOURCE).load()
    assert saved is not None
    assert saved.listing.revision == 2007
    expected = {put.key: put.value for put in many[4:]}
    expected |= {"/names/0": b"before", "/names/2": b"after", "/names/x": b"unheard", "/names/y": b"later"}
    assert content(saved) == expected
    assert bool(list(path.parent.glob("*.damaged-*"))) == (how != "removed")


@pytest.mark.parametrize("how", ["removed", "damaged", "a value"])
def test_a_file_lost_before_anything_is_written_to_it(path: Path, how: str, hurried: None) -> None:
    """A start goes on from it, and the source is silent."""
    keep(path, Listing([Put(f"/names/{i}", b"v" * 200, i + 1) for i in range(2000)], 2001))
    snapshot = Snapshot(path, SOURCE)
    assert snapshot.load() is not None
    snapshot.watch()
    harm(path, how)
    until(lambda: snapshot.wanted != 0)
    snapshot.supply(LISTING, snapshot.wanted, 1, 1)
    until(lambda: snapshot.wanted == 0)
    snapshot.close()
    assert content(Snapshot(path, SOURCE).load()) == {"/names/a": b"1", "/names/b": b"\xff\0"}


@pytest.mark.parametrize("again", [False, True])
def test_last_good_values_outlive_the_file(path: Path, hurried: None, again: bool) -> None:
    """... which is lost while we run, and made anew of a listing that has refused values only. again: after a start."""
    bad = [Put(f"/names/{name}", b"bad", revision) for revision, name in enumerate("abcd", 11)]
    good = [Put(f"/names/{name}", b"1", revision) for revision, name in enumerate("abcd", 1)]
    snapshot = Snapshot(path, SOURCE, refuses)
    snapshot.keep(Listing(list(good), 4), 1, 1)
    snapshot.keep(Changes([*bad[:3]], 13), 1, 1)
    until(lambda: snapshot.written_revision == 13)
    if again:
        snapshot.close()
        snapshot = Snapshot(path, SOURCE, refuses)
        assert snapshot.load() is not None
        snapshot.watch()
    harm(path, "removed")
    until(lambda: snapshot.wanted != 0)
    # One more that is good before it is refused, and one that is deleted before: nothing of it is good any more.
    more: list[Put | Delete] = [Put("/names/b", b"2", 14), Put("/names/b", b"bad", 15), Delete("/names/c", 16)]
    snapshot.keep(Changes([*more, Put("/names/c", b"bad", 17)], 17), 1, 1)
    listed = [bad[0], Put("/names/b", b"bad", 15), Put("/names/c", b"bad", 17), good[3]]
    snapshot.supply(Listing(listed, 17), snapshot.wanted, 1, 1)
    until(lambda: snapshot.wanted == 0)
    snapshot.close()
    saved = Snapshot(path, SOURCE, refuses).load()
    assert saved is not None
    assert {put.key: put.value for put in saved.last_good} == {"/names/a": b"1", "/names/b": b"2"}
