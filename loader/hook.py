"""A command of the operator's that may decide on held changes (guard_hook).

It runs beside everything else, for HOOK_S at most, with the change as JSON on its standard input:

    {"instance": "default", "change": 3, "reasons": ["..."], "since": 1764000000.0, "revision": 42, "names": 300,
     "differences": [{"name": "www.example.test.", "removed": ["300 A 192.0.2.1"], "added": []}, ...], "complete": true}

Exit status 0 approves, 1 rejects; whatever else happens leaves it to a person. Of large changes it gets MOST names, and
`complete` is false. A change that grows is told again; what was decided of it before it grew does not count.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Any

import msgspec

from loader.difference import difference
from loader.gate import Gate
from loader.held import Held, State

log = logging.getLogger(__name__)

#: Long enough to ask somebody over the network; a person takes longer, and has `standoff approve`.
HOOK_S = 10.0
MOST = 10_000
#: Names looked at between two turns of the event loop: 10 ms.
STEP = 200
#: Octets of what it says that are logged.
TOLD = 500


class Hook:
    """Runs the command, one at a time."""

    def __init__(self, command: str, instance: str) -> None:
        """command: split as a shell would; empty: there is none. Raises ValueError for quotes that do not end."""
        self._command = shlex.split(command)
        self._instance = instance
        self._asked: dict[int, int] = {}  # number of a change -> its growth when it was told
        self._task: asyncio.Task[None] | None = None

    def look(self, gate: Gate, decide: Callable[[Held, str], None]) -> None:
        """Ask about a pending change that it has not seen, or not so large."""
        if not self._command or gate.pinned is not None or (self._task is not None and not self._task.done()):
            return
        held = next((one for one in gate.pending if self._asked.get(one.number) != one.growth), None)
        if held is not None:
            self._asked[held.number] = held.growth
            self._task = asyncio.create_task(self._ask(gate, held, decide))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self, gate: Gate, held: Held, decide: Callable[[Held, str], None]) -> None:
        growth = held.growth
        try:
            status, said = await self._run(msgspec.json.encode(await self._told(gate, held)))
        except (OSError, TimeoutError) as error:
            reason = f"no answer within {HOOK_S:g} s" if isinstance(error, TimeoutError) else str(error)
            log.error("guard_hook: %s; change %d is left to a person", reason, held.number)
            return
        if held.state is not State.PENDING or held.growth != growth:
            return
        decision = {0: "approve", 1: "reject"}.get(status)
        log.warning(
            "guard_hook: exit status %d %s change %d%s", status,
            {"approve": "approves", "reject": "rejects"}.get(decision or "", "leaves to a person"), held.number,
            f": {said}" if said else "",
        )  # fmt: skip
        if decision is not None:
            decide(held, decision)

    async def _told(self, gate: Gate, held: Held) -> dict[str, Any]:
        names = list(islice(held.kept, MOST))
        told = []
        for done, name in enumerate(names, 1):
            if name in held.kept:
                told.append(difference(name, held.kept[name], gate.model.block(name)))
            if done % STEP == 0:
                await asyncio.sleep(0)
        return {
            "instance": self._instance, "change": held.number, "reasons": held.reasons, "since": held.since,
            "revision": held.revision, "names": len(held.kept), "differences": told,
            "complete": len(names) == len(held.kept),
        }  # fmt: skip

    async def _run(self, body: bytes) -> tuple[int, str]:
        """(exit status, what it said). Raises OSError, TimeoutError."""
        with _Told(body) as told:
            # A group of its own: what it starts ends with it, if it takes too long.
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=told.stdin, stdout=asyncio.subprocess.DEVNULL, stderr=told.stderr,
                start_new_session=True,
            )  # fmt: skip
            told.listen()
            try:
                async with asyncio.timeout(HOOK_S):
                    status = await process.wait()
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
        return status, told.said.decode(errors="replace").strip()


class _Told:
    """What the command reads, and the first octets of what it says. With pipes of asyncio's, its end would not be seen
    before that of all who have them; here it may leave somebody behind, say anything, and read nothing."""

    def __init__(self, body: bytes) -> None:
        """Raises OSError."""
        self.said = b""
        with ExitStack() as opened:
            self.stdin = os.memfd_create("change")
            opened.callback(os.close, self.stdin)
            with open(self.stdin, "wb", closefd=False) as file:
                file.write(body)
            os.lseek(self.stdin, 0, os.SEEK_SET)
            self._mouth, self.stderr = os.pipe()
            opened.callback(os.close, self._mouth)
            opened.callback(os.close, self.stderr)
            os.set_blocking(self._mouth, False)
            self._opened = opened.pop_all()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._mouth, self._hear)
        self._opened.callback(loop.remove_reader, self._mouth)

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            self.said += os.read(self._mouth, 1 << 16)[: TOLD - len(self.said)]

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *error: object) -> None:
        self._hear()  # what it said last
        self._opened.close()
