"""The control socket: its server in a poll loop, its client, and what either does when the other misbehaves."""

from __future__ import annotations

import os
import select
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cli import control as client
from cli.main import standoff
from cli.settings import Settings
from server import control as server
from server.control import MAX_CLIENTS, MAX_FRAME, ControlError, ControlSocket, pack
from shm.errors import NotRunning

Requests = list[dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "default.sock"


@contextmanager
def serving(path: Path, answer: Any = None) -> Iterator[tuple[ControlSocket, Requests]]:
    """A server in a thread, with a loop as the supervisor has. `answer`: what "scale" does."""
    control, seen, over = ControlSocket(path), [], threading.Event()

    def scale(request: dict[str, Any]) -> dict[str, Any]:
        seen.append(request)
        return answer(request) if answer else {"message": f"{request['workers']} workers"}

    def loop() -> None:
        poll = select.poll()
        poll.register(control.fileno(), select.POLLIN)
        while not over.is_set():
            if poll.poll(10):
                control.handle_ready({"scale": scale})

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield control, seen
    finally:
        over.set()
        thread.join()
        control.close()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(str(path))
    return connection


def test_a_request_and_its_reply(path: Path) -> None:
    with serving(path) as (_, seen):
        reply, everything = client.ask(path, "scale", {"workers": 3})
    assert (reply.ok, reply.message) == (True, "3 workers")
    assert everything == {"ok": True, "message": "3 workers"}
    assert seen == [{"command": "scale", "workers": 3}]


def test_many_clients_one_after_the_other(path: Path) -> None:
    with serving(path):
        for i in range(3 * MAX_CLIENTS):
            assert client.ask(path, "scale", {"workers": i})[0].ok


def test_a_handler_may_refuse(path: Path) -> None:
    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("61 workers are too many")

    with serving(path, refuse):
        assert client.ask(path, "scale", {})[0] == client.Reply(False, "61 workers are too many")


def test_a_handler_that_fails_costs_the_server_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers: Iterator[Any] = iter([lambda: 1 / 0, dict])
    with serving(path, lambda _: next(answers)()):
        assert not client.ask(path, "scale", {})[0].ok
        assert client.ask(path, "scale", {})[0].ok
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("command", ["fly", "", 7, None])
def test_unknown_commands(path: Path, command: Any) -> None:
    with serving(path) as (_, seen):
        reply, _ = client.ask(path, command, {})
    assert not reply.ok
    assert "knows no command" in reply.message
    assert not seen


@pytest.mark.parametrize(
    "data",
    [
        server.LENGTH.pack(MAX_FRAME + 1) + b"x",
        server.LENGTH.pack(3) + b"\xc1\xc1\xc1",
        server.LENGTH.pack(1) + b"\x01",
        server.LENGTH.pack(0),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["too long", "no msgpack", "no map", "empty", "another protocol"],
)
def test_bad_requests_are_dropped(path: Path, data: bytes) -> None:
    with serving(path) as (_, seen):
        with connect(path) as connection:
            connection.sendall(data)
            assert connection.recv(100) == b""
        assert client.ask(path, "scale", {"workers": 1})[0].ok
    assert len(seen) == 1


def test_a_request_in_small_pieces(path: Path) -> None:
    frame = pack({"command": "scale", "workers": 2})
    with serving(path), connect(path) as connection:
        for i in range(len(frame)):
            connection.sendall(frame[i : i + 1])
        assert connection.recv(1000)[4:] == msgspec.msgpack.encode({"ok": True, "message": "2 workers"})


def test_silent_clients_keep_nobody_out(path: Path) -> None:
    with serving(path):
        idle = [connect(path) for _ in range(2 * MAX_CLIENTS)]
        assert client.ask(path, "scale", {"workers": 1})[0].ok
        for connection in idle:
            connection.close()


def test_silent_clients_are_dropped_in_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = ControlSocket(path)
    idle = connect(path)
    control.handle_ready({})
    monkeypatch.setattr(server, "CLIENT_TIMEOUT_S", -1.0)
    control.handle_ready({})
    assert idle.recv(1) == b""
    idle.close()
    control.close()


def test_a_client_that_has_gone_before_its_reply(path: Path) -> None:
    with serving(path) as (_, seen):
        for _ in range(20):
            with connect(path) as connection:
                connection.sendall(pack({"command": "scale", "workers": 1}))
        assert client.ask(path, "scale", {"workers": 9})[0].ok
    assert seen[-1]["workers"] == 9


def test_a_reply_larger_than_the_sockets_buffer(path: Path) -> None:
    with serving(path, lambda _: {"message": "x" * 60000}):
        assert len(client.ask(path, "scale", {})[0].message) == 60000


def test_permissions(path: Path) -> None:
    control = ControlSocket(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    control.close()
    assert not path.exists()


def test_a_child_leaves_the_socket_alone(path: Path) -> None:
    control = ControlSocket(path)
    pid = os.fork()
    if not pid:
        control.close(unlink=False)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.exists()
    with serving_existing(control):
        assert client.ask(path, "scale", {})[0].message.startswith("the server knows no command")
    control.close()


@contextmanager
def serving_existing(control: ControlSocket) -> Iterator[None]:
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            if select.select([control], [], [], 0.01)[0]:
                control.handle_ready({})

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    control = ControlSocket(path)
    with pytest.raises(ControlError, match=r"listens at .* already"):
        ControlSocket(path)
    control.close()


def test_closing_leaves_a_successors_socket(path: Path) -> None:
    old = ControlSocket(path)
    path.unlink()
    new = ControlSocket(path)
    old.close()
    assert path.exists()
    new.close()


def test_a_socket_that_vanishes_is_made_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = path.parent / "run"
    control = ControlSocket(folder / "default.sock")
    for _ in range(2):
        control.look()
        shutil.rmtree(folder)
        control.look()
        with serving_existing(control):
            assert client.ask(control.path, "scale", {})[0].message.startswith("the server knows no command")
    assert [record.message for record in caplog.records] == [f"control socket {control.path} was gone: made again"] * 2
    control.close()
    assert not control.path.exists()


def test_a_successors_socket_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = ControlSocket(path)
    path.unlink()
    new = ControlSocket(path)
    inode = path.stat().st_ino
    for _ in range(3):
        old.look()
    assert path.stat().st_ino == inode
    assert len(caplog.records) == 1
    assert "cannot be made again" in caplog.records[0].message
    new.close()
    old.look()
    assert path.exists()
    old.close()


def test_another_file_is_not_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"):
        ControlSocket(path)
    assert path.read_text() == "precious"


def test_folders(tmp_path: Path) -> None:
    control = ControlSocket(tmp_path / "made" / "x.sock")
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) & 0o007 == 0
    control.close()
    (tmp_path / "file").touch()
    with pytest.raises(ControlError):
        ControlSocket(tmp_path / "file" / "x.sock")
    with pytest.raises(ControlError):
        ControlSocket(tmp_path / "no" / "such" / "x.sock")
    with pytest.raises(ControlError, match="107 bytes"):
        ControlSocket(tmp_path / ("x" * 120))


def test_a_link_in_a_shared_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "trap").symlink_to(tmp_path / "mine")
    with pytest.raises(ControlError, match="not a folder of ours"):
        ControlSocket(tmp_path / "trap" / "x.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_strangers_folder_in_a_shared_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    tmp_path.chmod(0o1777)
    with pytest.raises(ControlError, match="not a folder of ours"):
        ControlSocket(tmp_path / "theirs" / "x.sock")


# ---------------------------------------------------------------- the client


def test_nobody_there(path: Path) -> None:
    with pytest.raises(NotRunning):
        client.ask(path, "scale", {})
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with pytest.raises(NotRunning):
        client.ask(path, "scale", {})


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"", "closed the connection"),
        (server.LENGTH.pack(MAX_FRAME + 1), "longer than"),
        (pack({"ok": True}), "improper reply"),
        (pack({"ok": 1, "message": "x"}), "improper reply"),
        (server.LENGTH.pack(1) + b"\xc1", "no msgpack"),
    ],
)
def test_improper_replies(path: Path, reply: bytes, text: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(client.ControlFailed, match=text):
            client.ask(path, "scale", {})
        thread.join()


def test_a_server_that_does_not_answer(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(client.ControlFailed, match="did not reply within"):
            client.ask(path, "scale", {}, timeout_s=0.05)


def test_a_server_whose_queue_is_full(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with connect(path), pytest.raises(client.ControlFailed, match="did not reply within"):
            client.ask(path, "scale", {}, timeout_s=0.05)


def test_tools_look_in_every_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    monkeypatch.setattr(client, "runtime_folders", lambda: [theirs, mine])
    monkeypatch.setattr(client, "default_runtime_dir", lambda: mine)
    theirs.mkdir()
    (theirs / "default.sock").touch()
    assert client.find_socket(Settings(runtime_dir=mine)) == theirs / "default.sock"
    assert client.find_socket(Settings(runtime_dir=tmp_path / "given")) == tmp_path / "given" / "default.sock"


# ---------------------------------------------------------------- the command


def scale(path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(standoff, ["scale", "--runtime-dir", str(path.parent), *arguments])


def test_scale(path: Path) -> None:
    with serving(path) as (_, seen):
        result = scale(path, "3")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "3 workers\n", "")
        result = scale(path, "4", "--json")
    assert msgspec.json.decode(result.stdout) == {"ok": True, "message": "4 workers"}
    assert [request["workers"] for request in seen] == [3, 4]


def test_scale_refused(path: Path) -> None:
    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("stopping")

    with serving(path, refuse):
        result = scale(path, "3")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "standoff: stopping\n")


def test_scale_without_a_server(path: Path) -> None:
    result = scale(path, "3")
    assert result.exit_code == 3
    assert "is the instance running?" in result.stderr


@pytest.mark.parametrize("number", ["0", "61", "x"])
def test_scale_out_of_range(path: Path, number: str) -> None:
    assert scale(path, number).exit_code == 2
