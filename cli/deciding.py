"""What the loader holds back, as it tells over its control socket (loader/warden.py); and a person's word on it."""

from __future__ import annotations

import time

import msgspec

from cli.asking import pages, request
from cli.control import ControlFailed
from cli.settings import Settings
from shm.errors import NotRunning

#: Names that are fetched to find the first few in order; the loader tells them in the order in which they came.
SORTED = 10_000
#: How long a decision may take to be on disk; and how often to ask.
KEEP_S = 10.0
POLL_S = 0.02


class Change(msgspec.Struct, frozen=True):
    """change: its number; state: pending, rejected or pinned; since: CLOCK_REALTIME; revision: the source's, then.
    then: what becomes of it after `left` seconds if nobody decides; empty: it waits."""

    change: int
    state: str
    reasons: list[str]
    since: float
    revision: int
    names: int
    then: str = ""
    left: float = 0.0


class Difference(msgspec.Struct, frozen=True):
    """Of one name in a change: records that readers would lose and get, as "TTL TYPE DATA"."""

    change: int
    name: str
    removed: list[str]
    added: list[str]


class Pending(msgspec.Struct):
    """differences: by change and name. complete: the differences are all there are, of one moment."""

    changes: list[Change]
    differences: list[Difference]
    total: int
    complete: bool


class _Page(msgspec.Struct):
    version: int
    changes: list[Change]
    differences: list[Difference]
    total: int
    more: int | None


class _Decided(msgspec.Struct):
    decided: list[Change]
    version: int


class _Kept(msgspec.Struct):
    due: bool
    kept: bool
    error: str


def pending(settings: Settings, most: int, *, rejected: bool = False) -> Pending:
    """What is held, or was rejected, with at most `most` names: the first ones, of the SORTED that came first at least.
    Raises NotRunning, ControlFailed."""
    found, last, same = pages(
        lambda start: msgspec.convert(request(settings, "pending", **{"from": start}, rejected=rejected), _Page),
        lambda page: (page.version, page.differences), max(most, SORTED),
    )  # fmt: skip
    made = sorted(found[: max(most, SORTED)], key=lambda one: (one.change, one.name))[:most]
    return Pending(last.changes, made, last.total, same and len(made) == last.total)


def decide(settings: Settings, command: str, change: int | None, *, rejected: bool = False) -> tuple[list[Change], str]:
    """`approve` or `reject` a change, None: all of them; with rejected those that were rejected. What has been decided,
    and why that is not on disk; empty if it is. Raises NotRunning, ControlFailed."""
    arguments = {"all": True} if change is None else {"change": change}
    made = msgspec.convert(request(settings, command, **arguments, rejected=rejected), _Decided)
    return made.decided, _unkept(settings, made.version) if made.decided else ""


def _unkept(settings: Settings, version: int) -> str:
    """Waits until a decision is carried out, and on disk. Why it is not; empty if it is."""
    deadline = time.monotonic() + KEEP_S
    while time.monotonic() < deadline:
        try:
            found = msgspec.convert(request(settings, "decided", version=version), _Kept)
        except (NotRunning, ControlFailed):
            return "the loader has ended meanwhile"
        if not found.due and (found.kept or found.error):
            return found.error
        time.sleep(POLL_S)
    return f"it is not after {KEEP_S:g} s"
