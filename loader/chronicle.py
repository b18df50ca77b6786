"""Between the publisher and the history: what readers had of the names that a publish is about, and which table it
followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from loader.history import NONE, History, Publish, Version
from shm.errors import StandoffError
from shm.tables import TableWriter


class Chronicle:
    """Tells the history. Without one it does nothing."""

    def __init__(self, writer: TableWriter, history: History | None) -> None:
        self._writer = writer
        self._history = history
        self._found: tuple[dict[bytes, bytes | None], list[bytes | None]] | None = None

    @contextmanager
    def telling(
        self, changes: Mapping[bytes, bytes | None] | None, why: str = "change", note: str = ""
    ) -> Iterator[None]:
        """Around a publish, also one that is given up: what readers see in the end counts.

        changes: name -> node block to be, None: it goes. All None: the table is made anew; `found` may tell of it.
        """
        if self._history is None:
            yield
            return
        before, blocks = NONE, None
        self._found = None
        try:
            before = self.version
            table = self._writer.published()
            if changes is not None:
                blocks = [None] * len(changes) if table is None else list(map(table.find, changes))
        except StandoffError as error:
            note = note or f"the table before it could not be read: {error}"
        try:
            yield
        finally:
            since = self.version
            if since != before:
                if self._found is not None:
                    why, (changes, blocks) = "restart", self._found
                names = self._writer.words.get("names") if blocks is None else 0
                self._history.record(Publish(before, since, why, note, changes or {}, blocks, names))

    def found(self, changes: Mapping[bytes, bytes | None], find: Callable[[bytes], bytes | None]) -> None:
        """Within `telling`: the table that is made anew has been compared with the one that readers have."""
        if self._history is not None:
            self._found = dict(changes), list(map(find, changes))

    def restored(self, generation: int, published_ns: int) -> None:
        """What readers have is an image of that version: if it was the last one, the history goes on from there."""
        if self._history is not None:
            version = self.version
            before = Version(generation, published_ns, version.revision)
            self._history.record(Publish(before, version, "image", "", {}, []))

    @property
    def version(self) -> Version:
        """Of what readers have. Raises StandoffError if it cannot be read."""
        table = self._writer.published()
        if table is None:
            return NONE
        return Version(table.generation, self._writer.words.get("published_ns"), table.revision)
