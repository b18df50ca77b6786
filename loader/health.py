"""What is known of the targets of health checks, and by whose word. Keeps the checker's process (loader/checker.py).

The loader never waits for the checker. While it is away, or has not looked yet, a target is as it was last known, and
up if it never was. An operator's word (`standoff health set`) goes before the checker's. It is kept in a file, and so
is what is down: a loader that starts anew does not send clients there for the time of the first checks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from loader.child import Helper, HelperGone
from loader.targets import Target

log = logging.getLogger(__name__)

#: The checker speaks once a second.
SILENT_AFTER_S = 10.0
#: Pauses before a checker that ended is started again, doubled each time; one that lived for so long is as new.
RETRY_FIRST_S, RETRY_MOST_S, STABLE_AFTER_S = 0.1, 10.0, 30.0
#: How often the file is written at most, and how old a file may be to tell what is down.
SAVE_EVERY_S, STALE_AFTER_S = 1.0, 3600.0
#: What is down stays so for days: the file is written so often though nothing has changed. After a write that failed.
RENEW_EVERY_S, RETRY_S = 600.0, 5.0
#: Flips logged one by one at a time; of more, only the number.
LOGGED = 20
#: Targets in one reply: with their names some 200 octets each, and a client takes 64 KiB.
PAGE, PAGE_BYTES = 200, 40 * 1024
#: Names told of one target.
TOLD_NAMES = 5

WORDS = {"up": True, "down": False, "auto": None}


class Row(msgspec.Struct, frozen=True):
    """A target for `standoff health`. state: up, down or unknown, what filters go by; checked: what the checker says;
    since: when that changed, seconds since the epoch, 0: never; names: the first few in text, total: how many;
    at_least: it may be so for longer than since then, when the first check after a start told it."""

    target: str
    state: str
    checked: str
    forced: bool
    since: float
    error: str
    names: list[str]
    total: int
    at_least: bool = False


class _State:
    __slots__ = ("at_least", "error", "since", "target", "up")

    def __init__(self, target: Target, up: bool | None, since: float) -> None:
        self.target, self.up, self.since = target, up, since
        self.error = ""
        self.at_least = False


class _File(msgspec.Struct):
    """forced: target -> up; down: target -> since when."""

    forced: dict[str, bool] = {}
    down: dict[str, float] = {}


class Health:
    """See above. flipped: called with the targets for which filters would decide otherwise now."""

    def __init__(self, path: Path | None, flipped: Callable[[Collection[str]], None]) -> None:
        """path: the file; None: nothing is kept. It is read now, and never read again."""
        self._path = path
        self._flipped = flipped
        self._states: dict[str, _State] = {}
        self._order: list[str] | None = None  # of all targets, as long as they are the same
        self._counts: tuple[int, int] | None = None
        self._helper: Helper | None = None
        self._needed = asyncio.Event()
        self._unsaved = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None
        found = _load(path)
        self._forced = found.forced
        self._was_down = found.down
        self.flips = 0
        self.starts = 0
        self.trouble = ""
        self.unwritten = ""  # why the file is not as it should be; for people

    # ------------------------------------------------------------ for filters

    def watch(self, added: Collection[Target], removed: Collection[str]) -> None:
        """Which targets are looked at from now on."""
        fresh = [target for target in added if target.text not in self._states]
        for target in fresh:
            since = self._was_down.pop(target.text, None)
            self._states[target.text] = _State(target, None if since is None else False, since or 0.0)
        for text in removed:
            self._states.pop(text, None)
        self._order = self._counts = None
        if self._states:
            self._needed.set()
        self._send([self._states[target.text] for target in fresh], removed)

    def is_up(self, text: str) -> bool | None:
        """What filters go by; None: unknown."""
        if text in self._forced:
            return self._forced[text]
        state = self._states.get(text)
        return None if state is None else state.up

    def error_of(self, text: str) -> str:
        """The last error of a target, or that its state is an operator's word; empty: nothing is known."""
        if text in self._forced:
            return "set by hand"
        state = self._states.get(text)
        return "" if state is None else state.error

    def counts(self) -> tuple[int, int]:
        """(targets that are up or unknown, targets that are down)."""
        if self._counts is None:
            down = sum(1 for text in self._states if self.is_up(text) is False)
            self._counts = len(self._states) - down, down
        return self._counts

    # ------------------------------------------------------------ the checker

    async def run(self) -> None:
        """Keep a checker as soon as there are targets. For ever."""
        saving = asyncio.ensure_future(self._save_on())
        pause = RETRY_FIRST_S
        try:
            while True:
                await self._needed.wait()
                begun = time.monotonic()
                try:
                    await self._follow()
                except (HelperGone, TimeoutError, OSError) as error:
                    why = "it is silent" if isinstance(error, TimeoutError) else str(error)
                    self.trouble = f"the health checker is started again: {why}"
                    log.warning("%s; what is known of targets stays", self.trouble)
                except Exception:
                    log.exception("the health checker said what nobody understands; it is started again")
                pause = RETRY_FIRST_S if time.monotonic() - begun > STABLE_AFTER_S else min(2 * pause, RETRY_MOST_S)
                await asyncio.sleep(pause)
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            if self._unsaved.is_set():  # an operator's word of the last second
                await self._save()

    async def _follow(self) -> None:
        helper = await Helper.start("loader.checker")
        log.info("health checker: pid %d", helper.pid)
        try:
            self._helper = helper
            self.starts += 1
            self._send(self._states.values(), ())
            while True:
                async with asyncio.timeout(SILENT_AFTER_S):
                    message = await helper.receive()
                self.trouble = ""
                self._hear(message["states"])
        finally:
            self._helper = None
            helper.end()

    def _send(self, states: Iterable[_State], removed: Collection[str]) -> None:
        watch = [(state.target, state.up) for state in states]
        if self._helper is None or not (watch or removed):
            return
        try:
            self._helper.send({"watch": watch, "forget": list(removed)})
        except HelperGone:
            self._helper.end()  # whoever waits for its messages finds that out

    def _hear(self, news: list[tuple[str, bool | None, str]]) -> None:
        turned: list[_State] = []
        for text, up, error in news:
            state = self._states.get(text)
            if state is None:
                continue
            state.error = error
            if state.up != up:
                if (state.up is not False) != (up is not False):
                    turned.append(state)
                state.at_least = state.up is None
                state.up, state.since = up, time.time()
        self.flips += len(turned)
        self._counts = None
        for state in turned[:LOGGED]:
            if state.up is False:
                log.warning("%s is down: %s", state.target.text, state.error)
            else:
                log.info("%s is up", state.target.text)
        if len(turned) > LOGGED:
            log.warning("and %d more targets went up or down", len(turned) - LOGGED)
        if turned:
            self._unsaved.set()
            self._flipped([state.target.text for state in turned if state.target.text not in self._forced])

    # ------------------------------------------------------------ the operator

    def force(self, wanted: str, word: str) -> list[str]:
        """Set the target of this text, or all with this URL, up or down, or leave them to the checker (auto). Which
        ones. Raises ValueError."""
        if word not in WORDS:
            raise ValueError(f"a target is set up, down or auto, not {word!r}")
        known = [*self._states, *(text for text in self._forced if text not in self._states)]
        found = [text for text in known if text == wanted] or [text for text in known if text.split(" ")[0] == wanted]
        if not found:
            raise ValueError(f"no target {wanted} is known; `standoff health` lists them")
        before = {text: self.is_up(text) for text in found}
        for text in found:
            if WORDS[word] is None:
                self._forced.pop(text, None)
            else:
                self._forced[text] = bool(WORDS[word])
        self._order = self._counts = None
        log.warning("set %s by an operator: %s", word, ", ".join(found[:LOGGED]))
        self._unsaved.set()
        self._flipped([text for text in found if self.is_up(text) != before[text]])
        return found

    @property
    def keeps(self) -> bool:
        """Whether an operator's word outlives this loader, as far as is known."""
        return self._path is not None and not self.unwritten

    def page(self, after: str, names_at: Callable[[str], list[str]]) -> tuple[list[Row], str | None]:
        """Targets that sort behind `after`, and behind what to go on; None: that was all."""
        if self._order is None:
            self._order = sorted({*self._states, *self._forced})
        rows: list[Row] = []
        size = 0
        begin = bisect_right(self._order, after)
        for text in self._order[begin : begin + PAGE]:
            rows.append(self._row(text, names_at(text)))
            size += len(msgspec.msgpack.encode(rows[-1]))
            if size > PAGE_BYTES:
                break
        return rows, rows[-1].target if begin + len(rows) < len(self._order) else None

    def _row(self, text: str, names: list[str]) -> Row:
        state = self._states.get(text)
        checked = _word(None if state is None else state.up)
        since, error = (0.0, "not in use") if state is None else (state.since, state.error)
        return Row(
            text, _word(self.is_up(text)), checked, text in self._forced, since, error[:200], names[:TOLD_NAMES],
            len(names), state is not None and state.at_least,
        )  # fmt: skip

    # ------------------------------------------------------------ the file

    async def _save_on(self) -> None:
        while self._path is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_EVERY_S):
                    await self._unsaved.wait()
            if self._unsaved.is_set() or any(state.up is False for state in self._states.values()):
                await self._save()
            await asyncio.sleep(RETRY_S if self.unwritten else SAVE_EVERY_S)

    async def _save(self) -> None:
        if self._path is None:
            return
        if self._writing is not None and not self._writing.done():  # its task is gone, its thread is not
            await asyncio.wait([self._writing])
        self._unsaved.clear()
        down = {text: state.since for text, state in self._states.items() if state.up is False}
        body = msgspec.json.encode(_File(dict(self._forced), down))
        self._writing = asyncio.ensure_future(asyncio.to_thread(_write, self._path, body))
        try:
            await asyncio.shield(self._writing)
        except OSError as error:
            self._unsaved.set()
            if not self.unwritten:
                log.error("cannot write %s: %s; what was set by hand is lost at the end", self._path, error.strerror)
            self.unwritten = (
                f"{self._path} cannot be written: {error.strerror}; what was set by hand is lost at the end"
            )
        else:
            if self.unwritten:
                log.info("%s is written again", self._path)
            self.unwritten = ""


def _word(up: bool | None) -> str:
    return "unknown" if up is None else "up" if up else "down"


def _load(path: Path | None) -> _File:
    """What a file holds; nothing if it cannot be read."""
    if path is None:
        return _File()
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
        if time.time() - path.stat().st_mtime > STALE_AFTER_S:
            found.down = {}
        return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("cannot read %s: %s; nothing is set by hand", path, error)
    return _File()


def _write(path: Path, body: bytes) -> None:
    """All of it or nothing, even if the power fails. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
