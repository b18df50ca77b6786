"""`standoff lint`: what the two semantics of SkyDNS keys answer differently, and what cannot be served."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from loader.model import Put

EXAMPLES = """\
Examples:
  standoff lint etcd://127.0.0.1:2379/skydns --zone example.test
  etcdctl get --prefix /skydns -w json | standoff lint - --zone example.test
  standoff lint dump.json --zone example.test --json | jq -r '.[] | select(.kind == "reject") | .what'"""


@make_command("lint", epilog=EXAMPLES, short_help="What SkyDNS keys answer as CoreDNS and strictly, and what is lost.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--prefix", default="/skydns", metavar="PREFIX", help="What the keys of a dump begin with. [default: /skydns]"
)
@json_option
def command(settings: Settings, source: str, prefix: str, as_json: bool) -> int:
    """Read SkyDNS keys and list each name whose answer differs between the semantics coredns and strict, each key that
    cannot be served, and what else deserves a look.

    SOURCE is etcd://HOST:PORT/PREFIX, or a file (- is standard input): what `etcdctl get --prefix ... -w json` prints,
    or one JSON object of keys and values. --zone names the zones. No instance is needed. Exit status 1 if there is a
    key that cannot be served.
    """
    from loader import names
    from loader.skydns_lint import lint

    if not settings.zone:
        raise click.UsageError("the schema skydns does not tell zones; give them with --zone")
    puts, prefix = _read(settings, source, prefix)
    findings = lint(prefix, puts, [names.from_text(zone) for zone in settings.zone])
    if as_json:
        output.json([asdict(finding) for finding in findings])
    else:
        for one in findings:
            detail = f"{one.type}: coredns {one.coredns}; strict {one.strict}" if one.type else one.text
            output.data(f"{one.kind:<10} {one.what} {detail}")
    counts = {kind: sum(one.kind == kind for one in findings) for kind in ("difference", "reject", "note")}
    output.message(
        f"{output.counted(len(puts), 'key')}: {output.counted(counts['difference'], 'difference')}, "
        f"{output.counted(counts['reject'], 'key')} that cannot be served, "
        f"{output.counted(counts['note'], 'note')}"
    )
    return Exit.FAILED if counts["reject"] else Exit.DONE


def _read(settings: Settings, source: str, prefix: str) -> tuple[list[Put], str]:
    """The keys, and what they begin with. Raises UsageError for a source that cannot be read."""
    import asyncio

    from loader import etcd_url, importing

    if not etcd_url.is_etcd_url(source):
        return _dump(source), prefix
    try:
        place = importing.place_of(source, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if place.url.schema != "skydns":
        raise click.UsageError(f"{source}: lint reads the schema skydns")

    async def present() -> list[Put]:
        async with place:
            return (await place.present())[0]

    return asyncio.run(present()), place.url.prefix


def _dump(source: str) -> list[Put]:
    import msgspec

    from loader import wording

    try:
        with click.open_file(source, "rb") as file:
            content: Any = msgspec.json.decode(file.read())
        if not isinstance(content, dict):
            raise ValueError("it is to be an object")
        if isinstance(content.get("header"), dict):  # etcdctl's; without a key that it has found there are no kvs
            return _kvs(content.get("kvs", []))
        return _kvs(content["kvs"]) if isinstance(content.get("kvs"), list) else _plain(content)
    except OSError as error:
        raise click.UsageError(f"{source}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise click.UsageError(f"{source} is no dump of keys: {wording.why(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.UsageError(f"{source} is no dump of keys: {error}") from None


def _kvs(kvs: list[dict[str, Any]]) -> list[Put]:
    """As etcdctl prints them: keys and values in base64."""
    from loader.etcd import key_text
    from loader.model import Put

    return [
        Put(key_text(base64.b64decode(one["key"])), base64.b64decode(one.get("value", "")),
            int(one.get("mod_revision", 1)), int(one.get("lease", 0)))
        for one in kvs
    ]  # fmt: skip


def _plain(content: dict[str, Any]) -> list[Put]:
    import msgspec

    from loader.model import Put

    return [
        Put(key, value.encode() if isinstance(value, str) else msgspec.json.encode(value), number)
        for number, (key, value) in enumerate(content.items(), 1)
    ]
