"""What an entry of the history is, and how changes are written: for the loader, which writes, and tools, which read.

An entry is one publish: what each name's node block was before, and is since. The changes are a zlib stream of frames,
each a length (u32, big-endian) and a msgpack list of [name, block before | nil, block since | nil]: so neither side
needs room for more than one frame.

The entries are numbered without holes, and a number never comes back. The state at number N is the table as entry N
left it. An entry without changes says that they are not known: the table was made anew, the loader died before it could
write them, the disk was full. States on one side of such an entry cannot be told from the other side.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import msgspec

from loader.apex import is_apex, same_but_serial
from loader.sqlite_file import Format

FORMAT = Format(
    kind="history",
    application_id=0x53544E48,  # "STNH"
    version=1,
    schema="""
CREATE TABLE entries (number INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, revision INTEGER NOT NULL,
    why TEXT NOT NULL, note TEXT NOT NULL, known INTEGER NOT NULL, added INTEGER NOT NULL, removed INTEGER NOT NULL,
    changed INTEGER NOT NULL, some BLOB NOT NULL, size INTEGER NOT NULL, changes BLOB);
CREATE TABLE state (generation INTEGER NOT NULL, published_ns INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO state VALUES (-1, 0, 0);
""",
    cost="answers go on, but what changes meanwhile cannot be looked up or undone later",
)

#: Of a name: the block before and the block since; None: it is not in the table.
Change = tuple[bytes, bytes | None, bytes | None]

#: Changes in a frame: some 50 to 500 KB.
_FRAME = 1000
#: Names that an entry shows without its changes being read.
_SOME = 4
#: Level 1 takes a third of level 6's time for a fifth more bytes (blocks of addresses).
_LEVEL = 1
_LENGTH = struct.Struct(">I")
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Entry:
    """One publish. time_ns: CLOCK_REALTIME; revision: of the source, in the table; why: change, first, approve,
    rollback...; note: more about it, for people; known: its changes are kept. added, removed, changed count names, but
    not an apex of which only the serial moved; some: a few of them."""

    number: int
    time_ns: int
    revision: int
    why: str
    note: str
    known: bool
    added: int
    removed: int
    changed: int
    some: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The changes of an entry, as they are stored."""

    added: int
    removed: int
    changed: int
    some: tuple[bytes, ...]
    blob: bytes

    @property
    def empty(self) -> bool:
        return not self.blob


def encode(changes: Mapping[bytes, bytes | None], before: Iterable[bytes | None]) -> Encoded:
    """changes: name -> block since, in the order of `before`. What is the same before and since is left out.

    Comprehensions, not a loop that counts: a fifth of the time, which is the loader's.
    """
    found: list[Change] = [one for one in zip(changes, before, changes.values(), strict=True) if one[1] != one[2]]
    if not found:
        return Encoded(0, 0, 0, (), b"")
    came = [one for one in found if one[1] is None]
    went = [one for one in found if one[2] is None]
    moved = {name for name, old, new in found if is_apex(new) and serial_only(old, new)}
    some = tuple(islice((name for name, _, _ in found if name not in moved), _SOME))
    changed = len(found) - len(came) - len(went) - len(moved)
    return Encoded(len(came), len(went), changed, some, _packed(found))


def _packed(found: list[Change]) -> bytes:
    packer = zlib.compressobj(_LEVEL)
    parts = []
    for start in range(0, len(found), _FRAME):
        body = msgspec.msgpack.encode(found[start : start + _FRAME])
        parts += [packer.compress(_LENGTH.pack(len(body))), packer.compress(body)]
    return b"".join((*parts, packer.flush()))


def frames(blob: bytes) -> Iterator[bytes]:
    """The frames of a blob, undecoded. Raises ValueError if it is damaged."""
    unpacker = zlib.decompressobj()
    pending = bytearray()
    feed = blob
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(feed, _PIECE)
            feed = unpacker.unconsumed_tail
            if not piece and not feed and not unpacker.eof:
                raise ValueError("it ends too early")
            pending += piece
            while len(pending) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(pending)
                if len(pending) < _LENGTH.size + length:
                    break
                yield bytes(pending[_LENGTH.size : _LENGTH.size + length])
                del pending[: _LENGTH.size + length]
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if pending:
        raise ValueError("it ends within a frame")


def decode(frame: bytes) -> list[Change]:
    """The changes of a frame. Raises ValueError."""
    try:
        return msgspec.msgpack.decode(frame, type=list[Change])
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


def serial_only(before: bytes | None, since: bytes | None) -> bool:
    """Whether nothing but the serial of a zone's SOA is different: so every change beneath it shows at the apex."""
    return is_apex(before) and is_apex(since) and same_but_serial(before, since)
