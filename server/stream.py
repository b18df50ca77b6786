"""The stream worker: DNS over TCP (RFC 7766) in a process of its own, so that slow clients never touch UDP."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from server._answer import answer_packet
from server._counters import Counters
from server._limits import Networks
from server.answerer import Answerer
from server.orphan import Orphanhood
from server.passage import Doorkeeper
from server.policy import Moment, Policy
from server.sockets import TCP_BACKLOG
from server.worker import IDLE_S, MAP_ATTEMPTS, Limits
from shm._table import Table
from shm.board import Board
from shm.layout import SlotKind
from shm.rwlock import ReadLock
from shm.tables import NotMapped, TableReader

log = logging.getLogger(__name__)

#: Replies that may wait in a connection before its queries are no longer read: a few of the largest.
WRITE_HIGH_WATER = 256 * 1024


EVERYONE = Limits()


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What clients may take. `idle_s`: seconds without a whole query, or a reply read, until they are cut off."""

    clients: int = 1000
    idle_s: float = 10.0


class StreamAnswerer:
    """Answers single messages under the read lock."""

    def __init__(self, instance: str, policy: Policy, limits: Limits) -> None:
        self._board = Board.attach(instance)
        self.slot = self._board.claim(SlotKind.STREAM, preferred=max(self._board.slots))
        self.orphanhood = Orphanhood(self._board, SlotKind.STREAM)
        self._lock = ReadLock(self._board, self.slot)
        self._tables = TableReader(self._board, self.slot)
        self._counters = Counters(self.slot.words)
        self._answerer = Answerer(policy, self._board, self.slot, limits.stale_after_s)
        self._refuse = Networks(limits.refuse)
        self.drop = Networks(limits.drop)
        self._turn = 0
        self._adopted = 0

    def beat(self) -> None:
        """Show a sign of life, map what was announced, and pass the lock once (R2)."""
        self.slot.set("heartbeat_ns", time.monotonic_ns())
        self._answerer.tick()
        self._with_table(lambda _: None)

    def answer(self, packet: bytes, address: bytes) -> bytes | None:
        """The reply, or None where silence is right."""
        self._turn += 1
        moment = self._answerer.moment(address, self._turn, stream=True, prohibited=address in self._refuse)
        reply = self._with_table(lambda table: self._reply(packet, table, moment))
        self._counters.count(packet, reply, len(address) == 16)
        return reply

    def _reply(self, packet: bytes, table: Table | None, moment: Moment) -> bytes | None:
        if table is not None and not moment.prohibited:
            reply = answer_packet(packet, table, self._answerer.terms.at(moment), moment)
            if reply is not None:
                return reply or None
        self.slot.add("declined")
        return self._answerer.answer(packet, table, moment)

    def _with_table(self, use: Callable[[Table | None], bytes | None]) -> bytes | None:
        for _ in range(MAP_ATTEMPTS):
            self._tables.refresh()
            try:
                with self._lock.read() as live:
                    result = use(self._tables.active(live))
                    if live != self._adopted:
                        self._adopted = live
                        self._answerer.adopt(live >> 1, self._tables.revision(live))
                return result
            except NotMapped:
                continue
        return use(None)

    def close(self) -> None:
        self._lock.close()
        self.slot.release()


class Client(asyncio.Protocol):
    """One connection: messages of two length bytes and that many more, in any number of segments, answered in order."""

    def __init__(self, server: StreamServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._address = b""
        self._paused = False
        self._ended = False
        self.last_progress = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        peer = transport.get_extra_info("peername") or ("0.0.0.0",)
        self._address = ipaddress.ip_address(peer[0].partition("%")[0]).packed
        if self._address in self._server.answerer.drop or not self._server.admit(self):
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._work()

    def eof_received(self) -> bool:
        """The client has sent its last query but still reads: answer, then close (RFC 7766 section 6.2.3)."""
        self._ended = True
        return self._buffer_has_work()

    def pause_writing(self) -> None:
        self._paused = True
        if self._transport is not None and not self._ended:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self.last_progress = time.monotonic()
        if self._transport is not None and not self._transport.is_closing() and not self._ended:
            self._transport.resume_reading()
        self._work()

    def _buffer_has_work(self) -> bool:
        return len(self._buffer) >= 2 and len(self._buffer) >= 2 + int.from_bytes(self._buffer[:2], "big")

    def _work(self) -> None:
        """Answer every whole message, as long as the client reads the replies."""
        transport = self._transport
        if transport is None:
            return
        at = 0
        while not self._paused and not transport.is_closing():
            length = int.from_bytes(self._buffer[at : at + 2], "big")
            if len(self._buffer) - at < 2 + length or len(self._buffer) - at < 2:
                break
            packet = bytes(self._buffer[at + 2 : at + 2 + length])
            if self._hand_over(transport, packet, at):
                return
            at += 2 + length
            reply = self._server.answerer.answer(packet, self._address)
            self.last_progress = time.monotonic()
            if reply is None:
                transport.close()  # not a query: whoever sends this over TCP has nothing to lose
                break
            transport.write(len(reply).to_bytes(2, "big") + reply)
        del self._buffer[:at]
        if self._ended and not self._paused:
            transport.close()

    def _hand_over(self, transport: asyncio.Transport, packet: bytes, at: int) -> bool:
        """Give a connection that asks for a whole zone to the transfer process, with all that was read from `at` on."""
        doorkeeper = self._server.doorkeeper
        if doorkeeper is None or not doorkeeper.takes(packet, self._address) or transport.get_write_buffer_size():
            return False
        if transport.get_extra_info("sslcontext") is not None:
            return False  # the keys of a TLS session stay here
        fd = transport.get_extra_info("socket").fileno()
        if not doorkeeper.hand_over(fd, self._address, bytes(self._buffer[at:])):
            return False
        self._buffer.clear()
        transport.abort()  # our descriptor only: the connection lives on
        return True

    def cut_off(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class StreamServer:
    """All clients of the listening sockets."""

    def __init__(
        self,
        answerer: StreamAnswerer,
        limits: StreamLimits,
        drain_timeout_s: float,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self.answerer = answerer
        self.doorkeeper = doorkeeper
        self._limits = limits
        self._drain_timeout_s = drain_timeout_s
        self._clients: set[Client] = set()
        self._stop = asyncio.Event()

    def admit(self, client: Client) -> bool:
        """At the limit, the client that has been silent longest makes room if it is idle at all."""
        if len(self._clients) >= self._limits.clients:
            idlest = min(self._clients, key=lambda other: other.last_progress)
            if time.monotonic() - idlest.last_progress < 1.0:
                return False
            self._clients.discard(idlest)
            idlest.cut_off()
        self._clients.add(client)
        return True

    def forget(self, client: Client) -> None:
        self._clients.discard(client)

    async def run(self, listeners: list[socket.socket]) -> None:
        """Until SIGTERM; then what has been asked is answered."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        servers = [await loop.create_server(lambda: Client(self), sock=sock, backlog=TCP_BACKLOG) for sock in listeners]
        beating = asyncio.create_task(self._beat())
        await self._stop.wait()
        for server in servers:
            server.close()
        await asyncio.sleep(min(0.1, self._drain_timeout_s))  # what has arrived is answered as it is read
        beating.cancel()
        for client in list(self._clients):
            client.cut_off()

    async def _beat(self) -> None:
        checked = time.monotonic()
        while True:
            self.answerer.beat()
            now = time.monotonic()
            if now - checked > 1.0:
                checked = now
                for client in [c for c in self._clients if now - c.last_progress > self._limits.idle_s]:
                    client.cut_off()
                if self.answerer.orphanhood.must_leave():
                    self._stop.set()
            await asyncio.sleep(IDLE_S)


def run_stream(
    instance: str,
    listeners: list[socket.socket],
    policy: Policy,
    limits: StreamLimits,
    drain_timeout_s: float,
    access: Limits = EVERYONE,
    doorkeeper: Doorkeeper | None = None,
) -> int:
    """The stream worker's main; its exit status."""
    answerer = StreamAnswerer(instance, policy, access)

    async def serve() -> None:
        await StreamServer(answerer, limits, drain_timeout_s, doorkeeper).run(listeners)

    asyncio.run(serve())
    answerer.close()
    return 0
