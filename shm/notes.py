"""The loader's note on the board: a line for each thing that people should know.

Both sides of it in one place: the loader puts lines together, `standoff status` sorts them again.
"""

from __future__ import annotations

from collections.abc import Iterable

#: What a line about a source begins with.
_SOURCE = "source "
#: ... and one about a file in state_dir.
_STATE = "state: "


def of_source(url: str, error: str) -> str:
    """The line about a source that has an error."""
    return f"{_SOURCE}{url}: {error}"


def of_state(error: str) -> str:
    """The line about a file that cannot be written."""
    return f"{_STATE}{error}"


def join(lines: Iterable[str]) -> str:
    """The note; empty lines are left out, and a line stays one."""
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def of_sources(note: str) -> list[str]:
    """URL and error of each source that has one."""
    return [line.removeprefix(_SOURCE) for line in note.splitlines() if line.startswith(_SOURCE)]


def of_states(note: str) -> list[str]:
    """What is wrong with each file that cannot be written."""
    return [line.removeprefix(_STATE) for line in note.splitlines() if line.startswith(_STATE)]


def others(note: str) -> list[str]:
    """The lines that are not about a source."""
    return [line for line in note.splitlines() if not line.startswith(_SOURCE)]


def about(note: str, words: str) -> str:
    """The first line that is not about a source and has these words in it; empty if none has."""
    return next((line for line in others(note) if words in line), "")
