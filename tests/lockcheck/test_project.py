"""The checker on this project's own sources: no findings, and every silenced line says why."""

from __future__ import annotations

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
