"""`standoff run`: loader and server in one foreground tree."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from cli import logs, output, tree
from cli.commands import need_source
from cli.commands.load import preload, prepare, run_loader
from cli.foreground import Foreground, Hooks
from cli.options import command as make_command
from cli.options import json_option
from cli.output import message
from cli.presence import need_files, need_right_urls
from cli.settings import Settings
from shm.errors import StandoffError

if TYPE_CHECKING:
    from shm._table import Table
    from shm.segment import LockFile

EXAMPLES = """\
Examples:
  standoff run --source file:example.zone
  standoff run --source etcd://127.0.0.1:2379/names?schema=records --listen 127.0.0.1:5300"""

A, CNAME = 1, 5


class AlreadyRunning(StandoffError):
    """Another process serves or loads this instance."""


@make_command("run", epilog=EXAMPLES, short_help="Loader and server together, in the foreground.")
@json_option
def command(settings: Settings, as_json: bool) -> int:
    """Serve DNS from the sources: loader and server together, in the foreground, until Ctrl-C or SIGTERM.

    A part that dies is started again, and a loader that stays inside the write lock is replaced. The first signal lets
    the server finish what it had begun, a second one ends it at once. What was in shared memory is removed at the end.
    With --json, a line on stdout tells when it is ready.
    """
    need_source("run", settings)
    from shm.segment import remove_instance

    lock = _claim(settings)
    need_files(settings)
    need_right_urls(settings)
    logs.set_up(settings.log_level, settings.log_format, "run")
    from cli.herald import Herald
    from cli.loaderwatch import LoaderWatch

    herald = Herald()

    def ready() -> None:
        herald.announce()
        announce(settings, as_json)
        preload()

    hooks = Hooks(
        is_ready=functools.partial(is_ready, settings.instance),
        announce=ready,
        watch=LoaderWatch(settings.instance),
        prepare=prepare,
        become=herald.become,
        beat=herald.beat,
        stopping=herald.stopping,
        reloading="server",
    )
    # The server first: `prepare` imports what only loaders need.
    entries = {"server": functools.partial(_serve, settings), "loader": functools.partial(run_loader, settings)}
    try:
        return Foreground(entries, settings.drain_timeout + tree.STOP_MARGIN_S, hooks).run()
    finally:
        remove_instance(settings.instance)
        lock.release()


def _serve(settings: Settings) -> int:
    """In the child."""
    logs.set_up(settings.log_level, settings.log_format, "server")
    from server.main import serve

    return serve(settings)


def _claim(settings: Settings) -> LockFile:
    """Make sure that nobody else runs this instance: its shared memory is removed at the end. Raises AlreadyRunning.

    Children inherit the lock, so it stands for them as well if this process is killed.
    """
    from shm.board import Board
    from shm.errors import NotRunning
    from shm.segment import LockFile, Names, is_held

    names = Names(settings.instance)
    lock = LockFile(names.lock("run"))
    if not lock.try_acquire():
        raise _already(settings, "standoff run")
    for what, who in (("writer", "a loader"), ("supervisor", "a server")):
        if is_held(names.lock(what)):
            raise _already(settings, who)
    try:
        board = Board.attach(settings.instance)
    except NotRunning:
        return lock
    if board.live_slots():
        raise _already(settings, "a worker")
    board.close()
    return lock


def _already(settings: Settings, who: str) -> AlreadyRunning:
    return AlreadyRunning(
        f"{who} of instance {settings.instance} is running already{_pids(settings.instance)}: stop it, or choose"
        " another --instance"
    )


def _pids(instance: str) -> str:
    """Which processes they are, if the board tells it."""
    from shm.board import Board
    from shm.segment import is_held

    try:
        board = Board.attach(instance)
    except StandoffError:
        return ""
    pids = (
        ("server", "supervisor", board.supervisor.get("supervisor_pid")),
        ("loader", "writer", board.loader.get("loader_pid")),
    )
    found = [(name, pid) for name, lock, pid in pids if is_held(board.names.lock(lock))]
    found = found or [("worker", board.slot(number).get("pid")) for number in board.live_slots()]
    board.close()
    told = ", ".join(f"{name}: pid {pid}" for name, pid in found if pid)
    return f" ({told})" if told else ""


def is_ready(instance: str) -> bool:
    """Whether as many workers as wanted have a table to answer from."""
    from shm.board import Board
    from shm.layout import SlotKind

    try:
        board = Board.attach(instance)
    except StandoffError:
        return False
    try:
        ready = [slot for slot in board.workers() if slot.get("kind") == SlotKind.WORKER and slot.get("generation")]
        return len(ready) >= max(1, board.supervisor.get("workers_wanted"))
    finally:
        board.close()


def announce(settings: Settings, as_json: bool) -> None:
    """Tell that queries are answered, for which zones, and how to try."""
    zones, example = survey(settings.instance)
    host, port = settings.listen_addresses[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    dig = f"dig @{host} -p {port} {example}" if example else None
    if as_json:
        output.json({"event": "ready", "listen": settings.listen, "zones": zones, "try": dig})
    shown = ", ".join(zones[:10]) + (f" and {len(zones) - 10} more" if len(zones) > 10 else "")
    message(f"ready on {', '.join(settings.listen)}; zones: {shown or 'none'}")
    message(f"state_dir: {settings.state_dir or 'none: no snapshot, history, image'}")
    message(f"try: {dig}" if dig else "the source holds no names yet: they are answered as soon as there are any")
    message("Ctrl-C ends it")


def survey(instance: str) -> tuple[list[str], str]:
    """The zones in the live table (without final dots), and a name and type that it answers; "" if there is none."""
    from cli import presentation
    from shm.board import Board
    from shm.reading import TableObserver

    board = Board.attach(instance)
    observer = TableObserver(board)
    try:
        apexes, example = observer.look(_survey)
        zones = [presentation.name_text(apex).rstrip(".") or "." for apex in sorted(apexes)]
        if example is not None:
            return zones, f"{presentation.name_text(example).rstrip('.')} A"
        return zones, f"{zones[0]} SOA" if zones else ""
    finally:
        observer.close()
        board.close()


#: Names to look at for an example: enough to meet one with an address, few enough to stay unnoticed.
SURVEYED = 1000


def _survey(table: Table) -> tuple[list[bytes], bytes | None]:
    """Apexes, and a name that answers to A: `www` of a zone if there is one, else the first found, no wildcard."""
    from itertools import islice

    from shm import node
    from shm.layout import NodeFlag

    apexes, example = [], None
    for block in islice(table.blocks(), SURVEYED):
        found = node.unpack(block)
        if found.flags & NodeFlag.APEX:
            apexes.append(found.name)
        usable = not found.flags & NodeFlag.BELOW_CUT and not found.name.startswith(b"\x01*")
        if {A, CNAME} & found.rrsets.keys() and usable and (example is None or found.name.startswith(b"\x03www")):
            example = found.name
    zones = [zone for zone in table.meta.get("zones", []) if isinstance(zone, bytes)]
    return zones or apexes, example
