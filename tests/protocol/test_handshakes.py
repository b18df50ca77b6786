"""Hundreds of TLS handshakes that nobody finishes, and what everybody else notices of them."""

from __future__ import annotations

import itertools
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.handshakes import PATIENCE_S as HANDSHAKE_S
from server.handshakes import Handshakes
from shm.board import Board
from shm.layout import SlotKind
from tests.protocol.running import ask, ask_stream, free_port, running
from tests.support.instances import fresh_instance
from tests.support.packets import query
from tests.support.processes import wait_for
from tests.support.selfsigned import make_pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CLIENTS = 400
LIMITS = Handshakes(CLIENTS, 60.0)
#: More than may be under way, from many addresses.
HALF_OPEN, ADDRESSES = 600, 12
QUESTION = query("a.example.test.", edns=1232)
#: A query that takes so long has met something. Machines with other things to do take their time, too.
NOTICED_S = 2.0


@dataclass(slots=True)
class Server:
    port: int
    tls_port: int
    board: Board
    cert: Path
    key: Path
    log: Path

    @property
    def stream_pid(self) -> int:
        (slot,) = [slot for slot in self.board.workers() if slot.get("kind") == SlotKind.STREAM]
        return slot.get("pid")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.stream_pid}/fd"))

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self.tls_port), 20, (source, 0))
        try:
            return client_context().wrap_socket(sock)
        except OSError:
            sock.close()
            raise

    def ask_tls(self) -> bytes:
        with self.connect() as sock:
            return ask_over(sock)


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ask_over(sock: socket.socket) -> bytes:
    sock.sendall(len(QUESTION).to_bytes(2, "big") + QUESTION)
    with sock.makefile("rb") as stream:
        return stream.read(int.from_bytes(stream.read(2), "big"))


def hello() -> bytes:
    """The first flight of a handshake."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(into, out).do_handshake()
    return out.read()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    cert, key = make_pair(tmp_path, "one.test")
    tls_port = free_port(["127.0.0.1"])
    options = ["--tls-listen", f"127.0.0.1:{tls_port}", "--tls-cert", str(cert), "--tls-key", str(key)]
    options += ["--tcp-clients", str(CLIENTS), "--tcp-clients-per-address", "0", "--tcp-idle", "60", "--workers", "1"]
    with (
        fresh_instance() as instance,
        running(tmp_path, instance, *options) as port,
        closing(Board.attach(instance)) as board,
    ):
        wait_for("all workers answer", lambda: sum(1 for s in board.workers() if s.get("generation")) == 2)
        yield Server(port, tls_port, board, cert, key, tmp_path / "log")
        assert board.supervisor.get("workers_condemned") == 0
        assert board.supervisor.get("workers_died") == 0


class Siege(threading.Thread):
    """Keeps HALF_OPEN connections that say nothing, or half a hello, or all of it and nothing more."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._over = threading.Event()
        self.opened = 0

    def run(self) -> None:
        whole = hello()
        sayings = itertools.cycle([b"", whole[:50], whole])
        sources = itertools.cycle([f"127.88.0.{n}" for n in range(1, ADDRESSES + 1)])
        poll = select.poll()
        known: dict[int, socket.socket] = {}
        while not self._over.is_set():
            while len(known) < HALF_OPEN and not self._over.is_set():
                sock = socket.socket()
                sock.bind((next(sources), 0))
                sock.settimeout(5)
                try:
                    sock.connect(("127.0.0.1", self._port))
                    sock.send(next(sayings))
                except OSError:
                    sock.close()
                    break
                known[sock.fileno()] = sock
                poll.register(sock, select.POLLIN)
                self.opened += 1
            for fd, _ in poll.poll(10):
                try:
                    data = known[fd].recv(65536)
                except OSError:
                    data = b""
                if not data:
                    poll.unregister(fd)
                    known.pop(fd).close()
        for sock in known.values():
            sock.close()

    def stop(self) -> None:
        self._over.set()
        self.join()


def slowest(function: Callable[[], object], seconds: float) -> tuple[int, float]:
    """How often it could be done, and how long it took at most."""
    end, count, longest = time.monotonic() + seconds, 0, 0.0
    while (start := time.monotonic()) < end:
        function()
        count += 1
        longest = max(longest, time.monotonic() - start)
    return count, longest


def test_others_are_answered_during_a_siege(server: Server) -> None:
    calm = server.descriptors()
    with server.connect() as before, socket.create_connection(("127.0.0.1", server.port), 20) as plain:
        ask_over(before)
        siege = Siege(server.tls_port)
        siege.start()
        try:
            wait_for("it is under way", lambda: siege.opened >= HALF_OPEN)
            most = 0
            measured = {}
            for name, function in (
                ("UDP", lambda: ask(QUESTION, "127.0.0.1", server.port)),
                ("TCP, connected", lambda: ask_over(plain)),
                ("TCP, new", lambda: ask_stream(QUESTION, "127.0.0.1", server.port)),
                ("TLS, connected", lambda: ask_over(before)),
                ("TLS, new", server.ask_tls),
            ):
                measured[name] = slowest(function, 1.5)
                most = max(most, server.descriptors() - calm)
            print(f"{siege.opened} opened, {most} descriptors at most: {measured}")
        finally:
            siege.stop()
        assert siege.opened > HALF_OPEN, "it came again when it was cut off"
        assert most <= LIMITS.most + 40, "not all connections are taken by handshakes"
        for name, (count, longest) in measured.items():
            assert count > 5, name
            assert longest < NOTICED_S, name
        ask_over(before)
        told = server.log.read_text().count("TLS handshakes:")
        assert 0 < told <= 20, "ten lines a minute"


def test_one_address_cannot_take_all_handshakes(server: Server) -> None:
    with server.connect("127.0.0.2") as before:
        sockets = []
        for _ in range(LIMITS.most_a_client + 30):
            sock = socket.create_connection(("127.0.0.1", server.tls_port), 20, ("127.88.1.1", 0))
            sockets.append(sock)
        poll = select.poll()
        for sock in sockets:
            poll.register(sock, select.POLLIN)
        wait_for("what is too many is closed", lambda: len(poll.poll(0)) >= 30)
        assert len(poll.poll(0)) <= 40
        for _ in range(10):
            with server.connect("127.0.0.3") as other:
                ask_over(other)
        ask_over(before)
        for sock in sockets:
            sock.close()


def test_a_handshake_has_its_time(server: Server) -> None:
    """Shorter than what a connection may be silent for."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.tls_port), 30) as sock:
        sock.sendall(hello()[:40])
        assert sock.recv(1) == b""
    assert HANDSHAKE_S * 0.9 < time.monotonic() - start < HANDSHAKE_S + 10


def test_the_certificate_is_reloaded_during_a_siege(server: Server, tmp_path: Path) -> None:
    def shown() -> bytes:
        with server.connect() as sock:
            return sock.getpeercert(binary_form=True) or b""

    with server.connect() as before:
        old = shown()
        siege = Siege(server.tls_port)
        siege.start()
        try:
            wait_for("it is under way", lambda: siege.opened >= HALF_OPEN)
            for new, path in zip(make_pair(tmp_path, "two.test"), (server.cert, server.key), strict=True):
                os.replace(new, path)
            wait_for("the new one is shown", lambda: shown() != old)
            ask_over(before)
        finally:
            siege.stop()
        new = shown()
        assert new != old
        ask_over(before)
