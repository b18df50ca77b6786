"""`standoff check`: would it start? Everything at once, and nothing is changed."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from cli.checks import Remark

EXAMPLES = """\
Examples:
  standoff check --config /etc/standoff/standoff.toml
  standoff check load --source etcd://127.0.0.1:2379/names?schema=records --connect"""

#: Room for this many names is asked for when the sources do not tell how many there are.
UNKNOWN_NAMES = 10_000


@make_command("check", epilog=EXAMPLES, short_help="Would it start? Lists everything that is wrong.")
@click.argument("part", type=click.Choice(["run", "serve", "load"]), default="run", required=False, metavar="[PART]")
@click.option("--connect", is_flag=True, help="Ask etcd as well.")
@click.option("--strict", is_flag=True, help="Warnings count as problems.")
@json_option
def command(settings: Settings, part: str, connect: bool, strict: bool, as_json: bool) -> int:
    """Check the settings and what they name: sources, ports, folders, room in shared memory.

    PART is the command to check for: run (default), serve or load. All problems are listed at once; wrong settings
    come first and alone. Exit status 1 if there are any, as systemd's ExecStartPre= wants it; warnings do not count.
    """
    remarks = list(_look(settings, part, connect))
    problems = [remark for remark in remarks if remark.level == "problem" or (strict and remark.level == "warning")]
    if as_json:
        output.json({"ok": not problems, "remarks": [asdict(remark) for remark in remarks]})
    else:
        for remark in remarks:
            output.data(f"{remark.level:<8} {remark.what:<11} {remark.text}")
    if problems:
        output.message(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    return Exit.FAILED if problems else Exit.DONE


def _look(settings: Settings, part: str, connect: bool) -> list[Remark]:
    from cli import checks

    remarks = list(checks.variables(dict(os.environ)))
    if settings.config:
        remarks.append(checks.ok("settings", f"{settings.config} read"))
    names = UNKNOWN_NAMES
    if part != "serve":
        from cli.check_sources import SourceCheck

        sources = SourceCheck(settings)
        remarks += sources.remarks(connect)
        names = max(names, sources.names)
        remarks += checks.credentials(settings)
        remarks += checks.filters(settings)
        remarks += checks.state_dir(settings)
        remarks += checks.guard_hook(settings)
    if part != "load":
        remarks += checks.listen(settings)
        remarks += checks.tls(settings)
        remarks += checks.cookies(settings)
        remarks += checks.transfers(settings)
        remarks += checks.runtime_dir(settings)
    remarks += checks.shared_memory(settings, names)
    return remarks
