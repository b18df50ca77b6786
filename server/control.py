"""The control socket: `standoff scale` and its like ask the supervisor. Runs in the supervisor's poll loop.

A request and its reply are one frame each: a length (u32, big-endian), then a msgpack map. A request has "command"; a
reply has "ok" and "message". One request a connection.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shm.errors import StandoffError

log = logging.getLogger(__name__)

LENGTH = struct.Struct("!I")
#: Bounds what a client can make the supervisor keep; a request is far smaller.
MAX_FRAME = 64 * 1024
#: Bounds descriptors and memory that idle clients can hold. When one more comes, the oldest goes.
MAX_CLIENTS = 16
#: Clients that the kernel keeps for us until we look.
BACKLOG = 64
#: A client that has not finished by then goes: it is stopped or not one of ours.
CLIENT_TIMEOUT_S = 5.0
#: For the owner and the group: who may write to the socket may command the server.
MODE = 0o660

Handler = Callable[[dict[str, Any]], Mapping[str, Any]]


class ControlError(StandoffError):
    """The control socket cannot be made."""


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    since: float
    received: bytearray = field(default_factory=bytearray)
    reply: bytes = b""


class ControlSocket:
    """Put `fileno()` into a poll loop for reading and call `handle_ready` when it is ready; it never blocks.

    The descriptor is an epoll that holds the socket and its clients, so the loop need not know of them. Close it
    in children after a fork with `close(unlink=False)`.
    """

    def __init__(self, path: Path) -> None:
        """Listen at `path`. Raises ControlError if a live server listens there, or the folder is not to be trusted."""
        self.path = path
        _prepare_folder(path.parent)
        _remove_stale(path)
        self._listener = _listen(path)
        self._inode = path.stat().st_ino
        self._problem = ""
        self._clients: dict[int, _Client] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def handle_ready(self, handlers: Mapping[str, Handler]) -> None:
        """Do all that can be done now. A handler takes the request and returns what to add to the reply.

        A handler's StandoffError or ValueError becomes a reply with "ok" false.
        """
        for fd, events in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._clients:
                self._serve(self._clients[fd], events, handlers)
        limit = time.monotonic() - CLIENT_TIMEOUT_S
        for client in [client for client in self._clients.values() if client.since < limit]:
            self._drop(client)

    def look(self) -> None:
        """Listen at the path anew if it is gone: somebody has cleaned up. Logs what keeps us from it, once."""
        try:
            if self.path.stat().st_ino == self._inode:
                return
        except OSError:
            pass
        try:
            _prepare_folder(self.path.parent)
            _remove_stale(self.path)
            listener = _listen(self.path)
            self._inode = self.path.stat().st_ino
        except (ControlError, OSError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("control socket %s is gone, and cannot be made again: %s", self.path, error)
            return
        self._epoll.unregister(self._listener)
        self._listener.close()
        self._listener, self._problem = listener, ""
        self._epoll.register(listener, select.EPOLLIN)
        log.warning("control socket %s was gone: made again", self.path)

    def close(self, *, unlink: bool = True) -> None:
        """Stop listening. The file goes only if it is still ours."""
        for client in list(self._clients.values()):
            client.connection.close()
        self._clients.clear()
        self._epoll.close()
        self._listener.close()
        if unlink:
            try:
                if self.path.stat().st_ino == self._inode:
                    self.path.unlink()
            except FileNotFoundError:
                pass

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # the client has gone again
            return
        except OSError as error:  # most likely, we are out of descriptors
            log.warning("control socket: cannot accept: %s", error.strerror)
            return
        connection.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            self._drop(min(self._clients.values(), key=lambda client: client.since))
        self._clients[connection.fileno()] = _Client(connection, time.monotonic())
        self._epoll.register(connection, select.EPOLLIN)

    def _serve(self, client: _Client, events: int, handlers: Mapping[str, Handler]) -> None:
        try:
            if client.reply:
                self._send(client)
                return
            data = client.connection.recv(MAX_FRAME)
            if not data:
                self._drop(client)
                return
            client.received += data
            request = _take_frame(client.received)
            if request is not None:
                client.reply = pack(_answer(request, handlers))
                self._epoll.modify(client.connection, select.EPOLLOUT)
                self._send(client)
        except BlockingIOError:
            pass
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("control socket: bad request: %s", error)
            self._drop(client)
        except OSError:
            self._drop(client)

    def _send(self, client: _Client) -> None:
        sent = client.connection.send(client.reply)
        client.reply = client.reply[sent:]
        if not client.reply:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.connection.fileno()]
        client.connection.close()


def pack(value: Mapping[str, Any]) -> bytes:
    """A frame."""
    body = msgspec.msgpack.encode(value)
    return LENGTH.pack(len(body)) + body


def _take_frame(received: bytearray) -> dict[str, Any] | None:
    """The request, if it is complete. Raises ValueError or DecodeError for what cannot become one."""
    if len(received) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(received)
    if length > MAX_FRAME:
        raise ValueError(f"{length} bytes, at most {MAX_FRAME} are allowed")
    if len(received) < LENGTH.size + length:
        return None
    return msgspec.msgpack.decode(received[LENGTH.size : LENGTH.size + length], type=dict[str, Any])


def _answer(request: dict[str, Any], handlers: Mapping[str, Handler]) -> dict[str, Any]:
    name = request.get("command")
    handler = handlers.get(name) if isinstance(name, str) else None
    if handler is None:
        return {"ok": False, "message": f"the server knows no command {name!r}"}
    try:
        return {"ok": True, "message": "done"} | dict(handler(request))
    except (StandoffError, ValueError) as error:
        return {"ok": False, "message": str(error)}
    except Exception:
        log.exception("control command %s failed", name)
        return {"ok": False, "message": f"command {name} failed in the server; see its log"}


def _prepare_folder(folder: Path) -> None:
    """The folder exists, and no stranger can have laid it there: names in /tmp are for anyone to take."""
    try:
        folder.mkdir(mode=0o750, exist_ok=True)
        status, parent = folder.lstat(), folder.parent.stat()
    except OSError as error:
        raise ControlError(f"no folder {folder}: {error.strerror}; choose another --runtime-dir") from error
    strange = parent.st_mode & 0o002 and status.st_uid not in (0, os.geteuid())
    if strange or not stat.S_ISDIR(status.st_mode):
        raise ControlError(f"{folder} is not a folder of ours; remove it or choose another --runtime-dir")


def _remove_stale(path: Path) -> None:
    """Remove what a dead server left. Raises ControlError if somebody listens there, or it is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlError(f"{path} is not a socket; remove it or choose another --runtime-dir")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full: it is alive
        except OSError as error:
            raise ControlError(f"cannot look at {path}: {error.strerror}") from error
    raise ControlError(f"a server listens at {path} already: stop it, or choose another --instance")


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~MODE)
    try:
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ControlError(f"another server has just started to listen at {path}") from error
        hint = "the path is too long (107 bytes fit)" if "too long" in str(error) else str(error.strerror)
        raise ControlError(f"cannot listen at {path}: {hint}; choose another --runtime-dir") from error
    finally:
        os.umask(old)
    return listener
