"""`standoff status`: loader, supervisor and workers of an instance, and a verdict."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit, counted
from cli.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cli.view import Status, Verdict

EXAMPLES = """\
Examples:
  standoff status
  standoff status --json | jq .verdict.state"""

#: Seconds that the loader may take to tell something beside what the board tells: status is for bad days, too.
ASKED_WITHIN_S = 0.5
#: Columns of a line that is not for a terminal: more than any.
PIPE_WIDTH = 10_000
COLOURS = {"ok": "green", "degraded": "yellow", "down": "red"}


@make_command("status", epilog=EXAMPLES, short_help="Loader, supervisor, workers, and a verdict.")
@json_option
def command(settings: Settings, as_json: bool) -> int:
    """Show the state of an instance: ok, degraded (queries are answered, but look) or down, and why.

    Exit status 0 for ok and degraded, 1 for down, 3 if nothing of the instance is running.
    """
    import msgspec

    from cli import view
    from shm.board import Board

    board = Board.attach(settings.instance)
    status = view.collect(board)
    board.close()
    verdict = view.judge(status)
    state_dir = _state_dir(settings, status)
    if as_json:
        output.json({"verdict": verdict, "state_dir": state_dir, **msgspec.structs.asdict(status)})
    else:
        show(status, verdict, state_dir)
    if not status.running:
        output.message(f"instance {settings.instance} is not running")
        return Exit.NOT_RUNNING
    return Exit.FAILED if verdict.state == "down" else Exit.DONE


def _state_dir(settings: Settings, status: Status) -> str | None:
    """The loader's; empty: it has none; None: it cannot be asked at once."""
    from cli import control
    from shm.errors import StandoffError

    if not status.loader.alive or (status.loader.heartbeat_age or 0) > ASKED_WITHIN_S:
        return None
    try:
        path = control.find_socket(settings, "loader")
        _, fields = control.ask(path, "status", {}, ASKED_WITHIN_S, part="loader")
    except (StandoffError, OSError):  # OSError: a folder that we may not look into
        return None
    found: str | None = fields.get("state_dir")
    return found


def show(status: Status, verdict: Verdict, state_dir: str | None) -> None:
    """Print tables for people."""
    from rich.console import Console

    # Into a pipe, a log or a mail no line is cut in two.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(f"[bold {COLOURS[verdict.state]}]{verdict.state}[/]", end="")
    console.print(f"  instance {status.instance}", end="")
    console.print(
        f"  generation {status.generation}  revision {status.revision}  published {ago(status.published_age)}"
    )
    for reason in verdict.reasons:
        console.print(f"  - {reason}", markup=False)
    console.print()
    console.print(_parts(status))
    if state_dir is not None:  # not in the table, which would wrap a long path
        console.print(f"state_dir   {state_dir or 'none: no snapshot, history, image'}", markup=False)
    if status.workers:
        console.print()
        console.print(_workers(status))


def ago(age: float | None) -> str:
    """An age in seconds for people."""
    if age is None:
        return "never"
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * seconds:
            return f"{age / seconds:.0f} {unit} ago"
    return f"{age:.1f} s ago"


def _parts(status: Status) -> RenderableType:
    from rich.table import Table

    loader, supervisor = status.loader, status.supervisor
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("loader", f"{loader.state}, pid {loader.pid}" if loader.alive else "not running")
    table.add_row("", f"heartbeat {ago(loader.heartbeat_age)}, source seen {ago(loader.source_age)}")
    content = f"{counted(loader.names, 'name')} from {counted(loader.keys, 'key')}"
    table.add_row("", f"{content}, {loader.table_bytes / 2**20:.1f} MiB a table")
    kept = f" ({loader.kept} keep their last good value)" if loader.kept else ""
    table.add_row("", f"{counted(loader.rejects, 'key')} rejected{kept}")
    if loader.progress_age is not None or loader.relist_age is not None:
        table.add_row("", f"watch: last event {ago(loader.event_age)}, progress confirmed {ago(loader.progress_age)}")
    last = "" if loader.relist_age is None else f", the last list {ago(loader.relist_age)}"
    table.add_row("", f"{loader.relists} re-lists{last}, {loader.drift} differences found")
    if loader.checks_up or loader.checks_down:
        table.add_row("", f"{counted(loader.checks_up, 'target')} of health checks up, {loader.checks_down} down")
    if loader.note:
        from rich.text import Text

        table.add_row("", Text(loader.note))
    table.add_row("supervisor", f"pid {supervisor.pid}" if supervisor.alive else "not running")
    table.add_row(
        "",
        f"{counted(supervisor.workers_wanted, 'worker')} wanted, {supervisor.workers_died} died, "
        f"{supervisor.workers_condemned} replaced for being stuck",
    )
    return table


def _workers(status: Status) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("worker", "pid", "slot", "heartbeat", "generation", "revision", "queries"):
        table.add_column(title, justify="left" if title == "worker" else "right")
    for worker in status.workers:
        table.add_row(
            f"{worker.kind} {worker.worker}", str(worker.pid), str(worker.slot), ago(worker.heartbeat_age),
            str(worker.generation), str(worker.revision), str(worker.queries),
        )  # fmt: skip
    return table
