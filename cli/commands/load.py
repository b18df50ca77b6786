"""`standoff load`: the loader of an instance."""

from __future__ import annotations

from cli import logs
from cli.commands import need_source
from cli.options import command as make_command
from cli.progress import Progress
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff load --source etcd://10.0.0.1:2379,10.0.0.2:2379/skydns --zone cluster.example
  standoff load --source file:/etc/standoff/zones"""


@make_command("load", epilog=EXAMPLES, short_help="The loader alone: mirrors the sources into shared memory.")
def command(settings: Settings) -> int:
    """Mirror the sources into shared memory, and go on watching them.

    While a source is away, answers go on from the last good table.
    """
    need_source("load", settings)
    logs.set_up(settings.log_level, settings.log_format, "loader")
    from loader.start import load

    return load(settings, progress=Progress())
