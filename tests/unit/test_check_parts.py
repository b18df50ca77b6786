"""`standoff check` on the folder and the command that the loader goes on without; misspelt variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import checks
from cli.main import standoff
from cli.settings import Settings


def call(*arguments: str) -> Result:
    return CliRunner().invoke(standoff, arguments)


def test_check_of_the_state_dir(tmp_path: Path) -> None:
    def look(folder: Path) -> list[tuple[str, str]]:
        return [(one.level, one.text) for one in checks.state_dir(Settings(state_dir=folder))]

    assert look(tmp_path) == [("ok", f"{tmp_path} can be written to")]
    assert look(tmp_path / "a" / "b") == [("ok", f"{tmp_path / 'a' / 'b'} can be made")]
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    level, text = look(tmp_path / "file" / "x")[0]
    assert level == "warning"
    assert f"cannot be made: {tmp_path / 'file'} cannot be written to" in text
    assert [one.level for one in checks.state_dir(Settings(state_dir=None))] == ["ok"]
    assert "state_dir" in call("check", "load", "--source", f"file:{tmp_path}").stdout


def test_check_of_the_guard_hook(tmp_path: Path) -> None:
    def look(command: str) -> list[tuple[str, str]]:
        return [(one.level, one.text) for one in checks.guard_hook(Settings(guard_hook=command))]

    hook = tmp_path / "hook"
    assert look("") == []
    assert "is not there" in look(f"{hook} --now")[0][1]
    hook.write_text("#!/bin/sh\n")
    assert look(str(hook))[0][0] == "warning"
    assert "chmod +x" in look(str(hook))[0][1]
    hook.chmod(0o755)
    assert look(f"{hook} --now") == [("ok", f"{hook} can be run")]
    assert look("sh -c true")[0][0] == "ok"
    assert look("'never ends")[0][0] == "problem"  # the loader would not start
    result = call("check", "load", "--source", f"file:{tmp_path}", "--guard-hook", "/no/such/hook")
    assert "warning  guard_hook  /no/such/hook is not there" in result.stdout
    assert result.exit_code == 0


def test_every_command_warns_of_misspelt_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDOFF_WORKER", "3")
    for internal in ("STANDOFF_FAULTS", "STANDOFF_TESTS", "STANDOFF_ETCD"):
        monkeypatch.setenv(internal, "1")
    result = call("run")  # no source: it does not start
    told = [line for line in result.stderr.splitlines() if "variable" in line]
    assert told == ["standoff: warning: variable STANDOFF_WORKER is no setting; did you mean STANDOFF_WORKERS?"]
    assert "variable" not in call("check", "load").stderr  # it has a remark
