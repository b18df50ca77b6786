"""The version of this build."""

from __future__ import annotations


def version() -> str:
    """From the installed package; in a checkout that is not installed, from pyproject.toml."""
    from importlib import metadata

    try:
        return metadata.version("standoff")
    except metadata.PackageNotFoundError:
        import tomllib
        from pathlib import Path

        with (Path(__file__).parent.parent / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])
