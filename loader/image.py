"""The table as a file, so that a start after a reboot answers at once: format, writing, reading. Knows no sources.

    prefix       PREFIX: magic, format, length and CRC-32 of the description; little-endian
    description  a msgpack map (Description), then zeros up to a multiple of ALIGN
    table        the segment's bytes from its start to the end of its heap, as shm/layout.py describes them; the spare
                 room behind them is not kept

The description holds a CRC-32 of every PIECE of the table: read, it is checked as it comes, 100 MB in 0.03 s.

An image is usable if and only if (each condition has a test in tests/unit/test_image.py)
  1. it begins with MAGIC and this FORMAT;
  2. the description ends inside the file, and its CRC is right;
  3. the table was laid out by a build with this build's layout, on a machine of this byte order;
  4. it was made with the settings that shape answers (SHAPING) as they are now;
  5. the file ends where the table does;
  6. every piece's CRC is right;
  7. the table's header is accepted (shm/layout.py, conditions 1 to 4).
A file that breaks 3 or 4 is Foreign: whole, but not for us; the next one replaces it. Any other is ImageDamaged.

Things that don't work
* Mapping the file itself as the table: workers look in shared memory only, and a write to the file would reach them.
* A CRC over the file at its end: damage is found when all has been read twice.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgpack

from shm import layout
from shm.errors import StandoffError

MAGIC = b"STNDIMG\0"
FORMAT = 1
PREFIX = struct.Struct("<8sIII")
ALIGN = 4096
#: Small enough to be in the cache still when its CRC is made, large enough that calls do not count.
PIECE = 1 << 20
#: Of a description: 16 bytes for each of the 4096 pieces of the largest table would fit.
MAX_DESCRIPTION = 1 << 20
#: Settings that decide which answers a source's content gives.
SHAPING = ("instance", "source", "zone", "default_ttl", "semantics", "on_reject", "filters")

_HEAP_END = layout.header_offsets()["heap_end"]
_NAMES = layout.header_offsets()["names"]
_GENERATION = layout.header_offsets()["generation"]
_LAYOUT = [layout.LAYOUT_VERSION, layout.LAYOUT_CHECK, sys.byteorder]


class Settings(Protocol):
    """What images need of the settings, beside SHAPING."""

    @property
    def instance(self) -> str: ...
    @property
    def state_dir(self) -> Path | None: ...
    @property
    def image_interval(self) -> float: ...


class ImageDamaged(StandoffError):
    """The file is no image, or not a whole one."""


class Foreign(StandoffError):
    """The image is of another version, or was made with other settings."""


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of a table.

    layout    version, check and byte order of the build that made it
    shaping   setting -> CRC-32 of its value
    size      bytes of the segment; used: of those that are kept
    names     in it
    revision  of the source
    seen_ns   CLOCK_REALTIME of the source's last sign of life when the table was copied, 0 = not known
    pieces    CRC-32 of each piece, four octets each, little-endian
    published the version of the table: its generation, and CLOCK_REALTIME of its swap in ns; 0, 0 = not known
    """

    layout: list[Any]
    shaping: dict[str, int]
    size: int
    used: int
    names: int
    revision: int
    seen_ns: int
    pieces: bytes
    published: tuple[int, int] = (0, 0)


def path_of(settings: Settings) -> Path | None:
    """Where the image is kept; None: it is neither kept nor used."""
    if settings.state_dir is None or not settings.image_interval:
        return None
    return settings.state_dir / f"{settings.instance}.image"


def shaping_of(settings: object) -> dict[str, int]:
    """What Description.shaping says of these settings."""
    return {name: zlib.crc32(repr(getattr(settings, name)).encode()) for name in SHAPING}


def extent(table: memoryview) -> int:
    """How many of a table's bytes are in use, from its start."""
    return _word(table, _HEAP_END)


def _word(table: memoryview, offset: int) -> int:
    return int.from_bytes(table[offset : offset + 8], sys.byteorder)


def write(
    path: Path,
    table: memoryview,
    shaping: Mapping[str, int],
    size: int,
    revision: int,
    seen_ns: int,
    published_ns: int = 0,
) -> None:
    """Make an image of `table` (its bytes in use, of a segment of `size`), which must not change meanwhile.

    The file is under its name when all of it is on disk, not before: a kill or a power cut leaves the one before.
    Raises OSError; then the one before is still there.
    """
    pieces = b"".join(struct.pack("<I", zlib.crc32(piece)) for piece in _pieces(table))
    version = _word(table, _GENERATION), published_ns
    used, names = len(table), _word(table, _NAMES)
    description = Description(_LAYOUT, dict(shaping), size, used, names, revision, seen_ns, pieces, version)
    packed = msgpack.packb(asdict(description))
    head = PREFIX.pack(MAGIC, FORMAT, len(packed), zlib.crc32(packed)) + packed
    unfinished = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(unfinished, "wb", opener=_private) as file:
            file.write(head + bytes(-len(head) % ALIGN))
            for piece in _pieces(table):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _pieces(table: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(table), PIECE):
        yield table[start : start + PIECE]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Image:
    """An open image whose conditions 1 to 5 hold. Made by `open_image`."""

    def __init__(self, file: BufferedReader, description: Description, start: int) -> None:
        self._file = file
        self._start = start
        self.description = description

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def fill(self, segment: memoryview) -> None:
        """Read the table into a segment of description.size bytes. Raises ImageDamaged (condition 6), OSError."""
        self._file.seek(self._start)
        crcs = struct.iter_unpack("<I", self.description.pieces)
        for number, piece in enumerate(_pieces(segment[: self.description.used])):
            if self._file.readinto(piece) != len(piece) or (zlib.crc32(piece),) != next(crcs, None):
                raise ImageDamaged(f"piece {number} is not what was written")


def open_image(path: Path, shaping: Mapping[str, int]) -> Image:
    """Raises FileNotFoundError, OSError, ImageDamaged or Foreign."""
    file = path.open("rb")
    try:
        description, start = _description(file)
        if description.layout != _LAYOUT:
            raise Foreign("it was written by another version of Standoff")
        if other := [name for name in SHAPING if description.shaping.get(name) != shaping[name]]:
            raise Foreign(f"it was made with another {', '.join(other)}")
        expected = start + description.used
        if os.fstat(file.fileno()).st_size != expected:
            raise ImageDamaged(f"it has {os.fstat(file.fileno()).st_size} bytes, not {expected}")
        return Image(file, description, start)
    except BaseException:
        file.close()
        raise


def _description(file: BufferedReader) -> tuple[Description, int]:
    """Conditions 1 and 2; the description, and where the table begins."""
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        raise ImageDamaged("it is too short")
    magic, version, length, crc = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise ImageDamaged("it is no image of a table")
    if version != FORMAT:
        raise Foreign(f"it has format {version}, this build reads {FORMAT}")
    packed = file.read(min(length, MAX_DESCRIPTION))
    if len(packed) != length or zlib.crc32(packed) != crc:
        raise ImageDamaged("its description is not whole")
    head = PREFIX.size + length
    try:
        description = Description(**msgpack.unpackb(packed))
        if not 0 <= description.used <= description.size or len(description.pieces) * PIECE < 4 * description.used:
            raise ValueError("sizes that cannot be")
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise ImageDamaged(f"its description is not understood: {error}") from error
    return description, head + -head % ALIGN
