"""A logger for what a peer can cause: so many lines a minute, and then how many were left out."""

from __future__ import annotations

import logging
import time

#: Lines of one process in a minute.
LINES_A_MINUTE = 10


class Sparing:
    """Passes on the first lines of each minute; the next minute begins with the number of those it swallowed."""

    def __init__(self, log: logging.Logger, lines: int = LINES_A_MINUTE) -> None:
        self._log = log
        self._lines = lines
        self._left = lines
        self._since = float("-inf")
        self._swallowed = 0

    def error(self, message: str, *args: object) -> None:
        if self._may():
            self._log.error(message, *args)

    def info(self, message: str, *args: object) -> None:
        if self._may():
            self._log.info(message, *args)

    def exception(self, message: str, *args: object) -> None:
        if self._may():
            self._log.exception(message, *args)

    def _may(self) -> bool:
        now = time.monotonic()
        if now - self._since >= 60:
            if self._swallowed:
                self._log.error("%d more messages like the last ones within a minute", self._swallowed)
            self._since, self._left, self._swallowed = now, self._lines, 0
        if self._left <= 0:
            self._swallowed += 1
            return False
        self._left -= 1
        return True
