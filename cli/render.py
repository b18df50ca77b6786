"""Writes what is made from the table of settings: docs/settings.md, the sample file, the man pages.

python -m cli.render --write     write them
python -m cli.render --check     exit 1, naming those that are not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from cli import main
from cli import settings as table
from cli.options import SettingOption
from cli.rows import EVERY, GROUPS, Setting

ROOT = Path(__file__).parent.parent

#: What the sample file shows where the default says nothing.
SAMPLES = {
    "source": '["etcd://127.0.0.1:2379/names?schema=records"]',
    "zone": '["example.test"]',
    "etcd_user": '"standoff"',
    "etcd_password": '"secret"',
    "etcd_password_file": '"/etc/standoff/etcd-password"',
    "etcd_cacert": '"/etc/standoff/etcd-ca.pem"',
    "etcd_cert": '"/etc/standoff/etcd-client.pem"',
    "etcd_key": '"/etc/standoff/etcd-client.key"',
    "tls_listen": '["127.0.0.1:853"]',
    "tls_cert": '"/etc/standoff/tls.pem"',
    "tls_key": '"/etc/standoff/tls.key"',
    "metrics": '"127.0.0.1:9153"',
    "runtime_dir": '"/run/standoff"',
    "workers": "4",
    "state_dir": '"/var/lib/standoff"',
    "identity": '"ns1"',
    "cookie_secret": '["e5e973e5a6b2a43f48e7dc849e37bfcf"]',
    "cookie_secret_file": '"/etc/standoff/cookie-secrets"',
    "refuse": '["198.51.100.0/24"]',
    "guard_canary": '["www.example.test A 192.0.2.1"]',
    "guard_hook": '"/usr/local/bin/decide"',
    "drop": '["203.0.113.7"]',
}


def groups() -> list[tuple[str, list[Setting]]]:
    """Settings by group, in the table's order."""
    return [(group, [row for row in table.rows() if row.group == group]) for group in GROUPS]


def range_text(row: Setting) -> str:
    """Allowed values, with the unit."""
    allowed = f"{row.ge:g} to {row.le:g}" if row.ge is not None else row.allowed
    unit = f" {row.unit}" if row.unit else ""
    return f"{allowed}{unit}" + (", several" if row.multiple else "")


def default_text(row: Setting) -> str:
    return row.default_text


def origins_text(row: Setting) -> str:
    """Which of flag, variable and key exist."""
    flag = [", ".join(filter(None, [row.short, row.option]))] if row.flag else []
    return ", ".join([*flag, row.variable, *([row.name] if row.key else [])])


# ---------------------------------------------------------------- docs/settings.md


def settings_page() -> str:
    """The reference page."""
    lines = [
        "# Settings",
        "",
        "Made from `cli/settings.py` by `python -m cli.render --write`; change it there.",
        "",
        "Each setting is a flag, a variable and a key of `standoff.toml`. A flag wins over a variable, a variable",
        "over the file, the file over the default. Where several values are allowed, give the flag several times,",
        "separate them with spaces in the variable (with shell quotes if need be), and write a list in the file;",
        "the origin that wins gives all of them. An empty variable counts as none.",
        "",
        "A wrong value ends the command with status 2 and a line that names setting, origin, value and what is",
        "allowed; so does an unknown key in the file. `standoff check` looks further.",
        "",
    ]
    for group, rows in groups():
        lines += [f"## {group}", "", "| setting | what | allowed | default | taken by |", "|---|---|---|---|---|"]
        lines += [_page_row(row) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _page_row(row: Setting) -> str:
    names = "<br>".join(f"`{name}`" for name in origins_text(row).split(", "))
    commands = " ".join(sorted(row.commands, key=_command_order)) if row.commands != EVERY else "all"
    cells = [names, row.help, range_text(row), default_text(row), commands]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _command_order(name: str) -> int:
    return [command for names in main.COMMANDS.values() for command in names].index(name)


# ---------------------------------------------------------------- deploy/sample/standoff.toml


def sample_file() -> str:
    """A standoff.toml with every key, commented out, at its default where it has one."""
    lines = [
        "# Standoff's settings: copy to /etc/standoff/standoff.toml. Every key, with its default or an example.",
        "# Flags and STANDOFF_* variables override this file. Manual: man 5 standoff.toml. Check it: standoff check",
    ]
    for group, rows in groups():
        lines += ["", f"# ---- {group}"]
        for row in rows:
            if row.key:
                lines += ["", f"# {row.help}", f"# {_sample_note(row)}", f"#{row.name} = {_sample_value(row)}"]
    return "\n".join(lines) + "\n"


def _sample_note(row: Setting) -> str:
    default = "" if row.name not in SAMPLES else f"; default: {default_text(row)}"
    return f"Allowed: {range_text(row)}{default}"


def _sample_value(row: Setting) -> str:
    if row.name in SAMPLES:
        return SAMPLES[row.name]
    if isinstance(row.default, list):
        return "[" + ", ".join(f'"{item}"' for item in row.default) + "]"
    return f"{row.default:g}" if isinstance(row.default, (int, float)) else f'"{row.default}"'


# ---------------------------------------------------------------- man pages


def roff(text: str) -> str:
    """Text for troff: backslashes and dashes as they are, no line taken for a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))


def _title(name: str, section: int) -> list[str]:
    return [
        '.\\" Made from cli/settings.py by python -m cli.render --write',
        f'.TH {roff(name).upper()} {section} "" "Standoff" "Standoff manual"',
        ".SH NAME",
    ]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in (".PP", roff(" ".join(text.split())))]


def command_page() -> str:
    """standoff(1)."""
    lines = [
        *_title("standoff", 1),
        "standoff \\- authoritative DNS from etcd, through shared memory",
        ".SH SYNOPSIS",
        ".B standoff",
        "COMMAND [OPTIONS]",
        ".SH DESCRIPTION",
        roff(
            "A loader mirrors etcd or files into a table of ready-made answers in shared memory; several worker "
            "processes answer DNS queries from it. No bug, crash or stall of any one process stops the answers."
        ),
    ]
    commands = main.Commands(name="standoff")
    context = click.Context(commands, info_name="standoff")
    lines.append(".SH COMMANDS")
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command is not None
        lines += _command(command)
    lines.append(".SH SETTINGS")
    lines += _paragraphs(
        [
            "Each command takes the settings that concern it as flags; every setting is also a variable and a key of "
            "standoff.toml(5), where they are described. A flag wins over a variable, a variable over the file."
        ]
    )
    for row in table.rows():
        if row.flag:
            short = f"{row.short}, " if row.short else ""
            lines += [".TP", f"\\fB{roff(short + row.option)}\\fR \\fI{roff(row.metavar)}\\fR", roff(row.help)]
    lines += [".SH EXIT STATUS"]
    for status, text in (
        (0, "Done."),
        (1, "Failed; for lookup: no records; for status: down."),
        (2, "Wrong usage or settings."),
        (3, "The instance is not running."),
    ):
        lines += [".TP", f".B {status}", roff(text)]
    lines += [
        ".SH SIGNALS",
        "run, serve and load end gracefully on SIGTERM and SIGINT; a second one ends run at once. When its terminal is "
        "gone (SIGHUP), run ends as well. Without a terminal, SIGHUP makes run and serve read the TLS certificate and "
        "the file of cookie secrets again.",
        ".SH FILES",
        *_definition("/etc/standoff/standoff.toml", "Settings, unless --config names another file."),
        *_definition("/run/standoff/INSTANCE.sock", "Control socket."),
        *_definition("/dev/shm/standoff.INSTANCE.*", "Shared memory and lock files of an instance."),
        ".SH SEE ALSO",
        ".BR standoff.toml (5),",
        ".BR dig (1),",
        ".BR etcdctl (1)",
    ]
    return "\n".join(lines) + "\n"


def _definition(term: str, text: str) -> list[str]:
    return [".TP", f".I {roff(term)}", roff(text)]


def _command(command: click.Command) -> list[str]:
    """Not from click's own help: it differs between versions of click."""
    arguments = [str(part.metavar) for part in command.params if isinstance(part, click.Argument)]
    lines = [f'.SS "standoff {roff(" ".join([str(command.name), "[OPTIONS]", *arguments]))}"']
    help = [part for part in (command.help or "").split("\n\n") if part.strip()]
    for i, part in enumerate(help):
        lines += ([".PP"] if i else []) + [roff(" ".join(part.split()))]
    for option in command.params:
        if isinstance(option, click.Option) and not isinstance(option, SettingOption):
            names = ", ".join(sorted(option.opts, key=len)) + (f" {option.metavar}" if option.metavar else "")
            default = f" Default: {option.default:g}." if option.show_default else ""
            lines += [".TP", f".B {roff(names)}", roff(f"{option.help}{default}")]
    examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    if examples:
        lines += [".PP", "Examples:", ".PP", ".RS", ".nf", *(roff(line.strip()) for line in examples), ".fi", ".RE"]
    return lines


def file_page() -> str:
    """standoff.toml(5)."""
    lines = [
        *_title("standoff.toml", 5),
        "standoff.toml \\- settings of Standoff",
        ".SH DESCRIPTION",
        roff(
            "A TOML file of keys and values, without tables. It is read from /etc/standoff/standoff.toml if it exists, "
            "or from where --config or STANDOFF_CONFIG say. Each key is also a variable and mostly a flag of "
            "standoff(1). A flag wins over a variable, a variable over the file, the file over the default."
        ),
        *_paragraphs(
            [
                "In a variable, several values are separated by spaces, with shell quotes if need be; a flag is given "
                "several times. The origin that wins gives all values. An empty variable counts as none.",
                "An unknown key or a wrong value ends the command with status 2; all that is wrong is listed.",
            ]
        ),
    ]
    for group, rows in groups():
        lines.append(f'.SH "{roff(group.upper())}"')
        for row in rows:
            lines += [".TP", f".B {roff(row.name if row.key else row.option)}", roff(row.help)]
            lines += [".br", roff(f"Allowed: {range_text(row)}. Default: {default_text(row)}.")]
            lines += [".br", roff(f"Also {_also(row)}.")]
    lines += [
        ".SH EXAMPLE",
        ".RS",
        ".nf",
        *(
            roff(line)
            for line in (
                'source = ["etcd://10.0.0.1:2379,10.0.0.2:2379/names?schema=records"]',
                'listen = ["192.0.2.1:53", "[2001:db8::1]:53"]',
                "workers = 4",
                'metrics = "127.0.0.1:9153"',
            )
        ),
        ".fi",
        ".RE",
        ".SH SEE ALSO",
        ".BR standoff (1)",
    ]
    return "\n".join(lines) + "\n"


def _also(row: Setting) -> str:
    flag = [", ".join(filter(None, [row.short, row.option]))] if row.flag and row.key else []
    return " and ".join([*flag, row.variable])


#: Everything that is rendered: path from the repository's root, and how.
FILES: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_page,
    "deploy/sample/standoff.toml": sample_file,
    "docs/man/standoff.1": command_page,
    "docs/man/standoff.toml.5": file_page,
}


def stale(root: Path) -> list[str]:
    """Files that are not what would be rendered now."""
    return [name for name, render in FILES.items() if not _is(root / name, render())]


def write(root: Path) -> None:
    for name, render in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render())


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def run(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        write(ROOT)
        return 0
    if arguments != ["--check"]:
        print(__doc__, file=sys.stderr)
        return 2
    drift = stale(ROOT)
    for name in drift:
        print(f"{name} is not up to date: python -m cli.render --write", file=sys.stderr)
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
