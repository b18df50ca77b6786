"""What the loader knows of targets: by whose word, what is kept in the file, and how it is told. No process here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from loader import health, targets
from loader.health import PAGE_BYTES, STALE_AFTER_S, Health
from loader.targets import Options, Target
from tests.support.mirroring import run_async


def target(last: int, **options: Any) -> Target:
    return targets.parse(Options(f"http://192.0.2.{last}/", **options))


class Stand:
    """A Health, and the targets that it said have turned."""

    def __init__(self, path: Path | None = None, *watched: Target) -> None:
        self.turned: list[str] = []
        self.health = Health(path, self._turned)
        self.health.watch(watched, ())

    def _turned(self, texts: Collection[str]) -> None:
        self.turned += texts

    def taken(self) -> list[str]:
        turned, self.turned = self.turned, []
        return turned


ONE, TWO = target(1), target(2)


def test_unknown_is_up_and_only_what_turns_is_told() -> None:
    stand = Stand(None, ONE, TWO)
    assert stand.health.is_up(ONE.text) is None
    assert stand.health.counts() == (2, 0)
    stand.health._hear([(ONE.text, True, "")])
    assert stand.taken() == []  # it was taken for up before
    stand.health._hear([(ONE.text, False, "refused"), (TWO.text, True, ""), ("tcp://192.0.2.9:1", False, "")])
    assert stand.taken() == [ONE.text]
    stand.health._hear([(ONE.text, False, "refused otherwise")])
    assert stand.taken() == []
    assert stand.health.counts() == (1, 1)
    assert stand.health.flips == 1
    assert stand.health.is_up("tcp://192.0.2.9:1") is None
    stand.health.watch((), [ONE.text])
    assert stand.health.counts() == (1, 0)


def test_how_long_a_target_is_up_is_a_bound_until_it_turns() -> None:
    """The first check after a start tells a state, not since when."""
    stand = Stand(None, ONE, TWO)

    def told() -> list[bool]:
        return [row.at_least for row in stand.health.page("", lambda text: [])[0]]

    assert told() == [False, False]  # nothing is known, and no time is told
    stand.health._hear([(ONE.text, True, ""), (TWO.text, True, "")])
    assert told() == [True, True]
    stand.health._hear([(ONE.text, False, "refused")])
    assert told() == [False, True]
    stand.health._hear([(ONE.text, True, "")])
    assert told() == [False, True]


def test_an_operators_word_goes_before() -> None:
    stand = Stand(None, ONE, TWO)
    assert stand.health.force(ONE.text, "down") == [ONE.text]
    assert stand.taken() == [ONE.text]
    stand.health._hear([(ONE.text, False, "refused")])
    assert stand.taken() == []
    stand.health.force(ONE.text, "up")
    assert stand.taken() == [ONE.text]
    stand.health.force(ONE.text, "auto")
    assert stand.taken() == [ONE.text]
    assert stand.health.is_up(ONE.text) is False
    with pytest.raises(ValueError, match="no target"):
        stand.health.force("http://192.0.2.77/", "up")
    with pytest.raises(ValueError, match="up, down or auto"):
        stand.health.force(ONE.text, "sideways")


def test_a_url_stands_for_all_targets_that_have_it() -> None:
    other = target(1, host="www.example.test")
    stand = Stand(None, ONE, other, TWO)
    assert stand.health.force(ONE.text, "down") == [ONE.text]  # the whole text of one of them
    quick = target(3, interval=1), target(3, interval=2)
    stand.health.watch(quick, ())
    assert set(stand.health.force("http://192.0.2.3/", "down")) == {one.text for one in quick}


def saved(stand: Stand, path: Path) -> None:
    """Let it write its file."""

    async def body() -> None:
        task = asyncio.ensure_future(stand.health._save_on())
        async with asyncio.timeout(10):
            while not path.exists() or stand.health._unsaved.is_set():
                await asyncio.sleep(0.01)
        task.cancel()

    run_async(body())


def test_the_file_tells_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "state" / "x-health.json"
    stand = Stand(path, ONE, TWO)
    stand.health._hear([(ONE.text, False, "refused")])
    stand.health.force(TWO.text, "down")
    saved(stand, path)
    assert path.stat().st_mode & 0o777 == 0o640
    later = Stand(path, ONE, TWO)
    assert (later.health.is_up(ONE.text), later.health.is_up(TWO.text)) == (False, False)
    assert [row.forced for row in later.health.page("", lambda _: [])[0]] == [False, True]
    # What was down long ago says nothing; an operator's word does.
    os.utime(path, (0, time.time() - STALE_AFTER_S - 1))
    late = Stand(path, ONE, TWO)
    assert (late.health.is_up(ONE.text), late.health.is_up(TWO.text)) == (None, False)


def test_what_has_been_down_for_days_is_known_to_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing turns meanwhile: the file must not look as if nobody had looked after it."""
    monkeypatch.setattr(health, "RENEW_EVERY_S", 0.05)
    monkeypatch.setattr(health, "SAVE_EVERY_S", 0.01)
    path = tmp_path / "x-health.json"
    stand = Stand(path, ONE, TWO)
    stand.health._hear([(ONE.text, False, "refused")])

    async def body() -> None:
        task = asyncio.create_task(stand.health._save_on())
        async with asyncio.timeout(10):
            while not path.exists():
                await asyncio.sleep(0.01)
            os.utime(path, (0, time.time() - STALE_AFTER_S - 1))
            while time.time() - path.stat().st_mtime > STALE_AFTER_S:
                await asyncio.sleep(0.01)
        task.cancel()

    run_async(body())
    later = Stand(path, ONE, TWO)
    assert (later.health.is_up(ONE.text), later.health.is_up(TWO.text)) == (False, None)


def test_a_word_that_cannot_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "RETRY_S", 0.01)
    path = tmp_path / "x-health.json"
    in_the_way = path.with_name(f"{path.name}.new")  # a folder cannot be unlinked: so does a disk that is read-only
    in_the_way.mkdir()
    stand = Stand(path, ONE, TWO)

    async def body() -> None:
        task = asyncio.create_task(stand.health._save_on())
        async with asyncio.timeout(10):
            stand.health.force(ONE.text, "down")
            while not stand.health.unwritten:
                await asyncio.sleep(0.01)
            assert not stand.health.keeps
            in_the_way.rmdir()
            while stand.health.unwritten:
                await asyncio.sleep(0.01)
            assert stand.health.keeps
        task.cancel()

    run_async(body())
    assert Stand(path, ONE).health.is_up(ONE.text) is False


def test_the_last_word_is_kept_though_the_loader_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    stand = Stand(path, ONE, TWO)

    async def body() -> None:
        task = asyncio.create_task(stand.health.run())
        stand.health.force(ONE.text, "down")
        while not path.exists():
            await asyncio.sleep(0.01)
        stand.health.force(TWO.text, "down")  # the file was written less than SAVE_EVERY_S ago
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_async(body())
    after = Stand(path, ONE, TWO)
    assert after.health.is_up(ONE.text) is False
    assert after.health.is_up(TWO.text) is False


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"forced":{"a":1}}', b"\xff"])
def test_a_file_that_says_nothing(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x-health.json"
    path.write_bytes(content)
    assert Stand(path, ONE).health.is_up(ONE.text) is None
    assert "nothing is set by hand" in caplog.text


def test_a_word_about_a_target_that_nobody_asks_for_is_kept_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "x-health.json"
    stand = Stand(path, ONE)
    stand.health.force(ONE.text, "down")
    stand.health.watch((), [ONE.text])
    saved(stand, path)
    later = Stand(path)
    (row,) = later.health.page("", lambda _: [])[0]
    assert (row.target, row.state, row.error) == (ONE.text, "down", "not in use")
    assert later.health.force(ONE.text, "auto") == [ONE.text]


def test_pages_have_room_in_a_reply_and_name_everything_once() -> None:
    watched = [targets.parse(f"http://192.0.2.{i % 250}/{'x' * 300}{i}") for i in range(700)]
    stand = Stand(None, *watched)
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        rows, after = stand.health.page(after, lambda _: ["a.example.test."] * 1000)
        assert sum(len(row.target) for row in rows) < PAGE_BYTES
        assert all(row.total == 1000 and len(row.names) == 5 for row in rows)
        found += [row.target for row in rows]
    assert found == sorted(one.text for one in watched)
