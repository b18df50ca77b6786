"""Small sources for the checker."""

from __future__ import annotations

import textwrap
from pathlib import Path

from lockcheck.check import check
from lockcheck.model import Report

HEAD = """\
import asyncio, logging, multiprocessing, os, subprocess, threading, time
import posix_ipc
from contextlib import contextmanager, suppress
lock = threading.Lock()
other = threading.Lock()
rlock = threading.RLock()
sem = threading.Semaphore(2)
gate = posix_ipc.Semaphore("/gate")
alock = asyncio.Lock()
"""


def report(folder: Path, source: str, head: str = HEAD) -> Report:
    path = folder / "snippet.py"
    path.write_text(head + textwrap.dedent(source))
    return check([str(path)])


def found(folder: Path, source: str) -> list[str]:
    """`rule` of each finding, sorted."""
    result = report(folder, source)
    assert not result.skipped, result.skipped
    return sorted(str(f.rule) for f in result.findings)
