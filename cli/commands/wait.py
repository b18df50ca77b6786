"""`standoff wait`: until every worker answers from a revision."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from cli.view import Status

EXAMPLES = """\
Examples:
  standoff wait --revision 12345 --timeout 2 && echo "every worker answers from it"
  standoff wait --revision "$(etcdctl put /names/example.test/www/A 192.0.2.1 -w json | jq .header.revision)\""""

#: A look costs some hundred system calls (one lock file a slot); a change takes a few milliseconds to arrive.
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the workers are. `lagging` names those that are behind; `reached` is the lowest revision of any."""

    done: bool
    reached: int
    lagging: list[str]


def progress(status: Status, revision: int) -> Progress:
    """Whether every live worker answers from `revision` or later. No worker at all is not enough."""
    if not any(worker.kind == "worker" for worker in status.workers):
        return Progress(False, 0, ["no worker is alive"])
    lagging = [f"{worker.title} is at {worker.revision}" for worker in status.workers if worker.revision < revision]
    return Progress(not lagging, min(worker.revision for worker in status.workers), lagging)


@make_command("wait", epilog=EXAMPLES, short_help="Wait until every worker answers from a revision.")
@click.option("--revision", "-r", type=click.IntRange(0), required=True, metavar="R", help="Revision of the source.")
@click.option(
    "--timeout", "-t", type=click.FloatRange(0), default=10.0, show_default=True, metavar="SECONDS",
    help="How long to wait.",
)  # fmt: skip
@json_option
def command(settings: Settings, revision: int, timeout: float, as_json: bool) -> int:
    """Return when every live worker, UDP and TCP, answers from revision R of the source or a later one.

    Exit status 1 if the time is over first: the workers that lag are named.
    """
    from cli.view import collect
    from shm.board import Board

    board = Board.attach(settings.instance)
    started = time.monotonic()
    while True:
        status = collect(board)
        now = progress(status, revision)
        waited = time.monotonic() - started
        if now.done or waited >= timeout or not status.running:
            break
        time.sleep(min(POLL_S, timeout - waited))
    board.close()
    if as_json:
        result = {"done": now.done, "revision": revision, "reached": now.reached, "lagging": now.lagging}
        output.json(result | {"waited": round(waited, 3)})
    if now.done:
        return Exit.DONE
    if not status.running:
        output.message(f"instance {settings.instance} is not running")
        return Exit.NOT_RUNNING
    output.message(f"not everywhere after {waited:.3g} s: {'; '.join(now.lagging)}")
    return Exit.FAILED
