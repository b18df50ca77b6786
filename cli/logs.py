"""Setting up the standard library's logging: lines on stderr, for people, for the journal, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TextIO

from cli.output import harmless

#: syslog priorities (RFC 5424 section 6.2.1) as the journal reads them from a "<N>" prefix (sd-daemon(3)).
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
#: What a LogRecord has by itself; anything else came with `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "part"}


class TextFormatter(logging.Formatter):
    """`TIME LEVEL part[pid] message key=value`; under the journal, which adds time and pid, `<N>part: message`."""

    def __init__(self, part: str, journal: bool) -> None:
        super().__init__()
        self._part = part
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join([record.getMessage(), *(f"{key}={value}" for key, value in _extras(record).items())])
        text = harmless(text)
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if not self._journal:
            stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
            return f"{stamp}.{int(record.msecs):03d} {record.levelname:<7} {self._part}[{record.process}] {text}"
        prefix = f"<{priority(record.levelno)}>"
        first, *rest = text.splitlines() or [""]
        return "\n".join([f"{prefix}{self._part}: {first}", *(prefix + line for line in rest)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, part, pid, logger, message, what `extra=` gave, error."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = _extras(record) | {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": self._part,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def priority(level: int) -> int:
    """The syslog priority of a level, in-between levels included."""
    return next((p for limit, p in sorted(PRIORITIES.items(), reverse=True) if level >= limit), 7)


def set_up(level: str, format: str, part: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr if None) from now on; `part` names this process. Replaces what was set up before.

    Children inherit it: each line is one write of less than a pipe's capacity, so lines do not mix.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(JsonFormatter(part) if format == "json" else TextFormatter(part, journal))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
