"""What the loader tells tools over its control socket (loader/control.py), in full: pages put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from cli.control import ControlFailed, ask, find_socket
from cli.settings import Settings

#: Times that a list is begun again because it has changed meanwhile; then what was found has to do.
MOST_RESTARTS = 5
#: At this many a person is better served by the number.
MOST_REJECTS = 100_000


class Reject(msgspec.Struct, frozen=True):
    """A key that gives nothing. source: its number among the loader's sources; revision: of its last change."""

    key: str
    source: int
    revision: int
    reason: str


class Rejects(msgspec.Struct):
    """The keys that give nothing, by source and key. complete: it is all of them, of one moment."""

    rejects: list[Reject]
    total: int
    complete: bool


class Target(msgspec.Struct, frozen=True):
    """A target of health checks (loader/health.py: Row)."""

    target: str
    state: str
    checked: str
    forced: bool
    since: float
    error: str
    names: list[str]
    total: int
    at_least: bool = False


class HealthSet(msgspec.Struct, frozen=True):
    """The targets that were set; kept: whether a restart knows of it; all_down: see `health`."""

    targets: list[str]
    kept: bool
    all_down: list[str] = []


class _Page(msgspec.Struct):
    serial: int
    total: int
    rejects: list[Reject]
    more: int | None


def request(settings: Settings, command: str, **arguments: Any) -> dict[str, Any]:
    """A reply's fields. Raises NotRunning, ControlFailed."""
    reply, fields = ask(find_socket(settings, "loader"), command, arguments, part="loader")
    if not reply.ok:
        raise ControlFailed(f"the loader says: {reply.message}")
    return fields


class _More(Protocol):
    @property
    def more(self) -> int | None: ...


P = TypeVar("P", bound=_More)
T = TypeVar("T")


def pages(
    ask_from: Callable[[int], P], parts: Callable[[P], tuple[int, list[T]]], most: int
) -> tuple[list[T], P, bool]:
    """What `ask_from` tells page by page until there are `most` of it, the last page, and whether all is of one moment.

    parts: of a page, which version of the whole it is of, and what is on it. A whole that changes meanwhile is begun
    again, MOST_RESTARTS times.
    """
    for restart in range(MOST_RESTARTS + 1):
        found: list[T] = []
        start, version, same = 0, -1, True
        while True:
            page = ask_from(start)
            now, items = parts(page)
            same = same and version in (-1, now)
            if not same and restart < MOST_RESTARTS:
                break
            version = now
            found += items
            if page.more is None or len(found) >= most:
                return found, page, same
            start = page.more
    raise AssertionError("unreachable")


def rejects(settings: Settings, most: int = MOST_REJECTS) -> Rejects:
    """At most `most` of them. Raises NotRunning, ControlFailed."""
    found, last, same = pages(
        lambda start: msgspec.convert(request(settings, "rejects", **{"from": start}), _Page),
        lambda page: (page.serial, page.rejects), most,
    )  # fmt: skip
    made = sorted(found[:most], key=lambda one: (one.source, one.key))
    return Rejects(made, last.total, same and len(made) == last.total)


def health(settings: Settings) -> tuple[list[Target], list[str]]:
    """All targets of health checks, sorted; and of their names that are told those that are answered in full because
    all of their targets are down. Raises NotRunning, ControlFailed."""
    found: list[Target] = []
    all_down: set[str] = set()
    after: str | None = ""
    while after is not None:
        page = request(settings, "health", after=after)
        found += msgspec.convert(page["targets"], list[Target])
        all_down.update(page.get("all_down", ()))
        after = page["more"]
    return found, sorted(all_down)


def set_health(settings: Settings, target: str, state: str) -> HealthSet:
    """Have a target up, down or auto. Raises NotRunning, ControlFailed."""
    fields = request(settings, "health-set", target=target, state=state)
    return HealthSet(fields["targets"], fields["kept"], fields.get("all_down", []))
