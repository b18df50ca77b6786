"""Between the publisher and the history: what readers had of the names that a publish is about, and which table it
followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from loader.history import NONE, History, Publish, Version
from shm.errors import StandoffError
from shm.tables import TableWriter


class Chronicle:
    """Tells the history. Without one it does nothing."""

    def __init__(self, writer: TableWriter, history: History | None) -> None:
        self._writer = writer
        self._history = history

    @contextmanager
    def telling(
        self, changes: Mapping[bytes, bytes | None] | None, why: str = "change", note: str = ""
    ) -> Iterator[None]:
        """Around a publish, also one that is given up: what readers see in the end counts.

        changes: name -> node block to be, None: it goes. All None: the table is made anew, and nobody compares.
        """
        if self._history is None:
            yield
            return
        before, blocks = NONE, None
        try:
            before = self._version()
            table = self._writer.published()
            if changes is not None:
                blocks = [None] * len(changes) if table is None else list(map(table.find, changes))
        except StandoffError as error:
            note = note or f"the table before it could not be read: {error}"
        try:
            yield
        finally:
            since = self._version()
            if since != before:
                names = self._writer.words.get("names") if blocks is None else 0
                self._history.record(Publish(before, since, why, note, changes or {}, blocks, names))

    def _version(self) -> Version:
        table = self._writer.published()
        if table is None:
            return NONE
        return Version(table.generation, self._writer.words.get("published_ns"), table.revision)
