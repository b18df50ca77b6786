"""DNS messages on a stream: two octets of length before each (RFC 1035 section 4.2.2)."""

from __future__ import annotations

import socket


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


def take(sock: socket.socket, count: int) -> bytes:
    """Exactly so many octets; fails if the other side closes before."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, f"closed after {len(data)} of {count} bytes"
        data += more
    return data


def reply_from(sock: socket.socket) -> bytes:
    """The next message."""
    return take(sock, int.from_bytes(take(sock, 2), "big"))
