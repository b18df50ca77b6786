"""Sources of files that are not there when a loader is to be started: a slip of the pen, more often than not."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from cli.settings import Settings
from shm.errors import NotRunning, StandoffError

FILE = "file:"
ETCD = "etcd"


class SourceMissing(StandoffError):
    """A file or folder that a source names does not exist."""


class SourceWrong(StandoffError):
    """No loader can make anything of a source's URL."""


def running_instances() -> list[str]:
    """Those whose loader or server lives, as far as we may see."""
    from shm.segment import SHM_FOLDER, Names, is_held

    found: list[str] = []
    for path in sorted(SHM_FOLDER.glob("standoff.*.control")):
        with suppress(OSError, StandoffError):
            names = Names(path.name.split(".")[1])
            if any(is_held(names.lock(what)) for what in ("writer", "supervisor")):
                found.append(names.instance)
    return found


def need_right_urls(settings: Settings) -> None:
    """Raises SourceWrong if an etcd URL is wrong, or lacks what goes with it, before anything is started for it. With
    something to answer from, as above, that is left to the loader: answers go on."""
    urls = [source for source in settings.source if source.startswith(ETCD)]
    if not urls or _has_past(settings):
        return
    from loader import etcd_url

    problems: list[str] = []
    for url in urls:
        try:
            if etcd_url.parse(url).schema == "skydns" and not settings.zone:
                problems.append(f"{url}: schema skydns does not tell zones; give them with --zone")
        except etcd_url.EtcdUrlError as error:
            problems.append(str(error))
    if problems:
        raise SourceWrong("; ".join(problems))


def need_files(settings: Settings) -> None:
    """Raises SourceMissing if a file or folder of the sources is not there, and nothing can be answered until it is.

    With an image or a live table from before, answers go on from that: then it is waited for, as `missing = "wait"`
    would have it.
    """
    if settings.missing == "wait" or _has_past(settings):
        return
    paths = [Path(source.removeprefix(FILE)) for source in settings.source if source.startswith(FILE)]
    problems = [f"source {FILE}{path}: {_describe(path)}" for path in paths if not os.path.exists(path)]
    if problems:
        raise SourceMissing("; ".join(problems) + " (--missing wait starts without, and waits)")


def _has_past(settings: Settings) -> bool:
    from loader import image
    from shm.board import Board

    kept = image.path_of(settings)
    if kept is not None and os.path.exists(kept):  # Path.exists() raises where one may not look
        return True
    try:
        board = Board.attach(settings.instance)
    except NotRunning:
        return False
    except StandoffError:  # the loader will say what is wrong with it
        return True
    live = board.live
    board.close()
    return live != 0


def _describe(path: Path) -> str:
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        return f"there is no folder {folder}, or none that we may see"
    if not os.access(folder, os.R_OK | os.X_OK):
        return f"we may not look into {folder}"
    alike = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], 1)
    return f"there is no such file or folder in {folder}" + (f"; did you mean {alike[0]}?" if alike else "")
