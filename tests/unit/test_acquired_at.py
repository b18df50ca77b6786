"""Lock debugging tells of another process where it took the lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shm import lockdebug


def held(folder: Path, pid: int, since: int, site: str) -> None:
    Path(folder, f"{pid}-{since}-0.held").write_text(json.dumps({"pid": pid, "site": site}))


def test_of_a_process_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process leaves its file, and its pid may come again."""
    monkeypatch.setenv(lockdebug.VARIABLE, str(tmp_path))
    held(tmp_path, 12, 900, "old.py:1")
    held(tmp_path, 12, 1000, "new.py:2")
    held(tmp_path, 121, 2000, "other.py:3")
    assert lockdebug.acquired_at(12) == "new.py:2"


def test_unknown_if_it_holds_nothing_or_debugging_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lockdebug.VARIABLE, str(tmp_path))
    Path(tmp_path, "12-1-0.held").write_text("")
    assert lockdebug.acquired_at(12) == ""
    assert lockdebug.acquired_at(13) == ""
    monkeypatch.delenv(lockdebug.VARIABLE)
    assert lockdebug.acquired_at(12) == ""
