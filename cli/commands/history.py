"""`standoff history`: what was published, and when."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from loader.history_format import Entry
    from loader.past import Past

EXAMPLES = """\
Examples:
  standoff history
  standoff history --since 2h --name www.example.test
  standoff history --zone example.test --limit 1000 | less
  standoff history --json | jq '.entries[] | select(.removed > 100)'"""


@make_command("history", epilog=EXAMPLES, short_help="What was published when: the last changes.")
@click.option(
    "--limit", "-n", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="Show at most so many."
)
@click.option(
    "--since", metavar="STATE",
    help="Only what was published since: 10m or 2h ago, 2026-01-31T12:00; or after a revision or entry n12.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="Only what changed this name.")
@click.option("--zone", metavar="NAME", help="Only what changed names at or beneath this one.")
@json_option
def command(
    settings: Settings, limit: int, since: str | None, name: str | None, zone: str | None, as_json: bool
) -> int:
    """List what the loader has published, the newest first: the entry's number, when, the source's revision, why, how
    many names were new (+), gone (-) and changed (~), and some of them. With --name or --zone those of them count.

    `standoff diff` shows an entry's records (diff n11 n12 for entry n12), `standoff rollback` goes back to one. Works
    without a loader, too. Entries marked `unknown` and `first` tell where something is missing: before them is another
    past. Settings history and history_size bound how many entries are kept.
    """
    from cli import past as cli_past

    with cli_past.open_history(settings) as past:
        after, begin_ns = cli_past.since(past, since) if since else (0, 0)
        entries = list(islice(_matching(past, after, begin_ns, name, zone), limit))
        if as_json:
            output.json({"history": str(past.path), "entries": [cli_past.entry_told(entry) for entry in entries]})
            return Exit.DONE
        show(entries)
        more = bool(entries) and len(entries) == limit and entries[-1].number > max(past.first, after + 1)
    if not entries:
        output.message("nothing is in the history" + (" that matches" if since or name or zone else ""))
    elif more:
        output.message(f"the newest {limit} are shown (--limit)")
    return Exit.DONE


def show(entries: list[Entry]) -> None:
    """For people: columns that are as wide as they need to be, with a title on a terminal."""
    from cli.past import clock

    rows = [(f"n{e.number}", clock(e.time_ns), str(e.revision), e.why, counts(e), about(e)) for e in entries]
    if rows and sys.stdout.isatty():
        rows.insert(0, ("entry", "time", "revision", "why", "changed", "names"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, when, revision, why, changed, names in rows:
        columns = [number.rjust(widths[0]), when.ljust(widths[1]), revision.rjust(widths[2])]
        output.data("  ".join([*columns, why.ljust(widths[3]), changed.ljust(widths[4]), names]).rstrip())


def counts(entry: Entry) -> str:
    """What it changed, short."""
    if not entry.known:
        return output.counted(entry.added, "name") if entry.added else ""
    return f"+{entry.added} -{entry.removed} ~{entry.changed}"


def about(entry: Entry) -> str:
    """Some of the names, and the note."""
    from cli.presentation import name_text

    more = entry.added + entry.removed + entry.changed - len(entry.some)
    text = " ".join(map(name_text, entry.some)) + (f" and {more} more" if more > 0 and entry.known else "")
    return ": ".join(filter(None, (entry.note, text)))


def _matching(past: Past, after: int, begin_ns: int, name: str | None, zone: str | None) -> Iterator[Entry]:
    from cli import presentation

    try:
        wanted = presentation.parse_name(name) if name else None
        beneath = presentation.parse_name(zone) if zone else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for entry in past.entries(oldest=after + 1):
        if entry.time_ns < begin_ns:
            return
        if wanted is None and beneath is None:
            yield entry
        elif entry.known and (found := _narrowed(past, entry, wanted, beneath)) is not None:
            yield found


def _narrowed(past: Past, entry: Entry, name: bytes | None, zone: bytes | None) -> Entry | None:
    """The entry with what it did to these names; None if nothing."""
    from loader.history_format import serial_only
    from loader.names import is_under

    added = removed = modified = 0
    some: list[bytes] = []
    for changed, before, since in past.changes(entry.number, {name} if name else ()):
        if zone is not None and changed != zone and not is_under(changed, zone):
            continue
        if serial_only(before, since):
            continue
        added += before is None
        removed += since is None
        modified += before is not None and since is not None
        if len(some) < 4:
            some.append(changed)
    return replace(entry, added=added, removed=removed, changed=modified, some=tuple(some)) if some else None
