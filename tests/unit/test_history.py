"""loader/history.py and past.py: every state that was published can be told again, or it is said that it cannot."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import history as module
from loader import sqlite_file
from loader.history import NONE, TOO_LARGE, History, Publish, Version
from loader.history_format import decode, encode, frames, serial_only
from loader.past import HistoryError, NotKnown, Past, moment, settled
from shm.errors import NotRunning
from tests.support.published import APEX, Published, new_history, wire


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(sqlite_file, "RETRY_S", 0.05)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = new_history(tmp_path)
    yield made
    made.close()


def whys(past: Past) -> list[str]:
    """Oldest first."""
    return [entry.why for entry in past.entries()][::-1]


# ---------------------------------------------------------------- what was published can be told again

LABELS = ["www", "mail", "a.b", "b", "*"]
changes = st.dictionaries(st.sampled_from(LABELS), st.none() | st.integers(1, 5), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(changes, st.booleans()), min_size=1, max_size=14), st.data())
def test_every_state_equals_a_full_copy(steps: list[tuple[dict[str, int | None], bool]], data: st.DataObject) -> None:
    """Random changes, some of them lost on the way: diff, lookup and what a rollback would publish are exactly what a
    copy of the table says, or NotKnown if something between is missing."""
    with TemporaryDirectory() as folder:
        history = new_history(Path(folder))
        published = Published(history)
        published.change(1, {})
        published.copy()
        lost_after = set()
        for revision, (step, told) in enumerate(steps, 2):
            published.change(revision, step, told=told)
            if told:
                published.copy()
            else:
                lost_after.add(max(published.copies))
        history.close()
        with Past(history.path) as past:
            known = sorted(number for number in published.copies if past.oldest <= number <= past.last)
            start, end = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
            hole = any(min(start, end) <= number < max(start, end) for number in lost_after)
            check_between(past, published, start, end, hole)
            check_lookup(past, published, start, bool(lost_after & set(range(start, past.last + 1))))


def check_between(past: Past, published: Published, start: int, end: int, hole: bool) -> None:
    before, since = published.copies[start], published.copies[end]
    try:
        found = past.between(start, end)
    except NotKnown:
        assert hole
        return
    assert not hole
    names = before.keys() | since.keys()
    assert found == {name: (before.get(name), since.get(name)) for name in names if before.get(name) != since.get(name)}
    # what a rollback publishes: the newer table with these blocks put back
    rolled = {**since, **{name: block for name, (block, _) in found.items()}}
    assert {name: block for name, block in rolled.items() if block is not None} == before


def check_lookup(past: Past, published: Published, number: int, hole: bool) -> None:
    asked = [wire(label) for label in LABELS] + [APEX]
    copy = published.copies[number]
    now = {name: published.table.get(name) for name in asked}
    past.behind = past.generation < published.version.generation
    found, why = past.blocks_at(number, asked, now)
    assert all(copy.get(name) == block for name, block in found.items())
    assert bool(why) == (found.keys() != set(asked))
    assert hole or past.behind or not why
    found, why = past.blocks_at(number, asked, None)  # without a table
    assert all(copy.get(name) == block for name, block in found.items())
    assert bool(why) == (found.keys() != set(asked))


def test_an_entry_counts_names_and_tells_a_few(history: History) -> None:
    published = Published(history)
    published.change(1, {"www": 1, "mail": 1})
    published.change(2, {"www": 2, "mail": None, "new": 1}, "approve")
    history.close()
    with Past(history.path) as past:
        newest, first, begin = past.entries()
    assert (newest.number, newest.revision, newest.why, newest.known) == (3, 2, "approve", True)
    assert (newest.added, newest.removed, newest.changed) == (1, 1, 1)
    assert set(newest.some) == {wire("www"), wire("mail"), wire("new")}, "the apex, whose serial moved, is not counted"
    assert (first.added, first.removed, first.changed) == (3, 0, 0)
    assert (begin.why, begin.known) == ("unknown", False)
    assert "begins" in begin.note


def test_what_changes_nothing_is_no_entry(history: History) -> None:
    published = Published(history)
    published.change(1, {"www": 1})
    version = published.version
    block = published.table[wire("www")]
    published.version = Version(version.generation + 1, version.published_ns + 1, 2)
    history.record(Publish(version, published.version, "change", "", {wire("www"): block}, [block]))
    published.change(3, {"www": 2})
    history.close()
    with Past(history.path) as past:
        assert whys(past) == ["unknown", "change", "change"], "and no hole is seen there"
        assert past.generation == published.version.generation


def test_a_table_made_anew_is_where_the_past_ends(history: History) -> None:
    published = Published(history)
    published.change(1, {"www": 1})
    published.change(2, {"www": 2})
    made = Version(1, 5, 3)
    history.record(Publish(NONE, made, "first", names=7))
    history.close()
    with Past(history.path) as past:
        assert whys(past)[-1] == "first"
        assert next(past.entries()).added == 7
        with pytest.raises(NotKnown, match=r"not known before n4 \(revision 3\): the table was made anew"):
            past.between(2, 4)


def test_serial_only() -> None:
    published = Published(History(Path("/nonexistent/x"), 1, 1))
    published.change(1, {"www": 1}, told=False)
    before = published.table[APEX]
    published.change(2, {"www": 2}, told=False)
    assert serial_only(before, published.table[APEX])
    published.change(3, {"*": 2}, told=False)
    assert not serial_only(before, published.table[APEX]), "it has a wildcard beneath it now"
    assert not serial_only(None, before)
    assert not serial_only(published.table[wire("www")], published.table[wire("www")])


def test_long_changes_are_read_in_frames() -> None:
    made = {b"\x06%06d\0" % i: bytes(50) for i in range(2500)}
    encoded = encode(made, [None] * len(made))
    assert encoded.added == 2500
    read = [decode(frame) for frame in frames(encoded.blob)]
    assert [len(part) for part in read] == [1000, 1000, 500]
    assert {name: new for part in read for name, _, new in part} == made
    for cut in range(0, len(encoded.blob), 97):
        with pytest.raises(ValueError):  # noqa: PT011 - any
            list(map(decode, frames(encoded.blob[:cut])))


# ---------------------------------------------------------------- which state people mean


def test_points(history: History) -> None:
    published = Published(history)
    for revision in (10, 20, 30):  # n2 n3 n4
        published.change(revision, {"www": revision // 10})
    published.change(30, {"www": 1}, "rollback")  # n5
    published.change(50, {"www": 4}, "resume")  # n6
    history.close()
    with Past(history.path) as past:
        assert [past.point(text) for text in ("10", "20", "29", "30")] == [2, 3, 3, 4]
        assert past.point("31") == 5, "what was answered then: the rollback's"
        assert [past.point(text) for text in ("50", "now", "n5", "#5", "n1")] == [6, 6, 5, 5, 1]
        entry = past.entry(3)
        assert entry is not None
        second = entry.time_ns / 1e9
        assert past.point("10s", now=second + 10) == 3
        assert past.point(time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))) == 3
        for text, reason in (("n7", "no entry n7"), ("n0", "not kept any more"), ("2000-01-01", "begins with n1")):
            with pytest.raises(NotKnown, match=reason):
                past.point(text)
        with pytest.raises(ValueError, match="'last week' is not a revision"):
            past.point("last week")


def test_points_that_are_still_to_come(history: History) -> None:
    """A slip of the finger is not `now`."""
    published = Published(history)
    published.change(30, {"www": 1})
    published.change(20, {"www": 2})  # the source went back
    history.close()
    with Past(history.path) as past:
        assert past.point("30") == 2
        with pytest.raises(NotKnown, match="there is no revision 31 yet: the newest that was published is 30"):
            past.point("31")
        past.published = 40  # it moved on, and gave nothing new
        assert past.point("40") == 2
        with pytest.raises(NotKnown, match="no revision 41 yet: the newest that was published is 40"):
            past.point("41")
        newest = past.entry(past.last)
        assert newest is not None
        second = int(newest.time_ns / 1e9)
        assert past.point("0s", now=second) == past.last
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second + 9))
        assert past.point(text, now=second + 9) == past.last
        with pytest.raises(NotKnown, match=rf"in the future: the newest state is n{past.last} \(revision 20, 2023-"):
            past.point(text, now=second + 8)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("10min", 600), ("2h", 7200), ("1d", 86400)])
def test_moments(text: str, seconds: int) -> None:
    assert moment(text, 1e6) == 1e6 - seconds


# ---------------------------------------------------------------- bounds


def test_only_the_last_entries_are_kept(tmp_path: Path) -> None:
    published = Published(new_history(tmp_path, entries=5))
    for revision in range(1, 20):
        published.change(revision, {"www": revision})
        published.copy()
    published.history.close()
    with Past(published.history.path) as past:
        assert [entry.number for entry in past.entries()] == [20, 19, 18, 17, 16]
        assert past.oldest == 15
        assert past.point("n15") == 15
        check_between(past, published, 15, 20, False)
        with pytest.raises(NotKnown, match=r"n14 is not kept any more: it begins with n16 .*; n15 is the table before"):
            past.point("n14")
        with pytest.raises(NotKnown, match="older than the history"):
            past.point("3")


def test_only_so_many_bytes_are_kept(tmp_path: Path) -> None:
    published = Published(new_history(tmp_path, most_bytes=4000))
    for revision in range(1, 40):
        published.change(revision, {"www": revision})
    published.history.close()
    with Past(published.history.path) as past, closing(sqlite3.connect(published.history.path)) as connection:
        sizes = [size for (size,) in connection.execute("SELECT length(changes) FROM entries")]
        assert 4000 - 2 * max(sizes) < sum(sizes) <= 4000
        assert connection.execute("SELECT bytes FROM state").fetchone() == (sum(sizes),)
        assert past.last == 40


def test_a_change_that_is_too_large_is_a_hole(tmp_path: Path) -> None:
    published = Published(new_history(tmp_path, most_bytes=3000))
    published.change(1, {"www": 1})
    published.change(2, {f"{random.randrange(10**9)}": 1 for _ in range(500)})
    published.change(3, {"www": 3})
    published.history.close()
    with Past(published.history.path) as past:
        assert whys(past)[-2:] == ["change", "change"]
        entry = past.entry(3)
        assert entry is not None
        assert (entry.known, entry.note) == (False, TOO_LARGE)
        with pytest.raises(NotKnown, match="too large to be kept"):
            past.between(2, 4)
        assert past.between(3, 4)


def test_what_cannot_wait_any_longer_is_a_hole(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded while the disk is full, and what was lost is told once it is written again."""
    published = Published(history)
    published.change(1, {"www": 1})
    assert history.flush(10)
    full = [True]
    write = History._write

    def failing(self: History, connection: sqlite3.Connection, batch: module._Batch) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        write(self, connection, batch)

    monkeypatch.setattr(History, "_write", failing)
    monkeypatch.setattr(module, "MOST_WAITING", 10_000)
    for revision in range(2, 200):
        published.change(revision, {"www": revision % 250})
        time.sleep(0.0005)
    assert "disk is full" in history.error
    assert "answers go on" in history.error
    full.clear()
    published_again = time.monotonic() + 10
    while history.error and time.monotonic() < published_again:
        time.sleep(0.01)
    assert not history.error
    published.change(200, {"www": 1})
    history.close()
    with Past(history.path) as past:
        kept = [entry.revision for entry in past.entries() if entry.known]
        assert 3 < len(kept) < 100
        (hole,) = [entry for entry in past.entries() if entry.note == module.LOST]
        assert hole.number == past.last - 1
        assert hole.revision == 199, "that of the table just before"


# ---------------------------------------------------------------- whatever happens to the file


def test_numbers_go_on_in_a_later_run_and_after_damage(tmp_path: Path) -> None:
    for run in range(2):
        published = Published(new_history(tmp_path))
        published.change(run + 1, {"www": run + 1})
        published.history.close()
    with Past(published.history.path) as past:
        assert [entry.number for entry in past.entries()] == [4, 3, 2, 1]
        assert whys(past) == ["unknown", "change", "unknown", "change"], "another table is another beginning"
    published.history.path.write_bytes(b"precious" * 1000)
    published = Published(new_history(tmp_path))
    published.change(9, {"www": 9})
    assert published.history.flush(10) or True
    deadline = time.monotonic() + 10
    while not published.history.path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    published.history.close()
    aside = [path.read_bytes()[:8] for path in tmp_path.glob("*.damaged-*") if path.suffix.count("-") == 1]
    assert aside == [b"precious"]
    with Past(published.history.path) as past:
        assert past.first > 10**9, "no number means two things"
        assert past.entry(past.last) is not None


def test_a_run_that_goes_on_from_the_same_table_leaves_no_hole(tmp_path: Path) -> None:
    published = Published(new_history(tmp_path))
    published.change(1, {"www": 1})
    published.history.close()
    published.history = new_history(tmp_path)
    published.change(2, {"www": 2})
    published.history.close()
    with Past(published.history.path) as past:
        assert whys(past) == ["unknown", "change", "change"]


def test_a_damaged_entry_is_told(history: History) -> None:
    published = Published(history)
    published.change(1, {"www": 1})
    published.change(2, {"www": 2})
    history.close()
    with closing(sqlite3.connect(history.path)) as connection, connection:
        connection.execute("UPDATE entries SET changes = substr(changes, 1, 20) WHERE number = 3")
    with Past(history.path) as past, pytest.raises(HistoryError, match=r"entry n3 of the history .* is damaged"):
        past.between(2, 3)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no history at"):
        Past(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"precious" * 1000)
    with pytest.raises(HistoryError, match="cannot be read"):
        Past(tmp_path / "other")


def test_a_file_that_only_its_owner_may_touch(history: History) -> None:
    Published(history).change(1, {"www": 1})
    history.close()
    assert stat.S_IMODE(history.path.stat().st_mode) == 0o640


def test_read_while_it_is_written_and_after_a_kill(tmp_path: Path) -> None:
    """A reader sees one moment, whatever the writer adds or drops; and what a killed writer left needs no repair by
    someone who may write."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        for _ in range(20):
            with Past(tmp_path / "default-history.sqlite") as past:
                numbers = [entry.number for entry in past.entries()]
                assert numbers == list(range(past.last, past.first - 1, -1))
                time.sleep(0.02)
                assert [entry.number for entry in past.entries()] == numbers
                past.between(past.oldest, past.last)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with Past(tmp_path / "default-history.sqlite") as past:
        assert past.last >= numbers[0]
        past.between(past.oldest, past.last)


def test_settled_waits_for_what_was_published(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "WRITE_EVERY_S", 0.2)
    published = Published(history)
    published.change(1, {"www": 1})
    assert history.flush(10)
    published.change(2, {"www": 2})
    with settled(history.path, published.version.generation) as past:
        assert past.entry(past.last).revision == 2  # type: ignore[union-attr]


WRITER = """
import sys
from pathlib import Path
from loader import sqlite_file
from tests.support.published import Published, new_history
sqlite_file.WRITE_EVERY_S = 0.0
published = Published(new_history(Path(sys.argv[1]), entries=50))
revision = 0
while True:
    revision += 1
    published.change(revision, {f"h{i}": revision % 250 for i in range(4)})
    if revision % 3 == 0:
        assert published.history.flush(10)
        print(revision, flush=True)
"""


def test_killed_or_cut_off_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL of the writer, and a copy of its files as a power cut would leave them: all that was reported as written
    is there, and what is there hangs together."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for round_ in range(6):
        folder, cut = tmp_path / f"{round_}", tmp_path / f"cut{round_}"
        folder.mkdir(), cut.mkdir()
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        written = int(process.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.1))
        process.send_signal(signal.SIGSTOP)  # a power cut is one moment for all files
        os.waitpid(process.pid, os.WUNTRACED)
        for file in folder.iterdir():
            if not file.name.endswith("-shm"):
                shutil.copy(file, cut)
        process.send_signal(signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        reported = [written, *map(int, process.stdout.read().rpartition("\n")[0].split())]
        process.wait()
        process.stdout.close()
        for place, least in ((folder, reported[-1]), (cut, written)):
            with Past(place / "default-history.sqlite") as past:
                entries = list(past.entries())
                assert entries[0].revision >= least
                assert [entry.revision for entry in entries if entry.known] == list(
                    range(entries[0].revision, entries[0].revision - sum(entry.known for entry in entries), -1)
                )
                changed = past.between(past.oldest, past.last)
                assert {name for name in changed if name != APEX} == {wire(f"h{i}") for i in range(4)}
            again = new_history(place, entries=50)  # and the next run goes on with its numbers
            Published(again).change(entries[0].revision + 1, {"h0": 1})
            again.close()
            with Past(again.path) as past:
                assert past.last == entries[0].number + 2, "a hole, and the change"


FULL = """
import resource, signal, sys, time
from pathlib import Path
from loader import sqlite_file
from tests.support.published import Published, new_history
sqlite_file.WRITE_EVERY_S, sqlite_file.RETRY_S = 0.0, 0.05
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
published = Published(new_history(Path(sys.argv[1])))
revision = 0
while not published.history.error and revision < 5000:
    revision += 1
    published.change(revision, {f"h{i}": (revision + i) % 250 for i in range(20)})
    time.sleep(0.001)
print(published.history.error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert published.history.flush(20)
published.change(revision + 1, {"last": 1})
published.history.close()
print(revision + 1, published.history.error)
"""


def test_no_more_room(tmp_path: Path) -> None:
    """The file may not grow: it is said, what is there can be read, and all is written once there is room."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    error, last = done.stdout.splitlines()
    assert "cannot be written" in error
    with Past(tmp_path / "default-history.sqlite") as past:
        assert [entry.revision for entry in past.entries() if entry.known] == list(range(int(last), 0, -1))
        past.between(past.oldest, past.last)
