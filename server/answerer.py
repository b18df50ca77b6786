"""What UDP workers and the stream worker share: the terms of the moment, and the reference answerer behind a net."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from server._answer import Terms
from server.answer import answer
from server.cookie_secrets import CookieSecrets
from server.policy import Moment, Policy
from server.ratelimit import Sparing
from shm._table import Table
from shm.board import Board, ClaimedSlot

log = logging.getLogger(__name__)


class Answerer:
    """One process's view of what may change under it: generation, revision, staleness."""

    def __init__(
        self,
        policy: Policy,
        board: Board,
        slot: ClaimedSlot,
        stale_after_s: float,
        cookies: CookieSecrets | None = None,
    ) -> None:
        """stale_after_s: the source's silence, in seconds, after which answers say so; 0 = never.

        cookies: where the policy's secrets are those of now, and may become others.
        """
        self.policy = policy if cookies is None else replace(policy, cookie_secrets=cookies.current)
        self.terms = Terms(self.policy)
        self._cookies = cookies
        self._board = board
        self._slot = slot
        self._stale_after_s = stale_after_s
        self._generation = self._revision = 0
        self._stale = False
        self._now_s = int(time.time())
        self._log = Sparing(log)
        self.terms.at(self.moment())

    def moment(
        self,
        address: bytes = b"\x7f\0\0\1",
        turn: int = 0,
        *,
        stream: bool = False,
        encrypted: bool = False,
        prohibited: bool = False,
    ) -> Moment:
        """Now, for one query."""
        return Moment(
            address=address,
            stream=stream,
            encrypted=encrypted,
            now_s=self._now_s,
            turn=turn,
            generation=self._generation,
            revision=self._revision,
            stale=self._stale,
            prohibited=prohibited,
        )

    def adopt(self, generation: int, revision: int) -> None:
        """Answers come from another table from now on; `standoff wait` is told."""
        self._generation, self._revision = generation, revision
        self._slot.set("revision", revision)
        self._slot.set("generation", generation)
        self.terms.at(self.moment())

    def tick(self) -> None:
        """Look for other cookie secrets, at the clock, and whether the source has been silent for too long.

        Some times a second is enough.
        """
        if self._cookies is not None and (secrets := self._cookies.news()) is not None:
            self.policy = replace(self.policy, cookie_secrets=secrets)
            self.terms.renew(secrets)
        now_s = int(time.time())
        if now_s == self._now_s:
            return
        self._now_s = now_s
        seen_s = self._board.loader.get("source_seen_ns") / 1e9
        self._stale = bool(self._stale_after_s and seen_s) and now_s - seen_s > self._stale_after_s
        self.terms.at(self.moment())

    def reference(
        self, packet: bytes, table: Table | None, address: bytes, turn: int, prohibited: bool
    ) -> bytes | None:
        """For the hot path: what it declined. Never raises, whatever a packet or a table does to it."""
        return self.answer(packet, table, self.moment(address, turn, prohibited=prohibited))

    def answer(self, packet: bytes, table: Table | None, moment: Moment) -> bytes | None:
        """The reference's answer, or None."""
        try:
            return answer(packet, table, self.policy, moment, self._on_damage)
        except Exception:
            self._log.exception("no answer to a packet from %s: %s", moment.address.hex(), packet[:64].hex())
            return None

    def _on_damage(self) -> None:
        self._slot.add("table_damaged")
        self._log.error("the table is damaged: a query got SERVFAIL")
