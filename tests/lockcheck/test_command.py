"""The command: its output as text, JSON and SARIF, its exit status, and comments that silence it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockcheck.main import main
from lockcheck.model import Rule

SOURCE = """\
import threading, time
lock = threading.Lock()
def leaks(x):
    lock.acquire()
    if x:
        return
    lock.release()
def sleeps():
    with lock:
        time.sleep(1)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("some file.py")
    path.write_text(SOURCE)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(arguments)
    return status, capsys.readouterr().out


def test_text_lists_locks_and_findings(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, str(source))
    assert status == 1
    assert out.splitlines() == [
        "some file.lock  [threading.Lock]",
        "    acquire  some file.py:4  leaks",
        "    release  some file.py:7  leaks",
        "    with     some file.py:9  sleeps",
        "",
        "some file.py:4:5: leak: lock stays held by return (line 6) [in leaks]",
        "some file.py:10:9: blocking: time.sleep() sleeps while holding lock (since line 9) [in sleeps]",
        "1 files, 1 locks, 3 acquires and releases: 1 blocking, 1 leak",
    ]


def test_brief(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run(capsys, "--brief", str(source))
    assert len(out.splitlines()) == 3


def test_rules_can_be_chosen(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--ignore", "leak,blocking", str(source))[0] == 0
    status, out = run(capsys, "--brief", "--select", "blocking", str(source))
    assert (status, len(out.splitlines())) == (1, 2)


def test_a_comment_with_a_reason_silences_its_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SOURCE.replace("lock.acquire()", "lock.acquire()  # lockcheck: ok released by the caller")
    source.write_text(text.replace("sleep(1)", "sleep(1)  # lockcheck: ok"))
    status, out = run(capsys, "--brief", str(source))
    assert status == 1
    assert "leak" not in out
    assert "some file.py:10: skipped: `lockcheck: ok` without a reason silences nothing" in out
    assert "1 silenced" in out


def test_json(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "--json", str(source))
    document = json.loads(out)
    assert status == 1
    assert document["version"] == 1
    assert document["locks"][0]["kind"] == "threading.Lock"
    assert [s["line"] for s in document["locks"][0]["sites"]] == [4, 7, 9]
    leak = document["findings"][0]
    assert (leak["rule"], leak["path"], leak["line"], leak["function"]) == ("leak", "some file.py", 4, "leaks")
    assert leak["related"] == [{"path": "some file.py", "line": 6, "column": 1, "message": "return"}]


def test_sarif_has_what_the_standard_requires(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SARIF 2.1.0 (OASIS): required properties, and those that code-scanning services ask for."""
    document = json.loads(run(capsys, "--sarif", str(source))[1])
    assert document["version"] == "2.1.0"
    (only,) = document["runs"]
    driver = only["tool"]["driver"]
    assert driver["name"] == "standoff-lockcheck"
    assert [r["id"] for r in driver["rules"]] == [str(r) for r in Rule]
    assert all(r["shortDescription"]["text"] for r in driver["rules"])
    assert only["invocations"][0]["executionSuccessful"] is True
    assert len(only["results"]) == 2
    for result in only["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        assert result["partialFingerprints"]
        for location in result["locations"] + result["relatedLocations"]:
            physical = location["physicalLocation"]
            assert physical["artifactLocation"]["uri"] == "some%20file.py"
            assert physical["region"]["startLine"] >= 1
            assert physical["region"]["startColumn"] >= 1
        assert all(location["message"]["text"] for location in result["relatedLocations"])


def test_exit_status(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text("import threading\nlock = threading.Lock()\nwith lock: pass\n")
    assert run(capsys, str(source))[0] == 0
    source.write_text("def (:\n")
    status, out = run(capsys, str(source))
    assert (status, "skipped" in out) == (2, True)
    assert main(["nowhere.py"]) == 2
    assert "nowhere.py: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--select", "nonsense", "x"], ["--json", "--sarif", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_help_names_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {rule} " in out for rule in Rule)
    assert all(len(line) <= 100 for line in out.splitlines())


def test_folders_and_exclusion(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("package")
    folder.mkdir()
    (folder / "a.py").write_text(SOURCE)
    (folder / "b.txt").write_text("not Python")
    assert "1 files" in run(capsys, str(folder))[1]
    assert "2 files" in run(capsys, ".")[1]
    assert "1 files" in run(capsys, ".", "--exclude", "package")[1]
