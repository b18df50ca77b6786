"""A module for each command."""

from __future__ import annotations

from cli.origins import SettingsError
from cli.settings import Settings


def need_source(command: str, settings: Settings) -> None:
    """Raises SettingsError with what to give if there is no source."""
    if not settings.source:
        raise SettingsError(
            [
                f"{command} needs a source of names: --source file:PATH (a zone file, JSON lines, or a folder of them) "
                "or --source etcd://HOST:PORT/PREFIX?schema=records"
            ]
        )
