"""Answers from the transfer process on their way: what comes through, what does not, and what the client sees of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from server import relays
from server.dot import Session, Sessions
from server.handshakes import Handshakes
from server.passage import DONE, Doorkeeper
from server.relays import MOST_A_CLIENT, Relays
from tests.support.framing import framed
from tests.support.packets import query
from tests.unit.test_stream_deferred import ADDRESS, Pair

AXFR = query("a.example.test.", "AXFR", identifier=7)
A = query("a.example.test.", identifier=8)


class Keeper:
    """In the place of the doorkeeper and of the transfer process behind it."""

    def __init__(self) -> None:
        self.takes_it, self.has_room = True, True
        self.far: list[socket.socket] = []

    def takes(self, packet: bytes, address: bytes) -> bool:
        return self.takes_it and packet[-4:-2] == b"\0\xfc" and address == ADDRESS

    def hand_over(self, far_end: socket.socket, address: bytes, packet: bytes) -> bool:
        if self.has_room:
            self.far.append(far_end.dup())
        return self.has_room


class Stage:
    def __init__(self) -> None:
        self.pair, self.keeper = Pair(), Keeper()
        self.relays = Relays(self.pair.streams, cast(Doorkeeper, cast(Any, self.keeper)), None)

    def close(self) -> None:
        for far in self.keeper.far:
            far.close()
        self.pair.close()

    def rounds(self, count: int = 4) -> None:
        """As server/stream.py has them."""
        streams = self.pair.streams
        for _ in range(count):
            for who in streams.wait(0):
                self.relays.take(-1 - who)
            streams.receive()
            if streams.waiting:
                streams.answer(None)
            streams.send()
            self.relays.look()
            for slot, _ in streams.take_closed():
                self.relays.forget(slot)
            self.pair.take()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with closing(Stage()) as one:
        yield one


def ids(stage: Stage) -> list[int]:
    return [message[1] for message in stage.pair.messages()]


def test_messages_pass_and_the_connection_stays(stage: Stage) -> None:
    stage.pair.send(framed(AXFR) + framed(A))
    stage.rounds()
    (far,) = stage.keeper.far
    assert ids(stage) == [8]
    for fill in (20, 65535 - 2, 12):
        far.send(AXFR[:2] + bytes(fill - 2 if fill < 100 else fill))
        stage.rounds()
    far.send(DONE)
    stage.rounds()
    assert [len(m) for m in stage.pair.messages()[1:]] == [20, 65535, 12]
    assert len(stage.relays) == 0
    assert stage.pair.streams.state(stage.pair.slot) == "open"


def test_nothing_comes(stage: Stage) -> None:
    """SERVFAIL, and the connection goes on."""
    stage.pair.send(framed(AXFR))
    stage.rounds()
    stage.keeper.far.pop().close()
    stage.rounds()
    (reply,) = stage.pair.messages()
    assert reply[:2] == AXFR[:2]
    assert (reply[2] & 0x80, reply[3] & 15) == (0x80, 2)
    assert reply[12:] == AXFR[12:]
    stage.pair.send(framed(A))
    stage.rounds()
    assert ids(stage) == [7, 8]
    assert len(stage.relays) == 0


def test_it_breaks_off(stage: Stage) -> None:
    """The end of the connection says that the answer is not whole."""
    stage.pair.send(framed(AXFR))
    stage.rounds()
    far = stage.keeper.far.pop()
    far.send(AXFR[:2] + bytes(100))
    far.close()
    stage.rounds()
    assert ids(stage) == [7]
    assert stage.pair.ended
    assert len(stage.relays) == 0


def test_it_is_silent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.pair.send(framed(AXFR))
    stage.rounds()
    monkeypatch.setattr(relays, "PATIENCE_S", 0.0)
    stage.rounds()
    assert [message[3] & 15 for message in stage.pair.messages()] == [2]


def test_the_passage_has_no_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.keeper.has_room = False
    stage.pair.send(framed(AXFR) + framed(A))
    stage.rounds()
    assert ids(stage) == [8], "it waits, and nothing else does"
    assert len(stage.relays) == 1
    stage.keeper.has_room = True
    stage.rounds()
    (far,) = stage.keeper.far
    far.send(AXFR[:2] + bytes(10))
    far.send(DONE)
    stage.rounds()
    assert ids(stage) == [8, 7]

    stage.keeper.has_room = False
    stage.pair.send(framed(AXFR))
    monkeypatch.setattr(relays, "PATIENCE_S", 0.0)
    stage.rounds()
    assert ids(stage) == [8, 7, 7]
    assert stage.pair.messages()[-1][3] & 15 == 2
    assert len(stage.relays) == 0


def test_who_may_not_gets_the_usual_answer(stage: Stage) -> None:
    stage.keeper.takes_it = False
    stage.pair.send(framed(AXFR))
    stage.rounds()
    assert ids(stage) == [7]
    assert not stage.keeper.far


def test_so_many_at_a_time(stage: Stage) -> None:
    stage.pair.send(framed(AXFR) * (MOST_A_CLIENT + 3) + framed(A))
    stage.rounds(2 * MOST_A_CLIENT + 6)  # one of a client's in each
    assert ids(stage) == [8]
    assert len(stage.keeper.far) == MOST_A_CLIENT
    assert len(stage.relays) == MOST_A_CLIENT + 3
    for number in range(MOST_A_CLIENT + 3):
        stage.keeper.far[number].send(AXFR[:2] + bytes(10))
        stage.keeper.far[number].send(DONE)
        stage.rounds()
    assert len(stage.relays) == 0
    assert len(ids(stage)) == MOST_A_CLIENT + 4


def test_the_client_leaves(stage: Stage) -> None:
    stage.pair.send(framed(AXFR) * (MOST_A_CLIENT + 3))
    stage.rounds()
    stage.pair.streams.close(stage.pair.slot)
    stage.rounds()
    assert len(stage.relays) == 0
    with pytest.raises(OSError, match="pipe"):
        stage.keeper.far[0].send(bytes(12))


@pytest.mark.parametrize("end", [DONE, b""])
def test_the_client_leaves_in_the_round_in_which_the_answer_ends(stage: Stage, end: bytes) -> None:
    """Its slot is forgotten at the end of the round; what came for it in the same round is of no use."""
    stage.pair.send(framed(AXFR))
    stage.rounds()
    (far,) = stage.keeper.far
    far.send(AXFR[:2] + bytes(20))
    stage.rounds()
    if end:
        far.send(end)
    else:
        stage.keeper.far.pop().close()
    stage.pair.streams.close(stage.pair.slot)
    stage.rounds()
    assert len(stage.relays) == 0


def test_an_encrypted_client_that_is_closed_before_its_turn() -> None:
    """A message of its transfer could not be sent, and then comes what its socket had to tell in the same round."""
    with closing(Pair(encrypted=True)) as pair:
        sessions = Sessions(pair.streams, cast(Any, None), Handshakes(4, 1.0))
        sessions._sessions[pair.slot] = Session(cast(Any, pair.theirs), shaken=True)
        pair.streams.close(pair.slot)
        sessions.ready(pair.slot)
        sessions.settle(pair.slot)
        sessions.forget(pair.slot)
        assert pair.theirs.fileno() < 0
