"""`standoff serve`: the server of an instance."""

from __future__ import annotations

from cli import logs
from cli.options import command as make_command
from cli.settings import Settings

EXAMPLES = """\
Examples:
  standoff serve --listen 192.0.2.1:53 --listen [2001:db8::1]:53 --workers 4 --metrics 127.0.0.1:9153"""


@make_command("serve", epilog=EXAMPLES, short_help="The server alone: supervisor and workers.")
def command(settings: Settings) -> int:
    """Answer DNS queries from the table that `standoff load` keeps in shared memory.

    A supervisor in the foreground starts the workers and replaces those that die. It answers SERVFAIL until a loader
    has brought a first table. SIGTERM and SIGINT stop it after it has finished what it had begun.
    """
    logs.set_up(settings.log_level, settings.log_format, "server")
    from server.main import serve

    return serve(settings)
