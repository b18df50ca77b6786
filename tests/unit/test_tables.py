"""Left and right: whole versions for every reader, whatever becomes of the writer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shm import layout
from shm._table import Table
from shm.board import Board
from shm.errors import NotRunning, SegmentError, TableDamaged
from shm.layout import SlotKind
from shm.node import RRset, pack, unpack
from shm.reading import NotMapped, TableObserver, TableReader
from shm.rwlock import ReadLock
from shm.segment import SHM_FOLDER, Segment
from shm.tables import TableWriter, remove_leftovers
from tests.support.processes import child, drive, wait_for
from tests.support.tables import block

SEED = int(os.environ.get("STANDOFF_SEED") or random.SystemRandom().randrange(1, 2**32))


def name_of(number: int) -> bytes:
    return b"\x05n%04d\x04test\x00" % number


def node(number: int, version: int, size: int = 40) -> bytes:
    return block(name_of(number), size, bytes([version & 0xFF]))


def version_of(found: bytes | None) -> int | None:
    return None if found is None else unpack(found).rrsets[16].wire[12]


@pytest.fixture
def board(instance: str) -> Iterator[Board]:
    board = Board.create_or_attach(instance)
    yield board
    board.close()


@pytest.fixture
def writer(board: Board) -> Iterator[TableWriter]:
    writer = TableWriter(board)
    yield writer
    writer.close()


def contents(board: Board) -> dict[bytes, int | None]:
    """What a tool sees: name -> version."""
    observer = TableObserver(board)
    try:
        found: dict[bytes, int | None] = observer.look(
            lambda table: {unpack(one).name: version_of(one) for one in table.blocks()}
        )
        return found
    finally:
        observer.close()


def both_sides(board: Board) -> list[dict[bytes, bytes]]:
    """The nodes of each table in shared memory."""
    result = []
    for side in (0, 1):
        segment = Segment.attach(board.names.table(board.side_serial(side)))
        table = Table(segment.map)
        result.append({unpack(one).name: repr(unpack(one)).encode() for one in table.blocks()})
        table.close()
        segment.close()
    return result


def table_files(board: Board) -> list[Path]:
    return sorted(SHM_FOLDER.glob(f"standoff.{board.names.instance}.table.*"))


def test_nothing_is_published(board: Board) -> None:
    with pytest.raises(NotRunning, match="nothing is published"):
        contents(board)
    assert TableReader(board).active(board.live) is None


def test_replace_then_apply(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(i, 1) for i in range(10)], 5, {"zones": ["test."]}))
    assert contents(board) == {name_of(i): 1 for i in range(10)}
    assert board.loader.get("revision") == 5
    drive(writer.apply({name_of(1): node(1, 2), name_of(2): None, name_of(99): node(99, 2)}, 6))
    expected = {name_of(i): 1 for i in range(10) if i != 2} | {name_of(1): 2, name_of(99): 2}
    assert contents(board) == expected
    assert board.loader.get("revision") == 6
    assert board.loader.get("names") == 10
    left, right = both_sides(board)
    assert left == right
    drive(writer.replace([node(7, 3)], 9, {}))
    assert contents(board) == {name_of(7): 3}
    assert len(table_files(board)) == 2


def test_apply_before_replace(writer: TableWriter) -> None:
    with pytest.raises(SegmentError, match="apply before replace"):
        drive(writer.apply({name_of(1): node(1, 1)}, 1))


def test_the_writer_reads_what_is_published(board: Board, writer: TableWriter) -> None:
    assert writer.published() is None
    assert writer.find(name_of(1)) is None
    assert list(writer.blocks()) == []
    drive(writer.replace([node(i, 1) for i in range(10)], 5, {"zones": ["test."]}))
    drive(writer.apply({name_of(1): node(1, 2), name_of(2): None}, 6))
    assert (version_of(writer.find(name_of(1))), writer.find(name_of(2))) == (2, None)
    assert {unpack(one).name for one in writer.blocks()} == {name_of(i) for i in range(10) if i != 2}


def test_a_new_writer_reads_what_an_earlier_one_left(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(i, 1) for i in range(10)], 5, {"zones": ["test."]}))
    drive(writer.apply({name_of(1): node(1, 2)}, 6))
    new = TableWriter(board)
    table = new.published()
    assert table is not None
    assert (table.revision, table.names, table.meta) == (6, 10, {"zones": ["test."]})
    with pytest.raises(TypeError, match="read-only"):
        table.delete(name_of(1))
    # What it publishes may be made of what it reads, and is what it reads from then on.
    drive(new.replace((one for one in new.blocks() if unpack(one).name != name_of(3)), 7, {}))
    assert contents(board) == {name_of(i): 2 if i == 1 else 1 for i in range(10) if i != 3}
    drive(new.apply({name_of(4): node(4, 3)}, 8))
    assert (new.find(name_of(3)), version_of(new.find(name_of(4)))) == (None, 3)
    with pytest.raises(ValueError, match="closed"):
        table.find(name_of(1))
    new.close()


def test_a_new_writer_meets_a_damaged_table(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(1, 1)], 5, {}))
    segment = Segment.attach(board.names.table(board.side_serial(board.live & 1)), writable=True)
    segment.map[0] ^= 0xFF
    segment.close()
    new = TableWriter(board)
    with pytest.raises(TableDamaged):
        new.find(name_of(1))
    drive(new.replace([node(2, 1)], 6, {}))
    assert version_of(new.find(name_of(2))) == 1
    new.close()


def test_many_changes_against_a_dict(board: Board, writer: TableWriter) -> None:
    chance = random.Random(SEED)
    model = {name_of(i): node(i, 0) for i in range(50)}
    drive(writer.replace(model.values(), 1, {}))
    for revision in range(2, 60):
        changes: dict[bytes, bytes | None] = {}
        for _ in range(chance.randrange(1, 8)):
            number = chance.randrange(100)
            gone = chance.random() < 0.3
            changes[name_of(number)] = None if gone else node(number, revision, chance.choice((0, 40, 3000, 40_000)))
        drive(writer.apply(changes, revision))
        for name, one in changes.items():
            model.pop(name, None)
            if one is not None:
                model[name] = one
        left, right = both_sides(board)
        assert left == right == {name: repr(unpack(one)).encode() for name, one in model.items()}, f"seed {SEED}"


def test_growth(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(0, 1)], 1, {}))
    before = board.loader.get("table_bytes")
    for i in range(1, 60):
        drive(writer.apply({name_of(i): node(i, 1, 60_000)}, i))
    assert board.loader.get("grown") > 0
    assert board.loader.get("table_bytes") > before
    assert contents(board) == {name_of(i): 1 for i in range(60)}
    assert len(table_files(board)) == 2, "smaller segments are gone"


def test_replace_grows_from_a_wrong_hint(board: Board, writer: TableWriter) -> None:
    seen: list[int] = []
    drive(writer.replace((node(i, 1, 900) for i in range(9000)), 1, {}, 10, seen.append))
    assert board.loader.get("names") == 9000
    assert len(table_files(board)) == 2


def test_a_node_that_is_larger_than_the_rest_together(board: Board, writer: TableWriter) -> None:
    """One doubling is not enough."""
    large = pack(name_of(3), 0, [RRset(1000 + i, 1, bytes(65000)) for i in range(80)])
    drive(writer.replace([node(1, 1), node(2, 1), large], 1, {}))
    found = writer.find(name_of(3))
    assert found is not None
    assert unpack(found) == unpack(large)
    assert version_of(writer.find(name_of(1))) == 1


def test_the_note(board: Board, writer: TableWriter) -> None:
    writer.note("étcd is away")
    assert board.loader_note == "étcd is away"
    writer.note("x" * 5000)
    assert set(board.loader_note) == {"x"}
    writer.note("")
    assert board.loader_note == ""


# ---------------------------------------------------------------- what goes wrong in a writer that lives


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_change_given_up_half_way_is_not_forgotten(board: Board, writer: TableWriter, steps: int) -> None:
    """A cancelled task closes the generator at one of its pauses: later changes find both sides in order."""
    drive(writer.replace([node(i, 1) for i in range(5)], 1, {}))
    slot = board.claim(SlotKind.WORKER)  # a reader that never maps anything, and stays inside: there are pauses
    lock = ReadLock(board, slot)
    change = writer.apply({name_of(1): node(1, 2), name_of(2): None, name_of(3): node(3, 2, 60_000)}, 2)
    with lock.read():
        for _ in range(steps):
            next(change, None)
        assert isinstance(change, Generator)
        change.close()
    for revision in (3, 4):
        drive(writer.apply({name_of(4): node(4, revision)}, revision))
        left, right = both_sides(board)
        assert left == right
        assert version_of_side(left, 4) == str(revision)
    lock.close()
    slot.release()


def version_of_side(side: dict[bytes, bytes], number: int) -> str:
    return str(side[name_of(number)].decode().rsplit("\\x", 1)[1][:2].lstrip("0"))


def test_a_bad_block_costs_that_change_only(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(i, 1) for i in range(5)], 1, {}))
    with pytest.raises(ValueError, match="not a node block"):
        drive(writer.apply({name_of(1): node(1, 2), name_of(2): b"junk"}, 2))
    assert contents(board) == {name_of(i): 1 for i in range(5)}
    drive(writer.apply({name_of(3): node(3, 3)}, 3))
    expected = {name_of(i): 1 for i in range(5)} | {name_of(3): 3}
    assert contents(board) == expected
    left, right = both_sides(board)
    assert left == right


def test_no_room_leaves_the_active_table_and_no_litter(
    board: Board, writer: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(writer.replace([node(i, 1) for i in range(5)], 1, {}))
    real = os.posix_fallocate

    def little(fd: int, offset: int, size: int) -> None:
        if size > 3 << 20:
            raise OSError(28, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", little)
    changes = {name_of(i): node(i, 2, 60_000) for i in range(100)}
    for _ in range(3):
        with pytest.raises(SegmentError, match="cannot reserve"):
            drive(writer.apply(changes, 2))
        assert contents(board) == {name_of(i): 1 for i in range(5)}
        assert len(table_files(board)) <= 2
    with pytest.raises(SegmentError, match="cannot reserve"):
        drive(writer.replace(iter(changes.values()), 2, {}))
    assert contents(board) == {name_of(i): 1 for i in range(5)}
    assert len(table_files(board)) <= 2
    monkeypatch.undo()
    drive(writer.apply(changes, 3))
    assert contents(board) == {name_of(i): 2 for i in range(100)}
    assert both_sides(board)[0] == both_sides(board)[1]


def test_a_source_that_fails_in_mid_replace(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(1, 1)], 1, {}))

    def failing() -> Iterator[bytes]:
        yield node(2, 2)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        drive(writer.replace(failing(), 2, {}))
    assert contents(board) == {name_of(1): 1}
    drive(writer.apply({name_of(2): node(2, 3)}, 3))
    assert contents(board) == {name_of(1): 1, name_of(2): 3}
    assert len(table_files(board)) == 2


# ---------------------------------------------------------------- readers


def read_on(instance: str, pipe: Connection, names: int) -> None:
    """A worker's life: each look sees one version of all names. Tells how many there were at the end."""
    board = Board.attach(instance)
    slot = board.claim(SlotKind.WORKER)
    lock = ReadLock(board, slot)
    reader = TableReader(board, slot)
    looks, newest = 0, 0
    pipe.send("ready")
    while not pipe.poll(0.0005):  # a pause between batches, as a worker that is not at its limit has
        reader.refresh()
        try:
            with lock.read() as live:
                table = reader.active(live)
                versions = {version_of(table.find(name_of(i))) for i in range(names)} if table is not None else {0}
        except NotMapped:
            continue
        assert len(versions) == 1, f"a mixture: {versions}"
        (version,) = versions
        assert version is not None
        assert version >= newest, "back in time"
        newest = version
        looks += 1
    pipe.send((looks, newest))


def test_readers_see_whole_versions_through_changes_and_growth(
    instance: str, board: Board, writer: TableWriter
) -> None:
    names = 40
    with (
        child(lambda pipe: read_on(instance, pipe, names)) as one,
        child(lambda pipe: read_on(instance, pipe, names)) as two,
    ):
        for reader in (one, two):
            assert reader.hear() == "ready"
        drive(writer.replace([node(i, 1) for i in range(names)], 1, {}))
        for version in range(2, 60):
            size = 40 if version % 10 else 20 * version * version % 60_000
            drive(writer.apply({name_of(i): node(i, version, size) for i in range(names)}, version))
        for reader in (one, two):
            reader.tell()
            looks, newest = reader.hear()
            assert looks > 0
            assert newest > 1
            assert reader.wait() == 0
    assert board.loader.get("grown") > 0


def write_on(instance: str, names: int, first: int, pipe: Connection) -> None:
    """A loader's life: a new version of every name with each step, and sometimes everything anew."""
    board = Board.attach(instance)
    writer = TableWriter(board)
    chance = random.Random(first)
    version = first
    drive(writer.replace([node(i, version) for i in range(names)], version, {}))
    pipe.send("ready")
    while True:
        version += 1
        blocks = {name_of(i): node(i, version, chance.choice((40, 400, 9000))) for i in range(names)}
        if chance.random() < 0.2:
            drive(writer.replace(blocks.values(), version, {}))
        else:
            drive(writer.apply(blocks, version))


@pytest.mark.lock_left_ok("the writer is killed anywhere")
def test_a_killed_writer_leaves_a_whole_table(instance: str, board: Board) -> None:
    chance = random.Random(SEED)
    names = 30
    for turn in range(8):
        with child(partial(write_on, instance, names, 1 + 20 * turn)) as loader:
            assert loader.hear() == "ready"
            time.sleep(chance.uniform(0, 0.03))
            loader.kill()
        found = contents(board)
        assert len(found) == names, f"seed {SEED}"
        assert len(set(found.values())) == 1, f"seed {SEED}: a mixture"
    remove_leftovers(board)
    assert len(table_files(board)) <= 2
    assert len(set(contents(board).values())) == 1


def test_a_new_writer_waits_for_readers_of_the_old_one(instance: str, board: Board) -> None:
    """R5 across writers: the table that someone still reads is not edited by the successor."""
    first = TableWriter(board)
    drive(first.replace([node(1, 1)], 1, {}))

    def stay(pipe: Connection) -> None:
        own = Board.attach(instance)
        slot = own.claim(SlotKind.WORKER)
        lock, reader = ReadLock(own, slot), TableReader(own, slot)
        reader.refresh()
        with lock.read() as live:
            table = reader.active(live)
            assert table is not None
            pipe.send("inside")
            pipe.recv()
            pipe.send(version_of(table.find(name_of(1))))

    with child(stay) as reader:
        assert reader.hear() == "inside"
        first.close()
        second = TableWriter(board)
        steps = second.replace([node(1, 2)], 2, {})
        for _ in range(20):
            next(steps)
        assert contents(board) == {name_of(1): 1}, "it waits first of all"
        reader.tell()
        assert reader.hear() == 1
        drive(steps)
    assert contents(board) == {name_of(1): 2}
    second.close()


# ---------------------------------------------------------------- announcements that cannot be used


def spoil(board: Board, writer: TableWriter, how: str) -> None:
    """Announce a segment on the inactive side that no reader can use."""
    side = 1 - (board.live & 1)
    path = SHM_FOLDER / board.names.table(77).lstrip("/")
    if how == "junk":
        path.write_bytes(b"x" * 8192)
    elif how == "empty":
        path.touch()
    elif how == "other version":
        content = bytearray((SHM_FOLDER / board.names.table(board.side_serial(side)).lstrip("/")).read_bytes())
        content[8] ^= 1
        path.write_bytes(content)
    writer._header.store(layout.SIDE_SERIAL + 8 * side, 77)


@pytest.mark.parametrize("how", ["junk", "empty", "other version", "missing"])
def test_a_bad_announcement_does_not_stop_a_reader(board: Board, writer: TableWriter, how: str) -> None:
    """Its active table is as good as before."""
    drive(writer.replace([node(1, 1)], 1, {}))
    slot = board.claim(SlotKind.WORKER)
    reader = TableReader(board, slot)
    reader.refresh()
    spoil(board, writer, how)
    for _ in range(3):
        reader.refresh()
    table = reader.active(board.live)
    assert table is not None
    assert version_of(table.find(name_of(1))) == 1
    assert slot.get("table_damaged") == (0 if how == "missing" else 1)
    live = board.live ^ 1
    if how == "missing":
        with pytest.raises(NotMapped):
            reader.active(live)
    else:
        assert reader.active(live) is None, "SERVFAIL"
    reader.close()
    slot.release()


def test_a_reader_that_has_not_mapped_says_so(board: Board, writer: TableWriter) -> None:
    reader = TableReader(board)
    drive(writer.replace([node(1, 1)], 1, {}))
    with pytest.raises(NotMapped):
        reader.active(board.live)
    reader.refresh()
    assert reader.active(board.live) is not None
    assert reader.revision(board.live) == 1
    reader.close()


def test_an_observer_tells_damage_from_a_change(board: Board, writer: TableWriter) -> None:
    drive(writer.replace([node(1, 1)], 1, {}))
    observer = TableObserver(board)

    def damaged(_: object) -> None:
        raise TableDamaged("really")

    with pytest.raises(TableDamaged, match="really"):
        observer.look(damaged)
    calls: list[int] = []

    def torn_once(table: Table) -> int:
        calls.append(1)
        if len(calls) == 1:
            drive(writer.apply({name_of(1): node(1, 2)}, 2))
            raise ValueError("a look at bytes that were being edited")
        return int(table.revision)

    assert observer.look(torn_once) == 2
    observer.close()


def test_workers_are_waited_for_before_a_larger_table_is_live(instance: str, board: Board, writer: TableWriter) -> None:
    """They map and prefault it first; the batch after the swap finds it there."""

    def follow(pipe: Connection) -> None:
        own = Board.attach(instance)
        slot = own.claim(SlotKind.WORKER)
        lock, reader = ReadLock(own, slot), TableReader(own, slot)
        pipe.send("ready")
        unmapped = 0
        while not pipe.poll():
            reader.refresh()
            time.sleep(0.0005)
            try:
                with lock.read() as live:
                    reader.active(live)
            except NotMapped:
                unmapped += 1
        pipe.send(unmapped)

    drive(writer.replace([node(1, 1)], 1, {}))
    with child(follow) as reader:
        reader.hear()
        wait_for("it maps both", lambda: all(board.slot(0).get(f"mapped_serial_{side}") for side in (0, 1)))
        for version in range(2, 12):
            drive(writer.replace([node(1, version)], version, {}))
        reader.tell()
        assert reader.hear() == 0
