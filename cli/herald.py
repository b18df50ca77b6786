"""What systemd hears of a tree of processes: from the parent alone, which is the unit's main process.

Children tell their parent what they would tell systemd (shm/notify.py): with NotifyAccess=main, the default, their own
words would not count. That one of them stops is not passed on: to systemd it would mean the unit.
"""

from __future__ import annotations

import socket
import time

from shm import notify

LONGEST_MESSAGE = 4096


class Herald:
    """Made in the parent before its children are forked."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self._interval_s = notify.watchdog_interval_s()
        self._fed = 0.0
        self.child_is_ready = False

    def become(self) -> None:
        """In a child, after the fork."""
        self._ours.close()
        notify.tell_through(self._theirs)

    def announce(self) -> None:
        """The service is ready."""
        notify.notify(READY="1")

    def stopping(self) -> None:
        """The service begins to stop."""
        notify.notify(STOPPING="1")

    def beat(self) -> None:
        """Take what children have said; feed the watchdog, for the loop that calls this watches over them."""
        while (fields := self._heard()) is not None:
            self.child_is_ready |= fields.get("READY") == "1"
            if "STATUS" in fields:
                notify.notify(STATUS=fields["STATUS"])
        now = time.monotonic()
        if self._interval_s is not None and now - self._fed > self._interval_s:
            self._fed = now
            notify.notify(WATCHDOG="1")

    def _heard(self) -> dict[str, str] | None:
        try:
            text = self._ours.recv(LONGEST_MESSAGE).decode(errors="replace")
        except BlockingIOError:
            return None
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
