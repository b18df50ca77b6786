"""The compiled round against the reference: any messages in any pieces, limits of an address."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from server._answer import Terms
from server._counters import Counters
from server._stream import Streams
from server.answer import answer
from server.policy import Moment, Policy
from server.sockets import Address, open_tcp
from server.stream import StreamLimits, run_stream
from shm._atomic import Words
from shm._table import Table
from shm.board import Board
from shm.layout import ENCRYPTED_COUNTERS, PAGE
from shm.tables import TableWriter
from tests.support.framing import framed, reply_from
from tests.support.instances import fresh_instance
from tests.support.mutation import Mutator
from tests.support.packets import query
from tests.support.processes import child, drive, wait_for
from tests.support.tables import example_blocks, example_table

PATIENCE_S = 20.0
POLICY = Policy()
TERMS = Terms(POLICY).at(Moment())
ADDRESS = b"\x7f\0\0\1"


def reference(packet: bytes, encrypted: bool = False) -> bytes | None:
    return answer(packet, example_table(), POLICY, Moment(stream=True, encrypted=encrypted))


def decline(
    packet: bytes, table: Table | None, address: bytes, turn: int, refused: bool, encrypted: bool, asked: bool
) -> bytes | None:
    moment = Moment(address=address, stream=True, prohibited=refused, encrypted=encrypted)
    return answer(packet, table, POLICY, moment)


def new_streams() -> Streams:
    words = Words(bytearray(PAGE), writable=True)
    return Streams(4, TERMS, decline, Counters(words), Counters(words, ENCRYPTED_COUNTERS))


def take_all(sock: socket.socket) -> tuple[bytes, bool]:
    """What there is to read; whether the other side has ended."""
    data = b""
    while True:
        try:
            more = sock.recv(1 << 20)
        except BlockingIOError:
            return data, False
        if not more:
            return data, True
        data += more


def round_of(streams: Streams) -> None:
    streams.wait(0)
    streams.receive()
    if streams.waiting:
        streams.answer(example_table())
    streams.send()


def expected_of(packets: list[bytes], encrypted: bool) -> tuple[bytes, bool]:
    """All replies up to the first packet that ends the connection, and whether there was one."""
    replies = b""
    for packet in packets:
        reply = reference(packet, encrypted)
        if reply is None:
            return replies, True
        replies += framed(reply)
    return replies, False


def pieces_of(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        yield data[start:end]


PACKETS = st.one_of(
    st.sampled_from(["a", "two", "many", "huge", "alias", "nowhere", "foo.wild", "sub", "txt"]).map(
        lambda name: query(f"{name}.example.test.", edns=1232)
    ),
    st.binary(max_size=80),
    st.integers(0, 2**32).map(lambda seed: next(iter(Mutator(random.Random(seed)).packets(1)))),
    st.integers(500, 3000).map(lambda size: query("a.example.test.") + bytes(size)),
)


@settings(max_examples=150, deadline=None)
@given(
    packets=st.lists(PACKETS, max_size=8),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=20),
    encrypted=st.booleans(),
)
def test_any_messages_in_any_pieces(packets: list[bytes], cuts: list[int], encrypted: bool) -> None:
    streams = new_streams()
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        theirs.setblocking(False)
        slot = streams.add(theirs.fileno() if encrypted else theirs.detach(), ADDRESS, encrypted)
        replies, cut_off = expected_of(packets, encrypted)
        got, ended = b"", False
        pieces = list(pieces_of(b"".join(map(framed, packets)), cuts))
        for piece in [*pieces, *[b""] * 200]:
            if encrypted:
                if piece:
                    streams.feed(slot, piece)
                round_of(streams)
                while data := streams.unsent(slot):
                    got += data
                    streams.sent(slot, len(data))
                ended = streams.state(slot) == "done"
            else:
                if piece and not ended:
                    try:
                        ours.sendall(piece)
                    except BrokenPipeError:
                        pass
                round_of(streams)
                more, over = take_all(ours)
                got, ended = got + more, ended or over
            if not piece and len(got) >= len(replies) and ended == cut_off:
                break
        assert got == replies
        assert ended == cut_off


def test_a_full_house() -> None:
    streams = new_streams()
    pairs = [socket.socketpair() for _ in range(5)]
    try:
        slots = [streams.add(os.dup(theirs.fileno()), ADDRESS) for _, theirs in pairs[:4]]
        assert sorted(slots) == [0, 1, 2, 3]
        assert streams.add(pairs[4][1].fileno(), ADDRESS) == -1
        streams.close(slots[2])
        assert streams.add(pairs[4][1].fileno(), ADDRESS) == -1, "the slot is free once its end has been told"
        assert streams.take_closed() == [(slots[2], ADDRESS)]
        assert streams.add(os.dup(pairs[4][1].fileno()), ADDRESS) == slots[2]
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_a_closed_client_leaves_the_queue() -> None:
    streams = new_streams()
    slots = []
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, theirs in pairs:
        slots.append(streams.add(theirs.detach(), ADDRESS))
        ours.setblocking(False)
        ours.sendall(framed(query("a.example.test.")))
    streams.wait(1000)
    streams.receive()
    assert streams.waiting == 3
    streams.close(slots[1])
    assert streams.waiting == 2
    streams.answer(example_table())
    streams.send()
    answered = [take_all(ours) for ours, _ in pairs]
    whole = expected_of([query("a.example.test.")], False)[0]
    assert answered == [(whole, False), (b"", True), (whole, False)]
    for ours, _ in pairs:
        ours.close()


def test_a_slot_that_changes_hands_within_a_round() -> None:
    """What an encrypted client has sent is not read for the plain one that had its slot before."""
    streams = new_streams()
    (ours, theirs), (other, encrypted) = socket.socketpair(), socket.socketpair()
    with closing(ours), closing(other), closing(encrypted):
        slot = streams.add(theirs.detach(), ADDRESS)
        ours.sendall(framed(query("a.example.test.")))
        other.sendall(framed(query("a.example.test.")))
        assert streams.wait(1000) == []
        streams.close(slot)
        assert streams.take_closed() == [(slot, ADDRESS)]
        assert streams.add(encrypted.fileno(), ADDRESS, True) == slot
        streams.receive()
        assert not streams.waiting
        streams.send()
        encrypted.setblocking(False)
        assert encrypted.recv(4096) == framed(query("a.example.test."))


@contextmanager
def service(limits: StreamLimits) -> Iterator[int]:
    """The port of a stream worker."""
    with fresh_instance() as instance:
        board = Board.create_or_attach(instance)
        writer = TableWriter(board)
        drive(writer.replace(example_blocks(), 7, {}))
        listener = open_tcp(Address("127.0.0.1", 0))

        def run(_: object) -> None:
            raise SystemExit(run_stream(instance, [listener], Policy(), limits, 1.0))

        with child(run):
            port = listener.getsockname()[1]
            listener.close()
            wait_for("the stream worker answers", lambda: board.slot(63).get("generation"))
            yield port
        writer.close()
        board.close()


def test_one_address_does_not_take_all() -> None:
    plain = query("a.example.test.")

    def asked(port: int, source: str) -> socket.socket | None:
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(source, 0))
        try:
            sock.sendall(framed(plain))
            assert reply_from(sock) == reference(plain)
        except (AssertionError, ConnectionError):
            sock.close()
            return None
        return sock

    with service(StreamLimits(clients=10, idle_s=60.0, clients_per_address=3)) as port:
        greedy = [asked(port, "127.0.0.1") for _ in range(5)]
        other = asked(port, "127.0.0.2")
        assert other is not None
        served = [sock for sock in greedy if sock is not None]
        assert len(served) >= 3
        for sock in [*served, other]:
            sock.close()
        wait_for("there is room again", lambda: _served_and_closed(asked(port, "127.0.0.1")))


def _served_and_closed(sock: socket.socket | None) -> bool:
    if sock is not None:
        sock.close()
    return sock is not None
