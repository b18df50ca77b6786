"""Filters for the loader's main: bank, chain and health checks put together; the clock; what tools and metrics see."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from loader import names, rdata
from loader.filters.bank import Bank
from loader.filters.chain import Chain
from loader.filters.reasons import Reasons
from loader.health import TOLD_NAMES, Health
from loader.targets import Target
from loader.zone import Zones
from shm.board import WordView

log = logging.getLogger(__name__)

#: The clock may be set: nobody sleeps for longer than this without a look at it.
LONGEST_SLEEP_S = 1.0
#: What counts as that; less is the clock's own business.
CLOCK_STEP_S = 0.5
#: At most this often does time alone cause a swap: names with weights draw at any moment.
LEAST_PAUSE_S = 0.5
#: What filters of others may take to start before the first table is published; later nobody waits for them.
FIRST_PATIENCE_S = 5.0
#: Records told as taken away from one name, and octets of data that are told: they share a reply with other things.
TOLD, TOLD_DATA = 20, 512
#: Names of targets that are down looked at for one reply: 20 µs each, while changes wait.
MOST_LOOKED = 100


class FilterSettings(Protocol):
    """What filters need of the settings (cli/settings.py)."""

    @property
    def instance(self) -> str: ...
    @property
    def filters(self) -> list[str]: ...
    @property
    def filter_timeout(self) -> float: ...
    @property
    def state_dir(self) -> Path | None: ...


class FilterService:
    """Everything about filters. wake: called when something is to be published though no source has changed."""

    def __init__(self, settings: FilterSettings, zones: Zones, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._names = settings.filters
        folder = settings.state_dir
        path = None if folder is None else folder / f"{settings.instance}-health.json"
        self._health = Health(path, self._flipped)
        self._chain = Chain(settings.filters, settings.filter_timeout, self._back)
        looked_at = self._health if self._chain.looks_at_health else _NoHealth()
        seed = blake2b(socket.gethostname().encode(), digest_size=8).digest()
        self.bank = Bank(zones, self._chain, looked_at, seed)
        self._settled = asyncio.Event()
        self._first = True

    async def settle(self, breathe: Callable[[], Any]) -> None:
        """Bring the zone model up to date: before anything is published."""
        if self._first and self.bank.watched:
            self._first = False
            await asyncio.gather(*(process.wait_ready(FIRST_PATIENCE_S) for process in self._chain.processes))
        await self.bank.settle(time.time(), breathe)
        self._settled.set()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._health.run())
            for process in self._chain.processes:
                group.create_task(process.run())
            group.create_task(self._watch_clock())

    async def _watch_clock(self) -> None:
        ahead = time.time() - time.monotonic()
        while True:
            before, ahead = ahead, time.time() - time.monotonic()
            if abs(ahead - before) > CLOCK_STEP_S:
                # Back, above all: what has been done for a time that was none would be undone when a key changes.
                log.warning(
                    "the clock was set by %+.1f s: all names with attributes are looked at again", ahead - before
                )
                self.bank.ask_all()
                self._wake()
            pause = self.bank.due - time.time()
            if pause <= 0:
                self._wake()
                await asyncio.sleep(LEAST_PAUSE_S)
                continue
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, LONGEST_SLEEP_S)):
                    await self._settled.wait()

    def _flipped(self, texts: Collection[str]) -> None:
        if texts:
            self.bank.flipped(texts)
            self._wake()

    def _back(self) -> None:
        self.bank.ask_again()
        self._wake()

    # ------------------------------------------------------------ for the board and for tools

    def show(self, words: WordView) -> None:
        """On the board."""
        up, down = self._health.counts()
        words.set("checks_up", up)
        words.set("checks_down", down)
        words.set("check_flips", self._health.flips)
        words.set("checker_starts", self._health.starts)
        words.set("filter_bypasses", self._chain.bypasses)
        words.set("names_unfiltered", len(self.bank.bypassed))

    def note(self) -> str:
        """For people; empty if all is well."""
        found = self._health.trouble
        bypassed = self.bank.bypassed
        if bypassed:
            owner, (name, why) = next((owner, next(iter(those.items()))) for owner, those in bypassed.items())
            more = f" and {len(bypassed) - 1} more names" if len(bypassed) > 1 else ""
            said = f"filter {name} is bypassed at {names.to_text(owner)}{more}: {why}"
            found = f"{found}; {said}" if found else said
        return found

    @property
    def unwritten(self) -> str:
        """Why what is known of targets is not on disk; empty if it is."""
        return self._health.unwritten

    def taken(self, owner: bytes) -> list[dict[str, Any]]:
        """What filters took away from a name, and why."""
        reasons = self._reasons(owner)
        found = []
        for one in self.bank.taken(owner)[:TOLD]:
            name, key, type_, data = one
            why = "" if reasons is None else reasons.why(one)[:TOLD_DATA]
            shown = data if len(data) <= TOLD_DATA else b""
            found.append({"filter": name, "key": key[:200], "number": type_, "data": shown, "why": why})
        return found

    def all_down(self, owner: bytes) -> list[str]:
        """The types of a name that are answered in full because all of their targets are down."""
        reasons = self._reasons(owner)
        return [] if reasons is None else [rdata.type_name(type_) for type_ in reasons.all_down()]

    def _reasons(self, owner: bytes) -> Reasons | None:
        passage = self.bank.passage(owner, time.time())
        return None if passage is None else Reasons(passage, self._names, self._health.error_of)

    def _all_down_at(self, targets: Iterable[str]) -> list[str]:
        """Of the first few names of each of these targets those with types like that."""
        owners = dict.fromkeys(owner for text in targets for owner in self.bank.names_at(text)[:TOLD_NAMES])
        return [names.to_text(owner) for owner in islice(owners, MOST_LOOKED) if self.all_down(owner)]

    @property
    def handlers(self) -> Mapping[str, Callable[[dict[str, Any]], Mapping[str, Any]]]:
        """Commands for the control socket (loader/control.py)."""
        return {"health": self._list, "health-set": self._set}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        after = request.get("after", "")
        if not isinstance(after, str):
            raise ValueError("after is the last target of the page before")
        rows, more = self._health.page(after, lambda text: [names.to_text(name) for name in self.bank.names_at(text)])
        open_ = self._all_down_at([row.target for row in rows if row.state == "down"])
        return {"targets": rows, "more": more, "all_down": open_}

    def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        target, state = request.get("target"), request.get("state")
        if not isinstance(target, str) or not isinstance(state, str):
            raise ValueError("target and state are text")
        found = self._health.force(target, state)
        return {"targets": found, "kept": self._health.keeps, "all_down": self._all_down_at(found[:TOLD])}


class _NoHealth:
    """In place of health checks that nobody asks for."""

    def watch(self, added: Collection[Target], removed: Collection[str]) -> None:
        pass

    def is_up(self, text: str) -> bool | None:
        return None
