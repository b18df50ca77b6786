"""What surrounds the gate: its limits, its file, the hook and the clock that decide, the board, the control socket.

Commands for the socket (loader/control.py):

    pending  rejected, from, version      a page of what is held, or was rejected, as differences of records
    approve  change | all, rejected       publish it with the next swap
    reject   change | all                 keep what readers have
    decided  version                      whether what one of these has answered with is carried out, and on disk
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, Protocol

from loader import held_file, takeover
from loader.difference import Difference, difference
from loader.gate import Gate, Model, Undecided
from loader.guard import Limits, parse_canary
from loader.held import Held, State, count
from loader.hook import Hook
from shm.board import WordView
from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: How often it looks whether something is to be decided or kept.
LOOK_S = 0.2
#: Between two writes of the file, and at least so many times what the last one took.
SAVE_PAUSE_S = 0.5
SAVE_SHARE = 20
#: After a write that failed.
RETRY_S = 10.0
#: Of a page, and octets of it; one name's records may have a third of that.
PAGE = 500
PAGE_BYTES = 40 * 1024


class GuardSettings(held_file.Settings, Protocol):
    """What is needed of the settings (cli/guard_rows.py)."""

    @property
    def guard(self) -> Literal["on", "off"]: ...
    @property
    def guard_removed(self) -> float: ...
    @property
    def guard_floor(self) -> int: ...
    @property
    def guard_window(self) -> float: ...
    @property
    def guard_last_address(self) -> Literal["on", "off"]: ...
    @property
    def guard_canary(self) -> list[str]: ...
    @property
    def guard_order(self) -> Literal["flow", "strict"]: ...
    @property
    def guard_hold_for(self) -> float: ...
    @property
    def guard_then(self) -> Literal["approve", "reject"]: ...
    @property
    def guard_hook(self) -> str: ...


def limits_of(settings: GuardSettings) -> Limits:
    """Raises ValueError for a canary that is none."""
    return Limits(
        on=settings.guard == "on",
        removed=settings.guard_removed,
        floor=settings.guard_floor,
        last_address=settings.guard_last_address == "on",
        canaries=tuple(parse_canary(text) for text in settings.guard_canary),
        window_s=settings.guard_window,
        strict=settings.guard_order == "strict",
        hold_for_s=settings.guard_hold_for,
        then=settings.guard_then,
    )


class Warden:
    """Looks after one gate. wake: called when something is to be published though no source has changed."""

    def __init__(self, settings: GuardSettings, model: Model, wake: Callable[[], None]) -> None:
        self.gate = Gate(limits_of(settings), model, time.monotonic, time.time)
        self._wake = wake
        self._hook = Hook(settings.guard_hook, settings.instance)
        self._path = held_file.path_of(settings)
        self._writing = asyncio.Lock()
        self._file: asyncio.Future[None] | None = None  # a write that goes on though nobody waits for it any more
        self._written = 0  # the gate's version on disk
        self._write_at = 0.0
        self._urgent = False  # somebody waits for it
        self._place: tuple[int, bool, int] = (-1, False, 0)  # of the page that comes next: version, which, number
        self._ahead: Iterator[tuple[Held, bytes]] = iter(())
        self.error = ""  # for people; empty if the file can be written

    def kept(self) -> takeover.Saved | None:
        """What was held when the last loader ended."""
        if self._path is None:
            return None
        try:
            return held_file.read(self._path)
        except (OSError, held_file.HeldDamaged) as error:
            log.error("%s cannot be read (%s): what was held is judged anew", self._path, error)
            return None

    def floors(self, kept: takeover.Saved | None, live: Mapping[bytes, int], lost: bool) -> dict[bytes, int]:
        """Apex -> what its serial is to go on from: what is answered now, or, if that is not what was answered last,
        what may have been.

        kept: see `kept`; the bounds in it are made anew, on disk as well before anything is published. live: the
        serials that are answered. lost: the table that a loader has published is lost; answers, if there are any, come
        from an image.
        """
        found = dict(live)
        if kept is None or not kept.reserved or self._path is None:
            return found
        for apex, bound in kept.reserved.items():
            found[apex] = max(bound, live.get(apex, 0)) if lost else live.get(apex, bound)
        self.gate.reserve.begin({apex: found[apex] for apex in kept.reserved})
        kept.reserved = dict(self.gate.reserve.bounds)
        try:
            held_file.write(self._path, kept)
        except OSError as error:
            log.error("%s cannot be written: %s; serials may go back after a power cut", self._path, error.strerror)
        return found

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                self._end_waiting()
                self._hook.look(self.gate, self._decide)
                if self.gate.version != self._written and (self._urgent or time.monotonic() >= self._write_at):
                    await self._write()
            except Exception:
                log.exception("the guard's clock, hook or file")  # none of these may end the loader
            await asyncio.sleep(LOOK_S)

    async def keep(self) -> None:
        """Have on disk what is held now. Raises StandoffError if it cannot be."""
        while self.gate.version != self._written and self._path is not None:
            await self._write()
            if self.error:
                raise StandoffError(self.error)

    async def close(self) -> None:
        """Keep what is held."""
        await self._hook.close()
        if self.gate.reserve.settle() or self.gate.version != self._written:
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            await self._write_now()

    async def _write_now(self) -> None:
        path, started = self._path, time.monotonic()
        if path is None:
            return
        if self._file is not None and not self._file.done():
            await asyncio.wait([self._file])
        version, self._urgent = self.gate.version, False
        self._file = asyncio.ensure_future(asyncio.to_thread(held_file.write, path, takeover.saved(self.gate)))
        try:
            await asyncio.shield(self._file)
        except OSError as error:
            text = f"{path} cannot be written: {error.strerror}; a restart would judge anew what is held"
            if text != self.error:
                log.error("%s", text)
            self.error = text
            self._write_at = time.monotonic() + RETRY_S
            return
        self.error = ""
        self._written = version
        now = time.monotonic()
        self._write_at = now + max(SAVE_PAUSE_S, SAVE_SHARE * (now - started))

    # ------------------------------------------------------------ decisions

    def _end_waiting(self) -> None:
        limits = self.gate.limits
        if not limits.hold_for_s or self.gate.pinned is not None:
            return
        for held in self.gate.pending:
            if time.monotonic() - held.since_s >= limits.hold_for_s:
                log.warning("nobody has decided on change %d for %g s", held.number, limits.hold_for_s)
                self._decide(held, limits.then)

    def _decide(self, held: Held, decision: str) -> None:
        """Also for the hook, which may be late: then nothing happens."""
        if held not in self.gate.pending:
            return
        with suppress(Undecided):
            (self.gate.approve if decision == "approve" else self.gate.reject)(held)
            self._wake()

    # ------------------------------------------------------------ for the board

    def show(self, words: WordView) -> None:
        """On the board."""
        pending, pin = self.gate.pending, self.gate.pinned
        words.set("held_changes", len(pending))
        words.set("held_names", count(pending))
        words.set("held_since_ns", int(min((held.since for held in pending), default=0.0) * 1e9))
        words.set("rejected_names", count(self.gate.rejected))
        words.set("pinned_names", 0 if pin is None else len(pin.kept))
        words.set("pinned_revision", 0 if pin is None else pin.revision)
        words.set("pinned_since_ns", 0 if pin is None else int(pin.since * 1e9))

    def note(self) -> str:
        """For people; empty if nothing is held."""
        pending, pin = self.gate.pending, self.gate.pinned
        notes = [f"change {held.number} is held: {'; '.join(held.reasons)}" for held in pending[:2]]
        notes += ["; ".join(pin.reasons)] if pin is not None else []
        return "; ".join([*notes, *filter(None, [self.error])])

    # ------------------------------------------------------------ for tools

    def held_at(self, name: bytes) -> str:
        """Why a name does not follow the source; empty if it does."""
        held = self.gate.holdings.holder(name)
        if held is None:
            return ""
        made = difference(name, held.kept[name], self.gate.model.block(name))
        says = ", ".join(made.added) or ("nothing" if made.removed else "the same")
        return f"{held.state.value} in change {held.number}; the source says {says}; {'; '.join(held.reasons)}"

    @property
    def handlers(self) -> Mapping[str, Callable[[dict[str, Any]], Mapping[str, Any]]]:
        """Commands for the control socket."""
        return {
            "pending": self._pending, "approve": self._approve, "reject": self._reject, "decided": self._decided,
        }  # fmt: skip

    def _approve(self, request: dict[str, Any]) -> dict[str, Any]:
        chosen = self._chosen(request, State.REJECTED if request.get("rejected") is True else State.PENDING)
        return self._done(chosen, self.gate.approve)

    def _reject(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._done(self._chosen(request, State.PENDING), self.gate.reject)

    def _chosen(self, request: dict[str, Any], state: State) -> list[Held]:
        among = [held for held in self.gate.holdings.all if held.state is state]
        if request.get("all") is True:
            return among
        number = request.get("change")
        if not isinstance(number, int):
            raise ValueError("change is the number of a held change")
        held = self.gate.find(number)
        if held not in among:
            raise ValueError(f"change {number} is {held.state.value}")
        return [held]

    def _done(self, chosen: list[Held], decide: Callable[[Held], int]) -> dict[str, Any]:
        decided = []
        for held in chosen:
            about = self._told(held)
            decided.append(about | {"names": decide(held)})
        self._wake()
        self._urgent = True
        return {"decided": decided, "version": self.gate.version}

    def _decided(self, request: dict[str, Any]) -> dict[str, Any]:
        """A word that is not on disk is lost with a loader that is killed: the change would be pending again."""
        version = request.get("version")
        if not isinstance(version, int):
            raise ValueError("version is what approve or reject has answered with")
        kept = self._path is None or self._written >= version
        return {"due": self.gate.due, "kept": kept, "error": "" if kept else self.error}

    def _told(self, held: Held) -> dict[str, Any]:
        limits = self.gate.limits
        left = max(0.0, held.since_s + limits.hold_for_s - time.monotonic())
        decides = limits.hold_for_s and held.state is State.PENDING
        return {
            "change": held.number,
            "state": held.state.value,
            "reasons": [reason[:500] for reason in held.reasons[:10]],
            "since": held.since,
            "revision": held.revision,
            "names": len(held.kept),
            "then": limits.then if decides else "",
            "left": left if decides else 0.0,
        }

    def _pending(self, request: dict[str, Any]) -> dict[str, Any]:
        """From where the request says. A client that finds another version than before begins again."""
        rejected, start = request.get("rejected") is True, request.get("from", 0)
        if not isinstance(start, int) or start < 0:
            raise ValueError("from is the number of the first difference wanted")
        chosen = [held for held in self.gate.holdings.all if (held.state is State.REJECTED) == rejected]
        version = self.gate.version
        if self._place != (version, rejected, start):
            self._ahead = islice(((held, name) for held in chosen for name in held.kept), start, None)
        found: list[dict[str, Any]] = []
        size = 0
        for held, name in islice(self._ahead, PAGE):
            made = bounded(difference(name, held.kept[name], self.gate.model.block(name)))
            found.append({"change": held.number, "name": made.name, "removed": made.removed, "added": made.added})
            size += 40 + sum(4 + len(text) for text in (made.name, *made.removed, *made.added))
            if size > PAGE_BYTES:
                break
        end, total = start + len(found), count(chosen)
        self._place = (version, rejected, end)
        return {
            "version": version,
            "changes": [self._told(held) for held in chosen],
            "differences": found,
            "total": total,
            "more": end if found and end < total else None,
        }


def bounded(made: Difference, most: int = PAGE_BYTES // 3) -> Difference:
    """At most so many characters of records; that some are missing is told in the place of one."""

    def cut(lines: list[str]) -> list[str]:
        room = most // 2
        kept: list[str] = []
        for line in lines:
            room -= len(line) + 4
            if room < 0:
                return [*kept, f"... and {len(lines) - len(kept)} more records"]
            kept.append(line)
        return kept

    return Difference(made.name, cut(made.removed), cut(made.added))
