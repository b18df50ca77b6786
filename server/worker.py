"""A UDP worker: the loop of four lines, and what keeps it alive around them. Runs in a process of its own."""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server._batch import Batch
from server._counters import Counters
from server._limits import Networks, RateLimiter
from server.answerer import Answerer
from server.cookie_secrets import CookieSecrets
from server.culprit import stack_of
from server.handover import Handover
from server.orphan import Orphanhood
from server.policy import Policy
from shm.board import Board
from shm.errors import NestedRead, StandoffError
from shm.layout import SlotKind
from shm.reading import NotMapped, TableReader
from shm.rwlock import ReadLock

if TYPE_CHECKING:
    from server.faults import Faults

log = logging.getLogger(__name__)

#: An idle worker passes the lock and shows a heartbeat this often: well below NEIGHBOUR_STALE_NS.
IDLE_S = 0.020
#: A worker whose heartbeat is older than this has its sockets drained by the next live one.
NEIGHBOUR_STALE_NS = 50_000_000
HOUSEKEEPING_NS = 10_000_000
#: Batches of one socket between two heartbeats, at most: under full load what is done between batches costs a twentieth
#: as much as the batch. Eight take about a millisecond.
ROUNDS = 8
#: Set for drills and tests only (server/faults.py).
FAULTS_VARIABLE = "STANDOFF_FAULTS"
#: Looks at a table that is announced but not mapped yet, before the batch gets SERVFAIL.
MAP_ATTEMPTS = 3
#: Exit status of a worker that found at its next read that it had never left the last: the supervisor counts it.
LEAKED = 71


@dataclass(frozen=True, slots=True)
class Limits:
    """Who is answered, and how often.

    rate        replies a second to one network, shared by all workers; 0 = unlimited
    slip        every so manieth reply beyond that goes out truncated
    exempt, refuse, drop  networks
    stale_after_s  the source's silence after which answers say so (EDE 3); 0 = never
    random_turns   rotation begins anywhere, not at the next address
    """

    rate: float = 0.0
    slip: int = 2
    exempt: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    stale_after_s: float = 0.0
    random_turns: bool = False


@dataclass(slots=True)
class WorkerSetup:
    """What the supervisor gives a worker at its fork."""

    instance: str
    index: int
    sockets: dict[int, list[socket.socket]]
    handover: Handover | None = None
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    drain_timeout_s: float = 5.0
    cookies: CookieSecrets | None = None


class Worker:
    """One worker process. Construct it after the fork: its slot's lock must be its own."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._sockets = setup.sockets
        self._board = Board.attach(setup.instance)
        self._slot = self._board.claim(SlotKind.WORKER, setup.index, preferred=setup.index)
        self._lock = ReadLock(self._board, self._slot)
        self._tables = TableReader(self._board, self._slot)
        self._answerer = Answerer(setup.policy, self._board, self._slot, setup.limits.stale_after_s, setup.cookies)
        limits = setup.limits
        self._limiter = RateLimiter(limits.rate / len(setup.sockets), limits.slip, Networks(limits.exempt))
        self._batch = Batch(
            self._answerer.terms,
            self._answerer.reference,
            Counters(self._slot.words),
            self._limiter,
            Networks(limits.refuse),
            Networks(limits.drop),
            turn=random.getrandbits(32),
            random_turns=limits.random_turns,
        )
        self._adopted = 0
        self._shares = len(setup.sockets)
        self._running = True
        self._orphanhood = Orphanhood(self._board, SlotKind.WORKER, setup.index)
        self._neighbours: list[Reading] = []
        self._stale_at = 0  # when the one before us is to be taken for stuck, if it does not beat again
        self._checked_ns = 0
        self._poll = select.poll()
        self._own = [_reading(sock) for sock in self._sockets[setup.index]]
        for fd, _ in self._own:
            self._poll.register(fd, select.POLLIN)
        signal.signal(signal.SIGTERM, self._on_stop)
        self._faults: Faults | None = None
        if FAULTS_VARIABLE in os.environ:
            from server.faults import faults_for

            self._faults = faults_for(self._lock)

    def _on_stop(self, *_: object) -> None:
        self._running = False

    def run(self) -> None:
        """Answer until SIGTERM, then what is queued."""
        while self._running:
            if not self._pass():
                self._idle()
        deadline = time.monotonic() + self._setup.drain_timeout_s
        while self._pass() and time.monotonic() < deadline:
            pass
        if self._orphanhood.orphaned:
            self._close_sockets(deadline)
        self._lock.close()
        self._slot.release()

    def _close_sockets(self, deadline: float) -> None:
        """Close each socket right after a look that found it empty.

        No supervisor keeps it: what comes in between is lost, and what came from then to our end would be.
        """
        for sock in [sock for sockets in self._sockets.values() for sock in sockets]:
            while time.monotonic() < deadline and self._serve(*_reading(sock)):
                pass
            sock.close()

    def _pass(self) -> bool:
        """Serve every socket once; whether there was anything."""
        now = time.monotonic_ns()
        self._slot.set("heartbeat_ns", now)
        if now - self._checked_ns > HOUSEKEEPING_NS:
            self._checked_ns = now
            self._keep_house(now)
            if self._faults is not None:
                self._faults.strike()
        self._tables.refresh()
        busy = False
        for sock, packet_info in self._own:
            for _ in range(ROUNDS):
                if not self._serve(sock, packet_info):
                    break
                busy = True
        for sock, packet_info in self._neighbours:
            if self._serve(sock, packet_info):
                busy = True
                self._slot.add("neighbour_batches")
        return busy

    def _serve(self, sock: int, packet_info: bool) -> bool:
        batch = self._batch
        if not batch.receive(sock, packet_info):
            if batch.error:
                self._slot.add("receive_errors")
            return False
        self._answer(batch)
        batch.send(sock)
        if batch.error:
            self._slot.add("send_errors")
        self._slot.add("batches")
        return True

    def _answer(self, batch: Batch) -> None:
        for _ in range(MAP_ATTEMPTS):
            try:
                with self._lock.read() as live:
                    batch.answer(self._tables.active(live))
                    if live != self._adopted:
                        self._adopt(live)
                return
            except NotMapped:
                self._tables.refresh()
        batch.answer(None)

    def _adopt(self, live: int) -> None:
        """Tell what this worker answers from, for `standoff wait`. In the lock: the revision is the table's."""
        self._adopted = live
        self._answerer.adopt(live >> 1, self._tables.revision(live))

    def _idle(self) -> None:
        """Pass the lock once (R2) and sleep until a query comes."""
        try:
            with self._lock.read() as live:
                self._tables.active(live)
                if live != self._adopted:
                    self._adopt(live)
        except NotMapped:
            self._poll.poll(1)  # ms: not in a circle, should the announced segment be gone for good
            return
        self._poll.poll(self._patience_ms(time.monotonic_ns()))

    def _patience_ms(self, now: int) -> float:
        """How long to sleep: shorter if a neighbour's clients would have to wait for us."""
        due = (self._stale_at - now) / 1e6
        return min(IDLE_S * 1000, max(1.0, due)) if self._stale_at else IDLE_S * 1000

    def _keep_house(self, now: int) -> None:
        """What need not be done every batch."""
        if self._setup.handover is not None and not self._setup.handover.receive_into(self._sockets):
            self._setup.handover.close()
            self._setup.handover = None
        stale = self._stale_neighbours(now)
        for fd, _ in set(self._neighbours) - set(stale):
            self._poll.unregister(fd)
        for fd, _ in set(stale) - set(self._neighbours):
            self._poll.register(fd, select.POLLIN)
        self._neighbours = stale
        self._answerer.tick()
        if len(self._sockets) != self._shares:
            self._shares = len(self._sockets)
            if self._limiter.enabled:
                self._limiter.set_rate(self._setup.limits.rate / self._shares)
        if self._running and self._orphanhood.must_leave():
            self._running = False

    def _stale_neighbours(self, now: int) -> list[Reading]:
        """Sockets of the workers before us that show no sign of life: we are the next live one after them."""
        others = len(self._sockets)
        self._stale_at = 0
        if others < 2:
            return []
        if self._orphanhood.orphaned:
            # The workers of the next supervisor have other sockets: a heartbeat of theirs says nothing about ours.
            return [_reading(s) for index in self._sockets if index != self._setup.index for s in self._sockets[index]]
        beats = dict.fromkeys(self._sockets, 0)
        for number in self._board.slots:
            slot = self._board.slot(number)
            # A claim shows a heartbeat as well, but who has not adopted a table yet is still starting: its sockets
            # would wait for that, and then for the heartbeat to be old. Before the first table nobody has one.
            answering = slot.get("generation") or not self._adopted
            if answering and slot.get("kind") == SlotKind.WORKER and slot.get("worker") in beats:
                index = slot.get("worker")
                beats[index] = max(beats[index], slot.get("heartbeat_ns"))
        order = sorted(self._sockets)
        at = order.index(self._setup.index)
        stale: list[Reading] = []
        for step in range(1, others):
            neighbour = order[at - step]
            if now - beats[neighbour] < NEIGHBOUR_STALE_NS:
                self._stale_at = beats[neighbour] + NEIGHBOUR_STALE_NS
                break
            stale += [_reading(sock) for sock in self._sockets[neighbour]]
        return stale


#: A socket to read: its descriptor, and whether it is bound to all addresses (then replies need the packet's own).
Reading = tuple[int, bool]


def _reading(sock: socket.socket) -> Reading:
    return sock.fileno(), sock.getsockname()[0] in ("0.0.0.0", "::")


def run_worker(setup: WorkerSetup) -> int:
    """The worker process's main; its exit status."""
    try:
        Worker(setup).run()
    except NestedRead as error:
        log.error(
            "read lock leaked: worker %d (pid %d) went on without leaving: %s; now at %s",
            setup.index,
            os.getpid(),
            error,
            " < ".join(stack_of(error)),
        )
        return LEAKED
    except StandoffError as error:
        log.error("worker %d: %s", setup.index, error)
        return 1
    return 0
