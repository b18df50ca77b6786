"""Instances for tests: names that nobody else uses, and nothing left behind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from shm.segment import remove_instance

_numbers = itertools.count(1)


@contextmanager
def fresh_instance() -> Iterator[str]:
    """The name of an instance that does not exist; whatever a test makes of it is removed afterwards."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    remove_instance(name)  # of a process that had our pid and was killed
    try:
        yield name
    finally:
        remove_instance(name)
