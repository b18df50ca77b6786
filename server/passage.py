"""From the stream worker to the transfer process: a query for a zone, and the socket that its answer is to go into.

Making the messages of a zone may take seconds: that is not the stream worker's business. It looks whether the client
may have what it asks for, and passes on what it gets (server/relays.py).
"""

from __future__ import annotations

import array
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from server import tsig
from server._limits import Networks
from server.policy import Policy
from server.query import CLASS_IN, IXFR, FormatError, Query, parse
from server.transfer import AXFR, asks_for_transfer

#: The most that is handed over: a query.
LARGEST = 1 << 16
#: Ends an answer. No message is so short; an answer that ends without it is not whole.
DONE = b"."


@dataclass(frozen=True, slots=True)
class Request:
    """A transfer that its client may have. `verdict`: of its signature, if it has one."""

    query: Query
    verdict: tsig.Verdict | None


def permitted(packet: bytes, address: bytes, policy: Policy, now_s: int) -> Request | None:
    """The transfer that a packet asks for; None if it is none, or not for this client: a query like others then."""
    if not policy.transfers or not asks_for_transfer(packet):
        return None
    try:
        query = parse(packet)
        if query.class_ != CLASS_IN or query.type not in (AXFR, IXFR) or (query.edns and query.edns.version > 0):
            return None
        verdict = tsig.check(packet, query.signed_at, policy.keys, now_s) if query.signed_at else None
    except FormatError:
        return None
    if verdict is not None and verdict.error:
        return None
    key = verdict.owner.to_digestable() if verdict is not None else b""
    return Request(query, verdict) if policy.transfers.permits(address, key) else None


class Passage:
    """Both ends are made by the supervisor, before it forks, and kept by it: what was handed over to a process that
    died waits for its replacement."""

    def __init__(self) -> None:
        self._entry, self.exit = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._entry.setblocking(False)
        self.exit.setblocking(False)

    def hand_over(self, far_end: socket.socket, address: bytes, packet: bytes) -> bool:
        """Give a query away; the caller closes its own descriptor of `far_end` then. False: there is no room now."""
        if len(packet) > LARGEST:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [far_end.fileno()]))]
        try:
            self._entry.sendmsg([bytes([len(address)]) + address + packet], rights)
        except OSError:
            return False
        return True

    def take(self) -> tuple[socket.socket, bytes, bytes] | None:
        """The socket for an answer, the client's address, and the query; None if there is none."""
        try:
            message, fds, _, _ = socket.recv_fds(self.exit, LARGEST + 64, 1)
        except BlockingIOError:
            return None
        if not fds:
            return None
        length = message[0]
        return socket.socket(fileno=fds[0]), message[1 : 1 + length], message[1 + length :]

    def close(self) -> None:
        self._entry.close()
        self.exit.close()


class Doorkeeper:
    """In the stream worker: tells transfers from other queries, and passes them on."""

    def __init__(self, passage: Passage, policy: Policy, refuse: Iterable[str] = ()) -> None:
        """refuse: networks that get nothing, whatever else allows them."""
        self._passage = passage
        self._policy = policy
        self._refuse = Networks(refuse)

    def takes(self, packet: bytes, address: bytes) -> bool:
        """Whether a query is for the transfer process."""
        if not asks_for_transfer(packet) or address in self._refuse:
            return False
        return permitted(packet, address, self._policy, int(time.time())) is not None

    def hand_over(self, far_end: socket.socket, address: bytes, packet: bytes) -> bool:
        """False if there is no room now."""
        return self._passage.hand_over(far_end, address, packet)
