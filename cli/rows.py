"""What a row of the table of settings is (cli/settings.py), and a row as data for those that go through all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from cli.values import Form

PREFIX = "STANDOFF_"

SERVING = frozenset({"run", "serve", "check"})
LOADING = frozenset({"run", "load", "check"})
DAEMONS = SERVING | LOADING
TOOLS = frozenset(
    {
        "status",
        "lookup",
        "wait",
        "locks",
        "scale",
        "rejects",
        "explain",
        "export",
        "history",
        "diff",
        "health",
        "pending",
        "approve",
        "reject",
        "rollback",
        "resume",
    }
)
EVERY = DAEMONS | TOOLS | {"import", "lint"}
#: Who asks the server or the loader over a socket.
ASKING = frozenset(
    {
        "scale",
        "rejects",
        "explain",
        "history",
        "diff",
        "lookup",
        "rollback",
        "resume",
        "health",
        "pending",
        "approve",
        "reject",
        "status",
    }
)
#: Who reads the history.
PAST = frozenset({"history", "diff", "lookup", "rollback"})
#: Who reads sources without an instance.
READING = frozenset({"import", "export", "lint"})

GENERAL, DNS, SOURCES, ETCD, LOGGING = "General", "DNS service", "Sources", "etcd", "Logging"
ANSWERS, ABUSE, TRANSFERS, GUARD = "Answers", "Abuse", "Transfers", "Guard"
GROUPS = (GENERAL, SOURCES, ETCD, GUARD, DNS, ANSWERS, ABUSE, TRANSFERS, LOGGING)


def row(
    help: str,
    group: str,
    commands: Collection[str],
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    form: Form | None = None,
    default_text: str = "",
    short: str = "",
    flag: bool = True,
    key: bool = True,
    secret: bool = False,
) -> msgspec.Meta:
    """The rest of a setting's row.

    ge, le: allowed range, ends included. default_text: what manuals say if the default depends on the machine.
    flag, key: whether the command line and the file may give it. secret: its value appears in no message.
    """
    extra = {
        "group": group,
        "commands": frozenset(commands),
        "unit": unit,
        "form": form,
        "default_text": default_text,
        "short": short,
        "flag": flag,
        "key": key,
        "secret": secret,
        "ge": ge,
        "le": le,
    }
    return msgspec.Meta(description=help, ge=ge, le=le, extra=extra)


@dataclass(frozen=True, slots=True)
class Setting:
    """A row as data, for those that go through all of them."""

    name: str
    type: Any  # what msgspec converts to: the annotation with its range
    base: Any  # the annotation without
    default: Any
    default_text: str
    help: str
    group: str
    commands: frozenset[str]
    unit: str
    ge: float | None
    le: float | None
    form: Form | None
    short: str
    flag: bool
    key: bool
    secret: bool

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def multiple(self) -> bool:
        return get_origin(self.base) is list

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.base) if get_origin(self.base) is Literal else ()

    @property
    def is_path(self) -> bool:
        return self.base is Path or Path in get_args(self.base)

    @property
    def metavar(self) -> str:
        if self.form:
            return self.form.metavar
        if self.choices:
            return "|".join(self.choices)
        return "SECONDS" if self.unit == "seconds" else "BYTES" if self.unit == "bytes" else "N"

    @property
    def allowed(self) -> str:
        """What a single value may be, in words that follow "is not"."""
        if self.form:
            return self.form.allowed
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if self.base is int else "a number"
        return f"{kind} from {self.ge:g} to {self.le:g}" if self.ge is not None else kind


def as_setting(field: msgspec.structs.FieldInfo, annotation: Any) -> Setting:
    """A field of the table with its annotation."""
    base, meta = get_args(annotation)
    factory: Callable[[], Any] | Any = field.default_factory
    default = field.default if factory is msgspec.NODEFAULT else factory()
    extra = dict(meta.extra)
    extra["default_text"] = extra["default_text"] or _plain(default)
    return Setting(field.name, annotation, base, default, help=meta.description, **extra)


def _plain(default: Any) -> str:
    if default in ("", None) or default == []:
        return "none"
    if isinstance(default, list):
        return " ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)
