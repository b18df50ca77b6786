"""DNS over TLS (RFC 7858): the encrypted clients of the stream worker.

Their bytes pass through Python's ssl; messages, answers and limits are those of all stream clients
(server/_stream.pyx).
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass

from server._stream import Streams
from server.handshakes import Handshakes
from server.ratelimit import Sparing
from server.tls import ALPN, Certificate

#: A TLS record has at most so much.
RECORD = 16384
#: Steps of handshakes in a round. One takes a tenth of a millisecond with an elliptic key, one and a half with RSA: so
#: much later come the answers of everybody else on a stream.
STEPS_A_ROUND = 4

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """A client. `shaken`: the handshake is done; `due`: its next step is."""

    sock: ssl.SSLSocket
    shaken: bool = False
    due: bool = False


class Sessions:
    """Encrypted clients by slot."""

    def __init__(self, streams: Streams, certificate: Certificate, handshakes: Handshakes) -> None:
        self._streams = streams
        self._certificate = certificate
        self._handshakes = handshakes
        self._sessions: dict[int, Session] = {}
        self._due: deque[int] = deque()
        self._log = Sparing(log)

    @property
    def hurried(self) -> bool:
        """Whether steps of handshakes are due that this round did not come to."""
        return bool(self._due)

    def make_way(self, network: bytes) -> bool:
        """Whether a client of `network` may begin; if need be, another one is closed."""
        may, slot = self._handshakes.room_for(network, time.monotonic())
        if not may or slot is not None:
            self._log.error(
                "TLS handshakes: %d are under way, one is %s", len(self._handshakes), "cut off" if may else "not begun"
            )
        if slot is not None:
            self._cut_off(slot)
        return may

    def begin(self, plain: socket.socket, address: bytes, network: bytes) -> int:
        """A client's slot, -1 if there is none; then the socket is the caller's. `network`: whom it counts for."""
        plain.setblocking(False)
        try:
            sock = self._certificate.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it has gone meanwhile
            return -1
        slot = self._streams.add(sock.fileno(), address, encrypted=True)
        if slot < 0:
            sock.close()
        else:
            self._sessions[slot] = Session(sock)
            self._handshakes.begin(slot, network, time.monotonic())
        return slot

    def ready(self, slot: int) -> None:
        """The client's socket can be read or written. Steps of handshakes wait for their turn: see `shake`."""
        session = self._sessions.get(slot)
        if session is None or session.due or not self._streams.is_open(slot):  # closed in this round, not forgotten yet
            return
        if session.shaken:
            self._go_on(slot, session)
        else:
            session.due = True
            self._due.append(slot)
            self._streams.watch(slot, False, False)

    def shake(self) -> None:
        """The round's steps of handshakes, and the end of those that take too long."""
        for slot in self._handshakes.overdue(time.monotonic()):
            self._cut_off(slot)
        for _ in range(min(STEPS_A_ROUND, len(self._due))):
            slot = self._due.popleft()
            session = self._sessions.get(slot)
            if session is not None and session.due and self._streams.is_open(slot):
                session.due = False
                self._go_on(slot, session)

    def _cut_off(self, slot: int) -> None:
        self._handshakes.end(slot)
        if self._streams.is_open(slot):
            self._streams.close(slot)

    def _go_on(self, slot: int, session: Session) -> None:
        try:
            if not session.shaken:
                session.sock.do_handshake()
                session.shaken = True
                self._handshakes.end(slot)
            if self._streams.state(slot) == "open":
                self._read(slot, session)
        except ssl.SSLWantReadError:
            self._streams.watch(slot, True, False)
        except ssl.SSLWantWriteError:
            self._streams.watch(slot, False, True)
            return
        except OSError:  # ssl.SSLError is one
            self._streams.close(slot)
            return
        if session.shaken:
            self.settle(slot)

    def _read(self, slot: int, session: Session) -> None:
        """What has come, to the end of a record: the kernel knows nothing of what OpenSSL holds back."""
        while True:
            data = session.sock.recv(RECORD)
            self._streams.feed(slot, data)
            if not data or not session.sock.pending():
                return

    def settle(self, slot: int) -> None:
        """Send what there is; see what the client's socket is to wait for."""
        session = self._sessions.get(slot)
        if session is None or session.sock.fileno() < 0:
            return
        try:
            while data := self._streams.unsent(slot):
                self._streams.sent(slot, session.sock.send(data))
            state = self._streams.state(slot)
        except ssl.SSLWantWriteError:
            self._streams.watch(slot, False, True)
        except ssl.SSLWantReadError:
            self._streams.watch(slot, True, False)
        except IndexError:  # it has been cut off meanwhile
            return
        except OSError:
            self._streams.close(slot)
        else:
            if state == "done":
                self._say_goodbye(session)
                self._streams.close(slot)
            else:
                self._streams.watch(slot, state == "open", False)

    def may_transfer(self, slot: int) -> bool:
        """Whether the slot's client may have zones: over TLS for this protocol only (RFC 9103 section 7.1)."""
        session = self._sessions.get(slot)
        return session is None or session.sock.selected_alpn_protocol() in ALPN

    def _say_goodbye(self, session: Session) -> None:
        """close_notify, so that the client knows that nothing was cut off. Its own is not waited for."""
        try:
            session.sock.unwrap()
        except (OSError, ValueError):
            pass

    def forget(self, slot: int) -> None:
        """The slot's client is gone."""
        self._handshakes.end(slot)
        session = self._sessions.pop(slot, None)
        if session is not None:
            session.sock.close()
