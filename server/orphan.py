"""What a child does when its supervisor is gone: answer on until another's children are there, then leave."""

from __future__ import annotations

import logging
import os
import time

from shm.board import Board
from shm.layout import SlotKind
from shm.segment import is_held

log = logging.getLogger(__name__)

#: An orphan answers on until its replacement does, or this long.
ORPHAN_PATIENCE_S = 30.0


class Orphanhood:
    """Watches the parent of the process that made it. In a worker or the stream worker, after the fork."""

    def __init__(self, board: Board, kind: SlotKind, index: int = 0) -> None:
        self._board = board
        self._kind = kind
        self._index = index
        self._parent = os.getppid()
        self._since: float | None = None

    @property
    def orphaned(self) -> bool:
        """Whether the supervisor is gone, as far as has been noticed."""
        return self._since is not None

    def must_leave(self) -> bool:
        """Whether it is time to go. A pid comparison as long as the supervisor lives."""
        if os.getppid() == self._parent:
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
            log.warning("%s: the supervisor is gone; answering on", self)
        replaced = self._replaced()
        if not replaced and now - self._since <= ORPHAN_PATIENCE_S:
            return False
        log.warning("%s: leaving, %s", self, "replaced" if replaced else "no supervisor came")
        return True

    def _replaced(self) -> bool:
        """Whether a supervisor lives, and another process in our place answers."""
        return is_held(self._board.names.lock("supervisor")) and any(
            slot.get("pid") != os.getpid()
            and slot.get("worker") == self._index
            and slot.get("kind") == self._kind
            and slot.get("generation")
            for slot in map(self._board.slot, self._board.live_slots())
        )

    def __str__(self) -> str:
        return f"worker {self._index}" if self._kind == SlotKind.WORKER else self._kind.name.lower()
