"""The table as a file: what comes back, what each condition of loader/image.py refuses, what a start makes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack
import pytest

from cli.settings import Settings
from loader import image, start
from loader.imaging import Imager
from shm import layout
from shm._table import Table
from shm.board import Board
from shm.layout import LoaderState
from shm.reading import TableObserver
from shm.segment import LockFile, remove_instance
from shm.tables import TableWriter
from tests.support.processes import drive
from tests.support.tables import block

SHAPING = dict.fromkeys(image.SHAPING, 7)
NAMES = [b"\x05n%04d\x04test\x00" % number for number in range(4000)]


@dataclass(frozen=True)
class Shape:
    """The settings that images look at."""

    instance: str
    state_dir: Path
    image_interval: float = 300.0
    source: tuple[str, ...] = ("file:x",)
    zone: tuple[str, ...] = ()
    default_ttl: int = 300
    semantics: str = "coredns"
    on_reject: str = "drop"
    filters: tuple[str, ...] = ()


def table(names: list[bytes] = NAMES, size: int = 1 << 21) -> bytearray:
    buffer = bytearray(size)
    Table.format(buffer, 1, 42, 2 * len(names), {"zones": [b"\x04test\x00"]})
    made = Table(buffer, writable=True)
    for name in names:
        made.put(block(name, 200))
    made.stamp(3, 77)
    made.close()
    return buffer


def written(path: Path, buffer: bytearray, seen_ns: int = 123) -> Path:
    with memoryview(buffer) as view:
        image.write(path, view[: image.extent(view)], SHAPING, len(buffer), 77, seen_ns)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "folder" / "default.image", table())


def read(path: Path, shaping: dict[str, int] = SHAPING) -> bytearray:
    with image.open_image(path, shaping) as kept:
        buffer = bytearray(kept.description.size)
        with memoryview(buffer) as view:
            kept.fill(view)
        return buffer


def test_what_was_written_comes_back_without_the_spare_room(path: Path) -> None:
    assert read(path) == table()
    assert path.stat().st_size < len(table())
    with image.open_image(path, SHAPING) as kept:
        described = kept.description
    assert (described.names, described.revision, described.seen_ns) == (len(NAMES), 77, 123)
    assert not list(path.parent.glob("*.new"))


def test_what_shapes_answers_is_a_setting_each() -> None:
    assert set(image.SHAPING) <= set(Settings.__struct_fields__)


def described(path: Path, **changes: object) -> None:
    """Give the file another description, with a right CRC."""
    raw = path.read_bytes()
    _, _, length, _ = image.PREFIX.unpack_from(raw)
    start_ = image.PREFIX.size + length
    body = raw[start_ + -start_ % image.ALIGN :]
    packed = msgpack.packb(msgpack.unpackb(raw[image.PREFIX.size : start_]) | changes)
    head = image.PREFIX.pack(image.MAGIC, image.FORMAT, len(packed), zlib.crc32(packed)) + packed
    path.write_bytes(head + bytes(-len(head) % image.ALIGN) + body)


def overwritten(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "1: magic": (lambda path: overwritten(path, 0, b"X"), image.ImageDamaged),
    "1: format": (lambda path: overwritten(path, 8, b"\x63"), image.Foreign),
    "1: empty": (lambda path: path.write_bytes(b""), image.ImageDamaged),
    "2: description's length": (lambda path: overwritten(path, 12, b"\xff\xff\xff\xff"), image.ImageDamaged),
    "2: description's CRC": (lambda path: overwritten(path, 30, b"\0"), image.ImageDamaged),
    "2: description cut": (lambda path: os.truncate(path, 60), image.ImageDamaged),
    "2: description of another kind": (lambda path: described(path, more=1), image.ImageDamaged),
    "2: sizes": (lambda path: described(path, size=1), image.ImageDamaged),
    "2: pieces": (lambda path: described(path, pieces=b""), image.ImageDamaged),
    "3: layout": (lambda path: described(path, layout=[1, 2, "little"]), image.Foreign),
    "4: settings": (lambda path: described(path, shaping=SHAPING | {"zone": 8}), image.Foreign),
    "5: cut": (lambda path: os.truncate(path, path.stat().st_size - 1), image.ImageDamaged),
    "5: longer": (lambda path: overwritten(path, path.stat().st_size, b"x"), image.ImageDamaged),
    "6: first byte": (lambda path: overwritten(path, image.ALIGN, b"\xff"), image.ImageDamaged),
    "6: last byte": (lambda path: overwritten(path, path.stat().st_size - 1, b"\xff"), image.ImageDamaged),
}


@pytest.mark.parametrize("condition", BROKEN)
def test_each_condition(path: Path, condition: str) -> None:
    break_it, error = BROKEN[condition]
    break_it(path)
    with pytest.raises(error):
        read(path)


def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    """But in the zeros between description and table, which nobody reads."""
    whole = path.read_bytes()
    _, _, length, _ = image.PREFIX.unpack_from(whole)
    chance = random.Random(1)
    places = [*range(image.PREFIX.size + length), *(chance.randrange(image.ALIGN, len(whole)) for _ in range(300))]
    for place in places:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << chance.randrange(8)
        path.write_bytes(spoiled)
        with pytest.raises((image.ImageDamaged, image.Foreign)):
            read(path)


def test_what_differs_is_named(path: Path) -> None:
    with pytest.raises(image.Foreign, match=r"another zone, semantics$"):
        read(path, SHAPING | {"semantics": 1, "zone": 2})


# ---------------------------------------------------------------- start


@pytest.fixture
def settings(instance: str, tmp_path: Path) -> Shape:
    return Shape(instance, tmp_path / "state")


@pytest.fixture
def kept(settings: Shape) -> Iterator[Shape]:
    """Settings whose image holds a table, as a loader that has ended left it; nothing is in shared memory."""
    board = Board.create_or_attach(settings.instance)
    writer = TableWriter(board)
    drive(writer.replace((block(name, 200) for name in NAMES), 77, {"zones": [b"\x04test\x00"]}))
    asyncio.run(Imager(image_path(settings), image.shaping_of(settings), 1.0).finish(writer, 5 * 10**9))
    writer.close()
    board.close()
    remove_instance(settings.instance)
    yield settings
    remove_instance(settings.instance)


def image_path(settings: Shape) -> Path:
    path = image.path_of(settings)
    assert path is not None
    return path


def published(settings: Shape) -> int:
    board = Board.attach(settings.instance)
    observer = TableObserver(board)
    try:
        return sum(observer.find(name) == block(name, 200) for name in NAMES)
    finally:
        observer.close()
        board.close()


def test_a_start_publishes_the_image(kept: Shape) -> None:
    restored = start.restore(kept)
    assert restored is not None
    assert (restored.revision, restored.seen_ns) == (77, 5 * 10**9)
    assert restored.lock is not None
    assert restored.lock.held_by_us, "another loader must not come between"
    restored.lock.release()
    assert published(kept) == len(NAMES)
    board = Board.attach(kept.instance)
    assert board.live >> 1 == 1
    assert board.loader.get("revision") == 77
    assert board.loader.get("names") == len(NAMES)
    assert board.loader.get("loader_state") == LoaderState.STALE
    assert board.loader.get("source_seen_ns") == 5 * 10**9
    assert "image of revision 77" in board.loader_note
    board.close()


def test_a_loader_goes_on_from_a_restored_table(kept: Shape) -> None:
    """Replaces it, and edits it: both sides are sound afterwards."""
    assert start.restore(kept) is not None
    board = Board.create_or_attach(kept.instance)
    writer = TableWriter(board)
    assert writer.find(NAMES[5]) == block(NAMES[5], 200)
    drive(writer.replace((block(name, 200) for name in NAMES), 78, {}))
    for revision in (79, 80):
        drive(writer.apply({NAMES[revision]: None}, revision))
    assert published(kept) == len(NAMES) - 2
    writer.close()
    board.close()


def test_a_restored_table_can_be_edited_at_once(kept: Shape) -> None:
    board = Board.create_or_attach(kept.instance)
    writer = TableWriter(board)
    with image.open_image(image_path(kept), image.shaping_of(kept)) as found:
        drive(writer.restore(found.description.size, found.fill))
    for revision in (78, 79, 80):
        drive(writer.apply({NAMES[revision]: None}, revision))
    assert published(kept) == len(NAMES) - 3
    writer.close()
    board.close()


def test_a_live_table_is_left_alone(kept: Shape) -> None:
    assert start.restore(kept) is not None
    assert start.restore(kept) is None
    assert published(kept) == len(NAMES)


def test_another_loader_is_left_alone(kept: Shape) -> None:
    board = Board.create_or_attach(kept.instance)
    lock = LockFile(board.names.lock("writer"))
    assert lock.try_acquire()
    assert start.restore(kept) is None
    assert not board.live
    lock.release()
    board.close()


@pytest.mark.parametrize("change", [{"source": ("file:y",)}, {"zone": ("z",)}, {"default_ttl": 1}, {"semantics": "s"}])
def test_an_image_of_other_settings_is_not_used(
    kept: Shape, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(kept, **change)  # type: ignore[arg-type]
    assert start.restore(other) is None
    assert f"made with another {next(iter(change))}" in caplog.text
    assert not Board.attach(kept.instance).live
    assert start.restore(kept) is not None  # and it is still there


@pytest.mark.parametrize("place", [0, 30, image.ALIGN, -1])
def test_a_damaged_image_is_set_aside(kept: Shape, place: int, caplog: pytest.LogCaptureFixture) -> None:
    path = image_path(kept)
    overwritten(path, place % path.stat().st_size, b"\xfe")
    assert start.restore(kept) is None
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").exists()
    assert "cannot be used" in caplog.text
    board = Board.attach(kept.instance)
    assert not board.live
    assert not [name for name in board.names.existing() if ".table." in name.name]
    board.close()


def test_condition_7_a_table_that_breaks_the_layout(kept: Shape) -> None:
    """With CRCs that are right: some bug wrote it."""
    path = image_path(kept)
    buffer = table()
    offset = layout.header_offsets()["index_slots"]
    buffer[offset : offset + 8] = struct.pack("=Q", 1 << 40)
    with memoryview(buffer) as view:
        image.write(path, view[: image.extent(view)], image.shaping_of(kept), len(buffer), 77, 0)
    assert start.restore(kept) is None
    assert not Board.attach(kept.instance).live
    assert not path.exists()


@pytest.mark.parametrize("change", [{"image_interval": 0.0}, {"state_dir": None}])
def test_without_a_folder_or_an_interval_there_is_none(kept: Shape, change: dict[str, object]) -> None:
    assert start.restore(replace(kept, **change)) is None  # type: ignore[arg-type]


# ---------------------------------------------------------------- keeping


def edited(settings: Shape, imager: Imager, changes: int, meanwhile: Callable[[], None] = lambda: None) -> None:
    """A table, kept, then changed `changes` times, and kept again."""

    async def run() -> None:
        board = Board.create_or_attach(settings.instance)
        writer = TableWriter(board)
        drive(writer.replace((block(name, 200) for name in NAMES), 1, {}))
        assert imager.is_due(writer.live)
        await imager.keep(writer, 9)
        assert not imager.is_due(writer.live)
        meanwhile()
        for number in range(changes):
            drive(writer.apply({NAMES[number]: None}, 2 + number))
        await imager.finish(writer, 9)
        writer.close()
        board.close()

    asyncio.run(run())
    remove_instance(settings.instance)


def test_the_end_keeps_what_has_changed_since(settings: Shape) -> None:
    path = image_path(settings)
    edited(settings, Imager(path, image.shaping_of(settings), 1000.0), 3)
    with image.open_image(path, image.shaping_of(settings)) as kept:
        assert (kept.description.revision, kept.description.names) == (4, len(NAMES) - 3)


def test_the_end_writes_nothing_anew(settings: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    monkeypatch.setattr(image, "write", lambda *arguments: count.append(arguments))
    edited(settings, Imager(image_path(settings), {}, 1000.0), 0)
    assert len(count) == 1


def test_due_when_the_interval_is_over_or_when_wanted(settings: Shape) -> None:
    imager = Imager(image_path(settings), image.shaping_of(settings), 1000.0)

    async def run() -> None:
        board = Board.create_or_attach(settings.instance)
        writer = TableWriter(board)
        drive(writer.replace(map(block, NAMES), 1, {}))
        await imager.keep(writer, 0)
        await imager.finish(writer, 0)
        drive(writer.apply({NAMES[0]: None}, 2))
        assert not imager.is_due(writer.live)
        imager.want()
        assert imager.is_due(writer.live)
        writer.close()
        board.close()

    asyncio.run(run())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing(
    settings: Shape, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, the file before stays, and what was begun is removed."""
    path = image_path(settings)
    edited(settings, Imager(path, image.shaping_of(settings), 1000.0), 1)
    before = path.read_bytes()
    imager = Imager(path, image.shaping_of(settings), 0.0)

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        edited(settings, imager, 2)
    assert os.strerror(number) in imager.error
    assert caplog.text.count("cannot be written") == 1
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.new"))
    edited(settings, imager, 2)
    assert not imager.error
    assert path.read_bytes() != before


WRITER = """
import sys
from pathlib import Path
from loader import image
from tests.unit.test_image import NAMES, SHAPING, table
path = Path(sys.argv[1])
revision = 0
while True:
    revision += 1
    with memoryview(table(NAMES[: 100 + revision % 3000])) as view:
        image.write(path, view[: image.extent(view)], SHAPING, len(view), revision, 0)
    print(revision, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    """And not older than what was written before the kill."""
    path = tmp_path / "x.image"
    for delay in (random.uniform(0.0, 0.05) for _ in range(25)):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        last = int((["1", *process.stdout.read().split("\n")[:-1]])[-1])
        process.wait()
        process.stdout.close()
        with image.open_image(path, SHAPING) as kept:
            assert kept.description.revision >= last
        checked = Table(read(path))
        assert checked.names == kept.description.names
        checked.close()
