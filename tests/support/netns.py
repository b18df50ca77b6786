"""Machines for tests: network namespaces on a bridge, which can be cut off from each other for real. For root."""

from __future__ import annotations

import itertools
import os
import string
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LETTERS = itertools.cycle(string.ascii_lowercase)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Machine:
    """A namespace with one address."""

    def __init__(self, name: str, address: str, link: str) -> None:
        self.name, self.address, self._link = name, address, link

    @property
    def inside(self) -> tuple[str, ...]:
        """What to put before a command to run it there."""
        return ("ip", "netns", "exec", self.name)

    def cut_off(self, *others: Machine) -> None:
        """Nothing gets to these any more, so no connection with them lives on. Without any: to nobody."""
        if not others:
            _ip("link", "set", self._link, "down")
        for other in others:
            _ip("-n", self.name, "route", "add", "blackhole", f"{other.address}/32")

    def join(self, *others: Machine) -> None:
        """Undoes cut_off."""
        if not others:
            _ip("link", "set", self._link, "up")
        for other in others:
            _ip("-n", self.name, "route", "del", "blackhole", f"{other.address}/32")


def possible() -> bool:
    """Whether we may make namespaces."""
    probe = f"standoff-probe-{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "del", probe)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many, in a network that this process is in as well."""
    number = os.getpid() % 250
    # What is removed is gone some time later: no name comes twice.
    bridge = f"sb{os.getpid()}{next(_LETTERS)}"
    made: list[Machine] = []
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"198.18.{number}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for n in range(count):
            name, link = f"{bridge}-{n}", f"{bridge}v{n}"
            machine = Machine(name, f"198.18.{number}.{n + 2}", link)
            _ip("netns", "add", name)
            made.append(machine)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", bridge, "up")
            _ip("-n", name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for machine in made:
            _ip("netns", "del", machine.name)  # its veth goes with it
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)
