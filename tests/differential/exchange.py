"""Many packets to a server and its answers back: over UDP, with a window of outstanding ones, or over TCP."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

#: Outstanding packets. Small enough for every server's socket buffer: a lost one costs a repetition.
WINDOW = 64
#: Seconds without any answer after which a packet counts as unanswered, and how often it is sent.
SILENCE_S = 0.25
ATTEMPTS = 6
#: Between attempts: NSD answers so many malformed queries a second only.
PAUSE_S = 1.1
TCP_PATIENCE_S = 10.0


def with_number(packet: bytes, number: int) -> bytes:
    """The packet with this query identifier."""
    return number.to_bytes(2, "big") + packet[2:]


def ask_datagrams(port: int, packets: Sequence[bytes]) -> list[bytes | None]:
    """The answer to each packet, with the packet's own identifier; None where there is silence."""
    replies: list[bytes | None] = [None] * len(packets)
    left = list(range(len(packets)))
    for attempt in range(ATTEMPTS):
        if attempt and left:
            time.sleep(PAUSE_S)
        for start in range(0, len(left), 0xFFFF):
            _round(port, packets, left[start : start + 0xFFFF], replies)
        left = [index for index in left if replies[index] is None]
    return replies


def _round(port: int, packets: Sequence[bytes], indexes: list[int], replies: list[bytes | None]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        sent, outstanding = 0, 0
        progress = time.monotonic()
        while sent < len(indexes) or outstanding:
            while sent < len(indexes) and outstanding < WINDOW:
                sock.send(with_number(packets[indexes[sent]], sent))
                sent += 1
                outstanding += 1
            if not select.select([sock], [], [], SILENCE_S)[0]:
                outstanding = 0  # silence is an answer, too
                if sent == len(indexes) and time.monotonic() - progress > SILENCE_S:
                    break
                continue
            progress = time.monotonic()
            try:
                while True:
                    reply = sock.recv(65535)
                    index = indexes[int.from_bytes(reply[:2], "big")]
                    if replies[index] is None:
                        replies[index] = packets[index][:2] + reply[2:]
                        outstanding = max(0, outstanding - 1)
            except BlockingIOError:
                pass


def ask_stream(port: int, packets: Sequence[bytes]) -> list[bytes | None]:
    """The answers over one TCP connection, one packet after the other."""
    replies: list[bytes | None] = []
    with socket.create_connection(("127.0.0.1", port), TCP_PATIENCE_S) as sock, sock.makefile("rb") as stream:
        for packet in packets:
            sock.sendall(len(packet).to_bytes(2, "big") + packet)
            length = int.from_bytes(stream.read(2), "big")
            replies.append(stream.read(length) or None)
    return replies
