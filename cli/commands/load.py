"""`standoff load`: the loader of an instance."""

from __future__ import annotations

import functools
import importlib
import logging
import sys

from cli import logs
from cli.commands import need_source
from cli.foreground import Foreground, Hooks
from cli.herald import Herald
from cli.options import command as make_command
from cli.presence import need_files, need_right_urls
from cli.settings import Settings

log = logging.getLogger(__name__)

#: Less than the unit's TimeoutStopSec. A loader ends when its snapshot is on the disk.
STOP_TIMEOUT_S = 15.0

EXAMPLES = """\
Examples:
  standoff load --source etcd://10.0.0.1:2379,10.0.0.2:2379/skydns --zone cluster.example
  standoff load --source file:/etc/standoff/zones"""


@make_command("load", epilog=EXAMPLES, short_help="The loader alone: mirrors the sources into shared memory.")
def command(settings: Settings) -> int:
    """Mirror the sources into shared memory, and go on watching them.

    While a source is away, answers go on from the last good table. The work is done in a child process: one that dies
    is started again, one that stays inside the write lock is replaced after a second.
    """
    need_source("load", settings)
    need_files(settings)
    need_right_urls(settings)
    from cli.loaderwatch import LoaderWatch

    logs.set_up(settings.log_level, settings.log_format, "load")
    herald = Herald()

    def announce() -> None:
        herald.announce()
        preload()

    hooks = Hooks(
        is_ready=lambda: herald.child_is_ready,
        announce=announce,
        watch=LoaderWatch(settings.instance),
        prepare=prepare,
        become=herald.become,
        beat=herald.beat,
        say=log.warning,
        stopping=herald.stopping,
    )
    return Foreground({"loader": functools.partial(run_loader, settings)}, STOP_TIMEOUT_S, hooks).run()


def prepare(name: str) -> None:
    """In the parent, before a loader is forked: import what it needs.

    A server has no use for any of it, and the first loader publishes the image of its table before it imports more.
    """
    if name == "loader":
        _import("loader.main" if "loader.start" in sys.modules else "loader.start")


def preload() -> None:
    """In the parent, once there is time: a successor begins where its imports would have ended.

    They take a third of a second of processor time, and it comes at a moment when changes wait.
    """
    _import("loader.main")


def _import(module: str) -> None:
    """What cannot be imported now, in the middle of an upgrade, is the child's failure, not its parent's."""
    try:
        importlib.import_module(module)
    except Exception:
        log.exception("%s cannot be imported beforehand", module)


def run_loader(settings: Settings) -> int:
    """In the child."""
    from cli.progress import Progress
    from loader.start import load

    logs.set_up(settings.log_level, settings.log_format, "loader")
    return load(settings, progress=Progress())
