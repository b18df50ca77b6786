"""Where a setting's value comes from: flag before variable before file before default. Reports every wrong value."""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cli import settings as table
from cli.rows import PREFIX, Setting
from cli.settings import Settings

#: A user and a password that somebody wrote into a URL: not for messages.
_USER_INFO = re.compile(r"//[^/@]*@")


class SettingsError(Exception):
    """Settings that are wrong; `problems` has a line for each, `str()` all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was given. `text`: it came as text (flag, variable), so "3" is a number too."""

    value: Any
    origin: str
    text: bool


def resolve(command: str, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings of a command. `flags`: name -> text, texts, or None; `environ`: an empty variable is no variable.

    Only what the command takes is looked at, but unknown keys of the file are always wrong. Raises SettingsError with
    all problems.
    """
    problems: list[str] = []
    rows = table.rows_of(command)
    given = _from_flags(rows, flags)
    for name, value in _from_variables(rows, environ, problems).items():
        given.setdefault(name, value)
    chosen: dict[str, Any] = {}

    def choose(row: Setting) -> None:
        try:
            if row.name in given:
                chosen[row.name] = convert(row, given[row.name])
        except ValueError as error:
            problems.append(str(error))

    if "config" not in given and table.DEFAULT_CONFIG.exists():
        given["config"] = Given(str(table.DEFAULT_CONFIG), "default", True)
    choose(next(row for row in rows if row.name == "config"))
    if path := chosen.get("config"):
        for name, value in _from_file(path, problems).items():
            given.setdefault(name, value)
    for row in rows:
        if row.name != "config":
            choose(row)
    if problems:
        raise SettingsError(problems)
    return Settings(**chosen)


def convert(row: Setting, given: Given) -> Any:
    """The checked value of a setting. ValueError names setting, origin, value and what is allowed."""
    raw = given.value
    try:
        target: Any = list[str] if row.multiple else str if row.is_path else row.type
        value: Any = msgspec.convert(raw, target, strict=not given.text)
    except msgspec.ValidationError:
        expected = f"a list, each {row.allowed}" if row.multiple else row.allowed
        raise _wrong(row, given.origin, raw, expected, "") from None
    if row.multiple:
        return list(dict.fromkeys(_parse(row, given.origin, item) for item in value))
    if row.form is None:
        return value
    text = _parse(row, given.origin, value)
    if not row.is_path:
        return text
    return Path(text) if text or row.default is not None else None


def _parse(row: Setting, origin: str, text: str) -> str:
    if row.form is None:
        return text
    try:
        return row.form.parse(text)
    except ValueError as error:
        raise _wrong(row, origin, text, row.form.allowed, str(error)) from None


def _wrong(row: Setting, origin: str, value: Any, allowed: str, reason: str) -> ValueError:
    shown = "the value" if row.secret else _USER_INFO.sub("//…@", repr(value))
    unit = f" ({row.unit})" if row.unit else ""
    return ValueError(
        f"setting {row.name}, from {origin}: {shown} is not {allowed}{unit}" + (f": {reason}" if reason else "")
    )


def _from_flags(rows: Iterable[Setting], flags: Mapping[str, Any]) -> dict[str, Given]:
    found = {}
    for row in rows:
        value = flags.get(row.name)
        if value is not None and value != ():
            found[row.name] = Given(list(value) if row.multiple else value, f"flag {row.option}", True)
    return found


def _from_variables(rows: Iterable[Setting], environ: Mapping[str, str], problems: list[str]) -> dict[str, Given]:
    found = {}
    for row in rows:
        text = environ.get(row.variable)
        if not text:
            continue
        origin = f"variable {row.variable}"
        try:
            found[row.name] = Given(shlex.split(text) if row.multiple else text, origin, True)
        except ValueError as error:
            problems.append(str(_wrong(row, origin, text, f"a list, each {row.allowed}", str(error))))
    return found


def _from_file(path: Path, problems: list[str]) -> dict[str, Given]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        problems.append(f"setting config: cannot read {path}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"setting config: {path} is not TOML: {error}")
        return {}
    known = [row.name for row in table.rows() if row.key]
    problems += [f"{path}:{key}: there is no such setting{suggest(key, known)}" for key in content if key not in known]
    return {key: Given(value, f"file {path}:{key}", False) for key, value in content.items() if key in known}


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'X'?" if a known word is near, else nothing."""
    near = difflib.get_close_matches(word.replace("-", "_").lower(), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


#: What the program itself and its tests look for; their names are near to settings'.
INTERNAL = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "COMPLETE", "DAMAGE_ROUNDS", "ETCD", "ETCD_TIMES", "FAULTS", "LOCK_DEBUG", "MAYHEM_S", "PYTHONS", "SEED",
        "TESTS",
    )
)  # fmt: skip


def strange_variables(environ: Mapping[str, str]) -> list[str]:
    """Remarks on variables that look like misspelt settings. Others are left alone: Kubernetes itself sets
    STANDOFF_PORT and STANDOFF_SERVICE_HOST in the neighbours of a service named "standoff"."""
    known = [row.variable for row in table.rows()]
    remarks = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or name in INTERNAL:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near:
            remarks.append(f"variable {name} is no setting; did you mean {near[0]}?")
    return remarks
