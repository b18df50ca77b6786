"""`standoff export`: what an instance answers, or what a source gives, as zone files, JSON lines or msgpack."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from loader.exchange.sets import RecordSet
    from shm._table import Table
    from shm.board import Board

#: Looks at a table that is swapped each time, before it is copied.
ATTEMPTS = 10
#: File names in a message.
_SHOWN = 5

EXAMPLES = """\
Examples:
  standoff export --zone example.test > example.test.zone
  standoff export --output zones/
  standoff export --format jsonl | jq -r .name | sort -u | wc -l
  standoff export 'etcd://127.0.0.1:2379/names?schema=records' --format msgpack --output names.msgpack"""


@make_command("export", epilog=EXAMPLES, short_help="All names as zone files, JSON lines or msgpack.")
@click.argument("source", metavar="[SOURCE]", required=False)
@click.option(
    "--format", "-f", type=click.Choice(["zone", "jsonl", "msgpack"]),
    help="What to write. [default: zone]",
)  # fmt: skip
@click.option(
    "--output", "-o", "target", metavar="PATH", type=click.Path(path_type=Path),
    help="A file, or for zone files a folder that gets a file for each zone. [default: standard output]",
)  # fmt: skip
@json_option
def command(settings: Settings, source: str | None, format: str | None, target: Path | None, as_json: bool) -> int:
    """Write every record of a running instance, as of one generation of its table, or of SOURCE (file:PATH or
    etcd://...) without any instance. --zone picks zones; those of the variable and of standoff.toml pick none, they are
    what a source of schema skydns needs. --json is short for --format jsonl.

    Attributes (windows, weights, checks, labels) of SOURCE are in JSON lines and msgpack; zone files cannot say them,
    which a message tells. An instance answers what its filters leave, and knows no attributes.

    SOA and NS that were made for a zone which brings none are written as they are answered. `standoff import` reads
    each format, and so does `standoff load` zone files and JSON lines.
    """
    from loader import names
    from loader.exchange import conditions
    from loader.model import Reject

    format = format or ("jsonl" if as_json else "zone")
    picked = settings.zone if click.get_current_context().params.get("zone") else []  # the flag goes before all else
    only = [names.from_text(zone) for zone in picked]
    sets, about = _of_source(source, settings, only) if source else _of_instance(settings.instance, only)
    if not sets:
        output.message("there is nothing to export" + (f" in {' '.join(picked)}" if only else ""))
        return Exit.FAILED
    if format == "zone" and (lost := conditions.count(sets)):
        which = f"{output.counted(lost, 'record')} {'has' if lost == 1 else 'have'} attributes"
        output.message(f"{which}, which zone files cannot say: jsonl and msgpack can")
    try:
        _write(sets, format, target, about)
    except Reject as reject:
        output.message(str(reject))
        return Exit.FAILED
    except OSError as error:
        if target is None:
            output.abandon()
            if isinstance(error, BrokenPipeError):
                return Exit.DONE  # it has seen enough
        output.message(f"{error.filename or target or 'standard output'}: {error.strerror}")
        return Exit.FAILED
    zones = output.counted(len({one.zone for one in sets}), "zone")
    told = ", ".join(f"{key} {value}" for key, value in about.items())
    output.message(f"{output.counted(len(sets), 'record set')} in {zones} ({told})")
    return Exit.DONE


def _of_instance(instance: str, only: list[bytes]) -> tuple[list[RecordSet], dict[str, Any]]:
    """What is answered now, of one generation."""
    from loader.exchange.sets import from_nodes
    from shm.board import Board

    board = Board.attach(instance)
    try:
        blocks, generation, revision = _look(board)
    finally:
        board.close()
    return from_nodes(blocks, only), {"generation": generation, "revision": revision}


def _look(board: Board) -> tuple[list[bytes], int, int]:
    """(node blocks, generation, revision). A large table that changes often is copied, which needs a slot and makes the
    loader wait for a moment (shm/visit.py)."""
    from shm.errors import NotRunning
    from shm.reading import TableObserver

    def whole(table: Table) -> tuple[list[bytes], int, int]:
        return list(table.blocks()), table.generation, table.revision

    observer = TableObserver(board)
    try:
        found: tuple[list[bytes], int, int] = observer.look(whole, ATTEMPTS)
        return found
    except NotRunning:
        if not board.live:
            raise
    finally:
        observer.close()
    from shm.visit import copy_active

    copy = copy_active(board)
    try:
        return whole(copy.table)
    finally:
        copy.close()


def _of_source(source: str, settings: Settings, only: list[bytes]) -> tuple[list[RecordSet], dict[str, Any]]:
    """By the zone model, as a loader would have it; `only`: of these zones. Raises UsageError for a source that cannot
    be read."""
    import asyncio

    from loader import etcd_url, importing, names
    from loader.attributes import Conditional
    from loader.exchange.conditions import attach
    from loader.exchange.served import with_hidden
    from loader.exchange.sets import from_nodes
    from loader.files import FileSource
    from loader.zone import Zones

    known = [names.from_text(zone) for zone in settings.zone]
    model = Zones(known, settings.default_ttl)
    if etcd_url.is_etcd_url(source):
        try:
            place = importing.place_of(source, settings)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if place.url.schema == "skydns" and not known:
            raise click.UsageError(f"{source}: the schema skydns does not tell zones; give them with --zone")
        found = asyncio.run(importing.listed(place, known, settings.semantics))
        records: Mapping[str, Any] = found.records
        problems, revision, revisions = found.problems, found.revision, found.revisions
    else:
        update = FileSource(source.removeprefix("file:"), known).look()
        if update is None:
            raise click.UsageError(f"{source} holds nothing that can be read")
        records, problems, revision, revisions = update.records, dict(update.problems), update.revision, {}
    conditional: list[Conditional] = []
    for key, made in records.items():
        model.apply(key, made or (), revisions.get(key, revision))
        conditional += [one for one in made or () if isinstance(one, Conditional)]
    sets = from_nodes(model.all_nodes(), only)
    sets, lost = with_hidden(sets, model, records, only)
    sets = attach(sets, conditional, (one for made in records.values() for one in made or ()))
    from cli.commands.import_ import tell

    tell([f"not exported: {key}: {reason}" for key, reason in (problems | model.problems | lost).items()])
    return sets, {"revision": revision}


def _write(sets: list[RecordSet], format: str, target: Path | None, about: dict[str, Any]) -> None:
    from loader.exchange import written

    if format == "zone" and target is not None and (target.is_dir() or not target.suffix):
        target.mkdir(exist_ok=True)
        made = set()
        for zone, content in written.by_zone(sets):
            made.add(written.file_name(zone))
            _save(target / written.file_name(zone), _lines(written.zone_file(content)))
        if others := sorted({path.name for path in target.glob("*.zone")} - made):
            shown = " ".join(others[:_SHOWN]) + (" ..." if len(others) > _SHOWN else "")
            output.message(f"{target} has {output.counted(len(others), 'zone file')} of other zones, too: {shown}")
        return
    if format == "msgpack":
        parts: Iterable[bytes] = written.packed(sets, about)
    elif format == "jsonl":
        parts = (line + b"\n" for line in written.json_lines(sets))
    else:
        parts = (part for _, content in written.by_zone(sets) for part in _lines(written.zone_file(content)))
    if target is None:
        stream = sys.stdout.buffer
        for part in parts:
            stream.write(part)
        stream.flush()
    else:
        _save(target, parts)


def _lines(lines: Iterable[str]) -> Iterator[bytes]:
    for line in lines:
        yield line.encode() + b"\n"


def _save(path: Path, parts: Iterable[bytes]) -> None:
    """The whole file or the old one: a loader may be reading it."""
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("wb") as file:
            file.writelines(parts)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
