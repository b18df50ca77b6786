"""Helper processes of the loader: started with nothing of its memory, spoken to in msgpack frames, gone when it is.

A frame is a length (u32, big-endian) and a msgpack value, both ways over a socket pair. The loader never waits for a
helper unless it says for how long.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Any

import msgspec

LENGTH = struct.Struct("!I")
#: Of a frame; beyond, the other side has gone mad.
MAX_FRAME = 64 << 20
#: A helper that leaves so much unread stands still.
MOST_UNREAD = 64 << 20
#: For a helper that was killed to be gone.
PATIENCE_S = 0.5

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class HelperGone(Exception):
    """The helper has ended, or stands still."""


class Helper:
    """A running helper, seen from the loader's event loop."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._coming: int | None = None  # octets of a message whose length has been read

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Helper:
        """Run `module` with a socket's number, our pid and the arguments. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), *arguments],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                    env=_environment(),
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        return cls(process, *await asyncio.open_connection(sock=ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        """Returns at once. Raises HelperGone if it has left too much unread."""
        body = msgspec.msgpack.encode(message)
        if self._writer.transport.get_write_buffer_size() > MOST_UNREAD:
            raise HelperGone("it does not read")
        self._writer.write(LENGTH.pack(len(body)) + body)

    async def receive(self) -> Any:
        """The next message. Raises HelperGone. Whoever stops waiting loses nothing: the next call goes on."""
        try:
            if self._coming is None:
                (self._coming,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if self._coming > MAX_FRAME:
                raise HelperGone(f"it sends a message of {self._coming} bytes")
            body = await self._reader.readexactly(self._coming)
            self._coming = None
            return msgspec.msgpack.decode(body)
        except (OSError, EOFError) as error:
            raise HelperGone("it has ended") from error
        except msgspec.DecodeError as error:
            raise HelperGone("it sends what is no message") from error

    def end(self) -> None:
        """Kill it: a process that is killed is gone in milliseconds, but for one that waits for a disk. That is not
        waited for."""
        self._writer.transport.abort()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)


def _environment() -> dict[str, str]:
    """Ours, without what is none of a helper's business: passwords may be in our variables, and systemd's socket."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STANDOFF_", "NOTIFY_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


# ---------------------------------------------------------------- in the helper


def connect_to_parent(arguments: list[str]) -> socket.socket:
    """In the helper's main, first of all: the socket to the loader, and an end with it. Exits if that is gone already.

    What a terminal sends to the whole group is the loader's business: it tells us by going.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(arguments[1]):
        raise SystemExit(1)
    return socket.socket(fileno=int(arguments[0]))


def send(sock: socket.socket, message: Any) -> None:
    """To the loader, waiting as long as it takes."""
    body = msgspec.msgpack.encode(message)
    sock.sendall(LENGTH.pack(len(body)) + body)


def receive(sock: socket.socket) -> bytes | None:
    """The next message's body, undecoded; None: the loader is gone."""
    head = _exactly(sock, LENGTH.size)
    return None if head is None else _exactly(sock, LENGTH.unpack(head)[0])


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
