"""Back to an earlier state of the table, and on again: a person's decision, carried out between two publishes.

Commands for the socket (loader/control.py):

    rollback   to                 begin to go back to state number `to` of the history (loader/past.py)
    deed                          how far the last of these is: state (idle, at work, done, failed), message, names
    resume                        begin to follow the source again

While the history is read nothing is published; answers go on. It is done when readers have the state, and when it is on
disk that the table is pinned: a loader that dies before, dies before it has told anybody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loader.chronicle import Chronicle
from loader.history import History, Version
from loader.past import NotKnown, Past
from loader.warden import Warden
from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: For the history's thread, whose disk may be slow, to write what it has been told.
FLUSH_S = 10.0
#: The same, while nothing is published: of the last moments only.
QUIET_FLUSH_S = 2.0
#: The same, if it says that it cannot: asking makes it try at once.
FAILING_FLUSH_S = 0.5
#: How often to look whether what was decided is published.
_POLL_S = 0.005


@dataclass(slots=True)
class Deed:
    """What is being done: idle, at work, done, failed."""

    state: str = "idle"
    message: str = ""
    names: int = 0


class Rollback:
    """Does one at a time. quiet: held while something is published. wake: publish, though no source has changed."""

    def __init__(
        self, history: History | None, chronicle: Chronicle, warden: Warden, quiet: asyncio.Lock,
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._history = history
        self._chronicle = chronicle
        self._warden = warden
        self._quiet = quiet
        self._wake = wake
        self._deed = Deed()
        self._task: asyncio.Task[None] | None = None

    @property
    def handlers(self) -> Mapping[str, Callable[[dict[str, Any]], Mapping[str, Any]]]:
        """Commands for the control socket."""
        return {"rollback": self._rollback, "resume": self._resume, "deed": self._tell}

    def _rollback(self, request: dict[str, Any]) -> dict[str, Any]:
        number = request.get("to")
        if not isinstance(number, int) or number < 0:
            raise ValueError("to is the number of a state in the history")
        if self._history is None:
            raise ValueError("no history is kept: it needs state_dir, and history = 1 at least")
        self._begin(self._go_back, number)
        return {}

    def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._warden.gate.pinned is None:
            raise ValueError("the table is not pinned")
        self._begin(self._go_on)
        return {}

    def _tell(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"state": self._deed.state, "said": self._deed.message, "names": self._deed.names}

    def _begin(self, do: Callable[..., Any], *arguments: int) -> None:
        if self._task is not None and not self._task.done():
            raise ValueError("another rollback or resume is at work")
        if not self._chronicle.version.generation:
            raise ValueError("nothing is published yet")
        self._deed = Deed("at work")
        self._task = asyncio.create_task(self._watched(do, *arguments))

    async def _watched(self, do: Callable[..., Any], *arguments: int) -> None:
        try:
            self._deed.names = await do(*arguments)
            self._deed.state = "done"
        except (StandoffError, ValueError) as error:
            self._deed.state, self._deed.message = "failed", str(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("rollback or resume failed")
            self._deed.state, self._deed.message = "failed", "it failed in the loader; see its log"

    async def _go_back(self, number: int) -> int:
        try:
            await self._flush(FLUSH_S)  # changes go on while the disk makes us wait
            async with self._quiet:
                await self._flush(QUIET_FLUSH_S)
                before = self._chronicle.version
                target, reason, revision = await asyncio.to_thread(self._read, number, before)
                names = self._warden.gate.pin(target, reason, revision)
        except StandoffError as error:
            raise NotKnown(f"nothing was changed: {error}") from error
        await self._published(before)
        return names

    async def _flush(self, timeout_s: float) -> None:
        assert self._history is not None
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if await asyncio.to_thread(self._history.flush, min(left, FAILING_FLUSH_S)):
                return
            if self._history.error:
                raise NotKnown(self._history.error)
        raise NotKnown("the history could not be written in time: try again")

    def _read(self, number: int, version: Version) -> tuple[dict[bytes, bytes | None], str, int]:
        """Names whose block differs now -> that of the state; what to call it. In a thread."""
        assert self._history is not None
        with Past(self._history.path) as past:
            if past.version != version[:2]:
                raise NotKnown("the last changes are not in the history: nothing can be told of what was before them")
            target = {name: block for name, (block, _) in past.between(number, past.last).items()}
            entry = past.entry(number) or past.entry(number + 1)
            revision = 0 if entry is None else entry.revision
            when = "" if entry is None else f", {datetime.fromtimestamp(entry.time_ns / 1e9):%Y-%m-%d %H:%M:%S}"
        return target, f"pinned at revision {revision} (n{number}{when}) by rollback", revision

    async def _go_on(self) -> int:
        async with self._quiet:
            before = self._chronicle.version
            names = self._warden.gate.resume()
        await self._published(before)
        return names

    async def _published(self, before: Version) -> None:
        due = self._warden.gate.due
        self._wake()
        while due and self._chronicle.version == before:
            await asyncio.sleep(_POLL_S)
        async with self._quiet:  # readers have it; wait until all else is done
            pass
        await self._warden.keep()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
