"""DNS over TLS (RFC 7858): the encrypted clients of the stream worker.

Their bytes pass through Python's ssl; messages, answers and limits are those of all stream clients
(server/_stream.pyx).
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from server._stream import Streams
from server.tls import ALPN, Certificate

#: A TLS record has at most so much.
RECORD = 16384


@dataclass(slots=True)
class Session:
    """A client. `shaken`: the handshake is done."""

    sock: ssl.SSLSocket
    shaken: bool = False


class Sessions:
    """Encrypted clients by slot."""

    def __init__(self, streams: Streams, certificate: Certificate) -> None:
        self._streams = streams
        self._certificate = certificate
        self._sessions: dict[int, Session] = {}

    def begin(self, plain: socket.socket, address: bytes) -> int:
        """A client's slot, -1 if there is none; then the socket is the caller's."""
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
        return slot

    def ready(self, slot: int) -> None:
        """The client's socket can be read or written."""
        session = self._sessions.get(slot)
        if session is None:
            return
        try:
            if not session.shaken:
                session.sock.do_handshake()
                session.shaken = True
            if self._streams.state(slot) == "open":
                self._read(slot, session)
        except ssl.SSLWantReadError:
            pass
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
        session = self._sessions.pop(slot, None)
        if session is not None:
            session.sock.close()
