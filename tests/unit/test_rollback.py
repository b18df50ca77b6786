"""loader/rollback.py with a publisher, a gate and tables: readers get the state that was asked for, or a reason."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.settings import Settings
from loader import names, rollback, sqlite_file
from loader.apex import is_apex, serial, with_serial
from loader.chronicle import Chronicle
from loader.feed import Update
from loader.history import History, path_of
from loader.model import Record
from loader.past import Past
from loader.publisher import Publisher
from loader.rollback import Rollback
from loader.warden import Warden
from loader.zone import Zones
from shm.board import Board
from shm.errors import SegmentError
from shm.segment import remove_instance
from shm.tables import TableWriter
from tests.support.instances import fresh_instance

ZONES = [names.from_text("example.test."), names.from_text("other.test.")]
HOSTS = [f"{label}.{zone}" for label in ("www", "a.b", "*", "c") for zone in ("example.test.", "other.test.")]
Content = dict[bytes, bytes]


class Loader:
    """What loader/main.py puts together, without sources and sockets."""

    def __init__(self, instance: str, folder: Path, history: History | None) -> None:
        self.writer = TableWriter(Board.create_or_attach(instance))
        zones = Zones(ZONES)
        self.warden = Warden(Settings(instance=instance, state_dir=folder, guard="off"), zones, self._wake)
        chronicle = Chronicle(self.writer, history)
        self.publisher = Publisher(self.writer, zones, 1, chronicle=chronicle, gate=self.warden.gate)
        self._quiet = asyncio.Lock()
        self.rollback = Rollback(history, chronicle, self.warden, self._quiet, self._wake)
        self._revision = 0
        self._wakes: set[asyncio.Task[None]] = set()

    def _wake(self) -> None:
        self._wakes.add(asyncio.create_task(self._publish()))

    async def _publish(self) -> None:
        async with self._quiet:
            await self.publisher.publish()

    async def change(self, hosts: Mapping[str, int | None]) -> None:
        self._revision += 1
        records = {
            host: None if octet is None else [Record(None, names.from_text(host), 1, 60, bytes((192, 0, 2, octet)))]
            for host, octet in hosts.items()
        }
        await self.publisher.take(0, Update(records, self._revision, self._revision == 1, {}))
        await self._publish()

    async def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        """A command, to its end; what `deed` tells then."""
        self.rollback.handlers[command](arguments)
        while True:
            told = dict(self.rollback.handlers["deed"]({}))
            if told["state"] != "at work":
                return told
            await asyncio.sleep(0.001)

    def content(self) -> Content:
        """What readers have, but for serials."""
        blocks = {block[8 : 8 + block[4]]: block for block in self.writer.blocks()}
        return {name: with_serial(block, 0) if is_apex(block) else block for name, block in blocks.items()}

    def serials(self) -> list[int]:
        blocks = map(self.writer.find, ZONES)
        return [0 if block is None else serial(block) for block in blocks]

    async def close(self) -> None:
        await self.rollback.close()
        await asyncio.gather(*self._wakes)
        await self.warden.close()
        self.writer.close()


@contextmanager
def place() -> Iterator[tuple[str, Path]]:
    with fresh_instance() as instance, TemporaryDirectory() as folder:
        yield instance, Path(folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "WRITE_EVERY_S", 0.0)


changes = st.dictionaries(st.sampled_from(HOSTS), st.none() | st.integers(1, 4), max_size=4)
steps = st.lists(changes | st.integers(0, 20) | st.just("resume"), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(steps)
def test_every_state_can_be_gone_back_to(taken: list[dict[str, int | None] | int | str]) -> None:
    """Random changes, rollbacks (a number: to one of the states so far) and resumes in any order."""

    async def body(instance: str, folder: Path) -> None:
        history = History(path_of(folder, instance), 1000, 1 << 24)
        loader, model = Loader(instance, folder, history), Loader(instance + "-m", folder / "model", None)
        pinned = False
        copies: dict[int, Content] = {}
        for step in [{}, *taken]:
            before, was = loader.content(), loader.serials()
            if isinstance(step, dict):
                await loader.change(step)
                await model.change(step)
                assert not pinned or loader.content() == before
            elif step == "resume":
                if not pinned:
                    with pytest.raises(ValueError, match="not pinned"):
                        await loader.do("resume")
                    continue
                assert (await loader.do("resume"))["state"] == "done"
                pinned = False
            else:
                number = sorted(copies)[int(step) % len(copies)]
                told = await loader.do("rollback", to=number)
                assert told["state"] == "done", told
                pinned = True
                assert loader.content() == copies[number]
            if not pinned:
                assert loader.content() == model.content(), "it follows the source"
            if before and loader.content() != before:
                assert all(old <= new for old, new in zip(was, loader.serials(), strict=True))
                assert was != loader.serials()
            assert history.flush(10)
            with Past(history.path) as past:
                copies[past.last] = loader.content()
        for one in (loader, model):
            await one.close()
        history.close()

    with place() as (instance, folder):
        try:
            asyncio.run(body(instance, folder))
        finally:
            remove_instance(instance + "-m")


def run(body: Any, history: bool = True, entries: int = 1000) -> None:
    async def whole(instance: str, folder: Path) -> None:
        kept = History(path_of(folder, instance), entries, 1 << 24) if history else None
        loader = Loader(instance, folder, kept)
        await loader.change({"www.example.test.": 1})
        await loader.change({"www.example.test.": 2})
        try:
            await body(loader, kept)
        finally:
            await loader.close()
            if kept is not None:
                kept.close()

    with place() as (instance, folder):
        asyncio.run(whole(instance, folder))


def test_without_a_history() -> None:
    async def body(loader: Loader, _: None) -> None:
        with pytest.raises(ValueError, match="no history is kept: it needs state_dir"):
            await loader.do("rollback", to=1)

    run(body, history=False)


def test_what_is_no_number() -> None:
    async def body(loader: Loader, _: History) -> None:
        for wrong in ("n1", None, -1):
            with pytest.raises(ValueError, match="to is the number"):
                await loader.do("rollback", to=wrong)

    run(body)


def test_a_state_that_is_not_kept() -> None:
    async def body(loader: Loader, _: History) -> None:
        before = loader.content()
        for number in (0, 99):
            told = await loader.do("rollback", to=number)
            assert told["state"] == "failed", told
            assert told["said"].startswith("nothing was changed: ")
            assert "n1" in told["said"] or "no entry n99" in told["said"]
        assert loader.warden.gate.pinned is None
        assert loader.content() == before

    run(body)


def test_a_history_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """It might lack the last changes: what it tells of the state before them would be wrong."""
    monkeypatch.setattr(rollback, "FLUSH_S", 600)  # a disk that is full is not waited for
    monkeypatch.setattr(sqlite_file, "RETRY_S", 0.05)

    async def body(loader: Loader, history: History) -> None:
        assert await asyncio.to_thread(history.flush, 10)

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(History, "_write", full)
            await loader.change({"www.example.test.": 3})
            told = await loader.do("rollback", to=1)
            assert told["state"] == "failed"
            assert told["said"].startswith("nothing was changed: ")
            assert "disk is full" in told["said"]
            assert loader.warden.gate.pinned is None
        deadline = time.monotonic() + 10
        while history.error and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert (await loader.do("rollback", to=2))["state"] == "done"

    run(body)


def test_a_pin_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pinned, and the one who asked is told that a restart would end it."""

    async def body(loader: Loader, _: History) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("loader.held_file.write", full)
        told = await loader.do("rollback", to=1)
        assert told["state"] == "failed"
        assert "No space left on device" in told["said"]
        assert loader.warden.gate.pinned is not None

    run(body)


def test_what_could_not_be_published_before_is_not_published_after() -> None:
    """Memory is short, somebody goes back, then there is memory."""

    async def body(instance: str, folder: Path) -> None:
        history = History(path_of(folder, instance), 1000, 1 << 24)
        loader = Loader(instance, folder, history)
        await loader.change({HOSTS[0]: 1})
        then = loader.content()
        await loader.change({HOSTS[0]: 2})

        def no_memory(*_: Any) -> Iterator[float]:
            raise SegmentError("no memory")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader.writer, "apply", no_memory)
            with pytest.raises(SegmentError):
                await loader.change({HOSTS[3]: 9})
        assert (await loader.do("rollback", to=1))["state"] == "done"
        assert loader.content() == then
        assert (await loader.do("resume"))["state"] == "done"
        assert names.from_text(HOSTS[3]) in loader.content()
        await loader.close()
        history.close()

    with place() as (instance, folder):
        asyncio.run(body(instance, folder))
