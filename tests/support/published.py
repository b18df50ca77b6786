"""Tables as they are published, for tests of the history: what the loader tells it, and a full copy of every state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from loader import names
from loader.history import NONE, History, Publish, Version
from loader.model import Record
from loader.past import Past
from loader.zone import Zones

ZONE = "example.test."
APEX = names.from_text(ZONE)
A = 1


def wire(label: str) -> bytes:
    return names.from_text(f"{label}.{ZONE}")


class Published:
    """A zone model whose every change is published and told to a history. `table` is what is published now; `copies`
    has the table after each entry that must be there, by number."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.zones = Zones([APEX])
        self.version = NONE
        self.table: dict[bytes, bytes] = {}
        self.copies: dict[int, dict[bytes, bytes]] = {}
        self._clock = itertools.count(1_700_000_000)

    def change(self, revision: int, changes: Mapping[str, int | None], why: str = "change", told: bool = True) -> None:
        """Labels -> the last octet of an address, or None: gone. told: to the history, too."""
        for label, octet in changes.items():
            records = [] if octet is None else [Record(None, wire(label), A, 60, bytes((192, 0, 2, octet)))]
            self.zones.apply(label, records, revision)
        made = self.zones.take_changes()
        before, blocks = self.version, [self.table.get(name) for name in made]
        for name, block in made.items():
            if block is None:
                self.table.pop(name, None)
            else:
                self.table[name] = block
        self.version = Version(before.generation + 1, next(self._clock) * 10**9, revision)
        if told:
            self.history.record(Publish(before, self.version, why, "", made, blocks))

    def first(self, revision: int) -> None:
        """The first table, of the zone alone."""
        self.table = {APEX: next(self.zones.all_nodes())}
        self.zones.forget_changes()
        self.version = Version(1, next(self._clock) * 10**9, revision)
        self.history.record(Publish(NONE, self.version, "first", names=1))

    def copy(self) -> None:
        """Remember the table under the number of the history's last entry, once all is written."""
        assert self.history.flush(10)
        with Past(self.history.path) as past:
            self.copies[past.last] = dict(self.table)


def new_history(folder: Path, entries: int = 1000, most_bytes: int = 1 << 28) -> History:
    return History(folder / "default-history.sqlite", entries, most_bytes)
