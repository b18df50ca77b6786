"""`standoff rollback`: back to an earlier state of the table, and stay there."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff history                    what was published when: n12 was wrong
  standoff rollback n11 --dry-run     what going back to n11 would change
  standoff rollback n11               answer as before n12, until `standoff resume`
  standoff rollback now --yes         stay as it is: nothing that changes in etcd is published"""

#: Lines of the difference that are shown before the question.
MOST_LINES = 40
#: How long the loader may take, in seconds: it reads the history, and publishes.
PATIENCE_S = 300.0
_POLL_S = 0.02
#: After that many seconds it is said that there is something to wait for.
_SILENCE_S = 3.0


@make_command("rollback", epilog=EXAMPLES, short_help="Back to an earlier state of all names, and stay there.")
@click.argument("state", metavar="STATE")
@click.option("--dry-run", "-n", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def command(settings: Settings, state: str, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Answer as in an earlier state of the table, at once, and stay there: what the source changes from then on is
    taken in, but not published until `standoff resume`. `standoff status` says so all the time, `standoff pending`
    shows what waits. Serials grow, so secondaries follow, too; a restart of the loader changes nothing.

    STATE is a revision of the source, n12 for entry 12 of `standoff history`, a time as 10m (ago) or 2026-01-31T12:00,
    or now. The difference is shown first; without a terminal, --yes is needed.

    Exit status 1 if the history does not reach back so far, or something between is missing; 3 if no loader is running.
    """
    from cli import differing
    from cli import past as cli_past

    with cli_past.open_history(settings) as past:
        number = cli_past.point(past, state)
        blocks = past.between(past.last, number)
        title, told = cli_past.state_text(past, number), cli_past.state_told(past, number)
    tally = differing.Tally()
    found = list(tally(differing.differences(blocks)))
    if not as_json:
        output.data(f"back to {title}")
        differing.show(found, None if dry_run else MOST_LINES)
        output.message(str(tally))
    if not dry_run:
        _ask(yes, "Answer like this, and publish nothing else until `standoff resume`?")
        names = carry_out(settings, "rollback", to=number).names
    if as_json:
        about: dict[str, Any] = {"to": told, "done": not dry_run, "names": [one.told() for one in found]}
        output.json(about if dry_run else about | {"held": names})
    elif not dry_run:
        output.message(
            f"pinned at {title.replace('  ', ', ')}: {output.counted(names, 'name')} "
            f"{'differs' if names == 1 else 'differ'} from the source until `standoff resume`"
        )
    return Exit.DONE


@dataclass(frozen=True, slots=True)
class Done:
    """names: that differ from the source now (rollback), or follow it again (resume)."""

    names: int


def carry_out(settings: Settings, what: str, **arguments: Any) -> Done:
    """Have the loader do it, and wait until readers have it. Raises NotRunning, ControlFailed."""
    from cli.asking import request
    from cli.control import ControlFailed, NoReply

    request(settings, what, **arguments)
    begun, told_so = time.monotonic(), False
    while True:
        told: dict[str, Any] = {}
        with suppress(NoReply):  # a million names keep it busy for some seconds
            told = request(settings, "deed")
        state = told.get("state")
        if state == "failed":
            raise ControlFailed(f"the loader says: {told['said']}")
        if state == "done":
            return Done(told["names"])
        if state == "idle":
            raise ControlFailed("the loader was replaced meanwhile; `standoff status` tells how it is now")
        took = time.monotonic() - begun
        if took > PATIENCE_S:
            raise ControlFailed(f"the loader is still at it after {PATIENCE_S:g} s; `standoff status` tells more")
        if took > _SILENCE_S and not told_so:
            told_so = True
            output.message("the loader is at work: a million names take a minute")
        time.sleep(_POLL_S)


def _ask(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask: give --yes")
    click.confirm(question, abort=True, err=True)
