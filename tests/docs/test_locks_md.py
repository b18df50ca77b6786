"""docs/locks.md tells the truth: its Python runs, top to bottom, and its tables name what there is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import standoff
from drill import catalogue
from server.exporter import BoardCollector
from shm import errors
from shm.board import Board
from shm.segment import Names, remove_instance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "locks.md"
TEXT = PAGE.read_text()


def blocks(language: str) -> list[tuple[int, str]]:
    """(line number, code) of each fenced block."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [(TEXT[: match.start(1)].count("\n") + 1, match[1]) for match in found]


@pytest.mark.lock_left_ok("an example leaks the lock in a child and kills it")
def test_every_example_runs(tmp_path: Path) -> None:
    """In one process, as a reader types it; under an instance name of its own. Line numbers are the page's."""
    name = f"docs-{os.getpid()}"
    script = ""
    for line, code in blocks("python"):
        script += "\n" * (line - 1 - script.count("\n")) + code.replace('"colours"', f'"{name}"')
    assert name in script
    said = tmp_path / "said"  # a file: a child that an example has left behind would keep a pipe open
    try:
        with said.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", script],
                cwd=ROOT, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        status = process.wait(timeout=50)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert (status, said.read_text()) == (0, "")
        assert Names(name).existing() == [], "the last example removes what the first has made"
    finally:
        remove_instance(name)


def test_there_are_examples_to_run() -> None:
    assert len(blocks("python")) >= 6
    assert sum(code.count("assert") for _, code in blocks("python")) >= 12


@pytest.mark.parametrize(
    "command", [line.split("#")[0].strip() for _, code in blocks("sh") for line in code.splitlines()]
)
def test_every_command_is_there(command: str) -> None:
    program, *arguments = command.split()
    assert program == "standoff"
    names = [argument for argument in arguments[1:] if argument.startswith("--")]
    help_text = CliRunner().invoke(standoff, [arguments[0], "--help"]).stdout
    assert all(name in help_text for name in names)


def test_every_drill_is_described() -> None:
    section = TEXT[TEXT.index("## Drills") :]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(catalogue.NAMES)


def test_errors_and_metrics_are_real(instance: str) -> None:
    named = set(re.findall(r"`([A-Z][A-Za-z]+(?:Held|Read|Error|Lock|Block|Timeout))`", TEXT))
    assert {"NotHeld", "NestedRead", "UpgradeError", "ClosedLock", "ForkedLock", "WouldBlock", "LockTimeout"} <= named
    assert all(hasattr(errors, name) for name in named)
    board = Board.create_or_attach(instance)
    exported = {metric.name for metric in BoardCollector(board, "test").collect()}
    board.close()
    assert {metric.removesuffix("_total") for metric in re.findall(r"standoff_lock_\w+", TEXT)} <= exported
