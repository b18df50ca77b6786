"""How far the sources' first lists are, on the bar of a long load: before there is anything to publish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from shm.layout import LoaderState


class Bar(Protocol):
    """loader/publisher.py: ProgressBar, which shows its own work later."""

    def start(self, total: int | None) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def done(self) -> None: ...


class FirstList:
    """Looks at the sources' states some times a second."""

    def __init__(self, bar: Bar | None) -> None:
        self._bar = bar
        self._total = self._shown = 0

    def show(self, states: Sequence[Any]) -> None:
        """states: of the sources (loader/feed.py: FeedStatus); those of etcd tell how many keys are listed, of how
        many."""
        if self._bar is None:
            return
        lists = [state for state in states if state.state is LoaderState.LISTING and getattr(state, "total", None)]
        total = sum(state.total for state in lists)
        if total != self._total:
            self._total, self._shown = total, 0
            self._bar.start(total) if total else self._bar.done()
        listed = sum(state.listed for state in lists)
        if total and listed > self._shown:
            self._bar.advance(listed - self._shown)
            self._shown = listed
