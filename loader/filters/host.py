"""Filters that are not ours, each in a process of its own: one that loops for ever, crashes or eats memory costs
itself.

    loader: [rrsets, context]  ->  helper: {"kept": [[type, index, ttl], ...], "again": seconds or none}
                                           {"error": why}

A thread would not do: a loop in it takes half of the loader's time for ever, and a call into C that does not end (a
regular expression will do) takes all of it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from loader import child
from loader.child import Helper, HelperGone
from loader.filters import GROUP, RR, Context, Filter, Kept, RRsets

log = logging.getLogger(__name__)

#: Imports of a filter may take long; nobody waits for them.
START_LIMIT_S = 30.0
#: Pauses before a filter that failed is tried again, doubled each time; one that worked for so long is as new.
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0
#: Bytes of address space for one that eats memory; Python with a few packages takes a tenth.
MEMORY = 1 << 30
#: Requests sent ahead, so that the helper never waits for us.
_AHEAD = 64
_MOST_SUSPECTS = 1000
#: A time-out that comes so much late says that it was us who did not look; so often in a row.
_LATE_S, _HELD_UP_ROUNDS = 0.05, 5


class Failed(Exception):
    """A filter gave no result for a name. The message is one line, for people."""


class Answer(msgspec.Struct, frozen=True):
    """The helper's reply."""

    kept: list[tuple[int, int, int]] = []
    again: float | None = None
    error: str = ""


class FilterProcess:
    """One filter in its process. `limit_s`: for one name. `back`: called when it can be asked again."""

    def __init__(self, name: str, limit_s: float, back: Callable[[], None]) -> None:
        self.name = name
        self._limit_s = limit_s
        self._back = back
        self._helper: Helper | None = None
        self._lost = asyncio.Event()
        self.trouble = ""
        self.suspects: set[bytes] = set()  # names at which it was lost when it was asked last

    async def run(self) -> None:
        """Keep it running. For ever."""
        pause = RETRY_FIRST_S
        while True:
            self._lost.clear()
            begun = time.monotonic()
            helper: Helper | None = None
            try:
                helper = await Helper.start("loader.filters.host", self.name)
                async with asyncio.timeout(START_LIMIT_S):
                    said = await helper.receive()
                if said != "ready":
                    raise HelperGone(str(said))
                self._helper = helper
                self._back()
                await self._lost.wait()
            except (HelperGone, TimeoutError, OSError) as error:
                self._tell(f"it does not start: {error or 'too slow'}")
            finally:
                self._helper = None
                if helper is not None:
                    helper.end()
            pause = RETRY_FIRST_S if time.monotonic() - begun > 10 * pause else min(2 * pause, RETRY_MOST_S)
            await asyncio.sleep(pause)

    async def wait_ready(self, patience_s: float) -> None:
        """Until it can be asked, or not so long."""
        until = time.monotonic() + patience_s
        while self._helper is None and not self.trouble and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def filter(self, names: Sequence[tuple[RRsets, Context]]) -> list[Kept | Failed]:
        """What stays of each name. Fewer than asked for: the filter cannot be asked at present, see `trouble`."""
        results: list[Kept | Failed] = []
        sent = 0
        while len(results) < len(names) and self._helper is not None:
            try:
                while sent < min(len(names), len(results) + _AHEAD):
                    self._helper.send(names[sent])
                    sent += 1
                answer = msgspec.convert(await self._reply(self._helper), Answer)
                results.append(_result(answer, names[len(results)][0]))
            except TimeoutError:
                self._lose_at(names[len(results)][1].owner, f"it took longer than {self._limit_s:g} s")
            except (HelperGone, msgspec.ValidationError, LookupError) as error:
                self._lose_at(names[len(results)][1].owner, str(error) or "it says what nobody understands")
            else:
                self.suspects.discard(names[len(results) - 1][1].owner)
        if self._helper is not None:
            self.trouble = ""
        return results

    async def _reply(self, helper: Helper) -> Any:
        """The next one. Raises HelperGone, or TimeoutError if it takes too long: it, and not the loader, which may have
        been held up itself and finds the time gone."""
        for _ in range(_HELD_UP_ROUNDS):
            begun = time.monotonic()
            try:
                async with asyncio.timeout(self._limit_s):
                    return await helper.receive()
            except TimeoutError:
                if time.monotonic() - begun < 1.25 * self._limit_s + _LATE_S:
                    raise
        raise TimeoutError

    def _lose_at(self, owner: bytes, why: str) -> None:
        if len(self.suspects) >= _MOST_SUSPECTS:
            self.suspects.clear()
        self.suspects.add(owner)
        self._tell(why)
        if self._helper is not None:
            self._helper.end()
        self._helper = None
        self._lost.set()

    def _tell(self, why: str) -> None:
        if why != self.trouble:
            log.error("filter %s is bypassed: %s", self.name, why)
        self.trouble = why


def _result(answer: Answer, rrsets: RRsets) -> Kept | Failed:
    if answer.error:
        return Failed(answer.error)
    kept: RRsets = {}
    for type_, index, ttl in answer.kept:
        rr = rrsets[type_][index]
        if not 0 <= ttl <= rr.ttl:
            raise LookupError("it raised a TTL")
        kept.setdefault(type_, []).append(rr if rr.ttl == ttl else msgspec.structs.replace(rr, ttl=ttl))
    return Kept(kept, answer.again)


def checked(rrsets: RRsets, result: object) -> tuple[list[tuple[int, int, int]], float | None]:
    """A filter's result as (type, index, TTL) of each record that stays, and when to ask again. Raises Failed."""
    kept, again = (result.rrsets, result.again) if isinstance(result, Kept) else (result, None)
    if not isinstance(kept, dict):
        raise Failed(f"it returned a {type(result).__name__}, not RRsets or Kept")
    if again is not None and not (isinstance(again, int | float) and math.isfinite(again)):
        raise Failed("it wishes to be asked again at a time that is none")
    found: list[tuple[int, int, int]] = []
    for type_, rrs in kept.items():
        left: dict[tuple[str, bytes], list[int]] = {}
        for index, rr in enumerate(rrsets.get(type_, ())):
            left.setdefault((rr.key, rr.data), []).append(index)
        for rr in rrs:
            if not isinstance(rr, RR) or not left.get((rr.key, rr.data)):
                raise Failed(f"it returned a record of type {type_} that it was not given, or twice")
            index = left[rr.key, rr.data].pop(0)
            if not isinstance(rr.ttl, int) or not 0 <= rr.ttl <= rrsets[type_][index].ttl:
                raise Failed("it raised a TTL, or made it less than 0")
            found.append((type_, index, rr.ttl))
    return sorted(found), None if again is None else float(again)


# ---------------------------------------------------------------- in the helper


def find(name: str) -> Filter:
    """The filter of an entry point. Raises Failed."""
    found = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == name]
    if not found:
        raise Failed(f"no package that is installed here has an entry point {name} in {GROUP}")
    made: Filter = found[0].load()
    return made


def main(arguments: list[str]) -> int:
    """Answer requests until the loader is gone."""
    with suppress(ValueError, OSError):  # a unit may forbid the system call, and have a limit of its own
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sock = child.connect_to_parent(arguments)
    try:
        function = find(arguments[2])
    except BaseException as error:
        child.send(sock, _one_line(error))
        return 1
    child.send(sock, "ready")
    decode = msgspec.msgpack.Decoder(tuple[RRsets, Context]).decode
    while (body := child.receive(sock)) is not None:
        rrsets, context = decode(body)
        child.send(sock, _answer(function, rrsets, context))
    return 0


def _answer(function: Filter, rrsets: RRsets, context: Context) -> Answer:
    try:
        given = {type_: list(rrs) for type_, rrs in rrsets.items()}  # the filter may do with it what it likes
        return Answer(*checked(rrsets, function(given, context)))
    except BaseException as error:
        return Answer(error=_one_line(error))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, Failed) else f"{type(error).__name__}: {text}"


def _main() -> Any:
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_main())
