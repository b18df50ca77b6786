"""When the published table goes to disk as an image (loader/image.py).

A copy is made in the loader's loop, STEP by STEP, between two publishes: nobody else writes tables, so nothing needs
locking, and a change waits for 70 MB 0.04 s, once in image_interval. A thread writes the copy to disk.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import time
from pathlib import Path

from loader import image
from shm.tables import TableWriter

log = logging.getLogger(__name__)

#: Bytes copied between two looks at the event loop: half a millisecond.
STEP = 1 << 21


class Imager:
    """Keeps the image up to date. `keep` between publishes when `is_due`, `finish` at the end."""

    def __init__(self, path: Path, shaping: dict[str, int], interval_s: float) -> None:
        self._path = path
        self._shaping = shaping
        self._interval_s = interval_s
        self._copied = 0  # the live word of the table that was copied last
        self._due_at = 0.0  # monotonic; the first table is kept at once
        self._write: asyncio.Future[None] | None = None
        self.error = ""  # for people; empty if the last one went well

    def want(self) -> None:
        """The next table is kept at once, not when its time has come."""
        self._due_at = 0.0

    def is_due(self, live: int) -> bool:
        """Whether `keep` would do something: there is news (board.live), the time has come, the last one is written."""
        return self._write is None and live != self._copied and time.monotonic() >= self._due_at

    async def keep(self, writer: TableWriter, seen_ns: int) -> None:
        """Copy what is published; returns when it is copied. Nothing may be published meanwhile."""
        found = writer.live_bytes()
        if found is None:
            return
        live, table = found
        self._due_at = time.monotonic() + self._interval_s
        with table, table[: image.extent(table)] as used:
            try:
                # Private: pages of shared memory cost twice the time. Huge pages take from a quarter to three times.
                copy = mmap.mmap(-1, len(used), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                self._failed(error)
                return
            for start in range(0, len(used), STEP):
                copy[start : start + STEP] = used[start : start + STEP]
                await asyncio.sleep(0)
            about = len(table), writer.words.get("revision"), seen_ns, writer.words.get("published_ns")
        self._copied = live
        self._write = asyncio.ensure_future(self._write_beside(copy, *about))

    async def _write_beside(self, copy: mmap.mmap, size: int, revision: int, seen_ns: int, published_ns: int) -> None:
        try:
            with memoryview(copy) as view:
                await asyncio.to_thread(self._write_now, view, size, revision, seen_ns, published_ns)
        finally:
            self._write = None

    def _write_now(self, table: memoryview, size: int, revision: int, seen_ns: int, published_ns: int) -> None:
        try:
            image.write(self._path, table, self._shaping, size, revision, seen_ns, published_ns)
        except OSError as error:
            self._failed(error)
        else:
            if self.error:
                log.info("image %s is written again", self._path)
            self.error = ""

    def _failed(self, error: OSError) -> None:
        text = f"image {self._path} cannot be written: {error.strerror}; answers go on, a start would be slower"
        if text != self.error:
            log.error("%s", text)
        self.error = text
        self._copied = 0  # tried again when its time comes, whether something changes until then or not

    async def finish(self, writer: TableWriter, seen_ns: int) -> None:
        """Write what has changed since the last image. Nothing may be published any more."""
        while self._write is not None:
            await asyncio.wait([self._write])
        found = writer.live_bytes()
        if found is not None and found[0] != self._copied:
            with found[1] as table:
                revision, published_ns = writer.words.get("revision"), writer.words.get("published_ns")
                self._write_now(table[: image.extent(table)], len(table), revision, seen_ns, published_ns)
