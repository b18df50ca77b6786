"""What systemd is told: ready, stopping, alive. The protocol of sd_notify(3), which is one datagram.

Without systemd (no NOTIFY_SOCKET) every call does nothing, so that callers need not ask.
"""

from __future__ import annotations

import os
import socket
import time

#: Instead of systemd's socket: that of a parent which passes it on.
_through: socket.socket | None = None


def tell_through(sock: socket.socket) -> None:
    """From now on this process tells the other end of a datagram socket what systemd is to know."""
    global _through
    _through = sock


def notify(**fields: object) -> bool:
    """Send `NAME=value` lines, such as `notify(READY=1, STATUS="12 names")`; True if the manager took them.

    Never blocks and never raises for a manager that is away or slow: what it is told is worth less than an answer.
    RELOADING=1 gets the time that systemd wants with it. Raises ValueError for a value with a line break, which would
    be read as a field of its own.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not (address or _through) or not fields:
        return False
    if "RELOADING" in fields:
        fields.setdefault("MONOTONIC_USEC", time.monotonic_ns() // 1000)
    lines = [f"{name}={value}" for name, value in fields.items()]
    if any("\n" in line for line in lines):
        raise ValueError(f"a line break in what systemd is told: {lines}")
    text = "\n".join(lines).encode()
    try:
        if _through is not None:
            _through.send(text, socket.MSG_DONTWAIT)
        else:
            _send(text, address)
    except OSError:
        return False
    return True


def _send(text: bytes, address: str) -> None:
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(text, socket.MSG_DONTWAIT, address)


def watchdog_interval_s() -> float | None:
    """How often to send WATCHDOG=1, in seconds: half of the unit's WatchdogSec. None if this process owes none."""
    try:
        watchdog_us = int(os.environ["WATCHDOG_USEC"])
        pid = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    if watchdog_us <= 0 or pid != os.getpid():
        return None
    return watchdog_us / 2 / 1_000_000
