"""loader/filters/host.py: a filter in its process, as its loader sees it. What it may do: tests/filters."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from loader.filters import RR, Context, Kept, RRsets
from loader.filters.host import FilterProcess
from tests.support.mirroring import run_async

LIMIT_S = 0.5
MODULE = """
import time

def slow(rrsets, context):
    time.sleep(float(context.owner or 0))
    return rrsets
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "slow-1.0.dist-info"
    about.mkdir()
    (tmp_path / "slowfilter.py").write_text(MODULE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[standoff.filters]\nslow = slowfilter:slow\n")
    monkeypatch.syspath_prepend(tmp_path)


def asked(*takes_s: float, held_up_s: float = 0.0) -> tuple[int, str]:
    """How many of the names, for which the filter takes so long each, it was asked about with success, and its
    trouble. held_up_s: for so long the loader's loop stands still meanwhile."""
    rrsets: RRsets = {1: [RR(1, 60, bytes(4), "key")]}
    found: list[tuple[int, str]] = []

    async def body() -> None:
        process = FilterProcess("slow", LIMIT_S, lambda: None)
        running = asyncio.create_task(process.run())
        await process.wait_ready(30)
        names = [(rrsets, Context(0.0, str(seconds).encode(), b"")) for seconds in takes_s]
        asking = asyncio.create_task(process.filter(names))
        await asyncio.sleep(0.01)
        time.sleep(held_up_s)
        results = await asking
        assert all(isinstance(one, Kept) for one in results)
        found.append((len(results), process.trouble))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_async(body())
    return found[0]


def test_one_that_takes_too_long_is_left_out(package: None) -> None:
    assert asked(0.0, 5.0, 0.0) == (1, f"it took longer than {LIMIT_S:g} s")


def test_a_loader_that_is_held_up_does_not_blame_the_filter(package: None) -> None:
    assert asked(*[0.2] * 8, held_up_s=1.2) == (8, "")


def test_a_loader_that_is_held_up_finds_one_that_hangs(package: None) -> None:
    assert asked(0.0, 60.0, held_up_s=1.2) == (1, f"it took longer than {LIMIT_S:g} s")
