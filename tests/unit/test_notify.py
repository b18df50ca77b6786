"""shm.notify against a real datagram socket in the manager's place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm.notify import notify, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that systemd would read, with NOTIFY_SOCKET naming it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "path":
            address = str(tmp_path / "notify")
            receiver.bind(address)
        else:
            name = f"standoff-test-{os.getpid()}-{tmp_path.name}"
            receiver.bind("\0" + name)
            address = "@" + name
        receiver.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield receiver


def test_fields_arrive_in_one_datagram(manager: socket.socket) -> None:
    assert notify(READY=1, STATUS="7 names, 2 workers")
    assert manager.recv(4096) == b"READY=1\nSTATUS=7 names, 2 workers"


def test_a_reload_carries_its_time(manager: socket.socket) -> None:
    assert notify(RELOADING=1)
    fields = dict(line.split("=") for line in manager.recv(4096).decode().splitlines())
    assert fields["RELOADING"] == "1"
    assert int(fields["MONOTONIC_USEC"]) > 0


def test_a_line_break_cannot_smuggle_a_field(manager: socket.socket) -> None:
    with pytest.raises(ValueError, match="line break"):
        notify(STATUS="loading\nREADY=1")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_a_manager_that_does_not_read_never_blocks_us(manager: socket.socket) -> None:
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    results = [notify(WATCHDOG=1, STATUS="x" * 1000) for _ in range(2000)]
    assert results[0]
    assert not results[-1]


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(READY=1)


def test_a_manager_that_is_gone_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify(READY=1)


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("30000000", "", 15.0),
        ("30000000", "us", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        ("", "", None),
        (None, "", None),
    ],
)
def test_watchdog_interval(
    usec: str | None, pid: str, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if usec is not None:
        monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "us" else pid)
    assert watchdog_interval_s() == interval_s
