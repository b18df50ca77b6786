"""`standoff pending`: changes that are held back until somebody decides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from cli.deciding import Change, Pending

EXAMPLES = """\
Examples:
  standoff pending
  standoff pending --limit 20
  standoff pending --rejected
  standoff pending --json | jq -r '.changes[].reasons[]'"""


@make_command("pending", epilog=EXAMPLES, short_help="Changes that are held back until somebody decides.")
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Show at most so many names.",
)
@click.option("--rejected", is_flag=True, help="Those that were rejected, and still differ from the source.")
@json_option
def command(settings: Settings, limit: int, rejected: bool, as_json: bool) -> int:
    """Show what the guard holds back: why, since when, and for each name the records that answers would lose (-) and
    get (+). Answers stay as they are until `standoff approve` or `standoff reject`, or until the source takes the
    change back. While the table is pinned (`standoff rollback`), that difference is shown, too.

    Exit status 0 also if something is held; 3 if no loader is running.
    """
    from cli import deciding

    found = deciding.pending(settings, limit, rejected=rejected)
    if as_json:
        output.json(found)
    else:
        show(found, "rejected" if rejected else "held back")
    return Exit.DONE


def show(found: Pending, what: str) -> None:
    """For people: each change with its names."""
    for change in found.changes:
        output.data(title(change))
        for reason in change.reasons:
            output.data(f"  {reason}")
        for one in found.differences:
            if one.change == change.change:
                for sign, records in (("-", one.removed), ("+", one.added)):
                    for record in records:
                        output.data(f"  {sign} {one.name} {record}")
    if not found.changes:
        output.message(f"nothing is {what}")
    elif len(found.differences) < found.total:
        are = "is" if found.total == 1 else "are"
        output.message(f"{len(found.differences)} of {output.counted(found.total, 'name')} {are} shown (--limit)")
    for change in found.changes:
        if change.state == "pending":
            output.message(
                f"`standoff approve {change.change}` publishes it, `standoff reject {change.change}` keeps the answers"
            )
        elif change.state == "pinned":
            output.message("`standoff resume` follows the source again")


def title(change: Change) -> str:
    """One line about a change."""
    from cli.commands.status import ago

    then = f", in {change.left:.0f} s: {change.then}" if change.then else ""
    since = ago(max(0.0, time.time() - change.since))
    of = f"revision {change.revision}, {output.counted(change.names, 'name')}"
    return f"change {change.change}  {change.state} since {since}, {of}{then}"
