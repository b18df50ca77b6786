"""DNS over TCP against the real stream worker, in a process of its own: order, pieces, greed, silence."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from server.answer import answer
from server.policy import Moment, Policy
from server.sockets import Address, open_tcp
from server.stream import StreamLimits, run_stream
from shm._table import Table
from shm.board import Board
from shm.tables import TableWriter
from tests.support.framing import framed, reply_from
from tests.support.instances import fresh_instance
from tests.support.packets import parsed, query
from tests.support.processes import Child, child, drive, wait_for
from tests.support.tables import example_blocks, example_table

PATIENCE_S = 20.0
CLIENTS = 8
IDLE_S = 1.0

POLICY = Policy()


def reference(packet: bytes, table: Table, stream: bool) -> bytes:
    """With the addresses in their stored order."""
    return answer(packet, table, POLICY, Moment(stream=stream)) or b""


class Service:
    """A stream worker and its board."""

    def __init__(self, port: int, board: Board, process: Child) -> None:
        self.port, self.board, self.process = port, board, process

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield sock

    def sockets(self) -> int:
        """How many descriptors the worker has."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def counters(self) -> dict[str, list[int]]:
        return self.board.slot(63).counters()


@contextmanager
def service(limits: StreamLimits) -> Iterator[Service]:
    with fresh_instance() as instance:
        board = Board.create_or_attach(instance)
        writer = TableWriter(board)
        drive(writer.replace(example_blocks(), 7, {}))
        listener = open_tcp(Address("127.0.0.1", 0))
        with child(lambda _: exit_with(run_stream(instance, [listener], Policy(), limits, 1.0))) as process:
            port = listener.getsockname()[1]
            listener.close()
            wait_for("the stream worker answers", lambda: board.slot(63).get("generation"))
            yield Service(port, board, process)
        writer.close()
        board.close()


def exit_with(status: int) -> None:
    if status:
        raise SystemExit(status)


@pytest.fixture(scope="module")
def stream() -> Iterator[Service]:
    with service(StreamLimits(clients=CLIENTS, idle_s=IDLE_S)) as running:
        yield running


def ended(sock: socket.socket) -> bool:
    """Whether the server has closed, or closes while we wait."""
    with suppress(ConnectionResetError):
        while sock.recv(65536):
            pass
    return True


A, MANY, HUGE = (query(f"{name}.example.test.", edns=1232) for name in ("a", "many", "huge"))


def test_one_query(stream: Service) -> None:
    with stream.connected() as sock:
        sock.sendall(framed(A))
        assert reply_from(sock) == reference(A, example_table(), True)


def test_a_connection_is_used_again(stream: Service) -> None:
    with stream.connected() as sock:
        for i in range(20):
            packet = query("two.example.test.", identifier=i)
            sock.sendall(framed(packet))
            assert reply_from(sock) == reference(packet, example_table(), True)


def test_many_messages_in_one_segment_are_answered_in_order(stream: Service) -> None:
    names = ["a", "nowhere", "alias", "many", "sub", "foo.wild"]
    packets = [query(f"{names[i % 6]}.example.test.", identifier=i) for i in range(300)]
    with stream.connected() as sock:
        sock.sendall(b"".join(map(framed, packets)))
        for packet in packets:
            assert reply_from(sock) == reference(packet, example_table(), True)


def test_one_message_in_many_segments(stream: Service) -> None:
    with stream.connected() as sock:
        for byte in framed(A) + framed(MANY)[:1]:
            sock.sendall(bytes([byte]))
            time.sleep(0.001)
        assert reply_from(sock) == reference(A, example_table(), True)
        sock.sendall(framed(MANY)[1:])
        assert reply_from(sock) == reference(MANY, example_table(), True)


def test_a_client_that_ends_its_side_gets_its_answers(stream: Service) -> None:
    """RFC 7766 section 6.2.3: half-close is not goodbye."""
    with stream.connected() as sock:
        sock.sendall(framed(A) * 50 + framed(HUGE) * 3)
        sock.shutdown(socket.SHUT_WR)
        for _ in range(50):
            assert reply_from(sock) == reference(A, example_table(), True)
        for _ in range(3):
            assert reply_from(sock) == reference(HUGE, example_table(), True)
        assert sock.recv(1) == b""


def test_a_client_that_ends_its_side_before_it_reads(stream: Service) -> None:
    """More replies than the buffers hold: they wait for the reader, then the connection ends."""
    count = 60
    with stream.connected() as sock:
        sock.sendall(framed(HUGE) * count)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        for _ in range(count):
            assert len(reply_from(sock)) > 50_000
        assert sock.recv(1) == b""


def test_replies_of_64_kib(stream: Service) -> None:
    with stream.connected() as sock:
        sock.sendall(framed(HUGE) * 20)
        for _ in range(20):
            assert reply_from(sock) == reference(HUGE, example_table(), True)


def test_junk_ends_the_connection_after_what_was_asked_before(stream: Service) -> None:
    response = A[:2] + b"\x80" + A[3:]
    for junk in (b"\0\0", framed(b"x"), framed(response)):
        with stream.connected() as sock:
            sock.sendall(framed(A) + junk + framed(A))
            assert reply_from(sock) == reference(A, example_table(), True)
            assert sock.recv(1) == b""


def test_a_broken_query_is_answered_and_the_connection_goes_on(stream: Service) -> None:
    broken = A[:12] + b"\xc0\x0c"
    with stream.connected() as sock:
        sock.sendall(framed(broken) + framed(A))
        assert parsed(reply_from(sock)).rcode() == 1
        assert reply_from(sock) == reference(A, example_table(), True)


def test_other_clients_do_not_wait_for_a_slow_reader(stream: Service) -> None:
    with stream.connected() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(framed(HUGE) * 100)
        with stream.connected() as other:
            other.sendall(framed(A))
            assert reply_from(other) == reference(A, example_table(), True)


@pytest.mark.parametrize("sent", [b"", framed(A)[:1], framed(A)[:20]], ids=["nothing", "a byte", "half a query"])
def test_an_idle_client_is_cut_off(stream: Service, sent: bytes) -> None:
    with stream.connected() as sock:
        sock.sendall(sent)
        assert ended(sock)


def test_a_client_that_drips_is_cut_off(stream: Service) -> None:
    """A byte now and then is no whole query."""
    with stream.connected() as sock:
        sock.settimeout(0.2)

        def drip() -> bool:
            try:
                sock.sendall(b"\x7f")
                return sock.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_for("it is cut off", drip)


def test_a_reader_that_stops_reading_is_cut_off(stream: Service) -> None:
    before = stream.counters()["response_bytes"][0]
    with stream.connected() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(framed(HUGE) * 200)
        wait_for("it is being served", lambda: stream.counters()["response_bytes"][0] > before)
        open_now = stream.sockets()
        wait_for("it is cut off", lambda: stream.sockets() < open_now)


def test_the_client_limit(stream: Service) -> None:
    """One more than the limit is turned away while all are busy, and let in when one has been silent."""
    with service(StreamLimits(clients=3, idle_s=60.0)) as small:
        connections = [socket.create_connection(("127.0.0.1", small.port), PATIENCE_S) for _ in range(3)]
        for sock in connections:
            sock.sendall(framed(A))
            reply_from(sock)
        with small.connected() as one_more:
            assert ended(one_more)
        time.sleep(1.2)
        for sock in connections[1:]:
            sock.sendall(framed(A))
            reply_from(sock)
        with small.connected() as one_more:
            one_more.sendall(framed(A))
            assert reply_from(one_more) == reference(A, example_table(), True)
        assert ended(connections[0]), "the one that was silent longest made room"
        for sock in connections:
            sock.close()


def test_it_counts(stream: Service) -> None:
    before = stream.counters()
    with stream.connected() as sock:
        for packet in (A, query("nowhere.example.test."), query("a.example.test.", "AAAA")):
            sock.sendall(framed(packet))
            reply_from(sock)
    after = stream.counters()

    def more(name: str) -> list[int]:
        return [new - old for new, old in zip(after[name], before[name], strict=True)]

    assert more("requests_family") == [3, 0]
    assert more("responses_rcode")[:4] == [2, 0, 0, 1]
    assert more("edns") == [1]
    assert sum(more("requests_type")) == 3


def test_it_stops_when_told_and_answers_what_has_come() -> None:
    with service(StreamLimits()) as running, running.connected() as sock:
        sock.sendall(framed(A))
        running.process.signal(signal.SIGTERM)
        assert reply_from(sock) == reference(A, example_table(), True)
        assert ended(sock)
        assert running.process.wait() == 0
        assert not running.board.is_alive(63)


def test_without_a_table_it_says_servfail() -> None:
    with fresh_instance() as instance:
        board = Board.create_or_attach(instance)
        listener = open_tcp(Address("127.0.0.1", 0))
        with (
            child(lambda _: exit_with(run_stream(instance, [listener], Policy(), StreamLimits(), 1.0))),
            socket.create_connection(listener.getsockname(), PATIENCE_S) as sock,
        ):
            listener.close()
            sock.sendall(framed(A))
            assert parsed(reply_from(sock)).rcode() == 2
        board.close()
