"""Tells secondaries that a zone has changed (NOTIFY, RFC 1996): a thread of the transfer process.

When to tell whom is decided by notifying.py.
"""

from __future__ import annotations

import logging
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.tsig

from server import tsig
from server.notifying import Errand, Notifying
from server.query import AA, CLASS_IN, HEADER
from server.ratelimit import Sparing
from server.sockets import Address, BindError, open_client
from server.transfer import SOA, serial_of
from shm._table import Table
from shm.board import Board
from shm.errors import StandoffError
from shm.node import unpack

log = logging.getLogger(__name__)
T = TypeVar("T")

NOTIFY = 4 << 11
TICK_S = 0.1
#: How often the serials are looked at while the table changes: a look goes through all zones.
LOOK_S = 0.25
#: Tellings a tick: a thousand a second, so that a start with many zones floods nobody.
MOST_AT_ONCE = 100
#: Questions that may be open: older ones are forgotten, and asked again.
MOST_OPEN = 10000


@dataclass(frozen=True, slots=True)
class Target:
    """A secondary. `key`: name of the key to sign with, wire form; empty: none."""

    address: Address
    key: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Target:
        """ADDR:PORT or ADDR:PORT#KEY. Raises ValueError."""
        place, _, key = text.partition("#")
        return cls(Address.parse(place), tsig.wire_name(key) if key else b"")

    def __str__(self) -> str:
        return str(self.address)


class Looker(Protocol):
    """Looks at the active table (server/transfers.py)."""

    def look(self, function: Callable[[Table], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class _Open:
    errand: Errand
    mac: bytes


class Notifier:
    """Watches the board, tells, listens for answers."""

    def __init__(
        self, board: Board, sight: Looker, targets: Iterable[Target], keys: tsig.Keys, sources: Iterable[Address] = ()
    ) -> None:
        """sources: addresses that we listen on. A secondary takes a NOTIFY from its primary's address only."""
        self._board = board
        self._sight = sight
        self._targets = tuple(targets)
        self._keys = keys
        self._sources = tuple(sources)
        self._state = Notifying(len(self._targets))
        self._soas: dict[bytes, bytes] = {}
        self._open: dict[tuple[int, int], _Open] = {}
        self._sockets: dict[int, socket.socket] = {}  # by target
        self._poll = select.poll()
        self._looked_at = 0
        self._looked = float("-inf")
        self._sparing = Sparing(log)

    def run(self) -> None:
        """For ever: a daemon thread."""
        while True:
            try:
                self._turn()
            except Exception:
                self._sparing.exception("the notifier stumbled; it goes on")
                time.sleep(TICK_S)

    def _turn(self) -> None:
        heard = {fd for fd, _ in self._poll.poll(TICK_S * 1000)}
        for number, sock in self._sockets.items():
            if sock.fileno() in heard:
                self._hear(number, sock)
        try:
            self._look(time.monotonic())
        except StandoffError as error:
            self._sparing.error("cannot look at the zones' serials: %s", error)
        for errand in self._state.due(time.monotonic(), MOST_AT_ONCE):
            self._tell(errand)

    def _socket(self, number: int) -> socket.socket:
        """The target's, opened when it is first needed: there may be no way to it yet."""
        sock = self._sockets.get(number)
        if sock is None:
            sock = self._sockets[number] = open_client(self._targets[number].address, self._sources)
            self._poll.register(sock, select.POLLIN)
        return sock

    def _look(self, now: float) -> None:
        live = self._board.live
        if not live or live == self._looked_at or now - self._looked < LOOK_S:
            return
        self._looked = now
        blocks = self._sight.look(_apexes)
        self._looked_at = live
        serials = {apex: serial for apex, block in blocks.items() if (serial := serial_of(block)) is not None}
        self._soas = {apex: unpack(blocks[apex]).rrsets[SOA].wire for apex in serials}
        self._state.saw(serials, now)

    def _tell(self, errand: Errand) -> None:
        apex, number = errand
        target = self._targets[number]
        identifier = secrets.randbelow(0x10000)
        header = HEADER.pack(identifier, NOTIFY | AA, 1, 1, 0, 0)
        packet = header + apex + SOA.to_bytes(2, "big") + CLASS_IN.to_bytes(2, "big") + self._soas[apex]
        mac = b""
        if target.key:
            key = self._keys.get(target.key)
            assert key is not None  # looked at when the settings were read
            packet, mac = tsig.sign_request(packet, key, int(time.time()))
        while len(self._open) >= MOST_OPEN:
            del self._open[next(iter(self._open))]
        self._open[number, identifier] = _Open(errand, mac)
        try:
            self._socket(number).send(packet)
        except (OSError, BindError) as error:
            self._sparing.error("NOTIFY of zone %s to %s: %s", tsig.text_name(apex), target, error)
        else:
            log.debug("NOTIFY of zone %s sent to %s", tsig.text_name(apex), target)

    def _hear(self, number: int, sock: socket.socket) -> None:
        """An answer: whoever says no need not be asked again, before the next change."""
        while True:
            try:
                packet = sock.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier telling: told again in time
            self._judge(number, packet)

    def _judge(self, number: int, packet: bytes) -> None:
        if len(packet) < HEADER.size or packet[2] & 0xF8 != 0x80 | NOTIFY >> 8:
            return
        waiting = self._open.get((number, int.from_bytes(packet[:2], "big")))
        if waiting is None:
            return
        target = self._targets[number]
        key = self._keys.get(target.key) if target.key else None
        try:
            if key is not None:
                reply = dns.message.from_wire(packet, keyring={key.name: key}, request_mac=waiting.mac)
                if not reply.had_tsig:
                    raise ValueError("it is not signed")
        except (dns.exception.DNSException, ValueError) as error:
            self._sparing.error("answer of %s to NOTIFY is not valid: %r", target, error)
            return
        apex, _ = waiting.errand
        rcode = packet[3] & 0xF
        if rcode:
            self._sparing.error(
                "NOTIFY of zone %s: %s says %s", tsig.text_name(apex), target, dns.rcode.Rcode(rcode).name
            )
        del self._open[number, int.from_bytes(packet[:2], "big")]
        self._state.answered(waiting.errand)


def _apexes(table: Table) -> dict[bytes, bytes]:
    """The apex node of each zone."""
    found = ((apex, table.find(apex)) for apex in table.meta.get("zones", ()))
    return {apex: block for apex, block in found if block is not None}
