"""What the loader's log says of the first table."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cli.settings import Settings
from loader import names
from loader.feed import Update
from loader.model import Record
from loader.publisher import Publisher
from loader.warden import Warden
from loader.zone import Zones
from shm.board import Board
from shm.tables import TableWriter
from tests.support.instances import fresh_instance
from tests.support.mirroring import run_async

APEX = names.from_text("example.test")


async def load(instance: str, folder: Path, hosts: int, canaries: tuple[str, ...] = ()) -> int:
    """A loader that starts with so many hosts, and publishes twice; the names that readers have."""
    settings = Settings(instance=instance, state_dir=folder, guard_floor=5, guard_canary=list(canaries))
    writer = TableWriter(Board.create_or_attach(instance))
    zones = Zones([APEX])
    publisher = Publisher(writer, zones, 1, gate=Warden(settings, zones, lambda: None).gate)

    def update(numbers: range, revision: int) -> Update:
        address = bytes((192, 0, 2, revision))
        owners = {f"h{number}": names.from_text(f"h{number}", APEX) for number in numbers}
        return Update({key: [Record(None, owner, 1, 60, address)] for key, owner in owners.items()}, revision, True, {})

    await publisher.take(0, update(range(hosts), 1))
    await publisher.publish()
    publisher.start_over()
    await publisher.publish()
    table = writer.published()
    assert table is not None
    found: int = table.names
    del table
    writer.close()
    return found


def test_the_log_tells_what_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with fresh_instance() as instance, caplog.at_level(logging.INFO, "loader.publisher"):
        before = run_async(load(instance, tmp_path, 20))
        assert f"published {before} names" in caplog.messages[-1]
        assert run_async(load(instance, tmp_path, 3)) == before  # held back
        assert f"published {before} names" in caplog.messages[-1]


def test_a_canary_that_is_not_answered_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    canaries = ("h1.example.test A", "h1.example.test A 192.0.2.1", "h1.example.test A 192.0.2.9", "hh.example.test A")
    with fresh_instance() as instance:
        run_async(load(instance, tmp_path, 3, canaries))
    told = [message for message in caplog.messages if message.startswith("canary ")]
    assert [one.partition(" is not")[0].removeprefix("canary ") for one in told] == list(canaries[2:])
