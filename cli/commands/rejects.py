"""`standoff rejects`: the keys that give nothing, and why."""

from __future__ import annotations

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff rejects
  standoff rejects --limit 10
  standoff rejects --json | jq -r '.rejects[].key'"""


@make_command("rejects", epilog=EXAMPLES, short_help="The keys that give nothing, and why.")
@click.option(
    "--limit", "-n", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="List at most so many."
)
@json_option
def command(settings: Settings, limit: int, as_json: bool) -> int:
    """List every key that gives nothing, or not all that it says: the key, the revision of its last change
    (mod_revision), and the reason. The loader is asked; the list is a second old at most.

    The metric standoff_source_rejects counts them. Exit status 0 also if there are some; 3 if no loader is running.
    """
    from cli import asking

    found = asking.rejects(settings, limit)
    if as_json:
        output.json(found)
        return Exit.DONE
    for one in found.rejects:
        source = f" (source {one.source})" if one.source else ""
        output.line(f"{one.key}{source}  {one.revision}  {one.reason}")
    if not found.total:
        output.message("no key is rejected")
    elif len(found.rejects) < found.total:
        output.message(f"{len(found.rejects)} of {found.total} rejected keys (--limit)")
    return Exit.DONE
