"""`standoff resume`: follow the source again after a rollback."""

from __future__ import annotations

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff pending      what waits to be published
  standoff resume"""


@make_command("resume", epilog=EXAMPLES, short_help="Follow the source again after a rollback.")
@json_option
def command(settings: Settings, as_json: bool) -> int:
    """End what `standoff rollback` began: publish what the source says now, with serials that grow. It is published as
    it is; the guard does not judge it. `standoff pending` shows it before.

    Exit status 1 if the table is not pinned, 3 if no loader is running.
    """
    from cli.commands.rollback import carry_out

    names = carry_out(settings, "resume").names
    if as_json:
        output.json({"names": names})
    else:
        output.message(f"{names} {'name follows' if names == 1 else 'names follow'} the source again")
    return Exit.DONE
