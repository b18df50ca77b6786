"""`standoff import`: from other servers' data into etcd, in the records schema."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from loader.exchange.keys import Change
    from loader.exchange.sets import Gathered, Remark
    from loader.importing import Place
    from loader.model import Put

EXAMPLES = """\
Examples:
  standoff import example.test.zone --to etcd://127.0.0.1:2379/names --dry-run
  standoff import zones/ --to etcd://127.0.0.1:2379/names --delete
  aws route53 list-resource-record-sets --hosted-zone-id Z1 > z1.json && standoff import z1.json
  pdnsutil list-zone example.test | standoff import - --from powerdns --to etcd://127.0.0.1:2379/names
  standoff import 'etcd://127.0.0.1:2379/skydns?schema=skydns' --zone example.test --to etcd://127.0.0.1:2379/names"""

#: What is told one by one on stderr; of more, only the number.
MOST_REMARKS = 200
#: The prefix of keys that are only printed.
PREFIX = "/standoff"


@make_command("import", epilog=EXAMPLES, short_help="Zone files, PowerDNS, Route 53 or SkyDNS into etcd.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--from", "format", type=click.Choice(["zone", "jsonl", "msgpack", "powerdns", "route53", "etcd"]),
    help="What SOURCE is. [default: by its name; a zone file if nothing else]",
)  # fmt: skip
@click.option(
    "--to", metavar="URL", help="etcd://HOST:PORT/PREFIX. Without it, keys and values are printed as JSON lines."
)
@click.option("--dry-run", "-n", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--delete", is_flag=True, help="Also remove keys that the input lacks, in the zones that it has.")
@click.option("--strict", is_flag=True, help="Change nothing if any part of the input cannot be taken over.")
@json_option
def command(
    settings: Settings, sources: tuple[str, ...], format: str | None, to: str | None, dry_run: bool, delete: bool,
    strict: bool, as_json: bool,
) -> int:  # fmt: skip
    """Bring records into etcd in the records schema, a key for each name and type. SOURCE is a zone file, a folder of
    zone files, JSON lines, a msgpack export, a Route 53 listing, the output of pdnsutil list-zone, an etcd:// URL of
    either schema, or - for standard input: a zone file there needs $ORIGIN or one --zone if names in it are relative.

    With --to, only what differs from what is in etcd is written: `+` new, `~` changed, `-` removed. What cannot be
    taken over is named with the reason, and does not stop the rest unless --strict is given.

    JSON lines, msgpack and etcd bring attributes (windows, weights, checks, labels). Other formats have none: a value
    that means the same records keeps those that it has.

    --delete spares the names of what could not be taken over; if it is not known which those are, it removes nothing.

    Exit status 1 if nothing could be read or written, if --delete had to do nothing, and with --strict if any part of
    the input cannot be taken over.
    """
    import asyncio

    from loader.exchange.keys import entries, muted
    from loader.exchange.served import alone, remarks

    if (dry_run or delete) and to is None:
        raise click.UsageError("--dry-run and --delete compare with what is in etcd: give --to URL")
    place = _target(to, settings) if to is not None else None
    found = read_all(settings, sources, format)
    prefix = place.url.prefix if place is not None else PREFIX
    wanted, unwritable = entries(prefix, found.sets)
    said = alone(prefix, wanted)
    for key in said.refused:
        del wanted[key]
    problems = [*found.problems, *unwritable, *remarks(prefix, said.refused)]
    tell([f"not taken over: {one.where}: {one.reason}" for one in problems])
    notes = [*found.notes, *remarks(prefix, said.changed)]
    tell([f"note: {one.where}: {one.reason}" for one in notes])
    if not wanted:
        output.message("there is nothing to import")
        return Exit.FAILED
    if problems and strict:
        output.message(f"{len(problems)} parts of the input cannot be taken over: nothing is changed (--strict)")
        return Exit.FAILED
    if place is None:
        for key, value in sorted(wanted.items()):
            output.json({"key": key, "value": value.decode()})
        return Exit.DONE
    spared = {one.owner for one in problems if one.owner is not None}
    blind = delete and any(one.owner is None for one in problems)
    if blind:
        output.message("nothing is removed: parts of the input cannot be read, and might be what would go (--delete)")
    zones = found.zones if delete and not blind else set()
    report: dict[str, Any] | None = None
    if as_json:
        report = {"problems": len(problems)} | {"not_taken_over": _listed(problems), "notes": _listed(notes)}
    rules = zones, spared, muted(prefix, found, wanted)
    status = asyncio.run(_bring(place, wanted, rules, dry_run, report, said.changed.keys()))
    return Exit.FAILED if blind else status


def _listed(those: list[Remark]) -> list[dict[str, str]]:
    """All of them: on stderr there is an end."""
    return [{"where": one.where, "reason": one.reason} for one in those]


def _target(to: str, settings: Settings) -> Place:
    """Where to write. Raises UsageError."""
    from loader.importing import place_of

    try:
        place = place_of(to if "?" in to else f"{to}?schema=records", settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if place.url.schema != "records":
        raise click.UsageError(f"--to {to}: what is imported is written in the schema records")
    return place


def read_all(settings: Settings, sources: tuple[str, ...], format: str | None) -> Gathered:
    """Everything that the sources give; one that cannot be read is a problem like others."""
    import asyncio

    from loader import importing, names
    from loader.exchange.sets import Gathered, Remark, join
    from loader.model import Reject

    zones = [names.from_text(zone) for zone in settings.zone]
    # A zone that only the configuration names says nothing about what comes in here.
    context = click.get_current_context(silent=True)
    named = (context.params.get("zone") or ()) if context is not None else ()
    origin = zones[0] if len(named) == 1 and len(zones) == 1 else None
    parts: list[Gathered] = []
    for source in sources:
        try:
            kind = format or importing.format_of(source)
            if kind == "etcd":
                place = importing.place_of(source, settings)
                if place.url.schema == "skydns" and not zones:
                    raise click.UsageError(f"{source}: the schema skydns does not tell zones; give them with --zone")
                parts.append(asyncio.run(importing.read_etcd(place, zones, settings.semantics)))
            else:
                within = origin if source == "-" or len(sources) == 1 else None
                parts.append(importing.read(source, kind, zones, lambda: sys.stdin.buffer.read(), within))
        except (Reject, OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            parts.append(Gathered(problems=[Remark(source, text)]))
    return join(parts, zones)


def tell(lines: list[str]) -> None:
    """Messages, not without end."""
    for line in lines[:MOST_REMARKS]:
        output.message(line)
    if len(lines) > MOST_REMARKS:
        output.message(f"and {len(lines) - MOST_REMARKS} more like these")


async def _bring(
    place: Place,
    wanted: dict[str, bytes],
    rules: tuple[set[bytes], set[bytes], set[str]],
    dry_run: bool,
    report: dict[str, Any] | None,
    told: Collection[str],
) -> int:
    """Compare with etcd, show or write what differs.

    rules   zones that lose the keys that are not wanted; names in them that do not; keys whose attributes the input
            cannot say
    report  print JSON, with these fields in it
    told    keys of which it has been said that they are changed or hidden
    """
    import asyncio

    from cli.progress import Progress
    from loader.etcd_channel import EtcdError
    from loader.exchange.keys import bared, plan
    from loader.importing import Written

    written = Written()
    async with place:
        puts, revision = await place.present()
        changes = plan(place.url.prefix, {put.key: put.value for put in puts}, wanted, *rules)
        counts = {word: sum(change.sign == sign for change in changes) for sign, word in SIGNS.items()}
        counts["unchanged"] = len(wanted) - counts["added"] - counts["changed"]
        if bare := bared(place.url.prefix, changes):
            output.message(f"{bare} values {'would ' if dry_run else ''}lose their attributes: the input has none")
        _tell_later(place.url.prefix, puts, changes, told)
        failed: EtcdError | None = None
        if dry_run:
            if report is None:
                show(changes)
        else:
            progress = Progress("keys", "writing", "written")
            progress.start(len(changes))
            try:
                await place.write(changes, written, progress.advance)
            except EtcdError as error:
                failed = error
            except asyncio.CancelledError:
                output.message(f"broken off; at least {_again(written.done, changes)}")
                raise
            finally:
                progress.done()
    summary = ", ".join(f"{number} {word}" for word, number in counts.items())
    if report is not None:
        told = {"written": written.done, "revision": written.revision or revision, "dry_run": dry_run}
        output.json(counts | report | told | ({"changes": [told_of(one) for one in changes]} if dry_run else {}))
    if failed is not None:
        output.message(f"{failed}; {_again(written.done, changes)}")
        return Exit.FAILED
    done = f"would be: {summary}" if dry_run else f"{summary}; revision {written.revision or revision}"
    output.message(f"{place.url.prefix}: {done}")
    return Exit.DONE


def _again(done: int, changes: list[Change]) -> str:
    return f"{done} of {len(changes)} changes are written: import again to go on"


def _tell_later(prefix: str, puts: list[Put], changes: list[Change], told: Collection[str]) -> None:
    """What will come of the changes beside the keys that are there and stay."""
    from loader.exchange.served import afterwards, remarks

    said = afterwards(prefix, puts, changes)
    refused = remarks(prefix, said.refused)
    tell([f"not answered beside what etcd has: {one.where}: {one.reason}; delete one of them" for one in refused])
    fresh = {key: reason for key, reason in said.changed.items() if key not in told}
    tell([f"note: beside what etcd has: {one.where}: {one.reason}" for one in remarks(prefix, fresh)])


SIGNS = {"+": "added", "~": "changed", "-": "removed"}


def show(changes: list[Change]) -> None:
    """A diff: a line for each key."""
    for change in changes:
        values = [_text(value) for value in (change.old, change.new) if value is not None]
        output.line(f"{change.sign} {change.key} {' -> '.join(values)}")


def told_of(change: Change) -> dict[str, Any]:
    return {
        "sign": change.sign,
        "key": change.key,
        "old": None if change.old is None else _text(change.old),
        "new": None if change.new is None else _text(change.new),
    }


def _text(value: bytes) -> str:
    """A value for a line."""
    return value.decode(errors="backslashreplace").replace("\n", "\\n").replace("\r", "\\r")
