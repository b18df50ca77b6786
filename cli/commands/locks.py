"""`standoff locks`: who is inside the lock or waits for it, and what it has cost so far."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from cli import output
from cli.options import command as make_command
from cli.options import json_option
from cli.output import Exit
from cli.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from cli.lockview import Locks, Reader, Writer

EXAMPLES = """\
Examples:
  standoff locks
  standoff locks --live
  standoff locks --live 0.2
  standoff locks --json | jq '.readers[] | select(.inside > 0.25) | .pid'"""

#: Between two looks of --live: a stay that is a leak (250 ms) is seen at least once before the supervisor ends it.
LIVE_S = 0.5


@make_command("locks", epilog=EXAMPLES, short_help="Who is inside the lock or waits for it, and for how long.")
@click.option(
    "--live", is_flag=False, flag_value=str(LIVE_S), type=click.FloatRange(0.05, 60), metavar="[SECONDS]",
    help="Look again every so often, each half second if nothing is said, until Ctrl-C.",
)  # fmt: skip
@json_option
def command(settings: Settings, live: float | None, as_json: bool) -> int:
    """Show the read and write lock of an instance: who is inside or waiting and since when, and all that waits and
    holds have taken so far, with their 50th and 99th percentile and the longest ever.

    A reader is inside for microseconds. One that stays for 250 ms is a leak: `standoff status` is degraded while it
    stands, the server's log names it with its stack, and after a second its worker is replaced. Percentiles are upper
    ends of powers of two; who found the lock free counts as no wait. With --live on a pipe each look follows the last,
    with --json each is a line.
    """
    try:
        locks = _show(settings, as_json) if live is None else _watch(settings, live, as_json)
    except (KeyboardInterrupt, BrokenPipeError):
        return Exit.DONE
    if not locks.running:
        output.message(f"instance {settings.instance} is not running")
        return Exit.NOT_RUNNING
    return Exit.DONE


def _look(settings: Settings) -> Locks:
    """Attaches each time: an instance that was started anew has a new board."""
    from cli import lockview
    from shm.board import Board

    board = Board.attach(settings.instance)
    try:
        return lockview.collect(board)
    finally:
        board.close()


def _show(settings: Settings, as_json: bool) -> Locks:
    locks = _look(settings)
    if as_json:
        output.json(locks)
    else:
        _console().print(render(locks))
    return locks


def _watch(settings: Settings, period: float, as_json: bool) -> Locks:
    """Until Ctrl-C, or the instance has ended: the last look."""
    if as_json or not sys.stdout.isatty():
        while (locks := _show(settings, as_json)).running:
            if not as_json:
                output.data("")
            sys.stdout.flush()
            time.sleep(period)
        return locks
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as display:
        while (locks := _look(settings)).running:
            display.update(render(locks), refresh=True)
            time.sleep(period)
    return locks


def _console() -> Console:
    """As wide as its lines when nobody's window counts."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def render(locks: Locks) -> RenderableType:
    """For people."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(
        ("locks", "bold"),
        f"  instance {locks.instance}  generation {locks.generation}  "
        f"leaks reported {locks.leaks}  replaced {locks.condemned}",
    )
    writer = locks.writer
    attempts = Text(
        f"{writer.publishes} publishes, {writer.retries} attempts to lock found a reader inside, "
        f"{writer.dead_skipped} dead readers skipped"
    )
    return Group(head, Text(), _who(locks), Text(), _durations(locks), Text(), attempts)


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    return table


def _who(locks: Locks) -> Table:
    """Who is there, and what each does now."""
    table = _table("who", "pid", "slot", "now", "acquired", "had to wait", "past the gate")
    for reader in locks.readers:
        table.add_row(
            reader.title, str(reader.pid), str(reader.slot), _now(reader),
            str(reader.reads), str(reader.gate_waits), str(reader.past_gate),
        )  # fmt: skip
    writer = locks.writer
    table.add_row("loader", str(writer.pid or "-"), "-", _writer_now(writer), str(writer.hold.count), "-", "-")
    return table


def _now(reader: Reader) -> str:
    if reader.inside is not None:
        return _marked("inside", reader.inside) if reader.alive else "[yellow]died inside[/]"
    return f"waiting {duration(reader.waiting)}" if reader.waiting is not None else "-"


def _writer_now(writer: Writer) -> str:
    if writer.holding is not None:
        return _marked("writing" if writer.alive else "died writing", writer.holding)
    if writer.waiting is not None:
        return f"waiting {duration(writer.waiting)}"
    return "-" if writer.alive else "not running"


def _marked(what: str, seconds: float) -> str:
    """Red where it is a leak."""
    from cli.view import LEAK_AFTER_S

    text = f"{what} {duration(seconds)}"
    return f"[bold red]{text}[/]" if seconds > LEAK_AFTER_S else text


def _durations(locks: Locks) -> Table:
    """What waits and holds have taken."""
    table = _table("", "times", "p50", "p99", "longest")
    rows = [(f"{reader.title} inside", reader.hold) for reader in locks.readers]
    rows += [(f"{reader.title} waited to enter", reader.wait) for reader in locks.readers]
    writer = locks.writer
    rows += [
        ("loader waited to write", writer.wait),
        ("loader held the write lock", writer.hold),
        ("loader waited for readers to leave", writer.grace),
    ]
    for title, spread in rows:
        shown = (duration(value) for value in (spread.p50, spread.p99, spread.max))
        table.add_row(title, str(spread.count), *(shown if spread.count else "---"))
    return table


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds == 0:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
