"""rollback and resume while the loader is at work: what the command waits for, and what it tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cli import asking
from cli.commands import rollback
from cli.control import ControlFailed, NoReply
from cli.settings import Settings

BUSY = NoReply("did not reply within 5 s")
AT_WORK = {"state": "at work", "said": "", "names": 0}


class Loader:
    """Gives these replies, one after the other; the last one again and again."""

    def __init__(self, *replies: dict[str, Any] | Exception) -> None:
        self.asked: list[str] = []
        self._replies = self._given(replies)

    def _given(self, replies: tuple[dict[str, Any] | Exception, ...]) -> Iterator[dict[str, Any] | Exception]:
        yield from replies
        while True:
            yield replies[-1]

    def __call__(self, settings: Settings, command: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(command)
        reply = {} if command != "deed" else next(self._replies)
        if isinstance(reply, Exception):
            raise reply
        return reply


def carry_out(monkeypatch: pytest.MonkeyPatch, *replies: dict[str, Any] | Exception) -> int:
    monkeypatch.setattr(asking, "request", Loader(*replies))
    return rollback.carry_out(Settings(), "rollback", to=5).names


def test_a_loader_too_busy_to_reply_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = {"state": "done", "said": "", "names": 999_999}
    assert carry_out(monkeypatch, AT_WORK, BUSY, BUSY, AT_WORK, done) == 999_999


def test_what_went_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"state": "failed", "said": "nothing was changed", "names": 0}
    with pytest.raises(ControlFailed, match="the loader says: nothing was changed"):
        carry_out(monkeypatch, AT_WORK, failed)
    with pytest.raises(ControlFailed, match="replaced meanwhile"):
        carry_out(monkeypatch, AT_WORK, {"state": "idle", "said": "", "names": 0})


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rollback, "PATIENCE_S", 0.1)
    monkeypatch.setattr(rollback, "_SILENCE_S", 0.02)
    with pytest.raises(ControlFailed, match=r"still at it after 0\.1 s"):
        carry_out(monkeypatch, BUSY)
    assert capsys.readouterr().err.count("the loader is at work") == 1
