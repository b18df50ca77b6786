"""A small disk for tests: full, or read-only, for real. For root."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PATIENCE_S = 20.0


class Disk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Not a byte more."""
        file = os.open(self.path / "filling", os.O_WRONLY | os.O_CREAT)
        try:
            with suppress(OSError):
                while True:
                    os.write(file, bytes(4096))
        finally:
            os.close(file)

    def read_only(self) -> None:
        # Files of processes that were killed just now may still be open.
        remount, deadline = ["mount", "-o", "remount,ro", str(self.path)], time.monotonic() + PATIENCE_S
        while subprocess.run(remount, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "the disk is in use"
            time.sleep(0.05)

    def well(self) -> None:
        """There is room again, and it may be written."""
        subprocess.run(["mount", "-o", "remount,rw", str(self.path)], check=True)
        with suppress(FileNotFoundError):
            (self.path / "filling").unlink()

    def harm(self, how: str) -> None:
        """ "full" or "read-only"."""
        (self.fill if how == "full" else self.read_only)()


@contextmanager
def mounted(path: Path, size: str = "4m") -> Iterator[Disk]:
    """Skips the test where we may not."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs to mount a disk")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
