"""The loader's control socket: tools ask what it knows of keys and names. Runs in the loader's event loop.

A request and its reply are one frame each, as on the server's socket (server/control.py): a length (u32, big-endian),
then a msgpack map. A request has "command"; a reply has "ok" and "message". One request a connection.

    status                            what the model holds, and how the sources are
    rejects  from                     a page of the keys that give nothing, in no order; more: where the next begins
    explain  name (wire form), type   which keys give what to that name, and what was refused, changed or filtered
                                      there; type: a number; those that give it, or what may stand in for it
    health, health-set                targets of health checks (loader/filters/service.py)

Nothing here may hold up a change: a reply is made of what is in dictionaries already, for at most PAGE items and
some PAGE_BYTES (0.4 ms). Rejects are gone through in the order of their dictionary, without a copy of it (0.1 s for a
million); who asks for the next page finds the place kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import msgspec

from loader import compiler, rdata
from loader.compiler import Gift

log = logging.getLogger(__name__)

LENGTH = struct.Struct("!I")
#: A request: a name has 255 octets. It bounds what a client can make us keep.
MAX_REQUEST = 4096
#: Of a reply; a client takes frames of 64 KiB, and the item that passes this bound is in it, too.
PAGE = 500
PAGE_BYTES = 40 * 1024
#: Characters of a reason or a key, octets of record data: enough to tell; the rest is cut off (see cli/explaining.py).
MAX_TEXT = 2048
#: A client that has not asked, or has not taken its reply, by then goes.
CLIENT_TIMEOUT_S = 5.0
#: More at a time are turned away.
MAX_CLIENTS = 16
BACKLOG = 64
#: How often it is looked whether the socket is at its path still.
LOOK_S = 1.0
#: For the owner and the group, like the server's socket.
MODE = 0o660

_ANY = 255
#: Types that an answer may consist of though another one is asked.
_STAND_INS = frozenset((rdata.CNAME, rdata.DNAME, rdata.NS, rdata.SOA))
_NUMBERED = re.compile(r"(\d+):(.*)", re.DOTALL)

Handler = Callable[[dict[str, Any]], Mapping[str, Any]]


class Reject(msgspec.Struct, frozen=True):
    """A key that gives nothing: its last change, and why. source is its number among the loader's sources."""

    key: str
    source: int
    revision: int
    reason: str


class Known(Protocol):
    """What the publisher knows (loader/publisher.py)."""

    def rejects(self) -> Mapping[str, str]: ...
    def revision_of(self, name: str) -> int: ...
    def about(self, name: bytes) -> tuple[list[Gift], Mapping[str, str], Mapping[str, str]]: ...


class Filtering(Protocol):
    """What filters tell (loader/filters/service.py)."""

    @property
    def handlers(self) -> Mapping[str, Handler]: ...
    def taken(self, owner: bytes) -> list[dict[str, Any]]: ...
    def all_down(self, owner: bytes) -> list[str]: ...


class Desk:
    """Answers requests; knows no socket."""

    def __init__(
        self,
        known: Known,
        status: Callable[[], dict[str, Any]],
        filtering: Filtering | None = None,
        more: Mapping[str, Handler] | None = None,
        held: Callable[[bytes], str] = lambda name: "",
    ) -> None:
        """more: commands of others. held: why a name does not follow the source; empty if it does."""
        self._known = known
        self._held = held
        self._more = more or {}
        self._status = status
        self._filtering = filtering
        self._book: Mapping[str, str] = {}
        self._serial = 0
        self._place = 0  # how many of the book's items are behind us
        self._ahead: Iterator[tuple[str, str]] = iter(())

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        handlers: dict[str, Handler] = {
            "status": lambda _: self._status(), "rejects": self._page, "explain": self._explain,
        }  # fmt: skip
        if self._filtering is not None:
            handlers |= self._filtering.handlers
        handlers |= self._more
        name = request.get("command")
        handler = handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            return {"ok": False, "message": f"the loader knows no command {name!r}"}
        try:
            return {"ok": True, "message": "done"} | dict(handler(request))
        except ValueError as error:
            return {"ok": False, "message": str(error)}
        except Exception:
            log.exception("control command %s failed", name)
            return {"ok": False, "message": f"command {name} failed in the loader; see its log"}

    def _page(self, request: dict[str, Any]) -> dict[str, Any]:
        """From where the request says. A client that finds another serial than before begins again."""
        book = self._known.rejects()
        if book is not self._book:
            self._book, self._place, self._ahead = book, 0, iter(book.items())
            self._serial += 1
        start = request.get("from", 0)
        if not isinstance(start, int) or start < 0:
            raise ValueError("from is the number of the first reject wanted")
        if start != self._place:
            self._ahead = islice(book.items(), start, None)
        items: list[Reject] = []
        size = 0
        for name, reason in islice(self._ahead, PAGE):
            source, key = split(name)
            made = Reject(key[:MAX_TEXT], source, self._known.revision_of(name), reason[:MAX_TEXT])
            size += len(made.key.encode(errors="replace")) + len(made.reason.encode(errors="replace")) + 40
            items.append(made)
            if size > PAGE_BYTES:
                break
        self._place = start + len(items)
        more = self._place if items and self._place < len(book) else None
        return {"serial": self._serial, "total": len(book), "rejects": items, "more": more}

    def _explain(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("name")
        if not isinstance(name, bytes) or not 1 <= len(name) <= 255:
            raise ValueError("name is a name in wire form")
        gifts, problems, warnings = self._known.about(name.lower())
        type_ = request.get("type")
        if isinstance(type_, int) and type_ != _ANY:
            wanted = _STAND_INS | {type_}
            gifts = [gift for gift in gifts if not wanted.isdisjoint(gift[compiler.FIRST_RR :: 3])]
        room = PAGE_BYTES
        given: list[dict[str, Any]] = []
        for gift in gifts[:PAGE]:
            made, size = _told(gift)
            room -= size
            if room < 0 and given:
                break
            given.append(made)
        return {
            "gifts": given,
            "total": len(gifts),
            "problems": _short(problems, self._known),
            "warnings": _short(warnings, self._known),
            "taken": self._filtering.taken(name.lower()) if self._filtering is not None else [],
            "all_down": self._filtering.all_down(name.lower()) if self._filtering is not None else [],
            "held": self._held(name.lower())[:MAX_TEXT],
        }


def split(name: str) -> tuple[int, str]:
    """(number of the source, key) of the publisher's name for a key."""
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]), match[2]) if match else (0, name)


def _told(gift: Gift) -> tuple[dict[str, Any], int]:
    """A gift for a reply, and its size in octets, roughly."""
    source, key = split(gift[0])
    records: list[dict[str, Any]] = [
        {"type": rdata.type_name(type_), "number": type_, "ttl": ttl, "data": data[:MAX_TEXT]}
        for type_, ttl, data in list(compiler.rrs(gift))[:PAGE]
    ]
    size = 80 + len(key.encode(errors="replace")) + sum(60 + len(one["data"]) for one in records)
    while size > PAGE_BYTES and len(records) > 1:
        size -= 60 + len(records.pop()["data"])
    return {"key": key[:MAX_TEXT], "source": source, "revision": gift[1], "zone": gift[2], "records": records}, size


def _short(said: Mapping[str, str], known: Known) -> list[Reject]:
    """The first few: more tell a person nothing new."""
    found = []
    for name, reason in list(said.items())[:20]:
        source, key = split(name)
        found.append(Reject(key[:200], source, known.revision_of(name), reason[:200]))
    return found


class LoaderSocket:
    """Listens at a path as long as it is open. What goes wrong with it is logged and costs tools, not names."""

    def __init__(self, path: Path, desk: Desk) -> None:
        self._path = path
        self._desk = desk
        self._server: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._inode = 0
        self._clients = 0
        self._problem = ""

    async def open(self) -> None:
        """Only for the one that holds the writer's lock: what lies at the path is a dead loader's."""
        await self._listen()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if self._server is not None:
            self._server.close()
            self._server = None
            with suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()

    async def _keep(self) -> None:
        """Listen at the path anew when somebody has cleaned up there. A socket of another is left alone."""
        while True:
            await asyncio.sleep(LOOK_S)
            if os.path.lexists(self._path):
                continue
            if self._server is not None:
                self._server.close()
                self._server = None
            if await self._listen():
                log.warning("control socket %s was gone: made again", self._path)

    async def _listen(self) -> bool:
        """Whether it listens; why not is logged once."""
        try:
            listener = _listen(self._path)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("no control socket at %s: %s; `rejects` and `explain` know less", self._path, error)
            return False
        self._problem = ""
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REQUEST, backlog=BACKLOG)
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                async with asyncio.timeout(CLIENT_TIMEOUT_S):
                    await self._exchange(reader, writer)
        except (OSError, EOFError, TimeoutError):
            pass  # it has gone, or does nothing
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("control socket: bad request: %s", error)
        except asyncio.CancelledError:
            pass  # the loader ends; asyncio complains of handlers that were cancelled
        finally:
            self._clients -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if length > MAX_REQUEST:
            raise ValueError(f"{length} bytes, at most {MAX_REQUEST} are allowed")
        request = msgspec.msgpack.decode(await reader.readexactly(length), type=dict[str, Any])
        body = _encode(self._desk.answer(request))
        writer.write(LENGTH.pack(len(body)) + body)
        await writer.drain()


def _encode(reply: dict[str, Any]) -> bytes:
    try:
        return msgspec.msgpack.encode(reply)
    except UnicodeEncodeError:  # a key or file name that is no UTF-8
        return msgspec.msgpack.encode({"ok": False, "message": "the reply has a key that is not UTF-8"})


def _listen(path: Path) -> socket.socket:
    """A socket of MODE at the path, in a folder that no stranger can have laid there. Raises OSError."""
    folder = path.parent
    folder.mkdir(mode=0o750, exist_ok=True)
    status, above = folder.lstat(), folder.parent.stat()
    strange = above.st_mode & 0o002 and status.st_uid not in (0, os.geteuid())
    if strange or not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{folder} is not a folder of ours; choose another --runtime-dir")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path} is not a socket; remove it")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(MODE)  # before it listens: nobody can have connected
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
