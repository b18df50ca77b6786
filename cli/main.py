"""The `standoff` command. Each command is a module in cli/commands/, imported when it is called."""

from __future__ import annotations

import importlib
import keyword
import shlex
from typing import Any

import click

from cli.options import CONTEXT, write_lines

#: Every command, in the order and the groups of the help. `module_of` says where each one's `command` is.
COMMANDS = {
    "Serve": ("run", "serve", "load", "check"),
    "Look": ("status", "locks", "lookup", "explain", "history", "diff", "rejects", "pending", "health", "lint", "wait"),
    "Change": ("approve", "reject", "rollback", "resume", "scale", "import", "export"),
    "Try": ("drill",),
    "Shell": ("completion",),
}
EXAMPLES = """\
Examples:
  standoff run --source file:example.zone
  standoff run --source etcd://127.0.0.1:2379/names?schema=records --listen 127.0.0.1:5300
  standoff status
  standoff lookup www.example.test A
  standoff COMMAND --help

Every option is also a variable (--log-level: STANDOFF_LOG_LEVEL) and a key of standoff.toml
(log_level). Exit status: 0 done, 1 failed, 2 usage, 3 not running. Manual: man standoff"""


def module_of(name: str) -> str:
    """The module in cli/commands/ that holds a command."""
    return name + "_" * keyword.iskeyword(name)


class Commands(click.Group):
    """The commands of COMMANDS, imported one by one when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"cli.commands.{module_of(cmd_name)}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            at = next((at for at, arg in enumerate(given) if arg in self.list_commands(ctx)), None)
            if at is None:
                name = error.option_name
                ctx.fail(f"{name} belongs to a command, and comes after it: standoff COMMAND {name} …")
            right = shlex.join(["standoff", given[at], *given[:at], *given[at + 1 :]])
            ctx.fail(f"options come after the command: {right}")

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from cli.origins import suggest

        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"there is no command {name!r}{suggest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in COMMANDS.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(title):
                rows = [(name, command.get_short_help_str(80)) for name, command in commands.items() if command]
                formatter.write_dl([(name.ljust(10), text) for name, text in rows])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_lines(formatter, self.epilog)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from cli.version import version

        click.echo(f"standoff {version()}")
        ctx.exit()


@click.command(cls=Commands, context_settings=CONTEXT, epilog=EXAMPLES)
@click.option(
    "-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Print the version.",
)  # fmt: skip
def standoff() -> None:
    """An authoritative DNS service that mirrors etcd into shared memory and never hangs."""


def main() -> None:
    """Entry point of the console script; exits the process."""
    standoff(prog_name="standoff")


if __name__ == "__main__":
    main()
