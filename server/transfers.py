"""Whole zones to those who may have them (AXFR, RFC 5936; IXFR answered by AXFR, RFC 1995): a process of its own.

It serves from a copy (shm/visit.py), so that a transfer is of one generation however long it takes, and holds no lock.
A thread an answer: there are few, and they wait for their clients most of the time.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeVar

from server import edns, tsig
from server.message import Reply
from server.notifier import Notifier, Target
from server.passage import DONE, Passage, Request, permitted
from server.policy import Policy
from server.query import IXFR, Rcode
from server.ratelimit import Sparing
from server.sockets import Address
from server.transfer import Part, Untransferable, is_newer, message, serial_of, soa_part, zone_parts
from shm import visit
from shm._table import Table
from shm.board import Board
from shm.errors import StandoffError
from shm.reading import TableObserver

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Answers at a time; of more, each fails, and its secondary comes again. Bounds threads and copies. The stream worker
#: has no more under way (server/relays.py), but its predecessor's may end only now.
MOST_DELIVERIES = 128
#: Transfers in a minute that are logged one by one.
TOLD_A_MINUTE = 120
TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """What the transfer process is to do.

    targets  whom to tell of changes; sources: the addresses that we listen on
    """

    instance: str
    policy: Policy
    targets: tuple[Target, ...]
    sources: tuple[Address, ...]
    drain_timeout_s: float


class Sight:
    """Short looks at the active table, for all threads."""

    def __init__(self, board: Board) -> None:
        self._observer = TableObserver(board)
        self._lock = threading.Lock()

    def look(self, function: Callable[[Table], T]) -> T:
        """`function(table)` on one whole version. Raises NotRunning if nothing is published, TableDamaged."""
        with self._lock:
            result: T = self._observer.look(function)
            return result


class Sequence:
    """The messages of a zone, made as the first of its readers needs them."""

    def __init__(self, live: int, parts: Iterator[Part]) -> None:
        self.live = live
        self._parts: Iterator[Part] | None = parts
        self._done: list[Part] = []
        self._failure: Exception | None = None
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Part]:
        """Raises what zone_parts does."""
        at = 0
        while (part := self._get(at)) is not None:
            yield part
            at += 1

    def _get(self, at: int) -> Part | None:
        with self._lock:
            if at == len(self._done) and self._parts is not None:
                try:
                    self._done.append(next(self._parts))
                except StopIteration:
                    self._parts = None  # and with it the copy
                except Exception as error:
                    self._parts, self._failure = None, error
            if at < len(self._done):
                return self._done[at]
            if self._failure is not None:
                raise self._failure
            return None


class Library:
    """Zones as sequences. Those who ask for one zone of one generation at the same time share it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._sequences: weakref.WeakValueDictionary[bytes, Sequence] = weakref.WeakValueDictionary()
        self._copy: weakref.ref[visit.Copy] | None = None
        self._lock = threading.Lock()

    def zone(self, apex: bytes) -> Sequence:
        """Of the present generation. Raises as shm.visit.copy_active; TableDamaged if there is no such zone."""
        with self._lock:
            known = self._sequences.get(apex)
            if known is not None and known.live == self._board.live:
                return known
            copy = self._copy() if self._copy is not None else None
            if copy is None or copy.live != self._board.live:
                copy = visit.copy_active(self._board)
                self._copy = weakref.ref(copy)
            sequence = self._sequences[apex] = Sequence(copy.live, _parts_of(copy, apex))
            return sequence


def _parts_of(copy: visit.Copy, apex: bytes) -> Iterator[Part]:
    """Keeps the copy until the last part is made."""
    yield from zone_parts(apex, copy.table)


class Delivery:
    """One answer, into the socket that the stream worker reads (server/relays.py)."""

    def __init__(self, server: TransferServer, sock: socket.socket, address: bytes, packet: bytes) -> None:
        self._server = server
        self._sock = sock
        self._address = address
        self._packet = packet

    def run(self) -> None:
        """In a thread of its own. The stream worker judges whether the client is too slow, and closes its end then."""
        with self._sock:
            request = permitted(self._packet, self._address, self._server.plan.policy, int(time.time()))
            if request is None:  # its signature has become too old while it waited
                return
            try:
                if self._transfer(request):
                    self._sock.sendall(DONE)
            except OSError as error:
                self._server.sparing.error("transfer to %s: %s", ip_address(self._address), error)

    def _transfer(self, request: Request) -> bool:
        """False if what was sent is not whole."""
        query = request.query
        reply = _Writer(self._sock, request, self._server.plan.policy)
        try:
            block = self._server.sight.look(lambda table: table.find(query.name))
            ours = None if block is None else serial_of(block)
            if block is None or ours is None:
                reply.refuse(Rcode.NOTAUTH)  # RFC 5936 section 2.2.1
                return True
            if query.type == IXFR and query.serial is not None and not is_newer(ours, query.serial):
                reply.send_alone(soa_part(block))
                return True
            reply.send_all(self._server.library.zone(query.name))
        except (StandoffError, Untransferable) as error:
            self._server.sparing.error(
                "zone %s for %s: %s", tsig.text_name(query.name), ip_address(self._address), error
            )
            if reply.messages:
                return False
            reply.refuse(Rcode.SERVFAIL)
            return True
        self._server.done.info(
            "zone %s sent to %s%s: %d records in %d messages",
            tsig.text_name(query.name),
            ip_address(self._address),
            f" with key {request.verdict.owner}" if request.verdict is not None else "",
            reply.records,
            reply.messages,
        )
        return True


class _Writer:
    """The messages of one reply to a transfer request."""

    def __init__(self, sock: socket.socket, request: Request, policy: Policy) -> None:
        self._sock = sock
        self._query = request.query
        self._policy = policy
        self._signer = tsig.Signer(request.verdict) if request.verdict is not None else None
        self.messages = self.records = 0

    def refuse(self, rcode: Rcode) -> None:
        opt = edns.opt_record(self._query, self._policy, rcode, b"")
        self._send(Reply(self._query, 0xFFFF, rcode=rcode).message(opt), more=False)

    def send_alone(self, part: Part) -> None:
        self._send_part(part, more=False)

    def send_all(self, parts: Sequence) -> None:
        for part in parts:
            self._send_part(part, more=True)

    def _send_part(self, part: Part, *, more: bool) -> None:
        opt = b"" if self.messages else edns.opt_record(self._query, self._policy, Rcode.NOERROR, b"")
        self._send(message(self._query, part, opt), more=more)
        self.messages += 1
        self.records += part.count

    def _send(self, reply: bytes, *, more: bool) -> None:
        if self._signer is not None:
            reply = self._signer.sign(reply, int(time.time()), more=more)
        self._sock.sendall(reply)  # a packet, whole: the socket keeps them apart


class TransferServer:
    """Takes queries for zones from the stream worker, and notifies secondaries."""

    def __init__(self, plan: TransferPlan, board: Board, passage: Passage | None) -> None:
        self.plan = plan
        self.sight = Sight(board)
        self.library = Library(board)
        self.sparing = Sparing(log)
        self.done = Sparing(log, TOLD_A_MINUTE)
        self._board = board
        self._passage = passage
        self._threads: set[threading.Thread] = set()
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM, or until the supervisor is gone; then what has begun is finished, within the drain time."""
        parent = os.getppid()
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        if self.plan.targets:
            notifier = Notifier(self._board, self.sight, self.plan.targets, self.plan.policy.keys, self.plan.sources)
            threading.Thread(target=notifier.run, name="notifier", daemon=True).start()
        poll = select.poll()
        if self._passage is not None:
            poll.register(self._passage.exit, select.POLLIN)
        while not self._stopping and os.getppid() == parent:
            poll.poll(TICK_S * 1000)
            while self._passage is not None and (handed := self._passage.take()) is not None:
                self._begin(*handed)
        deadline = time.monotonic() + self.plan.drain_timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _stop(self) -> None:
        self._stopping = True

    def _begin(self, sock: socket.socket, address: bytes, packet: bytes) -> None:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        if len(self._threads) >= MOST_DELIVERIES:
            self.sparing.error("transfer to %s put off: %d are under way", ip_address(address), MOST_DELIVERIES)
            sock.close()
            return
        thread = threading.Thread(target=Delivery(self, sock, address, packet).run, daemon=True)
        self._threads.add(thread)
        thread.start()


def run_transfers(plan: TransferPlan, passage: Passage | None) -> int:
    """The transfer process's main; its exit status."""
    board = Board.attach(plan.instance)
    TransferServer(plan, board, passage).run()
    return 0
