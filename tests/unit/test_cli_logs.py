"""Log lines: for people, for the journal, as JSON."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from cli import logs


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(format: str, level: str = "info") -> str:
    stream = io.StringIO()
    logs.set_up(level, format, "server", stream)
    log = logging.getLogger("server.worker")
    log.debug("hidden")
    log.info("slot %d taken", 3, extra={"slot": 3})
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        log.exception("failed")
    return stream.getvalue()


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    lines = logged("text").splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} INFO    server\[\d+\] slot 3 taken slot=3", lines[0])
    assert " ERROR   server[" in lines[1]
    assert lines[-2:] == ["ValueError: bad", "value"]


def test_a_key_does_not_steer_a_terminal() -> None:
    record = logging.makeLogRecord({"levelno": 20, "msg": "key %s: %s", "args": ("/names/\x1b[2J", "no\x00name")})
    assert logs.TextFormatter("loader", journal=True).format(record).endswith("key /names/\\x1b[2J: no\\x00name")


def test_text_for_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    lines = logged("text").splitlines()
    assert lines[0] == "<6>server: slot 3 taken slot=3"
    assert lines[1] == "<3>server: failed"
    assert all(line.startswith("<3>") for line in lines[1:])


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    first, second = map(json.loads, logged("json").splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert isinstance(first.pop("pid"), int)
    assert first == {
        "level": "info", "part": "server", "logger": "server.worker", "message": "slot 3 taken", "slot": 3
    }  # fmt: skip
    assert second["level"] == "error"
    assert second["error"].endswith("ValueError: bad\nvalue")


def test_levels() -> None:
    assert logged("text", "error").count("\n") > 1
    assert "slot 3" not in logged("text", "warning")
    assert "hidden" in logged("text", "debug")


@pytest.mark.parametrize(("level", "priority"), [(10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2), (60, 2), (1, 7)])
def test_priorities(level: int, priority: int) -> None:
    assert logs.priority(level) == priority
