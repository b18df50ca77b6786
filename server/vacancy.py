"""The first sockets of a server, on addresses that nobody else listens on.

SO_REUSEPORT shares an address with any program of our user, in silence: of two instances on one address each would get
a part of the queries. So the address is tried without it first, as any other name server binds it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Iterator

from server.sockets import Address, BindError, SocketTable, probe_free
from shm.board import Board
from shm.layout import SlotKind
from shm.segment import is_held

log = logging.getLogger(__name__)

#: Processes that were killed a moment ago may have lost their locks and not yet their sockets.
PATIENCE_S = 1.0
#: For another server that is just binding. It takes milliseconds; one that was stopped meanwhile keeps us no longer.
TURN_PATIENCE_S = 2.0
RETRY_S = 0.02

BOTH = (socket.SOCK_DGRAM, socket.SOCK_STREAM)


def open_sockets(
    board: Board, addresses: tuple[Address, ...], tls_addresses: tuple[Address, ...], workers: int, *, freebind: bool
) -> SocketTable:
    """The listeners, and the sockets of `workers` workers. Raises BindError, also if others listen there.

    Workers of this instance whose supervisor was killed answer on until ours do (server/orphan.py): they may stay.
    """
    with _our_turn():
        for kinds, wanted in ((BOTH, addresses), ((socket.SOCK_STREAM,), tls_addresses)):
            for address in wanted:
                _await_free(board, address, kinds, freebind)
        table = SocketTable(addresses, tls_addresses, freebind=freebind)
        for worker in range(workers):
            table.open_for(worker)
        return table


def _await_free(board: Board, address: Address, kinds: tuple[socket.SocketKind, ...], freebind: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            probe_free(address, kinds, freebind=freebind)
            return
        except BindError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
                raise
            if _orphans(board):
                log.info("%s: workers of the server before this one are there still", address)
                return
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def _orphans(board: Board) -> bool:
    """Whether workers of this instance live. Ours have not been started."""
    return any(
        is_held(board.names.lock(f"slot{number}")) and board.slot(number).get("kind") != SlotKind.OTHER
        for number in board.slots
    )


@contextlib.contextmanager
def _our_turn() -> Iterator[None]:
    """One server of a user at a time: two that start at once would both find their address free, and share it.

    An abstract name is seen by those who see the same addresses: it belongs to the network namespace.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as turn:
        deadline = time.monotonic() + TURN_PATIENCE_S
        while time.monotonic() < deadline:
            try:
                turn.bind(f"\0standoff-binds-{os.geteuid()}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    break
            time.sleep(RETRY_S)
        yield
