"""What the parts of the static checker hand to each other: kinds of locks, lock objects, sites, findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Rule(StrEnum):
    """Rules, the gravest first."""

    LEAK = "leak"
    EXCEPTION_LEAK = "exception-leak"
    DOUBLE_ACQUIRE = "double-acquire"
    UNMATCHED_RELEASE = "unmatched-release"
    ORDER = "order"
    BLOCKING = "blocking"

    @property
    def help(self) -> str:
        return _HELP[self]


_HELP = {
    Rule.LEAK: "an acquire outside `with` that a return, raise, break, continue, yield, await or the end of the "
    "function leaves without a release",
    Rule.EXCEPTION_LEAK: "an acquire outside `with` that stays held when a call made while holding it raises",
    Rule.DOUBLE_ACQUIRE: "a second acquire of a lock that is not reentrant, on a path that already holds it",
    Rule.UNMATCHED_RELEASE: "a release on a path that has not acquired, or has already released",
    Rule.ORDER: "locks that different code takes in different orders",
    Rule.BLOCKING: "I/O, sleeping, waiting, subprocesses or logging while a lock is held",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a lock is and how it behaves."""

    name: str
    #: threading, multiprocessing, asyncio, posix_ipc, standoff, or `guess`: it is only called like a lock.
    family: str
    reentrant: bool = False
    #: Semaphores: acquired and released by different parties, any number of times.
    counting: bool = False
    #: `acquire` raises when it does not get the lock, instead of returning False.
    raises: bool = False
    #: May be waited on: threading.Condition.
    condition: bool = False

    @property
    def known(self) -> bool:
        return self.family != "guess"

    @property
    def blocks_loop(self) -> bool:
        """Whether holding it across an `await` keeps whole threads waiting."""
        return self.family in ("threading", "multiprocessing", "posix_ipc", "standoff")


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A lock object as the source names it.

    `owner` is the module, class or function that the name belongs to. `via` tells instances apart: empty for `self`,
    globals and locals, else the receiver or subscript as written (`other`, `[key]`).
    """

    owner: str
    name: str
    via: str = ""
    #: A variable of one function: two functions' variables are never known to be the same lock.
    local: bool = False

    def __str__(self) -> str:
        shown = f"{self.owner}.{self.name}" if self.owner else self.name
        return f"{shown} (of {self.via})" if self.via else shown


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands; line and column count from 1."""

    path: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Site:
    """One acquire or release in the source."""

    place: Place
    #: `acquire`, `release` or `with`.
    action: str
    function: str
    #: `read` or `write` where the lock tells them apart.
    mode: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    rule: Rule
    place: Place
    lock: str
    message: str
    function: str
    #: Other places that belong to it: the ways out, the other order.
    related: tuple[tuple[Place, str], ...] = ()


@dataclass(slots=True)
class LockUse:
    """All that was seen of one lock object."""

    key: Key
    kind: Kind
    sites: list[Site] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    locks: list[LockUse]
    findings: list[Finding]
    files: int
    #: Files that could not be read or parsed, and functions too tangled to follow: (place, reason).
    skipped: list[tuple[Place, str]]
    suppressed: int = 0
