"""What commands print, and their exit status: data on stdout, messages on stderr."""

from __future__ import annotations

import enum
from typing import Any

import click
import msgspec


class Exit(enum.IntEnum):
    """Exit status of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3


def data(text: str) -> None:
    """A line of what was asked for."""
    click.echo(text)


def json(value: Any) -> None:
    """What was asked for, as one JSON value on one line."""
    click.echo(msgspec.json.encode(value))


def message(text: str) -> None:
    """A line about the work itself."""
    click.echo(f"standoff: {text}", err=True)
