"""`standoff load` as processes: what systemd hears of the parent and its child, and who passes signals on."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shm.board import Board
from shm.segment import is_held
from tests.support.instances import fresh_instance

ROOT = Path(__file__).parents[2]
ZONE = "$ORIGIN example.test.\n@ 60 IN NS ns1\nns1 60 IN A 192.0.2.1\n"
PATIENCE_S = 20.0


class Manager:
    """The other end of $NOTIFY_SOCKET: what was said, and by which process."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.settimeout(PATIENCE_S)
        self._socket.bind(str(path))
        self.heard: list[tuple[int, str]] = []

    def until(self, text: str) -> None:
        """Listen until somebody says this line."""
        while True:
            message, control, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            pid = struct.unpack("iII", control[0][2])[0]
            self.heard.append((pid, message.decode()))
            if text in message.decode().splitlines():
                return

    def close(self) -> None:
        self._socket.close()


@contextmanager
def loading(folder: Path, instance: str, manager: str, watchdog_us: int = 200_000) -> Iterator[subprocess.Popen[str]]:
    zone = folder / "example.test.zone"
    zone.write_text(ZONE)
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "load", "--instance", instance, "--source", f"file:{zone}",
         "--runtime-dir", str(folder / "run")],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NOTIFY_SOCKET": manager, "WATCHDOG_USEC": str(watchdog_us)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def instance() -> Iterator[str]:
    with fresh_instance() as name:
        yield name


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_systemd_hears_of_the_main_process_alone(tmp_path: Path, instance: str, manager: Manager) -> None:
    with loading(tmp_path, instance, str(tmp_path / "notify")) as process:
        manager.until("READY=1")
        board = Board.attach(instance)
        loader = board.loader.get("loader_pid")
        assert board.live, "a table is published"
        assert loader != process.pid
        manager.until("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert process.wait(PATIENCE_S) == 0
        board.close()
    assert {pid for pid, _ in manager.heard} == {process.pid}
    said = [line for _, message in manager.heard for line in message.splitlines()]
    assert "STATUS=a table is published" in said
    assert said.count("READY=1") == said.count("STOPPING=1") == 1


def test_the_death_of_the_loader_is_not_the_units(tmp_path: Path, instance: str, manager: Manager) -> None:
    with loading(tmp_path, instance, str(tmp_path / "notify")) as process:
        manager.until("READY=1")
        board = Board.attach(instance)
        first = board.loader.get("loader_pid")
        os.kill(first, signal.SIGTERM)  # which it takes for its own, and says STOPPING=1
        deadline = time.monotonic() + PATIENCE_S
        while board.loader.get("loader_pid") == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        manager.until("STATUS=a table is published")
        assert process.poll() is None
        board.close()
    assert "STOPPING=1" not in [message for _, message in manager.heard]


def test_a_standby_is_ready(tmp_path: Path, instance: str, manager: Manager) -> None:
    with loading(tmp_path, instance, "") as first:
        deadline = time.monotonic() + PATIENCE_S
        while not is_held(Path(f"/dev/shm/standoff.{instance}.writer.lock")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with loading(tmp_path, instance, str(tmp_path / "notify")):
            manager.until("READY=1")
            assert first.poll() is None
    assert "STATUS=standby: another loader is at work" in [message for _, message in manager.heard]


def test_a_loader_that_cannot_start_ends_its_parent(tmp_path: Path, instance: str) -> None:
    """The reason, and not a loop."""
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "load", "--instance", instance, "--runtime-dir", str(tmp_path),
         "--source", "etcd://127.0.0.1:1/skydns?schema=skydns"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "schema skydns does not tell zones" in result.stderr
