"""`standoff lookup`: what the table in shared memory says about a name."""

from __future__ import annotations

from typing import Any

import click

from cli import output
from cli.finding import Finding, Kind, resolve
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff lookup www.example.test
  standoff lookup _http._tcp.example.test SRV
  standoff lookup example.test ANY --json
  standoff lookup www.example.test A --at 10m"""


@make_command("lookup", epilog=EXAMPLES, short_help="What the table holds for a name, and why it is the answer.")
@click.argument("name", metavar="NAME")
@click.argument("type", default="A", required=False, metavar="[TYPE]")
@click.option(
    "--at",
    metavar="STATE",
    help="As it was then: a revision, n12 for entry 12 of `standoff history`, a time as 10m (ago) or 2026-01-31T12:00.",
)
@json_option
def command(settings: Settings, name: str, type: str, at: str | None, as_json: bool) -> int:
    """Look NAME up in the table in shared memory, not over the network. TYPE is a record type, ANY for all; default A.
    With --at, look into an earlier state of it, which the loader's history tells.

    Prints records as a zone file has them, and on stderr where they come from: the zone, a wildcard, a delegation, or
    why there are none. Exit status 1 if there are none.
    """
    from cli import presentation

    try:
        wire, number = presentation.parse_name(name), presentation.parse_type(type)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if at is None:
        finding, generation, revision = _look(settings.instance, wire, number)
        about: dict[str, Any] = {"generation": generation, "revision": revision}
        where = f"generation {generation}, revision {revision}"
    else:
        finding, about, where = _look_back(settings, wire, number, at)
    described = describe(finding, wire)
    if as_json:
        output.json(described | {"type": presentation.type_text(number)} | about)
    else:
        for record in described["records"]:
            output.data("{name} {ttl} IN {type} {data}".format(**record))
        parts = [described["kind"], described["why"], described["zone"] and f"zone {described['zone']}"]
        output.message(", ".join(part for part in parts if part) + f" ({where})")
    return Exit.DONE if finding.rrsets else Exit.FAILED


def describe(finding: Finding, name: bytes) -> dict[str, Any]:
    """The finding in text form. Records made from a wildcard carry the name that was asked for."""
    from cli import presentation

    owner = name if finding.kind is Kind.WILDCARD else finding.owner
    found = [
        {
            "name": presentation.name_text(owner or name),
            "ttl": ttl,
            "type": presentation.type_text(rrset.type),
            "data": text,
        }
        for rrset in finding.rrsets
        for ttl, text in presentation.records(rrset)
    ]
    return {
        "name": presentation.name_text(name),
        "kind": finding.kind.value,
        "why": finding.why,
        "zone": finding.zone and presentation.name_text(finding.zone),
        "owner": finding.owner and presentation.name_text(finding.owner),
        "records": found,
    }


def _look(instance: str, name: bytes, type: int) -> tuple[Finding, int, int]:
    from cli.presentation import name_text
    from shm.board import Board
    from shm.reading import TableObserver

    board = Board.attach(instance)
    observer = TableObserver(board)
    try:
        result: tuple[Finding, int, int] = observer.look(
            lambda table: (resolve(table.find, name, type, name_text), table.generation, table.revision)
        )
        return result
    finally:
        observer.close()
        board.close()


def _look_back(settings: Settings, name: bytes, type: int, at: str) -> tuple[Finding, dict[str, Any], str]:
    """The same in an earlier state, and which that is. Raises NotKnown."""
    from cli import past as cli_past
    from cli.presentation import name_text
    from loader.past import settled

    asked = cli_past.needed(name)
    path = cli_past.find_history(settings)
    now, generation, revision = cli_past.live_blocks(settings, asked)  # before the history: see Past.blocks_at
    with settled(path, generation, revision) as past:
        number = cli_past.point(past, at)
        blocks, missing = past.blocks_at(number, asked, now)
        told = {"state": cli_past.state_told(past, number)}
        where = f"as of {cli_past.state_text(past, number)}"
    return resolve(cli_past.Then(blocks, missing).find, name, type, name_text), told, where
