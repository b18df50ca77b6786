"""A clock that is set while processes run, theirs alone (clock.c)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


class Clock:
    """For processes started with `environment`. They begin with the machine's time."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock"
        self.set(0)
        library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        try:
            subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
        except FileNotFoundError:
            pytest.skip("needs a C compiler")
        self.environment = {"LD_PRELOAD": str(library), "STANDOFF_TEST_CLOCK": str(self._offset)}

    def set(self, seconds: float) -> None:
        """So far from the machine's time from now on."""
        file = os.open(self._offset, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(file, int(seconds * 1e9).to_bytes(8, "little", signed=True), 0)
        finally:
            os.close(file)
