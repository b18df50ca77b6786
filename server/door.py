"""Who may connect to the stream worker: limits for each client's network and in all."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server._limits import Networks
from server._stream import Streams
from server.dot import Sessions
from server.ratelimit import Sparing

log = logging.getLogger(__name__)

#: Connections taken at a time: those that are connected already are not to wait for a crowd at the door.
ACCEPTS = 32
#: Of encrypted ones: a handshake costs a millisecond or two.
ENCRYPTED_ACCEPTS = 4
#: A client that has asked nothing for so long may make room for another.
YIELDS_AFTER_S = 1.0
#: Bytes that the kernel keeps of a client's replies beyond those that are on their way: a slow reader costs little, and
#: the next answer does not queue behind megabytes of a zone.
UNSENT = 1 << 17
#: Bytes of an IPv6 address that tell clients apart: a /64 is the least that anybody has.
IPV6_BYTES = 8


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What clients may take.

    clients      connections in all; clients_per_address: of one address (IPv6: /64), 0 = no limit of its own
    idle_s       seconds without a whole query, or a reply read, until they are cut off
    """

    clients: int = 1000
    idle_s: float = 10.0
    clients_per_address: int = 0


def network_of(address: bytes) -> bytes:
    """Whom a connection counts for."""
    return address if len(address) == 4 else address[:IPV6_BYTES]


class Door:
    """The listening sockets."""

    def __init__(
        self,
        streams: Streams,
        plain: Sequence[socket.socket],
        encrypted: Sequence[socket.socket],
        sessions: Sessions | None,
        limits: StreamLimits,
        drop: Networks,
        forget: Callable[[int], None],
    ) -> None:
        """forget: told of each slot whose client is gone, before another may have it."""
        self._streams = streams
        self._listeners = [*plain, *encrypted]
        self._plain = len(plain)
        self._sessions = sessions
        self._limits = limits
        self._drop = drop
        self._forget = forget
        self._inside: Counter[bytes] = Counter()
        self._is_open = False
        self._log = Sparing(log)
        for sock in self._listeners:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit both
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        self.open()

    def open(self) -> None:
        if not self._is_open:
            self._is_open = True
            for number, sock in enumerate(self._listeners):
                self._streams.listen(sock.fileno(), number)

    def shut(self) -> None:
        """Until `open`. The kernel goes on queueing connections."""
        if self._is_open:
            self._is_open = False
            for sock in self._listeners:
                self._streams.unlisten(sock.fileno())

    def close(self) -> None:
        """For good."""
        self.shut()
        for sock in self._listeners:
            sock.close()

    def answer(self, number: int) -> None:
        """Somebody is at listener `number`."""
        encrypted = number >= self._plain
        for _ in range(ENCRYPTED_ACCEPTS if encrypted else ACCEPTS):
            try:
                sock, peer = self._listeners[number].accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._log.error("no more connections for now: %s", error.strerror)
                    self.shut()  # the next beat opens it: until then the loop would spin
                    return
                continue  # it has left the queue already
            self._let_in(sock, ipaddress.ip_address(peer[0].partition("%")[0]).packed, encrypted)

    def _let_in(self, sock: socket.socket, address: bytes, encrypted: bool) -> None:
        network = network_of(address)
        if address in self._drop or not self._has_room(network, encrypted):
            sock.close()
            return
        if encrypted:
            slot = self._sessions.begin(sock, address, network) if self._sessions is not None else -1
        else:
            sock.setblocking(False)
            slot = self._streams.add(sock.fileno(), address)
        if slot < 0:
            sock.close()
            return
        if not encrypted:
            sock.detach()
        self._inside[network] += 1

    def _has_room(self, network: bytes, encrypted: bool) -> bool:
        """At a limit, the client that has been silent longest makes room if it is idle at all."""
        if encrypted and self._sessions is not None:
            if not self._sessions.make_way(network):
                return False
            self.sweep()
        most = self._limits.clients_per_address
        if most and self._inside[network] >= most:
            return self._make_room(network)
        return len(self._streams) < self._streams.most or self._make_room(b"")

    def _make_room(self, network: bytes) -> bool:
        slot, silent_s = self._streams.idlest(network)
        if slot < 0 or silent_s < YIELDS_AFTER_S:
            return False
        self._streams.close(slot)
        self.sweep()
        return True

    def sweep(self) -> None:
        """Let the slots of clients that are gone be others'."""
        for slot, address in self._streams.take_closed():
            network = network_of(address)
            self._inside[network] -= 1
            if self._inside[network] <= 0:
                del self._inside[network]
            self._forget(slot)
