"""`standoff explain`: which keys gave an answer, by which rules, and what each worker answers from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from cli.asking import Reject
    from cli.explaining import Explanation
    from cli.finding import Finding
    from cli.view import Status

EXAMPLES = """\
Examples:
  standoff explain www.example.test
  standoff explain _http._tcp.example.test SRV
  standoff explain www.example.test A --json | jq '.steps[].records[].keys'"""


#: Of a name: what is said of one key is said of its neighbours, too. All of them are in the JSON.
MOST_WARNINGS = 5


@make_command("explain", epilog=EXAMPLES, short_help="Which keys gave an answer, and by which rules.")
@click.argument("name", metavar="NAME")
@click.argument("type", default="A", required=False, metavar="[TYPE]")
@json_option
def command(settings: Settings, name: str, type: str, as_json: bool) -> int:
    """Tell where the answer to NAME and TYPE (default A) comes from: the way through zones, wildcards, aliases and
    delegations; the key and its revision (mod_revision) behind each record; what was rejected, changed or held
    back there; the generation that each worker answers from; and the answer that a worker would send.

    The table in shared memory tells the answer, the loader tells the keys. Without a loader the keys are missing, and a
    line says so. Exit status 1 if there are no such records.
    """
    from cli import explaining, presentation, view
    from shm.board import Board

    try:
        wire, number = presentation.parse_name(name), presentation.parse_type(type)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    made = explaining.explain(settings, wire, number)
    board = Board.attach(settings.instance)
    status = view.collect(board)
    board.close()
    if as_json:
        output.json(as_data(made, status))
    else:
        show(made, status)
    return Exit.DONE if any(found.rrsets for _, found in made.steps) else Exit.FAILED


def show(made: Explanation, status: Status) -> None:
    """For people."""
    from cli import explaining
    from cli.presentation import name_text

    output.data(f"{explaining.title(made)}  (generation {made.generation}, revision {made.revision})")
    for name, found in made.steps:
        _show_step(made, name, found)
    said = [one for told in made.told.values() for one in (*told.problems, *told.warnings[:MOST_WARNINGS])]
    _show_rejects("rejected or changed", said)
    if any(len(told.warnings) > MOST_WARNINGS for told in made.told.values()):
        output.data("  and more that were changed")
    for name, told in sorted(made.told.items()):
        if told.held:
            output.data(f"{name_text(name)} does not follow the source: {told.held}")
    taken = [one for told in made.told.values() for one in told.taken]
    if taken:
        output.data("taken away by filters")
    for one in taken:
        output.line(f"  {one.text} of {one.key}: {one.filter}{f', {one.why}' if one.why else ''}")
    for name, told in sorted(made.told.items()):
        if told.all_down:
            types = " and ".join(told.all_down)
            output.data(f"all targets of {name_text(name)} {types} are down: all are answered")
    _show_rejects("rejected keys that look as if they were about these names", made.nearby)
    output.data("workers")
    for worker in status.workers:
        behind = "" if worker.generation >= status.generation else f", behind: {status.generation} is live"
        output.data(f"  {worker.title}: generation {worker.generation}, revision {worker.revision}{behind}")
    if not status.workers:
        output.data("  none is alive: nobody answers")
    _show_reply(explaining.reply_told(made.reply))
    if made.missing:
        output.message(made.missing)
    elif not made.searched_all:
        output.message("only some of the rejected keys were looked through: there are very many (standoff rejects)")


def _show_step(made: Explanation, name: bytes, found: Finding) -> None:
    from cli import explaining
    from cli.presentation import name_text, type_text

    zone = f", zone {name_text(found.zone)}" if found.zone else ""
    why = f": {found.why}" if found.why else ""
    output.data(f"{name_text(name)}  {found.kind.value}{zone}{why}")
    for rrset in found.rrsets:
        for ttl, text, givers in explaining.origins(made, found.owner, rrset):
            output.data(f"  {ttl} IN {type_text(rrset.type)} {text}")
            for given in givers:
                source = f" of source {given.source}" if given.source else ""
                output.line(f"      {given.key} at revision {given.revision}{source}")
            if not givers and not made.missing:
                output.data(f"      {explaining.made_note(rrset.type, made.told.get(found.owner or b''))}")


def _show_rejects(title: str, found: list[Reject]) -> None:
    if found:
        output.data(title)
    for one in found:
        output.line(f"  {one.key} at revision {one.revision}: {one.reason}")


def _show_reply(reply: dict[str, Any]) -> None:
    output.data(f"a worker would send {reply['size']} bytes: {reply['rcode']} {reply['flags']}".rstrip())
    for section in ("answer", "authority", "additional"):
        for line in reply[section]:
            output.data(f"  {section:<10}  {line}")


def as_data(made: Explanation, status: Status) -> dict[str, Any]:
    """For JSON."""
    from cli import explaining
    from cli.presentation import name_text, type_text

    steps = []
    for name, found in made.steps:
        records = [
            {
                "type": type_text(rrset.type), "ttl": ttl, "data": text,
                "keys": [{"key": one.key, "source": one.source, "mod_revision": one.revision} for one in givers],
            }
            for rrset in found.rrsets
            for ttl, text, givers in explaining.origins(made, found.owner, rrset)
        ]  # fmt: skip
        steps.append(
            {
                "name": name_text(name), "kind": found.kind.value, "why": found.why,
                "zone": found.zone and name_text(found.zone), "owner": found.owner and name_text(found.owner),
                "records": records,
            }
        )  # fmt: skip
    return {
        "name": name_text(made.name),
        "type": type_text(made.type),
        "generation": made.generation,
        "revision": made.revision,
        "steps": steps,
        "rejects": [one for told in made.told.values() for one in told.problems],
        "warnings": [one for told in made.told.values() for one in told.warnings],
        "held": {name_text(name): told.held for name, told in made.told.items() if told.held},
        "taken": [
            {"filter": one.filter, "key": one.key, "record": one.text, "why": one.why}
            for told in made.told.values()
            for one in told.taken
        ],
        "all_down": {name_text(name): told.all_down for name, told in made.told.items() if told.all_down},
        "nearby": made.nearby,
        "workers": [
            {"worker": one.title, "generation": one.generation, "revision": one.revision} for one in status.workers
        ],
        "reply": explaining.reply_told(made.reply),
        "loader": made.missing or "asked",
    }
