"""Where tools find the history of an instance, and what they need of the live table beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import output
from cli.finding import WILDCARD, suffixes
from cli.presentation import name_text
from cli.settings import STATE_FOLDER, Settings
from loader.apex import is_apex
from loader.history import path_of
from loader.past import NotKnown
from shm.errors import NotRunning, StandoffError

if TYPE_CHECKING:
    from loader.history_format import Entry
    from loader.past import Past


class NoHistory(NotRunning):
    """The loader keeps none, or none that we may see."""


def find_history(settings: Settings) -> Path:
    """The history's file. A tool's user may have another state_dir by default than the loader: that is asked, too.
    Raises NoHistory if there is none."""
    from cli import asking

    places = [path_of(folder, settings.instance) for folder in (settings.state_dir, STATE_FOLDER) if folder is not None]
    for path in places:
        if os.path.exists(path):  # Path.exists() raises where one may not look
            return path
    without = ""
    with suppress(StandoffError):
        told = asking.request(settings, "status")
        if told.get("history"):
            return Path(told["history"])
        without = "it has no state_dir" if told.get("state_dir") == "" else "history = 0 in its settings"
    if without:
        raise NoHistory(f"the loader keeps no history: {without}")
    looked = " or ".join(map(str, dict.fromkeys(places)))
    raise NoHistory(f"there is no history at {looked} that you can see: name the loader's folder with --state-dir")


def open_history(settings: Settings) -> Past:
    """The history, with what is published now in it if that can be. Raises NotRunning, HistoryError."""
    from loader.past import settled
    from shm.board import Board

    path = find_history(settings)
    generation = revision = 0
    with suppress(NotRunning):
        board = Board.attach(settings.instance)
        generation, revision = board.live >> 1, board.loader.get("revision")
        board.close()
    past = settled(path, generation, revision)
    if past.behind:
        output.message("the last changes are not in the history: is the loader alive, and its disk full?")
    return past


def point(past: Past, text: str) -> int:
    """The number of the state that people mean. Raises UsageError, NotKnown."""
    try:
        return past.point(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def live_blocks(settings: Settings, names: Collection[bytes]) -> tuple[dict[bytes, bytes | None] | None, int, int]:
    """The blocks of names in the live table, its generation and its revision; None if there is no table."""
    from shm.board import Board
    from shm.reading import TableObserver

    try:
        board = Board.attach(settings.instance)
    except NotRunning:
        return None, 0, 0
    observer = TableObserver(board)
    try:
        found: tuple[dict[bytes, bytes | None], int, int] = observer.look(
            lambda table: ({name: table.find(name) for name in names}, table.generation, table.revision)
        )
        return found
    except NotRunning:
        return None, 0, 0
    finally:
        observer.close()
        board.close()


def needed(name: bytes) -> list[bytes]:
    """The names that decide how a name is answered: its ancestors, and their wildcards."""
    found = suffixes(name)
    return found + [WILDCARD + one for one in found]


class Then:
    """A table of the past, as far as it can be told. missing: why not all can; empty if all can."""

    def __init__(self, blocks: Mapping[bytes, bytes | None], missing: str) -> None:
        self._blocks = blocks
        self._missing = missing
        self._apex = max((name for name, block in blocks.items() if is_apex(block)), key=len, default=b"")

    def find(self, name: bytes) -> bytes | None:
        """The node block of a name. Raises NotKnown."""
        if name in self._blocks or not self._missing:
            return self._blocks.get(name)
        if self._apex.endswith(name):
            return None  # above the zone: it does not count
        raise NotKnown(f"{name_text(name)} then: {self._missing}")


def clock(time_ns: int) -> str:
    """Local time, for people."""
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def state_text(past: Past, number: int) -> str:
    """A state, for people."""
    entry = past.entry(number)
    if entry is None:
        return f"n{number}, before n{number + 1}"
    return f"n{number}  revision {entry.revision}  {clock(entry.time_ns)}"


def state_told(past: Past, number: int) -> dict[str, Any]:
    """A state, for JSON."""
    entry = past.entry(number)
    return {"number": number} if entry is None else entry_told(entry)


def entry_told(entry: Entry) -> dict[str, Any]:
    """An entry, for JSON."""
    when = datetime.fromtimestamp(entry.time_ns / 1e9).astimezone().isoformat(timespec="milliseconds")
    return {
        "number": entry.number, "time": when, "revision": entry.revision, "why": entry.why, "note": entry.note,
        "known": entry.known, "added": entry.added, "removed": entry.removed, "changed": entry.changed,
        "names": [name_text(name) for name in entry.some],
    }  # fmt: skip


def since(past: Past, text: str) -> tuple[int, int]:
    """(number, nanoseconds since the epoch): what people mean is after the one and not before the other. A state stands
    for what came after it, a time (loader/past.py: moment) may be before the history. Raises UsageError, NotKnown."""
    from loader.past import moment

    if not text.isdecimal():
        with suppress(ValueError):
            return 0, int(moment(text, time.time()) * 1e9)
    return point(past, text), 0
