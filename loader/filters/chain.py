"""The filters one after the other, over many names; one that fails is left out for the name, and told.

Ours run in the loader, the others in processes of their own (host.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loader import names
from loader.filters import Context, Filter, Kept, RRsets
from loader.filters.health import health
from loader.filters.host import Failed, FilterProcess
from loader.filters.weights import weights
from loader.filters.windows import windows

log = logging.getLogger(__name__)

#: Ours, in the order in which they make sense: of the records that count now those that work, of these a share.
BUILT_IN: dict[str, Filter] = {"windows": windows, "health": health, "weights": weights}
#: In the place of a filter's name: there is none.
NO_FILTER = "none"


@dataclass(slots=True)
class Passage:
    """One name on its way through the chain.

    left      what is left of it; again: when the first filter wants to be asked again, seconds since the epoch
    taken     what filters took away: (filter, key, type, data)
    bypassed  the filters that gave no result, and why
    """

    context: Context
    left: RRsets
    again: float | None = None
    bypassed: dict[str, str] = field(default_factory=dict)
    taken: list[tuple[str, str, int, bytes]] = field(default_factory=list)


class Stage(Protocol):
    """One filter, for many names."""

    name: str

    async def filter(self, names: Sequence[tuple[RRsets, Context]]) -> Sequence[Kept | Failed]: ...


class Chain:
    """The filters that are in use, in order."""

    def __init__(self, names: Sequence[str], limit_s: float, back: Callable[[], None]) -> None:
        """limit_s: for one name in a filter that is not ours. back: called when such a filter can be asked (again)."""
        wanted = [name for name in dict.fromkeys(names) if name != NO_FILTER]
        self.processes = [FilterProcess(name, limit_s, back) for name in wanted if name not in BUILT_IN]
        others = {process.name: process for process in self.processes}
        self._stages: list[Stage] = [
            others[name] if name in others else _BuiltIn(name, BUILT_IN[name]) for name in wanted
        ]
        self.bypasses = 0
        self._told: set[tuple[str, str]] = set()

    @property
    def looks_at_health(self) -> bool:
        """Whether a filter needs to know which targets are up."""
        return any(stage.name == "health" or stage.name not in BUILT_IN for stage in self._stages)

    @property
    def suspects(self) -> set[bytes]:
        """Names at which a filter has crashed, or taken too long, when it was asked about them last."""
        return set[bytes]().union(*(process.suspects for process in self.processes))

    async def run(self, passages: Sequence[Passage]) -> None:
        """All names through all filters."""
        for stage in self._stages:
            await self._run_stage(stage, passages)

    async def _run_stage(self, stage: Stage, passages: Sequence[Passage]) -> None:
        wanted = [passage for passage in passages if passage.left]
        results = await stage.filter([(passage.left, passage.context) for passage in wanted])
        for passage, result in zip(wanted, results, strict=False):
            if isinstance(result, Failed):
                self._bypass(stage.name, passage, str(result))
            else:
                _advance(passage, stage.name, result)
        for passage in wanted[len(results) :]:
            # The process told its trouble itself.
            passage.bypassed[stage.name] = getattr(stage, "trouble", "") or "it has not started yet"
            self.bypasses += 1

    def _bypass(self, name: str, passage: Passage, why: str) -> None:
        passage.bypassed[name] = why
        self.bypasses += 1
        if (name, why) not in self._told:
            self._told.add((name, why))
            log.error("filter %s is bypassed at %s: %s", name, names.to_text(passage.context.owner), why)
            if len(self._told) > 1000:
                self._told.clear()


class _BuiltIn:
    """A filter of ours. A mistake in it is to cost no more than one in others'."""

    def __init__(self, name: str, function: Filter) -> None:
        self.name = name
        self._function = function

    async def filter(self, names: Sequence[tuple[RRsets, Context]]) -> Sequence[Kept | Failed]:
        return [self._one(rrsets, context) for rrsets, context in names]

    def _one(self, rrsets: RRsets, context: Context) -> Kept | Failed:
        try:
            result = self._function(rrsets, context)
        except Exception as error:
            log.exception("filter %s failed", self.name)
            return Failed(f"{type(error).__name__}: {error}")
        return result if isinstance(result, Kept) else Kept(result)


def _advance(passage: Passage, name: str, result: Kept) -> None:
    for type_, rrs in passage.left.items():
        stays = result.rrsets.get(type_, ())
        if len(stays) != len(rrs):
            left = {(rr.key, rr.data) for rr in stays}
            gone = [rr for rr in rrs if (rr.key, rr.data) not in left]
            passage.taken += [(name, rr.key, type_, rr.data) for rr in gone]
    passage.left = {type_: list(rrs) for type_, rrs in result.rrsets.items() if rrs}
    if result.again is not None:
        passage.again = result.again if passage.again is None else min(passage.again, result.again)
