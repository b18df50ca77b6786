"""loader/child.py: helper processes, as far as no test of health checks or filters needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loader.child import Helper
from tests.support.mirroring import run_async


def test_a_folder_that_the_loader_was_started_in_is_none_of_a_helpers_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold anybody's modules: /tmp, say."""
    for name in ("random", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} of somebody else')\n")
    monkeypatch.chdir(tmp_path)

    async def body() -> None:
        helper = await Helper.start("loader.checker")
        try:
            async with asyncio.timeout(30):
                assert await helper.receive() == {"states": []}
        finally:
            helper.end()

    run_async(body())
