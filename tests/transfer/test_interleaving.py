"""What is asked behind a long transfer on one connection does not wait for it (RFC 7766 section 6.2.1.1, RFC 9103)."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from shm.layout import ENCRYPTED_COUNTERS, SlotKind
from tests.support.etcd import free_ports
from tests.support.framing import framed
from tests.support.instances import fresh_instance
from tests.support.packets import query
from tests.support.processes import wait_for
from tests.support.selfsigned import make_pair
from tests.transfer.primary import PATIENCE_S, Primary, standoff, wait_until_published
from tests.transfer.secondaries import ZONE, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

#: Some 2.5 MB in 160 messages: far more than the buffers of a connection hold.
HOSTS = 90_000
RECORDS = HOSTS + 4
ALLOWED = "127.0.0.2"
FIRST_QUERY = 100
#: The numbers of the SOA.
SOA_END = b"".join(number.to_bytes(4, "big") for number in (7, 7200, 1800, 86400, 30))


def pid_of(primary: Primary, what: str) -> int:
    found = [line for line in primary.log.splitlines() if f"{what}: pid" in line]
    return int(found[-1].rpartition(" ")[2])


def sockets_of(pid: int) -> int:
    """Sockets that a process has open."""
    count = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(entry.path).startswith("socket:")
    return count


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Primary]:
    folder = tmp_path_factory.mktemp("primary")
    with (folder / "zone.jsonl").open("w") as file:
        for name, type_, data in (
            ("", "SOA", f"ns.{ZONE}. hostmaster.{ZONE}. 7 7200 1800 86400 30"),
            ("", "NS", f"ns.{ZONE}."),
            ("ns.", "A", "192.0.2.53"),
            *((f"h{i}.", "A", f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}") for i in range(HOSTS)),
        ):
            file.write(json.dumps({"name": f"{name}{ZONE}.", "type": type_, "ttl": 300, "data": data}) + "\n")
    cert, key = make_pair(folder, "primary.test")
    port, tls_port = free_ports(2)
    options = [
        "--source", f"file:{folder}/zone.jsonl", "--transfer-allow", ALLOWED, "--tls-listen", f"127.0.0.1:{tls_port}",
        "--tls-cert", str(cert), "--tls-key", str(key),
    ]  # fmt: skip
    with fresh_instance() as instance, standoff("run", folder, instance, port, *options) as running:
        board = wait_until_published(instance)
        wait_for("the workers answer", lambda: sum(1 for s in board.workers() if s.get("generation")) == 2, PATIENCE_S)
        running.tls_port = tls_port
        running.board = board
        running.sockets_at_rest = sockets_of(pid_of(running, "stream"))
        yield running
        assert board.supervisor.get("leaks_reported") == 0
        assert board.supervisor.get("workers_condemned") == 0
        board.close()


@contextmanager
def connected(primary: Primary, encrypted: bool = False, room: int = 0, alpn: str = "dot") -> Iterator[socket.socket]:
    """`room`: of the receive buffer, so that the server notices at once when we do not read."""
    port = primary.tls_port if encrypted else primary.port
    with socket.socket() as sock:
        sock.settimeout(PATIENCE_S)
        sock.bind((ALLOWED, 0))
        if room:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        sock.connect(("127.0.0.1", port))
        if not encrypted:
            yield sock
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([alpn])
        with context.wrap_socket(sock) as wrapped:
            yield wrapped


def axfr(identifier: int) -> bytes:
    return framed(query(ZONE, "AXFR", identifier=identifier))


def host(number: int, identifier: int) -> bytes:
    return framed(query(f"h{number}.{ZONE}.", "A", identifier=identifier))


def messages(sock: socket.socket) -> Iterator[bytes]:
    """Each message, until the end."""
    with sock.makefile("rb") as stream:
        while len(head := stream.read(2)) == 2:
            size = int.from_bytes(head, "big")
            message = stream.read(size)
            if len(message) < size:
                return
            yield message


class Reader:
    """Sorts what comes by ID: transfers below FIRST_QUERY, addresses of hosts from there on.

    `order`: the IDs; `whole`: transfers that have come to their end.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._messages = messages(sock)
        self.order: list[int] = []
        self.records: Counter[int] = Counter()
        self.whole: set[int] = set()
        self.answers: dict[int, bytes] = {}

    def read(self) -> int:
        """The next one's ID. Raises StopIteration."""
        message = next(self._messages)
        number = int.from_bytes(message[:2], "big")
        self.order.append(number)
        assert message[3] & 15 == dns.rcode.NOERROR
        if number >= FIRST_QUERY:
            self.answers[number] = message[-4:]
            return number
        self.records[number] += int.from_bytes(message[6:8], "big")
        if self.records[number] == RECORDS:
            assert message.endswith(SOA_END)
            self.whole.add(number)
        return number

    def read_until(self, *numbers: int) -> None:
        """All of these are answered, transfers to their end."""
        while not all(number in (self.whole if number < FIRST_QUERY else self.answers) for number in numbers):
            self.read()

    def read_to_the_end(self) -> None:
        """Of the connection."""
        with suppress(StopIteration, ConnectionResetError):
            while True:
                self.read()


def address_of(number: int) -> bytes:
    return bytes([10, number >> 16, number >> 8 & 255, number & 255])


BOTH = pytest.mark.parametrize("encrypted", [False, True], ids=["TCP", "TLS"])


@BOTH
def test_queries_behind_a_transfer_are_answered_before_its_end(primary: Primary, encrypted: bool) -> None:
    with connected(primary, encrypted) as sock:
        asked = {100 + i: 997 * i % HOSTS for i in range(50)}
        sock.sendall(axfr(1) + b"".join(host(number, i) for i, number in asked.items()))
        reader = Reader(sock)
        reader.read_until(1, *asked)
    assert {i: reader.answers[i] for i in asked} == {i: address_of(number) for i, number in asked.items()}
    last = max(at for at, i in enumerate(reader.order) if i >= FIRST_QUERY)
    assert set(reader.order[last + 1 :]) == {1}, "the transfer went on behind the last of them"
    assert reader.order.index(1, last) < len(reader.order) - 50, "and had hardly begun"


@BOTH
def test_a_query_in_the_middle_of_a_transfer(primary: Primary, encrypted: bool) -> None:
    """Asked when the client has read a part: what the buffers hold comes before it, not the rest of the zone."""
    with connected(primary, encrypted, room=16384) as sock:
        sock.sendall(axfr(1))
        reader = Reader(sock)
        for part in range(5):
            for _ in range(4):
                reader.read()
            sock.sendall(host(part, 200 + part))
            before = len(reader.order)
            while 200 + part not in reader.answers:
                reader.read()
            assert len(reader.order) - before < 50, "of 160 messages"
            assert reader.answers[200 + part] == address_of(part)
            assert not reader.whole
        reader.read_until(1)


@BOTH
def test_transfers_of_one_connection_take_turns(primary: Primary, encrypted: bool) -> None:
    with connected(primary, encrypted) as sock:
        sock.sendall(axfr(1) + axfr(2) + axfr(3) + host(7, 100))
        reader = Reader(sock)
        reader.read_until(1, 2, 3, 100)
    assert reader.answers[100] == address_of(7)
    ends = [len(reader.order) - 1 - reader.order[::-1].index(i) for i in (1, 2, 3)]
    starts = [reader.order.index(i) for i in (1, 2, 3)]
    assert max(starts) < min(ends), "all had begun before one was whole"
    assert 100 in reader.order[: min(ends)]


def test_more_transfers_than_are_begun_at_a_time(primary: Primary) -> None:
    """They wait for each other; nothing else waits for them."""
    with connected(primary) as sock:
        sock.sendall(b"".join(axfr(i) for i in range(1, 13)) + host(9, 100))
        reader = Reader(sock)
        reader.read_until(100)
        assert not reader.whole
        reader.read_until(*range(1, 13))
    assert reader.answers[100] == address_of(9)


def test_a_client_that_ends_its_side_gets_all(primary: Primary) -> None:
    with connected(primary) as sock:
        sock.sendall(axfr(1) + axfr(2) + host(5, 100))
        sock.shutdown(socket.SHUT_WR)
        reader = Reader(sock)
        reader.read_until(1, 2, 100)
        with pytest.raises(StopIteration):
            reader.read()


@BOTH
def test_queries_do_not_wait_for_a_transfer_that_does_not_come(primary: Primary, encrypted: bool) -> None:
    pid = pid_of(primary, "transfers")
    os.kill(pid, signal.SIGSTOP)
    try:
        with connected(primary, encrypted) as sock:
            sock.sendall(axfr(1))
            reader = Reader(sock)
            for i in range(100, 120):
                sock.sendall(host(i, i))
                assert reader.read() == i
            os.kill(pid, signal.SIGCONT)
            reader.read_until(1)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_transfer_that_breaks_off_ends_the_connection(primary: Primary) -> None:
    with connected(primary, room=16384) as sock:
        sock.sendall(axfr(1))
        reader = Reader(sock)
        reader.read()
        before = pid_of(primary, "transfers")
        os.kill(before, signal.SIGKILL)
        reader.read_to_the_end()
        assert not reader.whole
    wait_for("another one is there", lambda: pid_of(primary, "transfers") != before, PATIENCE_S)
    with connected(primary) as sock:
        sock.sendall(axfr(1))
        Reader(sock).read_until(1)


def test_a_client_that_leaves_in_the_middle(primary: Primary) -> None:
    """Nothing is left of it in the stream worker."""
    stream = pid_of(primary, "stream")

    def at_rest() -> bool:
        return sockets_of(stream) == primary.sockets_at_rest

    # The client of the test before this one may be there still.
    wait_for("nobody is connected", at_rest, PATIENCE_S)
    for encrypted in (False, True):
        with connected(primary, encrypted, room=16384) as sock:
            sock.sendall(axfr(1) + axfr(2))
            Reader(sock).read()
            assert not at_rest()
    wait_for("all is closed", at_rest, PATIENCE_S)


def test_a_reader_that_stops_is_cut_off(primary: Primary, tmp_path: Path) -> None:
    """After tcp_idle, as for any other answer."""
    (port,) = free_ports(1)
    zone = tmp_path / "example.zone"
    zone.write_text(
        f"$ORIGIN {ZONE}.\n$TTL 300\n@ SOA ns hostmaster 7 7200 1800 86400 30\n@ NS ns\nns A 192.0.2.53\n"
        + "".join(f'h{i} TXT "{"t" * 250}" "{"u" * 250}"\n' for i in range(4000))
    )
    options = ["--source", f"file:{zone}", "--transfer-allow", ALLOWED, "--tcp-idle", "1"]
    with fresh_instance() as instance, standoff("run", tmp_path, instance, port, *options) as small:
        board = wait_until_published(instance)
        wait_for("the workers answer", lambda: sum(1 for s in board.workers() if s.get("generation")) == 2, PATIENCE_S)
        with connected(small, room=4096) as sock:
            sock.sendall(axfr(1))
            reader = Reader(sock)
            reader.read()
            stream = pid_of(small, "stream")
            busy = len(os.listdir(f"/proc/{stream}/fd"))
            wait_for("it is cut off", lambda: len(os.listdir(f"/proc/{stream}/fd")) <= busy - 2, PATIENCE_S)
            reader.read_to_the_end()
            assert not reader.whole
        board.close()


def test_it_is_counted_once(primary: Primary) -> None:
    """A transfer is a request and a response, as other queries are."""

    def counted(encrypted: bool) -> list[int]:
        (slot,) = [s for s in primary.board.workers() if s.get("kind") == SlotKind.STREAM]
        counters = slot.counters(ENCRYPTED_COUNTERS) if encrypted else slot.counters()
        return [sum(counters["requests_family"]), sum(counters["responses_rcode"])]

    for encrypted in (False, True):
        before = counted(encrypted)
        with connected(primary, encrypted) as sock:
            sock.sendall(axfr(1) + host(1, 100))
            Reader(sock).read_until(1, 100)
        assert [after - b for after, b in zip(counted(encrypted), before, strict=True)] == [2, 2]


def test_the_supervisor_stops_in_the_middle(tmp_path: Path) -> None:
    """What has begun is finished within the drain time."""
    (port,) = free_ports(1)
    zone = tmp_path / "example.zone"
    zone.write_text(
        f"$ORIGIN {ZONE}.\n$TTL 300\n@ SOA ns hostmaster 7 7200 1800 86400 30\n@ NS ns\nns A 192.0.2.53\n"
        + "".join(f'h{i} TXT "{"t" * 250}" "{"u" * 250}"\n' for i in range(4000))
    )
    options = ["--source", f"file:{zone}", "--transfer-allow", ALLOWED, "--drain-timeout", "20"]
    with fresh_instance() as instance, standoff("run", tmp_path, instance, port, *options) as small:
        board = wait_until_published(instance)
        wait_for("the workers answer", lambda: sum(1 for s in board.workers() if s.get("generation")) == 2, PATIENCE_S)
        with connected(small, room=16384) as sock:
            sock.sendall(axfr(1))
            stream = messages(sock)
            records = sum(map(len, dns.message.from_wire(next(stream), xfr=True).answer))
            os.kill(pid_of(small, "stream"), signal.SIGTERM)
            os.kill(pid_of(small, "transfers"), signal.SIGTERM)
            time.sleep(0.5)
            records += sum(sum(map(len, dns.message.from_wire(message, xfr=True).answer)) for message in stream)
            assert records == 4000 + 4
        board.close()


def test_tls_for_another_protocol(primary: Primary) -> None:
    """RFC 9103 section 7.1: no zones without the ALPN token. Other queries are answered."""
    with connected(primary, encrypted=True, alpn="http/1.1") as sock:
        sock.sendall(axfr(1) + host(3, FIRST_QUERY))
        first, second = itertools.islice(messages(sock), 2)
    assert (first[:2], first[3] & 15) == (b"\0\1", dns.rcode.REFUSED)
    assert second.endswith(address_of(3))


def test_dig_over_tls(primary: Primary) -> None:
    command = [program("dig"), "@127.0.0.1", "-p", str(primary.tls_port), "-b", ALLOWED, "+tls", "+tries=1", "+time=20"]
    output = subprocess.run([*command, ZONE, "axfr"], capture_output=True, text=True, timeout=60, check=False).stdout
    assert f"XFR size: {RECORDS} records" in output, output[-2000:]
    refused = subprocess.run(
        [*command[:4], "-b", "127.0.0.3", *command[6:], ZONE, "axfr"],
        capture_output=True, text=True, timeout=60, check=False,
    ).stdout  # fmt: skip
    assert "Transfer failed" in refused, refused
