"""The checker on this project's own sources: no findings, and every silenced line says why."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from lockcheck.check import check
from lockcheck.report import text

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("room", ["shm", "server", "loader", "cli", "lockcheck"])
def test_no_findings(room: str) -> None:
    report = check([str(ROOT / room)])
    assert not report.findings, text(report, with_locks=False)
    assert not report.skipped


def test_our_lock_is_found() -> None:
    report = check([str(ROOT / "server"), str(ROOT / "shm")])
    assert any(use.kind.name == "ReadLock" and use.sites for use in report.locks)


@pytest.mark.parametrize("path", sorted((ROOT / "lockcheck").glob("*.py")), ids=lambda path: path.name)
def test_it_stands_alone(path: Path) -> None:
    """The standard library, and pytest in the plugin: nothing else."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported.update(name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"lockcheck"}
    assert others <= ({"pytest"} if path.name == "plugin.py" else set())
