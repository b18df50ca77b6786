"""`standoff scale`: change the number of workers while the server runs."""

from __future__ import annotations

import click

from cli import control, output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.serving_rows import MAX_WORKERS
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff scale 4"""


@make_command("scale", epilog=EXAMPLES, short_help="Change the number of workers of a running server.")
@click.argument("workers", type=click.IntRange(1, MAX_WORKERS), metavar="N")
@json_option
def command(settings: Settings, workers: int, as_json: bool) -> int:
    """Tell a running server to have N workers, 1 to 60. It lasts until the server is restarted.

    Workers that are too many stop after they have finished what they had begun: no query is lost.
    """
    reply, everything = control.ask(control.find_socket(settings), "scale", {"workers": workers})
    if as_json:
        output.json(everything)
    elif reply.ok:
        output.data(reply.message)
    if not reply.ok:
        output.message(reply.message)
    return Exit.DONE if reply.ok else Exit.FAILED
