"""`standoff diff`: what differs between two states of the table, as records."""

from __future__ import annotations

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff diff 1041                  what has changed since revision 1041
  standoff diff n11 n12               what entry 12 of `standoff history` changed
  standoff diff 1h | grep '^-'        what is gone since an hour ago
  standoff diff 1041 1055 --json | jq '.names[].name'"""


@make_command("diff", epilog=EXAMPLES, short_help="What differs between two states, as records.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", default="now", required=False)
@click.option("--all", "everything", is_flag=True, help="Also zones of which only the SOA's serial moved.")
@json_option
def command(settings: Settings, a: str, b: str, everything: bool, as_json: bool) -> int:
    """Show the records that are in only one of two states of the table: - those of A, + those of B (default: now),
    sorted by name.

    A state is a revision of the source (the table as it was published with it), n12 for entry 12 of `standoff history`,
    a time as 10m (ago) or 2026-01-31T12:00, or now. Works without a loader, too. Exit status 1 if the history does not
    tell it, because it does not reach back, or something between is missing.
    """
    from cli import differing
    from cli import past as cli_past

    with cli_past.open_history(settings) as past:
        start, end = (cli_past.point(past, text) for text in (a, b))
        blocks = past.between(start, end)
        titles = [cli_past.state_text(past, number) for number in (start, end)]
        told = [cli_past.state_told(past, number) for number in (start, end)]
    tally = differing.Tally()
    found = tally(differing.differences(blocks, everything))
    if as_json:
        names = [one.told() for one in found]
        counts = dict(zip(("added", "removed", "changed"), tally.counts.values(), strict=True))
        output.json({"from": told[0], "to": told[1], **counts, "names": names})
        return Exit.DONE
    output.data(f"--- {titles[0]}")
    output.data(f"+++ {titles[1]}")
    differing.show(found)
    output.message(str(tally))
    return Exit.DONE
