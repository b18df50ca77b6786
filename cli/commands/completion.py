"""`standoff completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import click

from cli import output
from cli.options import Command
from cli.output import Exit

EXAMPLES = """\
Examples:
  standoff completion bash > ~/.local/share/bash-completion/completions/standoff
  standoff completion zsh > ~/.zfunc/_standoff
  standoff completion fish > ~/.config/fish/completions/standoff.fish"""


@click.command("completion", cls=Command, epilog=EXAMPLES, short_help="Print a completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in SHELL: bash, zsh or fish."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    output.data(complete(ctx.find_root().command, {}, "standoff", "_STANDOFF_COMPLETE").source())
    ctx.exit(Exit.DONE)
