"""The state of one path: who is held, and what is known (facts.py)."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from lockcheck.facts import Facts, Raised
from lockcheck.locks import Lock
from lockcheck.model import Key

#: Deeper nesting is not told apart.
MAX_DEPTH = 3


class Status(Enum):
    HELD = "held"
    #: Acquired on this path, then released.
    FREE = "free"
    #: Released on this path without having been acquired: the caller held it.
    LENT = "lent"
    #: Lent, then taken again: as it was when the function began.
    BACK = "back"
    #: The name stands for another lock now: a release is nobody's fault.
    OPEN = "open"
    #: Handed to someone else; not followed any more.
    GONE = "gone"


class Hold(NamedTuple):
    status: Status
    depth: int = 1
    #: Where it was acquired: line, column.
    line: int = 0
    column: int = 0
    by_with: bool = False


class Way(NamedTuple):
    """How control left, or the last jump that it took with a lock in its hands."""

    reason: str
    line: int
    #: What is returned: False for a constant that is false, None for what is not known.
    result: bool | None = None


class State(NamedTuple):
    held: tuple[tuple[Lock, Hold], ...] = ()
    facts: Facts = frozenset()
    raised: Raised | None = None
    way: Way | None = None

    def get(self, key: Key) -> Hold | None:
        for lock, hold in self.held:
            if lock.key == key:
                return hold
        return None

    def put(self, lock: Lock, hold: Hold | None) -> State:
        rest = [(one, its) for one, its in self.held if one.key != lock.key]
        if hold is not None:
            rest.append((lock, hold))
            rest.sort(key=lambda pair: pair[0].key)
        return self._replace(held=tuple(rest))

    def holding(self) -> list[tuple[Lock, Hold]]:
        return [(lock, hold) for lock, hold in self.held if hold.status is Status.HELD]
