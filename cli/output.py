"""What commands print, and their exit status: data on stdout, messages on stderr."""

from __future__ import annotations

import enum
import os
import re
import sys
from typing import Any

import click
import msgspec

#: What steers a terminal, but for line ends, tabs and the colours that we give: it may come from a key in etcd.
_CONTROLS = re.compile(r"(?!\x1b\[(?:[012]|[39][0-7])m)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Exit(enum.IntEnum):
    """Exit status of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3


def data(text: str) -> None:
    """A line of what was asked for."""
    click.echo(harmless(text))


def line(text: str) -> None:
    """The same, of one line whatever is in the text."""
    data(text.replace("\n", "\\n"))


def harmless(text: str) -> str:
    """With control characters written as in Python."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def json(value: Any) -> None:
    """What was asked for, as one JSON value on one line."""
    click.echo(msgspec.json.encode(value))


def abandon() -> None:
    """Nothing more can be written to stdout: what is left in its buffer must not fail at the interpreter's end, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def counted(number: int, one: str) -> str:
    """ "1 name", "2 names"."""
    return f"{number} {one}" + "s" * (number != 1)


def message(text: str) -> None:
    """A line about the work itself."""
    click.echo(f"standoff: {harmless(text)}", err=True)
