"""`standoff approve`: publish a change that is held back."""

from __future__ import annotations

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff approve 3
  standoff approve --all
  standoff approve --all --rejected"""


@make_command("approve", epilog=EXAMPLES, short_help="Publish a change that is held back.")
@click.argument("change", type=click.IntRange(1), required=False, metavar="[CHANGE]")
@click.option("--all", "everything", is_flag=True, help="All that is held back.")
@click.option("--rejected", is_flag=True, help="A change that was rejected; with --all: all of them.")
@json_option
def command(settings: Settings, change: int | None, everything: bool, rejected: bool, as_json: bool) -> int:
    """Let a change through that the guard holds back, as the source has it now: CHANGE is its number in `standoff
    pending`. It is published with the next swap, and the serials of its zones grow. The command comes back when this
    is on disk, too.

    Exit status 0 also if --all finds nothing; 1 if there is no such change, 3 if no loader is running.
    """
    check(change, everything)
    return tell(settings, "approve", change, rejected=rejected, as_json=as_json)


def check(change: int | None, everything: bool) -> None:
    """Raises UsageError unless it is one of both."""
    if change is None and not everything:
        raise click.UsageError("give the number of a change, or --all")
    if change is not None and everything:
        raise click.UsageError(f"{change} is one change, --all is all of them: leave out one of both")


def tell(settings: Settings, command: str, change: int | None, *, rejected: bool, as_json: bool) -> int:
    """Tell the loader, and what has become of it."""
    from cli import deciding

    decided, unkept = deciding.decide(settings, command, change, rejected=rejected)
    if unkept:
        output.message(f"not on disk: {unkept}; after a restart of the loader look at `standoff pending` again")
    if as_json:
        output.json({"decided": decided})
        return Exit.DONE
    for one in decided:
        done = "is published" if command == "approve" else "is rejected: answers stay as they are"
        output.data(f"change {one.change} with {output.counted(one.names, 'name')} {done}")
    if not decided:
        output.message("nothing is rejected" if rejected else "nothing is held back")
    return Exit.DONE
