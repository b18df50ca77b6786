"""When which secondary is told of which zone (NOTIFY, RFC 1996): (state, event, now) -> what is due. Pure.

Times are monotonic seconds. A target is a number: its place in the list of secondaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: A burst of changes is told of once, this long after its first.
GATHER_S = 0.2
#: Between two tellings of one zone to one secondary: each may be a transfer of all of it.
INTERVAL_S = 3.0
#: After a telling without an answer, doubled each time; then the secondary's refresh timer has to do.
FIRST_RETRY_S = 2.0
MOST_TELLINGS = 6

Errand = tuple[bytes, int]
"""A zone's apex, and a target."""


@dataclass(slots=True)
class State:
    """What one secondary knows of one zone. `told`: the serial in the last telling; `due`: None = nothing to tell."""

    serial: int
    due: float | None
    told: int | None = None
    told_first: float = float("-inf")
    tellings: int = 0


class Notifying:
    """All zones and all secondaries."""

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self._states: dict[Errand, State] = {}
        self._pending: set[Errand] = set()

    def saw(self, serials: Mapping[bytes, int], now: float) -> None:
        """The zones there are. A zone seen for the first time counts as changed: we may have been away for long."""
        for errand in [errand for errand in self._states if errand[0] not in serials]:
            del self._states[errand]
            self._pending.discard(errand)
        for apex, serial in serials.items():
            for target in range(self._targets):
                self._changed((apex, target), serial, now)

    def _changed(self, errand: Errand, serial: int, now: float) -> None:
        state = self._states.get(errand)
        if state is None:
            self._states[errand] = State(serial, now + GATHER_S)
        elif state.serial == serial:
            return
        else:
            state.serial = serial
            if state.due is None or state.told is not None:
                state.due = max(now + GATHER_S, state.told_first + INTERVAL_S)
            state.tellings = 0
            state.told = None
        self._pending.add(errand)

    def due(self, now: float, most: int) -> list[Errand]:
        """Whom to tell of what now, `most` at a time; they count as told."""
        chosen: list[Errand] = []
        for errand in sorted(self._pending):
            state = self._states[errand]
            if state.due is None or state.due > now:
                continue
            if state.tellings >= MOST_TELLINGS:
                self._settle(errand)
                continue
            if len(chosen) >= most:
                break
            if state.tellings == 0:
                state.told_first = now
            state.due = now + FIRST_RETRY_S * 2**state.tellings
            state.tellings += 1
            state.told = state.serial
            chosen.append(errand)
        return chosen

    def answered(self, errand: Errand) -> None:
        """The secondary has said that it knows, or that it does not want to."""
        state = self._states.get(errand)
        if state is not None and state.told == state.serial:
            self._settle(errand)

    def _settle(self, errand: Errand) -> None:
        self._states[errand].due = None
        self._pending.discard(errand)

    @property
    def pending(self) -> int:
        return len(self._pending)
