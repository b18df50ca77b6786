"""The one table of settings: each field of `Settings` is a row, and flags, variables, keys and manuals come from it.

    name: Annotated[TYPE, row("help", GROUP, COMMANDS, unit, range, form)] = default

To add a setting, add a row here (in cli/serving_rows.py or cli/guard_rows.py) and run `python -m cli.render --write`.
Nothing else lists settings. Which origin wins is the business of cli/origins.py.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import msgspec

from cli import values
from cli.guard_rows import Guarding
from cli.rows import (
    ASKING,
    DAEMONS,
    ETCD,
    EVERY,
    GENERAL,
    GROUPS,
    LOADING,
    LOGGING,
    PAST,
    READING,
    SOURCES,
    Setting,
    as_setting,
    row,
)  # fmt: skip

#: Read when neither --config nor STANDOFF_CONFIG is given, if it exists.
DEFAULT_CONFIG = Path("/etc/standoff/standoff.toml")
#: Where the loader keeps what it needs after a restart, if it may write there and systemd says nothing else.
STATE_FOLDER = Path("/var/lib/standoff")


def runtime_folders() -> list[Path]:
    """Where the control socket may be, the best first."""
    session = os.environ.get("XDG_RUNTIME_DIR")
    return [
        Path("/run/standoff"),
        *([Path(session, "standoff")] if session else []),
        Path(f"/tmp/standoff-{os.getuid()}"),
    ]


def default_runtime_dir() -> Path:
    """/run/standoff if we may write there, else a folder of the user's own."""
    first, *others = runtime_folders()
    return first if os.access(first, os.W_OK) else others[0]


def default_state_dir() -> Path | None:
    """Where systemd says, else /var/lib/standoff if we may write there, else none."""
    given = os.environ.get("STATE_DIRECTORY")
    folder = Path(given.partition(":")[0]) if given else STATE_FOLDER
    return folder if given or os.access(folder, os.W_OK) else None


class Settings(Guarding, frozen=True, kw_only=True):
    """Every setting of every command, checked. Fields that a command does not take hold their defaults."""

    config: Annotated[
        Path | None,
        row(
            "Read settings from this TOML file; flags and variables override it.",
            GENERAL, EVERY, form=values.FILE, short="-c", key=False,
            default_text="/etc/standoff/standoff.toml if it exists",
        ),
    ] = None  # fmt: skip
    instance: Annotated[
        str,
        row(
            "Name of this instance: loader, server and tools with the same name meet in the same shared memory.",
            GENERAL, EVERY, form=values.INSTANCE_NAME,
        ),
    ] = "default"  # fmt: skip
    runtime_dir: Annotated[
        Path,
        row(
            "Folder of the control sockets.",
            GENERAL, DAEMONS | ASKING, form=values.FOLDER,
            default_text="/run/standoff if writable, else $XDG_RUNTIME_DIR/standoff, else /tmp/standoff-UID",
        ),
    ] = msgspec.field(default_factory=default_runtime_dir)  # fmt: skip

    source: Annotated[
        list[str],
        row("Where names come from: files or etcd; several sources add up.", SOURCES, LOADING, form=values.SOURCE),
    ] = msgspec.field(default_factory=list)
    missing: Annotated[
        Literal["fail", "wait"],
        row(
            "A file or folder of `source` that is not there at the start, with no table or image from before: fail, "
            "or wait for it.",
            SOURCES, DAEMONS & LOADING,
        ),
    ] = "fail"  # fmt: skip
    zone: Annotated[
        list[str],
        row(
            "A zone to be authoritative for, also while it is empty. Schema skydns needs it; others bring their own.",
            SOURCES, LOADING | READING, form=values.ZONE,
        ),
    ] = msgspec.field(default_factory=list)  # fmt: skip
    state_dir: Annotated[
        Path | None,
        row(
            "Keep in this folder the last good copy of each etcd source and an image of the table, to start from, and "
            "the history; empty: keep none.",
            SOURCES, LOADING | PAST, form=values.FOLDER_OR_NONE,
            default_text="$STATE_DIRECTORY, or /var/lib/standoff if writable, else none",
        ),
    ] = msgspec.field(default_factory=default_state_dir)  # fmt: skip
    image_interval: Annotated[
        float,
        row(
            "Keep an image of the table in state_dir, this often if it has changed: a start without a table answers "
            "from it within a second. 0: never.",
            SOURCES, LOADING, unit="seconds", ge=0, le=86400,
        ),
    ] = 300.0  # fmt: skip
    history: Annotated[
        int,
        row(
            "Keep so many of the last changes to the table in state_dir, for `standoff history`, `diff`, `rollback`. "
            "0: none.",
            SOURCES, LOADING, unit="entries", ge=0, le=100000,
        ),
    ] = 1000  # fmt: skip
    history_size: Annotated[
        int,
        row(
            "Disk for the history; the oldest changes go first.",
            SOURCES, LOADING, unit="MiB", ge=1, le=100000,
        ),
    ] = 256  # fmt: skip
    default_ttl: Annotated[
        int,
        row("TTL of records that give none.", SOURCES, LOADING | {"export", "lint"}, unit="seconds", ge=0, le=604800),
    ] = 300
    semantics: Annotated[
        Literal["coredns", "strict"],
        row(
            "Schema skydns: a name answers with all that lies beneath it, as CoreDNS does, or every name stands for "
            "itself, with wildcards. `standoff lint` lists what differs.",
            SOURCES, LOADING | READING,
        ),
    ] = "coredns"  # fmt: skip
    on_reject: Annotated[
        Literal["keep", "drop"],
        row(
            "A key of etcd whose new value is refused: it keeps its last good value, or gives nothing. "
            "`standoff rejects` lists it either way.",
            SOURCES, LOADING,
        ),
    ] = "drop"  # fmt: skip
    filters: Annotated[
        list[str],
        row(
            "Filters that names with attributes pass, in order (docs/filters.md): windows, health, weights, or entry "
            "points of standoff.filters that are installed; none: no filter.",
            SOURCES, LOADING, form=values.FILTER,
        ),
    ] = msgspec.field(default_factory=lambda: ["windows", "health", "weights"])  # fmt: skip
    filter_timeout: Annotated[
        float,
        row(
            "A filter of your own that takes longer than this for one name is stopped and left out for a while.",
            SOURCES, LOADING, unit="seconds", ge=0.01, le=10,
        ),
    ] = 0.25  # fmt: skip
    relist_interval: Annotated[
        float,
        row(
            "List the whole source this often and report any difference from what watching gave.",
            SOURCES, LOADING, unit="seconds", ge=10, le=86400,
        ),
    ] = 300.0  # fmt: skip

    etcd_user: Annotated[str, row("User name for etcd.", ETCD, LOADING | READING, form=values.TEXT)] = ""
    etcd_password: Annotated[
        str,
        row(
            "Password for etcd. It has no flag: command lines are for all to see.",
            ETCD, LOADING | READING, form=values.TEXT, flag=False, secret=True,
        ),
    ] = ""  # fmt: skip
    etcd_password_file: Annotated[
        Path | None,
        row("File with the password for etcd in its first line.", ETCD, LOADING | READING, form=values.FILE),
    ] = None
    etcd_cacert: Annotated[
        Path | None,
        row(
            "Authorities that may sign etcd's certificate (PEM); for etcds:// sources.",
            ETCD,
            LOADING | READING,
            form=values.FILE,
        ),
    ] = None
    etcd_cert: Annotated[
        Path | None, row("Our certificate for etcd (PEM); needs etcd_key.", ETCD, LOADING | READING, form=values.FILE)
    ] = None
    etcd_key: Annotated[
        Path | None, row("Private key of etcd_cert (PEM).", ETCD, LOADING | READING, form=values.FILE)
    ] = None  # fmt: skip

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        row("Least serious messages to log.", LOGGING, DAEMONS - {"check"}),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        row("Log lines for people, or one JSON object a line.", LOGGING, DAEMONS - {"check"}),
    ] = "text"

    @property
    def listen_addresses(self) -> list[tuple[str, int]]:
        """`listen` as (address, port)."""
        return [values.split_address(text) for text in self.listen]

    @property
    def tls_listen_addresses(self) -> list[tuple[str, int]]:
        """`tls_listen` as (address, port)."""
        return [values.split_address(text) for text in self.tls_listen]

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """`metrics` as (address, port), None if it is off."""
        return values.split_address(self.metrics) if self.metrics else None

    @property
    def control_path(self) -> Path:
        """The control socket of this instance's server."""
        return self.runtime_dir / f"{self.instance}.sock"

    @property
    def loader_control_path(self) -> Path:
        """The control socket of this instance's loader."""
        return self.runtime_dir / f"{self.instance}.loader.sock"


@cache
def rows() -> tuple[Setting, ...]:
    """Every setting, group by group, in the table's order."""
    hints = get_type_hints(Settings, include_extras=True)
    found = (as_setting(field, hints[field.name]) for field in msgspec.structs.fields(Settings))
    return tuple(sorted(found, key=lambda setting: GROUPS.index(setting.group)))


def rows_of(command: str) -> list[Setting]:
    """The settings that a command takes."""
    return [setting for setting in rows() if command in setting.commands]
