"""The lock's share of a worker's instructions: counted, not timed."""

from __future__ import annotations

import shutil

import pytest

from bench import lockcost


@pytest.mark.skipif(
    shutil.which("valgrind") is None or shutil.which("callgrind_annotate") is None, reason="needs valgrind to count"
)
@pytest.mark.timeout(300)  # the emulator takes fifty times as long, and its machine may be shared
def test_the_lock_is_at_most_a_hundredth_of_the_loop() -> None:
    counted = lockcost.count()
    print(counted)
    assert counted["loop"] > 50 * lockcost.BATCH, "full batches were answered"
    assert 0 < counted["share"] <= 0.01
