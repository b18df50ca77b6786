"""`standoff reject`: refuse a change that is held back."""

from __future__ import annotations

import click

from cli.options import command as make_command
from cli.options import json_option
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff reject 3
  standoff reject --all
  standoff pending --rejected"""


@make_command("reject", epilog=EXAMPLES, short_help="Refuse a change that is held back.")
@click.argument("change", type=click.IntRange(1), required=False, metavar="[CHANGE]")
@click.option("--all", "everything", is_flag=True, help="All that is held back.")
@json_option
def command(settings: Settings, change: int | None, everything: bool, as_json: bool) -> int:
    """Refuse a change that the guard holds back: its names keep their answers, against the source's word. CHANGE is its
    number in `standoff pending`. A name follows the source again as soon as that changes it once more; `standoff
    approve --rejected` lets the change in after all. `standoff status` tells of it until then. The command comes back
    when this is on disk: a loader that starts anew goes by it.

    Exit status 0 also if --all finds nothing; 1 if there is no such change, 3 if no loader is running.
    """
    from cli.commands.approve import check, tell

    check(change, everything)
    return tell(settings, "reject", change, rejected=False, as_json=as_json)
