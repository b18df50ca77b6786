"""How the loader starts: answers first. The image of the table is published before the modules of the sources are even
imported, which takes longer than the image does: nothing heavy is imported here.

From then on it is as after a restart with a live table: the first publish compares with it, and replaces it.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loader import image
from shm.board import Board
from shm.errors import StandoffError, TableDamaged
from shm.layout import LoaderState
from shm.segment import LockFile
from shm.tables import TableWriter

if TYPE_CHECKING:
    from loader.main import LoaderSettings
    from loader.publisher import ProgressBar

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What answers come from until the sources are loaded. seen_ns, published: see image.Description. lock: the
    writer's, held since, unless the caller of `publish_image` has it."""

    path: Path
    revision: int
    seen_ns: int
    published: tuple[int, int] = (0, 0)
    lock: LockFile | None = None

    def note(self) -> str:
        """For people."""
        age = f", {time.time() - self.seen_ns / 1e9:.0f} s old" if self.seen_ns else ""
        return f"answers come from the image of revision {self.revision}{age}, until the sources are loaded"


def load(settings: LoaderSettings, progress: ProgressBar | None = None) -> int:
    """Mirror the sources until told to stop; 0, or 1 with the reason in the log."""
    restored = restore(settings)
    from loader.main import load as go_on

    return go_on(settings, progress, restored)


def restore(settings: image.Settings) -> Restored | None:
    """Publish the image if nothing is published, and nobody else is about to. Whatever is wrong with it is logged."""
    path = image.path_of(settings)
    if path is None or not os.path.exists(path):  # Path.exists() raises where one may not look
        return None
    try:
        board = Board.create_or_attach(settings.instance)
        lock = LockFile(board.names.lock("writer"))
        restored = None
        try:
            if not board.live and lock.try_acquire():
                writer = TableWriter(board)
                try:
                    restored = publish_image(writer, settings)
                finally:
                    writer.close()
            return restored and replace(restored, lock=lock)
        finally:
            if restored is None:
                lock.release()
            board.close()
    except (StandoffError, OSError) as error:
        log.warning("image %s is not used: %s", path, error)
        return None


def publish_image(writer: TableWriter, settings: image.Settings) -> Restored | None:
    """For who holds the writer's lock while nothing is published. Whatever is wrong with the image is logged."""
    path = image.path_of(settings)
    if path is None:
        return None
    started = time.monotonic()
    try:
        with image.open_image(path, image.shaping_of(settings)) as kept:
            for pause in writer.restore(kept.description.size, kept.fill):
                time.sleep(pause)
            description = kept.description
    except FileNotFoundError:
        return None
    except (image.ImageDamaged, TableDamaged) as error:
        _set_aside(path, error)
        return None
    except (StandoffError, OSError) as error:  # of another version, of other settings, not readable, no memory
        log.warning("image %s is not used: %s", path, error)
        return None
    generation, published_ns = description.published
    restored = Restored(path, description.revision, description.seen_ns, (generation, published_ns))
    writer.words.set("loader_state", LoaderState.STALE)
    writer.words.set("source_seen_ns", restored.seen_ns)
    writer.note(restored.note())
    log.warning("%s (%d names, %.2f s)", restored.note(), description.names, time.monotonic() - started)
    return restored


def _set_aside(path: Path, why: Exception) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    log.error("image %s cannot be used (%s): kept as %s; going on without", path, why, aside.name)
    with suppress(OSError):
        path.replace(aside)
