"""Queries that are answered by something else than a lookup: transfers above all. The stream worker's hook for them.

A `Special` is called outside the read lock, in the stream worker, with a query that is a transfer, or signed (TSIG), or
of another opcode than QUERY, and with the client's packed address. None leaves it to the usual answer. Otherwise it
gives the reply's messages, without length bytes: an iterable that is asked for the next one when the client has read
what came before, so a generator need hold one message at a time. It must not block: everybody waits for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from server._stream import Streams

log = logging.getLogger(__name__)

Special = Callable[[bytes, bytes], Iterable[bytes] | None]

#: Messages made for one client in a round: others wait for so many at most.
MESSAGES_A_ROUND = 4


class Running:
    """Replies of several messages that are under way."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._replies: dict[int, deque[Iterator[bytes]]] = {}

    @property
    def eager(self) -> bool:
        """Whether a client could take the next message at once."""
        return any(self._streams.has_room(slot) for slot in self._replies)

    def begin(self, slot: int, messages: Iterable[bytes]) -> None:
        """Send these, after those that this client is being sent already."""
        self._replies.setdefault(slot, deque()).append(iter(messages))
        self._streams.push(slot, [], True)

    def pump(self) -> None:
        """Make the next messages for all who have read the last ones."""
        for slot, replies in list(self._replies.items()):
            if not self._streams.has_room(slot):
                continue
            messages: list[bytes] = []
            try:
                while replies and len(messages) < MESSAGES_A_ROUND:
                    message = next(replies[0], None)
                    if message is None:
                        replies.popleft()
                    else:
                        messages.append(message)
            except Exception:
                # The client sees the end of the stream in the middle of a reply: it cannot take it for whole.
                log.exception("a reply of several messages broke off")
                self._streams.close(slot)
                del self._replies[slot]
                continue
            if not replies:
                del self._replies[slot]
            self._streams.push(slot, messages, bool(replies))

    def forget(self, slot: int) -> None:
        """The client is gone."""
        self._replies.pop(slot, None)
