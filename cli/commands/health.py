"""`standoff health`: the targets of health checks, and an operator's word about them."""

from __future__ import annotations

import time

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff health
  standoff health set http://192.0.2.1:8080/up down
  standoff health set http://192.0.2.1:8080/up auto
  standoff health --json | jq -r '.targets[] | select(.state == "down").target'"""


@make_command("health", epilog=EXAMPLES, short_help="Targets of health checks; set one up or down.")
@click.argument("action", type=click.Choice(["set"]), required=False, metavar="[set")
@click.argument("target", required=False, metavar="TARGET")
@click.argument("state", type=click.Choice(["up", "down", "auto"]), required=False, metavar="up|down|auto]")
@json_option
def command(settings: Settings, action: str | None, target: str | None, state: str | None, as_json: bool) -> int:
    """List the targets of the health checks that values ask for: the state that answers go by, whether an operator has
    set it, since when, the last error, and the names that ask for the check.

    With `set TARGET up` or `down`, that is its state from now on, whatever the checks say; `auto` leaves it to them.
    TARGET is as listed, or a URL: then all targets with it. The word is kept in state_dir over restarts. If all
    addresses of a name are down, all are answered.

    Exit status 0 also if some are down; 1 if there is no such target, 3 if no loader is running.
    """
    if action is None:
        return show(settings, as_json)
    if target is None or state is None:
        raise click.UsageError("health set TARGET up|down|auto")
    from cli import asking

    done = asking.set_health(settings, target, state)
    if as_json:
        output.json(done)
        return Exit.DONE
    for one in done.targets:
        output.data(f"{one}  {state}")
    if not done.kept:
        output.message("it lasts until the loader ends: there is no state_dir that it can be written to")
    _tell_all_down(done.all_down)
    return Exit.DONE


def show(settings: Settings, as_json: bool) -> int:
    """The list."""
    from cli import asking

    targets, all_down = asking.health(settings)
    if as_json:
        output.json({"targets": targets, "all_down": all_down})
        return Exit.DONE
    now = time.time()
    for one in targets:
        forced = f", set by hand (checks say {one.checked})" if one.forced else ""
        least = "at least " if one.at_least else ""
        since = f" for {least}{_span(now - one.since)}" if one.since and not one.forced else ""
        error = f": {one.error}" if one.error else ""
        more = f" and {one.total - len(one.names)} more" if one.total > len(one.names) else ""
        output.data(f"{one.state:<7}  {one.target}{forced}{since}{error}  {' '.join(one.names)}{more}".rstrip())
    if not targets:
        output.message("no value asks for a health check")
    _tell_all_down(all_down)
    return Exit.DONE


def _tell_all_down(names: list[str]) -> None:
    for name in names:
        output.message(f"all targets of {name} are down: all are answered")


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
