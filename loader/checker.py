"""The health checker, a process of its own: looks at targets, tells the loader what has changed. Knows nothing of DNS.

    loader: {"watch": [[target, up or null], ...], "forget": [text, ...]}
    checker: {"states": [[text, up, error], ...]}, once a second even if there are none

A target's state turns after `rise` good or `fall` bad checks in a row; one that is not known yet is up with the first
good one. Checks of one target begin `interval` apart, a tenth less at most, so that thousands do not fall into step.
What is down and does not even refuse takes `timeout` longer to be found.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import ssl
import sys
import time
from contextlib import suppress
from functools import cache, lru_cache

import msgspec

from loader import child
from loader.targets import Target

#: News wait so long for more; with none the loader hears that we live.
FLUSH_S, BEAT_S = 0.05, 1.0
#: Checks at a time, if there are file descriptors for so many. Each is a connection and some kB.
MOST_AT_ONCE, SPARE_FILES = 2000, 64
#: New targets are looked at one a millisecond, not all at once.
SPREAD_S = 0.001
#: Of the interval: how much earlier a check may begin.
JITTER = 0.1
#: Octets of an HTTP answer's first line.
MOST_LINE = 4096
#: How often to read the system's authorities anew: they are renewed while we run.
TRUST_S = 60.0
#: Errors that say nothing about a target: what we, or this machine, have run out of.
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class State:
    """Of one target. Pure."""

    __slots__ = ("row", "up")

    def __init__(self, up: bool | None) -> None:
        self.up = up
        self.row = 0  # checks in a row that say the contrary

    def note(self, well: bool, target: Target) -> None:
        """A check has ended."""
        if self.up is None and well:
            self.up = True
        if well is (self.up is not False):
            self.row = 0
            return
        self.row += 1
        if self.row >= (target.rise if well else target.fall):
            self.up, self.row = well, 0


class Checker:
    """All targets. `send` tells the loader."""

    def __init__(self, most_at_once: int) -> None:
        self._room = asyncio.Semaphore(most_at_once)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, tuple[bool | None, str]] = {}
        self._news: dict[str, tuple[bool | None, str]] = {}

    def watch(self, targets: list[tuple[Target, bool | None]]) -> None:
        """From now on, these as well; what is known of each."""
        for target, up in targets:
            self.forget([target.text])
            delay = random.uniform(0, min(target.interval, SPREAD_S * len(targets)))
            self._tasks[target.text] = asyncio.ensure_future(self._follow(target, up, delay))
            if up is not None:
                self._told[target.text] = up, ""

    def forget(self, texts: list[str]) -> None:
        """Not these any more."""
        for text in texts:
            task = self._tasks.pop(text, None)
            if task is not None:
                task.cancel()
            self._news.pop(text, None)
            self._told.pop(text, None)

    def news(self) -> list[tuple[str, bool | None, str]]:
        """What has changed since the last call."""
        news, self._news = self._news, {}
        return [(text, up, error) for text, (up, error) in news.items()]

    async def _follow(self, target: Target, up: bool | None, delay: float) -> None:
        state = State(up)
        await asyncio.sleep(delay)
        while True:
            begun = time.monotonic()
            async with self._room:
                error = await look(target)
            if error is not None:
                state.note(not error, target)
                known = state.up, error
                if self._told.get(target.text) != known:
                    self._told[target.text] = self._news[target.text] = known
            pause = target.interval * random.uniform(1 - JITTER, 1)
            await asyncio.sleep(max(0.0, begun + pause - time.monotonic()))


async def look(target: Target) -> str | None:
    """One check: what is wrong, empty if nothing; None: we were held up ourselves, and know nothing."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(target.timeout):
            return await (_connect(target) if target.scheme == "tcp" else _get(target))
    except TimeoutError:
        if time.monotonic() - begun > 2 * target.timeout + 0.5:
            return None
        return f"no answer within {target.timeout:g} s"
    except ssl.SSLError as error:
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
    except OSError as error:
        if error.errno in OURS:
            return None
        return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    except Exception as error:  # a target that nobody looks at any more would stay as it is for ever
        return f"{type(error).__name__}: {error}"


async def _connect(target: Target) -> str:
    _, writer = await asyncio.open_connection(target.address, target.port)
    writer.transport.abort()
    return ""


async def _get(target: Target) -> str:
    encrypted = target.scheme == "https"
    reader, writer = await asyncio.open_connection(
        target.address, target.port, limit=MOST_LINE,
        ssl=_tls(target.verify) if encrypted else None,
        server_hostname=(target.sni or target.address) if encrypted else None,
    )  # fmt: skip
    try:
        host = target.host or _authority(target)
        head = f"GET {target.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: standoff\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        try:
            words = (await reader.readuntil(b"\n")).split(None, 2)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return "it does not speak HTTP"
    finally:
        writer.transport.abort()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not (words[1].isdigit() and len(words[1]) == 3):
        return "it does not speak HTTP"
    status = int(words[1])
    good = status in target.statuses if target.statuses else 200 <= status < 400
    return "" if good else f"status {status}"


def _authority(target: Target) -> str:
    address = f"[{target.address}]" if ":" in target.address else target.address
    return address if target.port in (80, 443) else f"{address}:{target.port}"


def _tls(verify: bool) -> ssl.SSLContext:
    return _trusting(int(time.monotonic() // TRUST_S)) if verify else _trusting_all()


@lru_cache(maxsize=1)
def _trusting(_: int) -> ssl.SSLContext:
    """Whom the system trusts at this time: some 20 ms."""
    return ssl.create_default_context()


@cache
def _trusting_all() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# ---------------------------------------------------------------- the process


class Order(msgspec.Struct):
    """What the loader says."""

    watch: list[tuple[Target, bool | None]] = []
    forget: list[str] = []


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most_at_once: int) -> None:
    """Until the loader is gone."""
    checker = Checker(most_at_once)
    telling = asyncio.ensure_future(_tell(checker, writer))
    decode = msgspec.msgpack.Decoder(Order).decode
    with suppress(asyncio.IncompleteReadError, OSError):
        while True:
            (length,) = child.LENGTH.unpack(await reader.readexactly(child.LENGTH.size))
            order = decode(await reader.readexactly(length))
            checker.forget(order.forget)
            checker.watch(order.watch)
    telling.cancel()


async def _tell(checker: Checker, writer: asyncio.StreamWriter) -> None:
    told = time.monotonic()
    while True:
        await asyncio.sleep(FLUSH_S)
        states = checker.news()
        if states or time.monotonic() - told > BEAT_S:
            told = time.monotonic()
            body = msgspec.msgpack.encode({"states": states})
            writer.write(child.LENGTH.pack(len(body)) + body)
            await writer.drain()


def main(arguments: list[str]) -> int:
    """The process."""
    sock = child.connect_to_parent(arguments)
    most_at_once = max(16, min(MOST_AT_ONCE, _files() - SPARE_FILES))

    async def run() -> None:
        sock.setblocking(False)
        await serve(*await asyncio.open_connection(sock=sock), most_at_once)

    asyncio.run(run())
    return 0


def _files() -> int:
    """File descriptors that we may have, as many as we need if we are allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_AT_ONCE + SPARE_FILES
    if soft < wanted and soft != resource.RLIM_INFINITY:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # a unit may forbid the system call
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return wanted if soft == resource.RLIM_INFINITY else soft


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
