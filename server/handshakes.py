"""Encrypted clients that have not finished their handshake: how many, whose, since when. Pure.

A handshake that is never finished costs its client nothing and us a connection. So there are limits for them: half of
all connections, and an eighth for one client (an address; IPv6: a /64). Beyond them the oldest makes room: a real
client is done after two round trips.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

#: Seconds that a handshake may take.
PATIENCE_S = 5.0
#: More at a time are of no use to anybody: they wait for each other. Fewer would turn real clients away where there are
#: few connections at all.
MOST, LEAST = 512, 8
#: A client at its limit may begin another once its oldest has had so many seconds.
FAIR_S = 0.5


@dataclass(frozen=True, slots=True)
class _Begun:
    network: bytes
    at: float


class Handshakes:
    """Those under way, by slot; times are those of one clock, in seconds."""

    def __init__(self, connections: int, patience_s: float) -> None:
        """connections: that there may be in all."""
        self.most = max(LEAST, min(MOST, connections // 2))
        self.most_a_client = max(LEAST, self.most // 4)
        self._patience_s = min(PATIENCE_S, patience_s)
        self._begun: dict[int, _Begun] = {}  # the oldest first
        self._of: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._begun)

    def __contains__(self, slot: int) -> bool:
        return slot in self._begun

    def room_for(self, network: bytes, now: float) -> tuple[bool, int | None]:
        """Whether one of `network` may begin, and the slot of the one that has to end before (None: none)."""
        if self._of[network] >= self.most_a_client:
            slot = self._oldest_of(network)
            return (True, slot) if now - self._begun[slot].at >= FAIR_S else (False, None)
        if len(self._begun) >= self.most:
            ((greediest, _),) = self._of.most_common(1)
            return True, self._oldest_of(greediest)
        return True, None

    def begin(self, slot: int, network: bytes, now: float) -> None:
        self._begun[slot] = _Begun(network, now)
        self._of[network] += 1

    def end(self, slot: int) -> None:
        """It is done, or the client is gone. Of others, nothing happens."""
        begun = self._begun.pop(slot, None)
        if begun is not None:
            self._of[begun.network] -= 1
            if not self._of[begun.network]:
                del self._of[begun.network]

    def overdue(self, now: float) -> list[int]:
        """Slots whose handshakes have had their time."""
        found = []
        for slot, begun in self._begun.items():
            if now - begun.at < self._patience_s:
                break
            found.append(slot)
        return found

    def _oldest_of(self, network: bytes) -> int:
        return next(slot for slot, begun in self._begun.items() if begun.network == network)
