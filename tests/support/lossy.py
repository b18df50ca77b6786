"""A watch that loses events, in every `standoff` process that is started with its environment.

    lossy = Lossy(folder)
    for name, value in lossy.environment.items(): monkeypatch.setenv(name, value)
    with lossy.losing("/h1/"): ... what is done in etcd now to keys with this in them, no watch tells

What is lost is lost between etcd and loader/mirror.py, as it would be by a fault of etcd or of gRPC: a list alone finds
it. Python imports `sitecustomize` from PYTHONPATH at its start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATCH = """\
from pathlib import Path

from loader import etcd

LOSE = Path({lose!r})
read = etcd.Watch.read


def is_lost(event):
    return LOSE.exists() and any(part in event.key for part in LOSE.read_text().splitlines())


async def lossy_read(self):
    return [event for event in await read(self) if not is_lost(event)]


etcd.Watch.read = lossy_read
"""


class Lossy:
    """Where the patch is, and what is to be lost at present."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._lose = folder / "lose"
        (folder / "sitecustomize.py").write_text(_PATCH.format(lose=str(self._lose)))
        self.environment = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}

    @contextmanager
    def losing(self, *parts: str) -> Iterator[None]:
        """Events of keys that contain one of these, of which the block has to wait until they have come by."""
        self._lose.write_text("\n".join(parts))
        try:
            yield
        finally:
            self._lose.unlink()
