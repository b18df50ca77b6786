"""Cookie secrets change under load: nobody's cookie is turned away, and servers with one file agree.

The servers answer one query a second without a cookie of theirs: who is answered more often has one that is accepted.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.siphash import siphash24
from shm.board import Board
from tests.protocol.running import ask_stream, running
from tests.support.instances import fresh_instance
from tests.support.packets import parsed, query
from tests.support.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OLD, NEW, NEXT = (bytes([number] * 16) for number in (1, 2, 3))
SOURCE = "127.0.0.1"
#: Of the load, for each server: enough to reach both workers.
SOCKETS = 8
OPTIONS = ("--workers", "2", "--rrl-rate", "1", "--rrl-slip", "0")
CONFIG = "rrl_exempt = []\n"


def write(path: Path, *secrets: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_text("".join(f"{secret.hex()}\n" for secret in secrets))
    new.chmod(0o600)
    os.replace(new, path)


def with_cookie(cookie: bytes) -> bytes:
    packet = query("a.example.test.", edns=1232)
    return packet[:-2] + (4 + len(cookie)).to_bytes(2, "big") + b"\0\x0a" + len(cookie).to_bytes(2, "big") + cookie


def cookie_in(reply: bytes) -> bytes:
    message = parsed(reply)
    assert message.answer
    (cookie,) = [option.to_wire() or b"" for option in message.options if int(option.otype) == 10]
    assert len(cookie) == 24
    return cookie


def signer(cookie: bytes) -> bytes:
    (found,) = [s for s in (OLD, NEW, NEXT) if siphash24(s, cookie[:16] + socket.inet_aton(SOURCE)) == cookie[16:]]
    return found


@dataclass(slots=True)
class Server:
    port: int
    board: Board
    log: Path

    def cookie(self, known: bytes = b"client-c") -> bytes:
        """From the stream worker, which limits nobody."""
        return cookie_in(ask_stream(with_cookie(known), SOURCE, self.port, SOURCE))

    def udp_signers(self, cookie: bytes) -> set[bytes]:
        """Whose cookies the UDP workers give to somebody with a good one."""
        found = set()
        for _ in range(SOCKETS):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((SOURCE, 0))
                sock.connect((SOURCE, self.port))
                sock.settimeout(5)
                sock.send(with_cookie(cookie))
                found.add(signer(cookie_in(sock.recv(4096))))
        return found

    def hang_up(self) -> None:
        """As `systemctl reload` does: to the foreground process, which passes it on."""
        supervisor = self.board.supervisor.get("supervisor_pid")
        parent = Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(parent), signal.SIGHUP)


class Load(threading.Thread):
    """One client of each server that asks without pause over UDP and TCP, always with the same cookie."""

    def __init__(self, port: int, cookie: bytes) -> None:
        super().__init__(daemon=True)
        self._port, self._packet = port, with_cookie(cookie)
        self._over = threading.Event()
        self.asked, self.lost = 0, 0
        self.rcodes: set[int] = set()

    def run(self) -> None:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SOCKETS)]
        framed = len(self._packet).to_bytes(2, "big") + self._packet
        with ExitStack() as stack, socket.create_connection((SOURCE, self._port), 20) as stream:
            file = stack.enter_context(stream.makefile("rb"))
            for sock in sockets:
                stack.enter_context(sock)
                sock.bind((SOURCE, 0))
                sock.connect((SOURCE, self._port))
                sock.settimeout(5)
            while not self._over.wait(0.0005):
                for sock in sockets:
                    sock.send(self._packet)
                stream.sendall(framed)
                self.asked += len(sockets) + 1
                for sock in sockets:
                    try:
                        self.rcodes.add(sock.recv(4096)[3] & 15)
                    except TimeoutError:
                        self.lost += 1
                self.rcodes.add(file.read(int.from_bytes(file.read(2), "big"))[3] & 15)

    def stop(self) -> None:
        self._over.set()
        self.join()
        assert self.lost == 0
        assert self.rcodes == {0}
        assert self.asked > 500


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    path = tmp_path / "secrets"
    write(path, OLD)
    return path


@pytest.fixture
def servers(tmp_path: Path, secrets: Path) -> Iterator[list[Server]]:
    """Two instances, as two machines would be, with one file."""
    with ExitStack() as stack:
        result = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            instance = stack.enter_context(fresh_instance())
            options = (*OPTIONS, "--cookie-secret-file", str(secrets))
            port = stack.enter_context(running(folder, instance, *options, config=CONFIG))
            board = stack.enter_context(closing(Board.attach(instance)))
            wait_for("all workers answer", lambda b=board: sum(1 for s in b.workers() if s.get("generation")) == 3)
            result.append(Server(port, board, folder / "log"))
        yield result


def test_secrets_are_rotated_under_load(servers: list[Server], secrets: Path) -> None:
    one, two = servers
    old = one.cookie()
    assert signer(old) == OLD
    assert two.cookie(old) == old, "the other server knows it as its own"
    loads = [Load(server.port, old) for server in servers]
    for load in loads:
        load.start()

    write(secrets, NEW, OLD)
    one.hang_up()
    for server in servers:  # the second by itself
        wait_for("the stream worker signs with it", lambda s=server: signer(s.cookie()) == NEW)
        wait_for("all UDP workers do", lambda s=server: s.udp_signers(old) == {NEW})
    young = one.cookie(old)
    assert signer(young) == NEW
    assert two.cookie(young) == young
    for server in servers:
        assert server.udp_signers(young) == {NEW}

    with secrets.open("a") as file:
        file.write("not a secret\n")
    one.hang_up()
    for server in servers:
        wait_for("it is reported", lambda s=server: "stay in use" in s.log.read_text())
        assert f"line 3 of {secrets} is not a cookie secret" in server.log.read_text()
        assert server.udp_signers(old) == {NEW}
    assert two.cookie(young) == young
    for load in loads:
        load.stop()

    write(secrets, NEXT, NEW)
    one.hang_up()
    for server in servers:
        wait_for("the next one signs", lambda s=server: signer(s.cookie(young)) == NEXT)
        wait_for("everywhere", lambda s=server: s.udp_signers(young) == {NEXT})
    packet = with_cookie(old)
    answered = 0
    for server in servers:
        for _ in range(10):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((SOURCE, 0))
                sock.settimeout(0.1)
                sock.sendto(packet, (SOURCE, server.port))
                try:
                    answered += bool(sock.recv(4096))
                except TimeoutError:
                    pass
    assert answered < 12, "what the file no longer has is no secret"


def test_a_worker_that_is_replaced_has_the_secrets_of_now(servers: list[Server], secrets: Path) -> None:
    one, _ = servers
    old = one.cookie()
    write(secrets, NEW, OLD)
    one.hang_up()
    wait_for("it is read", lambda: signer(one.cookie()) == NEW)
    before = {slot.get("pid") for slot in one.board.workers()}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for(
        "others are there",
        lambda: sum(1 for s in one.board.workers() if s.get("pid") not in before and s.get("generation")) == 3,
    )
    assert signer(one.cookie()) == NEW
    assert one.udp_signers(old) == {NEW}


def test_a_bad_file_keeps_it_from_starting(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("junk\n")
    with (
        fresh_instance() as instance,
        pytest.raises(AssertionError, match=r"line 1 of .* is not a cookie secret"),
        running(tmp_path, instance, "--cookie-secret-file", str(secrets)),
    ):
        pass
