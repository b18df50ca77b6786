"""How far a long load is: a bar on a terminal, log lines elsewhere, nothing for what takes less than a second."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

log = logging.getLogger(__name__)

#: Shorter loads show nothing: a bar that flashes up tells nobody anything.
SHOW_AFTER_S = 1.0
#: Between log lines, so that a minute's load leaves a dozen.
LOG_EVERY_S = 5.0


class Progress:
    """`start(total)`, then `advance(n)` as often as you like (some 100 ns), then `done()`. May be started again."""

    def __init__(self, what: str = "names", doing: str = "loading", done: str = "loaded") -> None:
        self._what = what
        self._doing, self._did = doing, done
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._count = 0
        self._next_show = float("inf")

    def start(self, total: int | None) -> None:
        """A piece of work of `total` names begins; None: nobody knows how many."""
        self.done()
        self._total = total
        self._count = 0
        self._started = time.monotonic()
        self._next_show = self._started + SHOW_AFTER_S

    def advance(self, n: int = 1) -> None:
        self._count += n
        if time.monotonic() >= self._next_show:
            self._show()

    def done(self) -> None:
        """The piece of work is over, or was given up."""
        self._next_show = float("inf")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count)
            self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        now = time.monotonic()
        if not self._terminal:
            self._next_show = now + LOG_EVERY_S
            of = f" of {self._total}" if self._total else ""
            rate = self._count / (now - self._started)
            log.info("%s %d%s %s, %.0f a second", self._did, self._count, of, self._what, rate)
            return
        self._next_show = now + 0.1
        if self._bar is None:
            self._open_bar()
        self._bar.update(self._task, completed=self._count)

    def _open_bar(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn(self._doing),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,.0f} " + self._what),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._doing, total=self._total)
        self._bar.start()
