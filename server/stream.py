"""The stream worker: DNS over TCP (RFC 7766) and TLS (RFC 7858) in a process of its own, so that slow clients never
touch UDP.

A round serves all clients that are ready: what they have sent is received, then answered in one section of the read
lock, then the replies are sent (server/_stream.pyx). No socket is touched inside the lock. Replies come in the order of
the queries but for whole zones, which the transfer process makes: what was asked behind them is answered between two of
their messages (server/relays.py; RFC 7766 section 6.2.1.1).
"""

from __future__ import annotations

import logging
import random
import resource
import signal
import socket
import time
from collections.abc import Sequence

from server import relays
from server._counters import Counters
from server._limits import Networks
from server._stream import Streams
from server.answerer import Answerer
from server.cookie_secrets import CookieSecrets
from server.door import Door, StreamLimits
from server.dot import Sessions
from server.handshakes import Handshakes
from server.orphan import Orphanhood
from server.passage import Doorkeeper
from server.policy import Policy
from server.relays import Relays
from server.tls import Certificate
from server.transfer import asks_for_transfer
from server.worker import IDLE_S, MAP_ATTEMPTS, Limits
from shm._table import Table
from shm.board import Board
from shm.layout import ENCRYPTED_COUNTERS, SlotKind
from shm.reading import NotMapped, TableReader
from shm.rwlock import ReadLock

__all__ = ["StreamLimits", "run_stream"]

log = logging.getLogger(__name__)

EVERYONE = Limits()
#: What the hot path takes for "ask me outside the lock".
HOLD = b""
#: Silent clients and the certificate are looked at this often.
LOOK_NS = 1_000_000_000
#: A stopping worker reads on for this long: what is on its way is answered.
LINGER_S = 0.1
#: Descriptors that are no clients.
OTHER_DESCRIPTORS = 64 + relays.MOST


class StreamWorker:
    """One process. Construct it after the fork: its slot's lock must be its own."""

    def __init__(
        self,
        instance: str,
        policy: Policy,
        limits: StreamLimits,
        access: Limits,
        certificate: Certificate | None,
        doorkeeper: Doorkeeper | None,
        cookies: CookieSecrets | None,
    ) -> None:
        self._board = Board.attach(instance)
        self._slot = self._board.claim(SlotKind.STREAM, preferred=max(self._board.slots))
        self._orphanhood = Orphanhood(self._board, SlotKind.STREAM)
        self._lock = ReadLock(self._board, self._slot)
        self._tables = TableReader(self._board, self._slot)
        self._answerer = Answerer(policy, self._board, self._slot, access.stale_after_s, cookies)
        self._limits, self._drop = limits, Networks(access.drop)
        self._streams = Streams(
            _room_for(limits.clients),
            self._answerer.terms,
            self._reference,
            Counters(self._slot.words),
            Counters(self._slot.words, ENCRYPTED_COUNTERS),
            Networks(access.refuse),
            turn=random.getrandbits(32),
            random_turns=access.random_turns,
        )
        self._certificate = certificate
        self._sessions = (
            None
            if certificate is None
            else Sessions(self._streams, certificate, Handshakes(limits.clients, limits.idle_s))
        )
        self._relays = None if doorkeeper is None else Relays(self._streams, doorkeeper, self._sessions)
        self._adopted = 0
        self._beaten_ns = self._looked_ns = 0
        self._stopping = self._reload = False
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _on_hangup(self, *_: object) -> None:
        self._reload = True

    def run(self, plain: Sequence[socket.socket], encrypted: Sequence[socket.socket], drain_timeout_s: float) -> None:
        """Until SIGTERM; then what has been asked is answered, and read, within the time-out."""
        door = Door(self._streams, plain, encrypted, self._sessions, self._limits, self._drop, self._forget)
        while not self._stopping:
            self._round(door)
        door.close()
        now = time.monotonic()
        linger, deadline = now + min(LINGER_S, drain_timeout_s), now + drain_timeout_s
        while now < linger or (now < deadline and (self._streams.waiting or self._streams.unread or self._relays)):
            self._round(door)
            now = time.monotonic()
        self._lock.close()
        self._slot.release()

    def _round(self, door: Door) -> None:
        streams = self._streams
        hurried = self._sessions is not None and self._sessions.hurried
        for who in streams.wait(0 if hurried else int(IDLE_S * 1000)):
            if who <= -1 - relays.FIRST_NUMBER:
                if self._relays is not None:
                    self._relays.take(-1 - who)
            elif who < 0:
                door.answer(-1 - who)
            elif self._sessions is not None:
                self._sessions.ready(who)
        if self._sessions is not None:
            self._sessions.shake()
        streams.receive()
        if streams.waiting:
            self._answer()
        streams.send()
        if self._relays is not None:
            self._relays.look()
        if self._sessions is not None:
            for who in dict.fromkeys(streams.take_outgoing()):
                self._sessions.settle(who)
        door.sweep()
        now = time.monotonic_ns()
        if now - self._beaten_ns >= IDLE_S * 1e9:
            self._beat(now, door)

    def _forget(self, slot: int) -> None:
        """A client is gone: its slot may be another's from now on."""
        if self._relays is not None:
            self._relays.forget(slot)
        if self._sessions is not None:
            self._sessions.forget(slot)

    # ---- answers

    def _answer(self) -> None:
        for _ in range(MAP_ATTEMPTS):
            self._tables.refresh()
            try:
                with self._lock.read() as live:
                    self._streams.answer(self._tables.active(live))
                    self._adopt(live)
                return
            except NotMapped:
                continue
        self._streams.answer(None)

    def _adopt(self, live: int) -> None:
        """Tell what this worker answers from. In the lock: the revision is the table's."""
        if live != self._adopted:
            self._adopted = live
            self._answerer.adopt(live >> 1, self._tables.revision(live))

    def _reference(
        self,
        packet: bytes,
        table: Table | None,
        address: bytes,
        turn: int,
        refused: bool,
        encrypted: bool,
        asked: bool,
    ) -> bytes | None:
        """What the hot path declined. In the lock; never raises."""
        if self._relays is not None and not (asked or refused) and asks_for_transfer(packet):
            return HOLD
        moment = self._answerer.moment(address, turn, stream=True, encrypted=encrypted, prohibited=refused)
        return self._answerer.answer(packet, table, moment)

    # ---- house

    def _beat(self, now_ns: int, door: Door) -> None:
        """Show a sign of life, map what was announced, pass the lock once (R2)."""
        self._beaten_ns = now_ns
        self._slot.set("heartbeat_ns", now_ns)
        self._answerer.tick()
        self._tables.refresh()
        try:
            with self._lock.read() as live:
                self._tables.active(live)
                self._adopt(live)
        except NotMapped:
            pass
        if self._reload and self._certificate is not None:
            self._certificate.reload()
        self._reload = False
        if self._stopping:
            return
        door.open()
        if now_ns - self._looked_ns > LOOK_NS:
            self._looked_ns = now_ns
            self._streams.cut_off_silent(self._limits.idle_s)
            if self._certificate is not None:
                self._certificate.look()
                self._slot.set("certificate_expires_s", int(self._certificate.expires_s))
            if self._orphanhood.must_leave():
                self._stopping = True


def _room_for(clients: int) -> int:
    """How many clients this process may have descriptors for. Raises the soft limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            log.warning("the limit of open files leaves room for %d connections", soft - OTHER_DESCRIPTORS)
            return max(1, soft - OTHER_DESCRIPTORS)
    return clients


def run_stream(
    instance: str,
    listeners: Sequence[socket.socket],
    policy: Policy,
    limits: StreamLimits,
    drain_timeout_s: float,
    access: Limits = EVERYONE,
    doorkeeper: Doorkeeper | None = None,
    encrypted: Sequence[socket.socket] = (),
    certificate: Certificate | None = None,
    cookies: CookieSecrets | None = None,
) -> int:
    """The stream worker's main; its exit status. `encrypted`: listeners for TLS, which need a certificate."""
    worker = StreamWorker(instance, policy, limits, access, certificate, doorkeeper, cookies)
    worker.run(listeners, encrypted, drain_timeout_s)
    return 0
