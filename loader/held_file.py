"""What is held, on disk (INSTANCE.held), so that it is held on after a restart of the loader.

    magic and version (8 octets), CRC-32 of what follows (u32, big-endian), a msgpack map (loader/takeover.py: Saved)

The file is replaced as a whole: a power cut leaves the old one or the new one. Names and digests are in it, no blocks:
what readers had is in the table, or in its image. Bounds of serials are in it as well (loader/reserve.py).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Protocol

import msgspec

from loader.takeover import Saved

MAGIC = b"STNDHLD1"


class Settings(Protocol):
    """What is needed of the settings."""

    @property
    def instance(self) -> str: ...
    @property
    def state_dir(self) -> Path | None: ...


class HeldDamaged(ValueError):
    """The file is none of these, or not whole. The message is for people."""


def path_of(settings: Settings) -> Path | None:
    """Where it is kept; None: nowhere."""
    return None if settings.state_dir is None else settings.state_dir / f"{settings.instance}.held"


def write(path: Path, saved: Saved) -> None:
    """Raises OSError; then the one before is still there."""
    body = msgspec.msgpack.encode(saved)
    unfinished = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(unfinished, "wb", opener=lambda name, flags: os.open(name, flags, 0o640)) as file:
        file.write(MAGIC + zlib.crc32(body).to_bytes(4, "big") + body)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> Saved | None:
    """None if there is no file. Raises OSError, HeldDamaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    body = content[12:]
    if content[:8] != MAGIC or content[8:12] != zlib.crc32(body).to_bytes(4, "big"):
        raise HeldDamaged("it is damaged, or of another version")
    try:
        return msgspec.msgpack.decode(body, type=Saved)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise HeldDamaged(str(error)) from error
