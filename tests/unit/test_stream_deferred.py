"""Queries that are answered from elsewhere, in the compiled round: what is asked behind them goes on, in any pieces."""

from __future__ import annotations

import random
import socket
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server._answer import Terms
from server._counters import Counters
from server._stream import Streams
from server.answer import answer
from server.policy import Moment, Policy
from shm._atomic import Words
from shm._table import Table
from shm.layout import ENCRYPTED_COUNTERS, PAGE
from tests.support.framing import framed
from tests.support.packets import query
from tests.support.tables import example_table

POLICY = Policy()
TERMS = Terms(POLICY).at(Moment())
ADDRESS = b"\x7f\0\0\1"


def is_deferred(packet: bytes) -> bool:
    return packet[-4:-2] == b"\0\xfc"


def reference(
    packet: bytes, table: Table | None, address: bytes, turn: int, refused: bool, encrypted: bool, asked: bool
) -> bytes | None:
    if is_deferred(packet) and not asked:
        return b""
    return answer(packet, table, POLICY, Moment(address=address, stream=True, encrypted=encrypted))


class Pair:
    """A client of `Streams` and its end of the connection; a round also takes what has come for it."""

    def __init__(self, encrypted: bool = False) -> None:
        words = Words(bytearray(PAGE), writable=True)
        self.counters = Counters(words), Counters(words, ENCRYPTED_COUNTERS)
        self.streams = Streams(4, TERMS, reference, *self.counters)
        self.encrypted = encrypted
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.slot = self.streams.add(self.theirs.fileno() if encrypted else self.theirs.detach(), ADDRESS, encrypted)
        self.received = b""
        self.ended = False

    def close(self) -> None:
        if self.streams.is_open(self.slot):
            self.streams.close(self.slot)
        self.ours.close()
        self.theirs.close()

    def send(self, data: bytes) -> None:
        if self.encrypted:
            self.streams.feed(self.slot, data)
        elif data:
            self.ours.sendall(data)
        else:
            self.ours.shutdown(socket.SHUT_WR)

    def round(self) -> None:
        self.streams.wait(0)
        self.streams.receive()
        if self.streams.waiting:
            self.streams.answer(example_table())
        self.streams.send()
        self.take()

    def take(self) -> None:
        if self.encrypted:
            while self.streams.is_open(self.slot) and (data := self.streams.unsent(self.slot)):
                self.received += data
                self.streams.sent(self.slot, len(data))
            self.ended = not self.streams.is_open(self.slot) or self.streams.state(self.slot) == "done"
            return
        try:
            while data := self.ours.recv(1 << 20):
                self.received += data
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True

    def messages(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.received):
            end = at + 2 + int.from_bytes(self.received[at : at + 2], "big")
            assert end <= len(self.received)
            found.append(self.received[at + 2 : end])
            at = end
        return found


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["AXFR", "A", "TXT"]), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    encrypted=st.booleans(),
)
def test_any_mixture_in_any_pieces(kinds: list[str], seed: int, encrypted: bool) -> None:
    """Deferred ones get their messages whole and in order whenever those come; the others are not held up by them."""
    draw = random.Random(seed)
    packets = [query("a.example.test.", kind, identifier=i) for i, kind in enumerate(kinds)]
    wanted = {i: [reference(p, example_table(), ADDRESS, 0, False, encrypted, True)] for i, p in enumerate(packets)}
    waiting = {}
    with closing(Pair(encrypted)) as pair:
        streams, data = pair.streams, b"".join(map(framed, packets))
        at, pushing = 0, False
        for _ in range(2000):
            if at < len(data):
                size = draw.randint(1, 60)
                pair.send(data[at : at + size])
                at += size
            pair.round()
            for slot in streams.take_held():
                packet = streams.first_message(slot)
                assert is_deferred(packet)
                if draw.random() < 0.2:
                    streams.go_on(slot)
                    continue
                streams.defer(slot)
                number = int.from_bytes(packet[:2], "big")
                # Not even a byte of them before all the others are answered, or any time.
                pieces = [packet[:2] + b"\x80\0" + bytes([n]) * draw.choice([8, 500, 65531]) for n in range(3)]
                waiting[number] = list(pieces)
                wanted[number] = [*pieces]
            others = {i for i in wanted if i not in waiting}
            got = {int.from_bytes(m[:2], "big") for m in pair.messages()} if not pushing else others
            pushing = pushing or others <= got or draw.random() < 0.1
            if pushing and waiting:
                number = draw.choice(list(waiting))
                if streams.takes_more(pair.slot):
                    left = waiting[number]
                    streams.push(pair.slot, left.pop(0), len(left) == 2)
                    pair.take()
                    if not left:
                        del waiting[number]
                        streams.settled(pair.slot)
            if at >= len(data) and not waiting and len(pair.messages()) == sum(map(len, wanted.values())):
                break
        found: dict[int, list[bytes]] = {}
        for message in pair.messages():
            found.setdefault(int.from_bytes(message[:2], "big"), []).append(message)
        assert found == wanted
        assert streams.is_open(pair.slot)
        assert streams.state(pair.slot) == "open"


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_that_sends_no_more_stays_until_it_has_all(encrypted: bool) -> None:
    axfr, a = query("a.example.test.", "AXFR", identifier=1), query("a.example.test.", identifier=2)
    with closing(Pair(encrypted)) as pair:
        pair.send(framed(axfr) + framed(a))
        pair.round()
        pair.send(b"")
        (slot,) = pair.streams.take_held()
        pair.streams.defer(slot)
        for _ in range(5):
            pair.round()
        assert not pair.ended
        assert [m[:2] for m in pair.messages()] == [a[:2]]
        pair.streams.push(slot, axfr[:2] + bytes(20), True)
        pair.streams.settled(slot)
        for _ in range(5):
            pair.round()
        assert pair.ended
        assert pair.messages()[-1] == axfr[:2] + bytes(20)


def test_the_patient_are_not_cut_off() -> None:
    with closing(Pair()) as pair:
        pair.send(framed(query("a.example.test.", "AXFR")))
        pair.round()
        (slot,) = pair.streams.take_held()
        pair.streams.defer(slot)
        pair.streams.wait(5)
        pair.streams.cut_off_silent(0.0)
        assert pair.streams.is_open(slot), "it is us whom it waits for"
        assert pair.streams.idlest() == (-1, 0.0)
        pair.streams.settled(slot)
        pair.streams.wait(5)
        pair.streams.cut_off_silent(0.0)
        assert not pair.streams.is_open(slot)


def test_what_cannot_be() -> None:
    with closing(Pair()) as pair:
        streams = pair.streams
        with pytest.raises(ValueError, match="not held"):
            streams.defer(pair.slot)
        with pytest.raises(ValueError, match="no deferred"):
            streams.settled(pair.slot)
        for size in (0, 11, 65536):
            with pytest.raises(ValueError, match="not a message"):
                streams.push(pair.slot, bytes(size), True)
        with pytest.raises(IndexError):
            streams.push(3, bytes(12), True)
        assert not streams.is_open(3)
        assert not streams.is_open(-1)
        assert not streams.is_open(99)


def test_a_client_that_is_gone_in_the_middle() -> None:
    with closing(Pair()) as pair:
        pair.send(framed(query("a.example.test.", "AXFR")))
        pair.round()
        (slot,) = pair.streams.take_held()
        pair.streams.defer(slot)
        pair.ours.close()
        for _ in range(50):
            if pair.streams.is_open(slot):
                pair.streams.push(slot, bytes(60000), False)
                pair.streams.wait(0)
        assert not pair.streams.is_open(slot)
        assert pair.streams.take_closed() == [(slot, ADDRESS)]
