"""What the loader holds back, as it tells over its control socket (loader/warden.py); and a person's word on it."""

from __future__ import annotations

import msgspec

from cli.asking import MOST_RESTARTS, request
from cli.settings import Settings


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


def pending(settings: Settings, most: int, *, rejected: bool = False) -> Pending:
    """What is held, or was rejected, with at most `most` names. Raises NotRunning, ControlFailed."""
    for restart in range(MOST_RESTARTS + 1):
        found: list[Difference] = []
        start: int | None = 0
        version = -1
        while start is not None and len(found) < most:
            reply = request(settings, "pending", **{"from": start}, rejected=rejected)
            page = msgspec.convert(reply, _Page)
            if version not in (-1, page.version) and restart < MOST_RESTARTS:
                break
            same = version in (-1, page.version)
            version = page.version
            found += page.differences
            start = page.more
        else:
            made = sorted(found[:most], key=lambda one: (one.change, one.name))
            return Pending(page.changes, made, page.total, same and len(made) == page.total)
    raise AssertionError("unreachable")


def decide(settings: Settings, command: str, change: int | None, *, rejected: bool = False) -> list[Change]:
    """`approve` or `reject` a change, None: all of them; with rejected those that were rejected. What has been decided.
    Raises NotRunning, ControlFailed."""
    arguments = {"all": True} if change is None else {"change": change}
    return msgspec.convert(request(settings, command, **arguments, rejected=rejected), _Decided).decided
