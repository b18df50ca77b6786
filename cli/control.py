"""Client of the control sockets: the server's and the loader's (server/control.py and loader/control.py tell more)."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from cli.settings import Settings, default_runtime_dir, runtime_folders
from shm.errors import NotRunning, StandoffError


class ControlFailed(StandoffError):
    """The server or loader could not be asked, or gave no proper reply."""


class NoReply(ControlFailed):
    """None in time: it may be at work on what it was asked for."""


class Reply(msgspec.Struct, frozen=True):
    """What every reply has."""

    ok: bool
    message: str


def find_socket(settings: Settings, part: str = "server") -> Path:
    """The socket of the instance's server or loader. A tool's user may have another default folder than theirs: look in
    all of them."""
    places = [settings.control_path if part == "server" else settings.loader_control_path]
    if settings.runtime_dir == default_runtime_dir():
        places += [folder / places[0].name for folder in runtime_folders()]
    return next((path for path in places if path.exists()), places[0])


def ask(
    path: Path, command: str, arguments: dict[str, Any], timeout_s: float = 5.0, part: str = "server"
) -> tuple[Reply, dict[str, Any]]:
    """Send a command to the server or the loader and wait for the reply, at most `timeout_s` for each step. Raises
    NotRunning, NoReply, ControlFailed."""
    from server.control import pack

    request = pack({"command": command, **arguments})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            _connect(connection, path, timeout_s)
            connection.sendall(request)
            body = _receive(connection)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no {part} listens at {path}: is the instance running?") from None
        except TimeoutError:
            raise NoReply(f"the {part} at {path} did not reply within {timeout_s:g} s") from None
        except OSError as error:
            raise ControlFailed(f"cannot ask the {part} at {path}: {error.strerror or error}") from error
    try:
        return msgspec.msgpack.decode(body, type=Reply), msgspec.msgpack.decode(body, type=dict[str, Any])
    except msgspec.ValidationError as error:
        raise ControlFailed(f"the {part} at {path} gave an improper reply: {error}") from error
    except msgspec.DecodeError as error:
        raise ControlFailed(f"the {part} at {path} gave no msgpack: {error}") from error


def _connect(connection: socket.socket, path: Path, timeout_s: float) -> None:
    """A unix socket whose queue is full refuses at once, whatever the timeout: try again until it is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return connection.connect(str(path))
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(0.01)


def _receive(connection: socket.socket) -> bytes:
    from server.control import LENGTH, MAX_FRAME

    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    if length > MAX_FRAME:
        raise OSError(f"a reply of {length} bytes is longer than {MAX_FRAME}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(size)
        if not part:
            raise OSError("it closed the connection without a reply")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
