"""Real processes under a flood from one network: what goes out is bounded, and nobody else is hurt.

Times are measured to know how much the rate allows; none is asserted.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.protocol.running import ask, ask_stream, running
from tests.support.instances import fresh_instance
from tests.support.packets import parsed, query

RATE = 100
SLIP = 2
QUERIES = 3000
#: Ports that the flood comes from.
SOURCES = 40
VICTIM = "127.77.1.{}"
QUESTION = query("text.example.test.", "TXT", edns=1232)
CONFIG = 'rrl_exempt = []\nrefuse = ["127.77.3.0/24"]\ndrop = ["127.77.4.0/24"]\n'


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    options = ("--workers", str(request.param), "--rrl-rate", str(RATE), "--rrl-slip", str(SLIP))
    folder = tmp_path_factory.mktemp("limited")
    with fresh_instance() as instance, running(folder, instance, *options, config=CONFIG) as port:
        yield port


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a flood has got. `elapsed_s`: from its first packet to the last reply."""

    bytes_in: int
    bytes_out: int
    full: int
    truncated: int
    elapsed_s: float


def flood(port: int, packet: bytes = QUESTION) -> Outcome:
    """The same question from many ports of one network, as fast as it goes."""
    sockets = []
    for number in range(SOURCES):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((VICTIM.format(1 + number % 250), 0))
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        sockets.append(sock)
    kinds: Counter[bool] = Counter()
    bytes_out, last = 0, time.monotonic()
    start = last

    def collect(wait_s: float) -> bool:
        nonlocal bytes_out, last
        ready = select.select(sockets, [], [], wait_s)[0]
        for sock in ready:
            reply = sock.recv(4096)
            bytes_out += len(reply)
            kinds[bool(reply[2] & 2)] += 1
            last = time.monotonic()
        return bool(ready)

    try:
        for number in range(QUERIES):
            sockets[number % SOURCES].send(packet)
            if number % 20 == 0:
                collect(0)
        while collect(0.5):
            pass
    finally:
        for sock in sockets:
            sock.close()
    return Outcome(QUERIES * len(packet), bytes_out, kinds[False], kinds[True], last - start)


def test_a_flood_is_not_amplified(port: int) -> None:
    size = len(ask_stream(QUESTION, "127.0.0.1", port))
    assert size > 10 * len(QUESTION), "worth abusing"
    outcome = flood(port)
    # The burst, what the rate gives meanwhile, and one for each worker that rounding may add.
    allowed = RATE * (1 + outcome.elapsed_s) + 2
    assert RATE * 0.8 <= outcome.full <= allowed, "all workers together"
    assert outcome.truncated <= (QUERIES - outcome.full) / SLIP + 2
    assert outcome.bytes_out <= allowed * size + outcome.bytes_in / SLIP
    assert outcome.truncated > 0


def truncated_reply(port: int) -> bytes:
    """One that slipped through, for a client of the flooded network."""
    for _ in range(50 * SLIP):
        try:
            reply = ask(QUESTION, "127.0.0.1", port, VICTIM.format(200), 0.05)
        except TimeoutError:
            continue
        if reply[2] & 2:
            return reply
    raise AssertionError("nothing slipped through")


def test_a_client_of_the_victims_network_comes_back_by_tcp(port: int) -> None:
    flood(port)
    reply = truncated_reply(port)
    message = parsed(reply)
    assert (message.answer, message.authority, message.additional) == ([], [], [])
    assert len(reply) <= len(QUESTION)
    whole = parsed(ask_stream(QUESTION, "127.0.0.1", port, VICTIM.format(200)))
    assert len(whole.answer) == 1


def with_cookie(cookie: bytes) -> bytes:
    packet = query("text.example.test.", "TXT", edns=1232)
    return packet[:-2] + (4 + len(cookie)).to_bytes(2, "big") + b"\0\x0a" + len(cookie).to_bytes(2, "big") + cookie


def test_a_client_with_a_cookie_is_not_limited(port: int) -> None:
    source = VICTIM.format(201)
    reply = parsed(ask_stream(with_cookie(b"client-c"), "127.0.0.1", port, source))
    cookie = next(option.to_wire() for option in reply.options if int(option.otype) == 10)
    assert cookie is not None
    flood(port)
    for _ in range(3 * RATE):
        assert parsed(ask(with_cookie(cookie), "127.0.0.1", port, source)).answer
    forged = cookie[:-1] + bytes([cookie[-1] ^ 1])
    outcome = flood(port, with_cookie(forged))
    assert outcome.full <= RATE * (1 + outcome.elapsed_s) + 2, "a forged one is no cookie"


def test_other_networks_are_not_hurt(port: int) -> None:
    flood(port)
    for _ in range(RATE // 4):
        assert parsed(ask(QUESTION, "127.0.0.1", port, "127.77.2.1")).answer


def test_refused_and_dropped_networks(port: int) -> None:
    packet = query("a.example.test.", edns=1232)
    for reply in (ask(packet, "127.0.0.1", port, "127.77.3.9"), ask_stream(packet, "127.0.0.1", port, "127.77.3.9")):
        message = parsed(reply)
        assert reply[3] & 15 == 5
        assert [int(option.otype) for option in message.options] == [15]
        assert (message.options[0].to_wire() or b"")[:2] == b"\0\x12"
    with pytest.raises(TimeoutError):
        ask(packet, "127.0.0.1", port, "127.77.4.9", 0.3)
    assert ask(packet, "127.0.0.1", port, "127.77.5.9")[3] & 15 == 0
    try:
        assert ask_stream(packet, "127.0.0.1", port, "127.77.4.9") == b""
    except ConnectionError:
        pass


@pytest.mark.parametrize("order", ["rotate", "random", "fixed"])
def test_some_of_the_addresses(order: str, tmp_path: Path, instance: str) -> None:
    """Two of five in each answer, all with the same share, whatever the batches."""
    options = ("--workers", "2", "--order", order, "--max-answers", "2")
    counts: Counter[str] = Counter()
    firsts: Counter[str] = Counter()
    asked = 1500
    with running(tmp_path, instance, *options) as port:
        for _ in range(asked):
            addresses = [str(rdata) for rdata in parsed(ask(query("five.example.test."), "127.0.0.1", port)).answer[0]]
            assert len(set(addresses)) == len(addresses) == 2
            counts.update(addresses)
            firsts[addresses[0]] += 1
    if order == "fixed":
        assert counts == {"192.0.2.11": asked, "192.0.2.12": asked}
        return
    for shares, expected in ((counts, 2 * asked / 5), (firsts, asked / 5)):
        assert len(shares) == 5
        assert sum((count - expected) ** 2 / expected for count in shares.values()) < 25, shares
