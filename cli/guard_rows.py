"""The guard's rows of the table of settings (cli/settings.py)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cli import values
from cli.rows import GUARD, LOADING, row
from cli.serving_rows import Serving


class Guarding(Serving, frozen=True, kw_only=True):
    """What is held back until somebody decides (docs/guard.md)."""

    guard: Annotated[
        Literal["on", "off"],
        row(
            "Hold back changes that would lose many names, empty a zone or lose a canary, and all differences after "
            "the source went back, until `standoff approve` or `standoff reject`.",
            GUARD, LOADING,
        ),
    ] = "on"  # fmt: skip
    guard_removed: Annotated[
        float,
        row("Share of all names that may be lost within guard_window.", GUARD, LOADING, ge=0, le=1),
    ] = 0.3
    guard_floor: Annotated[
        int,
        row(
            "Fewer lost names than this are never too many, whatever their share, nor is a smaller zone that is "
            "emptied.",
            GUARD, LOADING, unit="names", ge=1, le=1000000000,
        ),
    ] = 100  # fmt: skip
    guard_window: Annotated[
        float,
        row("Names that are lost within this time count together.", GUARD, LOADING, unit="seconds", ge=0, le=86400),
    ] = 60.0
    guard_last_address: Annotated[
        Literal["on", "off"],
        row("Hold back what takes the last address from a name that keeps other records.", GUARD, LOADING),
    ] = "off"
    guard_canary: Annotated[
        list[str],
        row(
            "What must go on being answered: NAME TYPE, or NAME TYPE DATA if it is about one record.",
            GUARD, LOADING, form=values.CANARY,
        ),
    ] = msgspec.field(default_factory=list)  # fmt: skip
    guard_order: Annotated[
        Literal["flow", "strict"],
        row("While a change is held, later ones to other names flow, or wait as well.", GUARD, LOADING),
    ] = "flow"
    guard_hold_for: Annotated[
        float,
        row(
            "A held change that nobody decides on for so long is decided as guard_then says; 0: it waits for ever.",
            GUARD, LOADING, unit="seconds", ge=0, le=31536000,
        ),
    ] = 0.0  # fmt: skip
    guard_then: Annotated[
        Literal["approve", "reject"],
        row("What becomes of a change after guard_hold_for.", GUARD, LOADING),
    ] = "reject"
    guard_hook: Annotated[
        str,
        row(
            "Command that gets a held change as JSON on its standard input and decides within 10 s: exit status 0 "
            "approves, 1 rejects, any other leaves it to a person. It is split as by a shell, but run without one.",
            GUARD, LOADING, form=values.TEXT,
        ),
    ] = ""  # fmt: skip
