"""Why filters answer as they do at this moment, for people. Pure: a name before its filters in, words out.

Our own filters only: what one of others means by it, and what it leaves to those behind it, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime

from loader.attributes import Attributes
from loader.filters import RR, Kept, RRsets
from loader.filters.bank import Taken
from loader.filters.chain import BUILT_IN, Passage


class Reasons:
    """Of one name. filters: the names of those in use. error_of: a target's last error; empty if there is none."""

    def __init__(self, passage: Passage, filters: Collection[str], error_of: Callable[[str], str]) -> None:
        self._passage, self._filters, self._error_of = passage, filters, error_of
        self._draws: dict[int, str] = {}  # type -> why a record of it is not drawn

    def all_down(self) -> list[int]:
        """The types of which every target is down, so that `health` lets all records through."""
        if "health" not in self._filters:
            return []
        left = self._through(["windows"], self._passage.left)
        return [type_ for type_, rrs in left.items() if rrs and all(map(self._is_down, rrs))]

    def why(self, taken: Taken) -> str:
        """Why a filter took a record away; empty if it is not known."""
        name, key, type_, data = taken
        for rr in self._passage.left.get(type_, ()):
            if (rr.key, rr.data) == (key, data) and (found := self._why(name, rr)):
                return found
        return ""

    def _why(self, name: str, rr: RR) -> str:
        said: Attributes = rr.attributes
        now = self._passage.context.now
        if name == "windows":
            if said.not_before is not None and now < said.not_before:
                return f"not before {_clock(said.not_before)}"
            if said.not_after is not None and now >= said.not_after:
                return f"not after {_clock(said.not_after)}"
        elif name == "health" and said.check is not None and self._is_down(rr):
            error = self._error_of(said.check.text)
            return f"{said.check.text} is down" + (f": {error}" if error else "")
        elif name == "weights":
            return "weight 0" if said.weight == 0 else self._draw(rr.type)
        return ""

    def _draw(self, type_: int) -> str:
        if type_ not in self._draws:
            left = self._through(["windows", "health"], {type_: self._passage.left[type_]})
            drawn = BUILT_IN["weights"](left, self._passage.context)
            again = drawn.again if isinstance(drawn, Kept) else None
            self._draws[type_] = "not drawn" + (f"; the next draw is at {_clock(again)}" if again is not None else "")
        return self._draws[type_]

    def _is_down(self, rr: RR) -> bool:
        check = rr.attributes.check
        return check is not None and self._passage.context.health.get(check.text) is False

    def _through(self, names: Collection[str], rrsets: RRsets) -> RRsets:
        for name in names:
            if name in self._filters:
                result = BUILT_IN[name](rrsets, self._passage.context)
                rrsets = result.rrsets if isinstance(result, Kept) else result
        return rrsets


def _clock(at: float) -> str:
    """As values say times."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
