"""Handing sockets to workers that were forked before those sockets existed (SCM_RIGHTS over a socket pair)."""

from __future__ import annotations

import socket

_MOST_SOCKETS = 64


class Handover:
    """One end of the pair. The supervisor sends, the worker receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[Handover, Handover]:
        """(supervisor's end, worker's end)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def add(self, worker: int, sockets: list[socket.socket]) -> None:
        """Give the sockets of `worker`. A worker that is gone or does not listen misses nothing that it needs."""
        try:
            socket.send_fds(self._sock, [b"add %d" % worker], [sock.fileno() for sock in sockets])
        except OSError:
            pass

    def drop(self, worker: int) -> None:
        """Have the other end close its copies of the sockets of `worker`."""
        try:
            self._sock.send(b"drop %d" % worker)
        except OSError:
            pass

    def receive_into(self, table: dict[int, list[socket.socket]]) -> bool:
        """Take what has come into the worker's socket table; False when the other end is gone."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._sock, 64, _MOST_SOCKETS)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not message:
                return False
            verb, index = message.split()
            for sock in table.pop(int(index), ()):
                sock.close()
            if verb == b"add":
                table[int(index)] = [socket.socket(fileno=descriptor) for descriptor in descriptors]
