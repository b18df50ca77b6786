"""The one table of settings: each field of `Settings` is a row, and flags, variables, keys and manuals come from it.

    name: Annotated[TYPE, row("help", GROUP, COMMANDS, unit, range, form)] = default

To add a setting, add a row here and run `python -m cli.render --write`. Nothing else lists settings. Which origin wins
is the business of cli/origins.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from cli import values
from cli.values import Form

PREFIX = "STANDOFF_"
#: Read when neither --config nor STANDOFF_CONFIG is given, if it exists.
DEFAULT_CONFIG = Path("/etc/standoff/standoff.toml")
#: Slots for readers are 64 (shm/layout.py): four stay for the stream worker and for replacements that overlap.
MAX_WORKERS = 60

SERVING = frozenset({"run", "serve", "check"})
LOADING = frozenset({"run", "load", "check"})
DAEMONS = SERVING | LOADING
TOOLS = frozenset({"status", "lookup", "wait", "locks", "scale", "rejects", "explain", "export"})
EVERY = DAEMONS | TOOLS | {"import", "lint"}
#: Who asks the server or the loader over a socket.
ASKING = frozenset({"scale", "rejects", "explain"})
#: Who reads sources without an instance.
READING = frozenset({"import", "export", "lint"})

GENERAL, DNS, SOURCES, ETCD, LOGGING = "General", "DNS service", "Sources", "etcd", "Logging"
ANSWERS, ABUSE, TRANSFERS = "Answers", "Abuse", "Transfers"
GROUPS = (GENERAL, SOURCES, ETCD, DNS, ANSWERS, ABUSE, TRANSFERS, LOGGING)
#: Networks whose addresses nobody on the internet can forge usefully: no victim to reflect to.
NOT_LIMITED = (
    "127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7",
    "fe80::/10",
)  # fmt: skip


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


def available_cpus() -> int:
    """CPUs that this process may use, at most MAX_WORKERS."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


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
    folder = Path(given.partition(":")[0]) if given else Path("/var/lib/standoff")
    return folder if given or os.access(folder, os.W_OK) else None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
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
    ] = []
    zone: Annotated[
        list[str],
        row(
            "A zone to be authoritative for, also while it is empty. Schema skydns needs it; others bring their own.",
            SOURCES, LOADING | READING, form=values.ZONE,
        ),
    ] = []  # fmt: skip
    state_dir: Annotated[
        Path | None,
        row(
            "Keep the last good copy of each etcd source in this folder, to start from while etcd is away; "
            "empty: keep none.",
            SOURCES, LOADING, form=values.FOLDER_OR_NONE,
            default_text="$STATE_DIRECTORY, or /var/lib/standoff if writable, else none",
        ),
    ] = msgspec.field(default_factory=default_state_dir)  # fmt: skip
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

    listen: Annotated[
        list[str],
        row("Answer DNS here, on UDP and TCP; give it once for each address.", DNS, SERVING, form=values.LISTEN),
    ] = msgspec.field(default_factory=lambda: ["127.0.0.1:5300"])
    workers: Annotated[
        int,
        row(
            "UDP worker processes.",
            DNS, SERVING, unit="processes", ge=1, le=MAX_WORKERS, default_text="CPUs this process may use",
        ),
    ] = msgspec.field(default_factory=available_cpus)  # fmt: skip
    max_udp_size: Annotated[
        int,
        row(
            "Largest UDP answer, whatever the client offers; longer ones are truncated and asked again over TCP.",
            DNS, SERVING, unit="bytes", ge=512, le=4096,
        ),
    ] = 1232  # fmt: skip
    tcp_clients: Annotated[
        int, row("TCP connections at a time.", DNS, SERVING, unit="connections", ge=1, le=100000)
    ] = 1000  # fmt: skip
    tcp_clients_per_address: Annotated[
        int,
        row(
            "TCP connections at a time of one address (IPv6: of one /64), so that none takes all of tcp_clients; "
            "0: no limit.",
            DNS, SERVING, unit="connections", ge=0, le=100000,
        ),
    ] = 250  # fmt: skip
    tcp_idle: Annotated[
        float, row("Close a TCP connection that is silent for so long.", DNS, SERVING, unit="seconds", ge=0.1, le=3600)
    ] = 10.0
    tls_listen: Annotated[
        list[str],
        row(
            "Answer DNS over TLS (RFC 7858) here, by convention on port 853; needs tls_cert and tls_key. The limits of "
            "TCP hold for both together.",
            DNS, SERVING, form=values.LISTEN,
        ),
    ] = []  # fmt: skip
    tls_cert: Annotated[
        Path | None,
        row(
            "Certificate for tls_listen, with the chain behind it (PEM). It is loaded again when the files change, and "
            "on SIGHUP; a pair that does not work is reported, and the old one stays in use.",
            DNS, SERVING, form=values.FILE,
        ),
    ] = None  # fmt: skip
    tls_key: Annotated[
        Path | None,
        row("Private key of tls_cert (PEM, without a password).", DNS, SERVING, form=values.FILE),
    ] = None
    drain_timeout: Annotated[
        float,
        row("How long a stopping server may finish what it has begun.", DNS, SERVING, unit="seconds", ge=0, le=300),
    ] = 5.0
    metrics: Annotated[
        str,
        row("Serve /metrics (Prometheus), /health and /ready here; empty: nowhere.", DNS, SERVING, form=values.METRICS),
    ] = ""

    freebind: Annotated[
        Literal["on", "off"],
        row("Listen on addresses that no interface has yet.", DNS, SERVING),
    ] = "off"

    order: Annotated[
        Literal["rotate", "fixed", "random"],
        row("Order of the addresses in an answer: another first one each time, as stored, or any.", ANSWERS, SERVING),
    ] = "rotate"
    max_answers: Annotated[
        int,
        row(
            "Addresses in an answer at most, each as often as the others; 0: all. With order = fixed the first ones.",
            ANSWERS, SERVING, ge=0, le=65535,
        ),
    ] = 0  # fmt: skip
    stale_after: Annotated[
        float,
        row(
            "Tell in answers (extended error 3) once the source has been silent for so long; 0: never.",
            ANSWERS, SERVING, unit="seconds", ge=0, le=31536000,
        ),
    ] = 60.0  # fmt: skip
    identity: Annotated[
        str,
        row(
            "What NSID and id.server say, followed by worker and generation.",
            ANSWERS, SERVING, form=values.TEXT, default_text="the host's name",
        ),
    ] = ""  # fmt: skip
    chaos: Annotated[
        Literal["on", "off"],
        row(
            "Answer id.server, version.server, generation.server and revision.server in class CHAOS.", ANSWERS, SERVING
        ),
    ] = "on"
    cookie_secret: Annotated[
        list[str],
        row(
            "Secret of DNS cookies (RFC 9018), the same on all machines that share an address. The first one signs, "
            "all are accepted: put a new one in front, drop the old one an hour later.",
            ANSWERS, SERVING, form=values.COOKIE_SECRET, flag=False, secret=True, default_text="drawn at start",
        ),
    ] = []  # fmt: skip

    rrl_rate: Annotated[
        float,
        row(
            "Answers a second over UDP to one network (/24 or /56), all workers together; 0: no limit. Clients with a "
            "valid cookie are not limited.",
            ABUSE, SERVING, unit="answers a second", ge=0, le=1000000,
        ),
    ] = 200.0  # fmt: skip
    rrl_slip: Annotated[
        int,
        row(
            "Of the answers beyond rrl_rate, send every so manieth truncated, so that real clients come back by TCP; "
            "0: none, 1: all.",
            ABUSE, SERVING, ge=0, le=10,
        ),
    ] = 2  # fmt: skip
    rrl_exempt: Annotated[
        list[str],
        row(
            "Networks that are not limited.",
            ABUSE, SERVING, form=values.NETWORK, default_text="loopback, private and link-local networks",
        ),
    ] = msgspec.field(default_factory=lambda: list(NOT_LIMITED))  # fmt: skip
    refuse: Annotated[
        list[str], row("Clients that get REFUSED.", ABUSE, SERVING, form=values.NETWORK)
    ] = []  # fmt: skip
    drop: Annotated[
        list[str], row("Clients that get no answer.", ABUSE, SERVING, form=values.NETWORK)
    ] = []  # fmt: skip

    transfer_allow: Annotated[
        list[str],
        row(
            "Who may have whole zones (AXFR, IXFR): a network, the name of a tsig_key, or both as NETWORK#KEY.",
            TRANSFERS, SERVING, form=values.GRANT,
        ),
    ] = []  # fmt: skip
    notify: Annotated[
        list[str],
        row(
            "Secondaries to be told when a zone has changed, of each zone; port 53 if none is given.",
            TRANSFERS, SERVING, form=values.NOTIFIED,
        ),
    ] = []  # fmt: skip
    tsig_key: Annotated[
        list[str],
        row(
            "Key of signed messages (TSIG). It has no flag: command lines are for all to see.",
            TRANSFERS, SERVING, form=values.TSIG_KEY, flag=False, secret=True,
        ),
    ] = []  # fmt: skip

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


@cache
def rows() -> tuple[Setting, ...]:
    """Every setting, in the table's order."""
    hints = get_type_hints(Settings, include_extras=True)
    return tuple(_row(field, hints[field.name]) for field in msgspec.structs.fields(Settings))


def rows_of(command: str) -> list[Setting]:
    """The settings that a command takes."""
    return [setting for setting in rows() if command in setting.commands]


def _row(field: msgspec.structs.FieldInfo, annotation: Any) -> Setting:
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
