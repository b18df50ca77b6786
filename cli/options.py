"""From the table of settings to click: options, help in groups, and commands that get a `Settings`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from cli import origins
from cli import settings as table
from cli.output import Exit, message
from cli.rows import GROUPS, Setting
from shm.errors import NotRunning, StandoffError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class SettingOption(click.Option):
    """An option that comes from a row. click takes any text; cli/origins.py checks it, whatever its origin."""

    def __init__(self, row: Setting) -> None:
        names = [row.option, row.name] + ([row.short] if row.short else [])
        unit = f" {row.unit}" if row.unit and row.default_text[-1:].isdigit() else ""
        notes = [f"{row.ge:g} to {row.le:g}"] if row.ge is not None and row.le is not None else []
        notes += [f"default: {row.default_text}{unit}"] if row.default_text != "none" else []
        help = f"{row.help} [{'; '.join(notes)}]" if notes else row.help
        super().__init__(names, type=str, multiple=row.multiple, metavar=row.metavar, help=help, default=None)
        self.group = row.group


class Command(click.Command):
    """A command whose help lists its own options first, then the settings by group; its errors become exit statuses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = CONTEXT | kwargs.get("context_settings", {})
        super().__init__(*args, **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Keep the lines of the epilog: it holds examples."""
        write_lines(formatter, self.epilog)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except origins.SettingsError as error:
            for problem in error.problems:
                message(problem)
            ctx.exit(Exit.USAGE)
        except NotRunning as error:
            from cli.presence import running_instances

            # What an instance that runs does not have is another matter.
            others = running_instances() if type(error) is NotRunning else []
            message(str(error) + (f" (running: --instance {', '.join(others)})" if others else ""))
            ctx.exit(Exit.NOT_RUNNING)
        except StandoffError as error:
            message(str(error))
            ctx.exit(Exit.FAILED)


def write_lines(formatter: click.HelpFormatter, text: str | None) -> None:
    if text:
        formatter.write_paragraph()
        for line in text.splitlines():
            formatter.write(f"{line}\n")


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., int]], Command]:
    """Make a click command of `function(settings, **own_parameters) -> exit status`, with the settings it takes."""

    def decorate(function: Callable[..., int]) -> Command:
        rows = table.rows_of(name)

        @functools.wraps(function)
        def invoke(**parameters: Any) -> None:
            flags = {row.name: parameters.pop(row.name, None) for row in rows}
            if name != "check":  # which has these among its remarks
                for remark in origins.strange_variables(os.environ):
                    message(f"warning: {remark}")
            settings = origins.resolve(name, flags, os.environ)
            click.get_current_context().exit(function(settings, **parameters))

        made = click.command(name, cls=Command, **kwargs)(invoke)
        by_group = sorted((row for row in rows if row.flag), key=lambda row: GROUPS.index(row.group))
        made.params += [SettingOption(row) for row in by_group]
        return made

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
