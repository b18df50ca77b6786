"""Answers that the transfer process makes, on their way to the stream worker's clients (TCP and TLS).

Each comes message by message through a pair of sockets, and is passed on as its client reads. Other queries of the same
connection are answered meanwhile, between two of its messages (RFC 7766 section 6.2.1.1, RFC 9103 section 6.2), and
several transfers of one connection take turns.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from server._stream import Streams
from server.dot import Sessions
from server.passage import DONE, Doorkeeper
from server.query import HEADER, QR, RD, FormatError, Rcode, parse
from server.ratelimit import Sparing

log = logging.getLogger(__name__)

#: Answers under way: of all clients, and of one connection. The others wait, and hold up no other query.
MOST, MOST_A_CLIENT = 64, 4
#: Queries of one connection that may wait; behind more of them, the connection waits.
MOST_WAITING = 64
#: A query for a zone with a signature is shorter than this; a longer one waits in its connection.
LONGEST_WAITING = 1024
#: Messages (16 KiB) of one answer in a round: other clients' turns come between.
MESSAGES_A_ROUND = 4
#: Seconds without a message from the transfer process; sorting the names of a large zone takes some.
PATIENCE_S = 60.0
LARGEST_MESSAGE = 65535
BUFFER = 1 << 18
#: Numbers of our sockets among those that `Streams.listen` knows.
FIRST_NUMBER = 1 << 16


@dataclass(slots=True)
class Relay:
    """A query that is, or is to be, answered by the transfer process. `messages`: how many have been passed on."""

    slot: int
    packet: bytes
    address: bytes
    since: float
    number: int = 0
    sock: socket.socket | None = None
    watched: bool = False
    messages: int = 0


@dataclass(slots=True)
class _Client:
    """What one connection has asked for."""

    under_way: int = 0
    waiting: deque[Relay] = field(default_factory=deque)


class Relays:
    """All answers of the kind. Call `look` once a round, and `take` for a number that `Streams.wait` reports."""

    def __init__(self, streams: Streams, doorkeeper: Doorkeeper, sessions: Sessions | None) -> None:
        """sessions: encrypted clients."""
        self._streams = streams
        self._doorkeeper = doorkeeper
        self._sessions = sessions
        self._held: list[int] = []
        self._clients: dict[int, _Client] = {}
        self._under_way: dict[int, Relay] = {}
        self._next_number = FIRST_NUMBER
        self._log = Sparing(log)

    def __len__(self) -> int:
        """Answers that are not whole yet."""
        return len(self._under_way) + sum(len(client.waiting) for client in self._clients.values())

    def look(self) -> None:
        """Take what is held, begin what waits, go on where a client reads again."""
        self._held += self._streams.take_held()
        if self._held:
            self._held = [slot for slot in self._held if not self._admit(slot)]
        if not self._clients:
            return
        now = time.monotonic()
        self._begin(now)
        for relay in list(self._under_way.values()):
            if not self._streams.is_open(relay.slot):
                continue
            if not relay.watched and self._streams.takes_more(relay.slot):
                self._watch(relay, True)
                relay.since = now
            elif relay.watched and now - relay.since > PATIENCE_S:
                self._fail(relay, "the transfer process is silent")

    def take(self, number: int) -> None:
        """There is something to read at that socket."""
        relay = self._under_way.get(number)
        if relay is None or not self._streams.is_open(relay.slot):  # its client left in this round: see `forget`
            return
        assert relay.sock is not None
        relay.since = time.monotonic()
        for _ in range(MESSAGES_A_ROUND):
            try:
                message = relay.sock.recv(LARGEST_MESSAGE + 1)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message == DONE:
                self._end(relay)
                return
            if not message:
                self._fail(relay, "the transfer process has given up")
                return
            relay.messages += 1
            if not self._pass_on(relay, message):
                return
            if not self._streams.takes_more(relay.slot):
                self._watch(relay, False)
                return

    def _pass_on(self, relay: Relay, message: bytes) -> bool:
        """False: the client is gone, and `forget` is on its way."""
        if self._streams.is_open(relay.slot):
            self._streams.push(relay.slot, message, relay.messages <= 1)
            if self._sessions is not None:
                self._sessions.settle(relay.slot)
        return self._streams.is_open(relay.slot)

    def forget(self, slot: int) -> None:
        """The slot's client is gone."""
        if slot in self._held:
            self._held.remove(slot)
        if self._clients.pop(slot, None) is not None:
            for relay in [relay for relay in self._under_way.values() if relay.slot == slot]:
                self._close(relay)

    # ---- one answer

    def _admit(self, slot: int) -> bool:
        """What becomes of a held client's message; False: it stays held."""
        if not self._streams.is_open(slot):
            return True
        packet, address = self._streams.first_message(slot), self._streams.address(slot)
        in_form = self._sessions is None or self._sessions.may_transfer(slot)
        if not (in_form and self._doorkeeper.takes(packet, address)):
            self._streams.go_on(slot)
            return True
        client = self._clients.setdefault(slot, _Client())
        if client.waiting and (len(client.waiting) >= MOST_WAITING or len(packet) > LONGEST_WAITING):
            return False
        client.waiting.append(Relay(slot, packet, address, time.monotonic()))
        self._streams.defer(slot)
        return True

    def _begin(self, now: float) -> None:
        """Hand over what waits, as far as the limits and the passage have room, a query of each client in turn."""
        progress = True
        while progress:
            progress = False
            for slot, client in list(self._clients.items()):
                if len(self._under_way) >= MOST:
                    return
                if not client.waiting or client.under_way >= MOST_A_CLIENT or not self._streams.is_open(slot):
                    continue
                relay = client.waiting[0]
                if not self._hand_over(relay, now):
                    if now - relay.since > PATIENCE_S:
                        client.waiting.popleft()
                        client.under_way += 1
                        self._fail(relay, "the transfer process takes nothing")
                    return
                client.waiting.popleft()
                client.under_way += 1
                progress = True

    def _hand_over(self, relay: Relay, now: float) -> bool:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:  # no descriptors left
            self._log.error("a transfer has to wait: %s", error.strerror)
            return False
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            ours.setblocking(False)
            if not self._doorkeeper.hand_over(theirs, relay.address, relay.packet):
                ours.close()
                return False
        relay.sock, relay.since = ours, now
        relay.number, self._next_number = self._next_number, self._next_number + 1
        if self._next_number >= 1 << 29:
            self._next_number = FIRST_NUMBER
        self._under_way[relay.number] = relay
        self._watch(relay, True)
        return True

    def _watch(self, relay: Relay, on: bool) -> None:
        assert relay.sock is not None
        if on:
            self._streams.listen(relay.sock.fileno(), relay.number)
        else:
            self._streams.unlisten(relay.sock.fileno())
        relay.watched = on

    def _end(self, relay: Relay) -> None:
        """It is whole, or there is no more to come."""
        self._close(relay)
        client = self._clients[relay.slot]
        client.under_way -= 1
        if not client.under_way and not client.waiting:
            del self._clients[relay.slot]
        self._streams.settled(relay.slot)

    def _fail(self, relay: Relay, why: str) -> None:
        """What was passed on cannot be taken back: the end of the connection says that it is not whole."""
        self._log.error("a transfer to %s broke off: %s", relay.address.hex(), why)
        if relay.messages:
            self._close(relay)
            self._streams.close(relay.slot)
            return
        if self._pass_on(relay, _failure(relay.packet)):
            self._end(relay)

    def _close(self, relay: Relay) -> None:
        if relay.sock is not None:
            if relay.watched:
                self._watch(relay, False)
            relay.sock.close()
            relay.sock = None
            del self._under_way[relay.number]


def _failure(packet: bytes) -> bytes:
    """SERVFAIL in answer to a query that has been looked at before."""
    try:
        query = parse(packet)
    except FormatError:
        return packet[:2] + HEADER.pack(0, QR | Rcode.SERVFAIL, 0, 0, 0, 0)[2:]
    flags = QR | query.flags & RD | Rcode.SERVFAIL
    return HEADER.pack(query.identifier, flags, 1, 0, 0, 0) + query.question
