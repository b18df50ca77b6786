"""DNS over TLS (RFC 7858) against the real stream worker: answers, padding, keepalive, certificates that change."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dns.edns
import dns.message
import pytest

from server.answer import answer
from server.policy import Moment, Policy
from server.sockets import Address, open_tcp
from server.stream import StreamLimits, run_stream
from server.tls import Certificate, CertificateError, expiry
from shm.board import Board
from shm.layout import ENCRYPTED_COUNTERS
from shm.tables import TableWriter
from tests.support.framing import framed, reply_from
from tests.support.instances import fresh_instance
from tests.support.packets import query
from tests.support.processes import Child, child, drive, wait_for
from tests.support.selfsigned import make_pair
from tests.support.tables import example_blocks, example_table

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
PATIENCE_S = 20.0
A, HUGE = (query(f"{name}.example.test.", edns=1232) for name in ("a", "huge"))
KEEPALIVE, PADDING = 11, 12


@dataclass
class Service:
    """A stream worker with a certificate of its own to change."""

    port: int
    plain_port: int
    cert: Path
    key: Path
    board: Board
    writer: TableWriter
    process: Child

    @contextmanager
    def connected(self, *versions: ssl.TLSVersion) -> Iterator[ssl.SSLSocket]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["dot"])
        if versions:
            context.minimum_version = context.maximum_version = versions[0]
        with (
            socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as plain,
            context.wrap_socket(plain) as sock,
        ):
            yield sock

    def name(self) -> bytes:
        """The certificate that a new connection gets."""
        with self.connected() as sock:
            return sock.getpeercert(binary_form=True) or b""


@contextmanager
def service(folder: Path, limits: StreamLimits | None = None) -> Iterator[Service]:
    with fresh_instance() as instance:
        board = Board.create_or_attach(instance)
        writer = TableWriter(board)
        drive(writer.replace(example_blocks(), 7, {}))
        cert, key = make_pair(folder, "one.test")
        certificate = Certificate(cert, key)
        plain, encrypted = (open_tcp(Address("127.0.0.1", 0)) for _ in range(2))
        ports = [sock.getsockname()[1] for sock in (encrypted, plain)]
        policy, kept = Policy(), limits or StreamLimits()

        def run(_: object) -> None:
            raise SystemExit(
                run_stream(instance, [plain], policy, kept, 1.0, encrypted=[encrypted], certificate=certificate)
            )

        with child(run) as process:
            plain.close()
            encrypted.close()
            wait_for("the stream worker answers", lambda: board.slot(63).get("generation"))
            yield Service(*ports, cert, key, board, writer, process)
        writer.close()
        board.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("tls")) as running:
        yield running


def reference(packet: bytes) -> bytes:
    return answer(packet, example_table(), Policy(), Moment(stream=True, encrypted=True)) or b""


def with_options(*codes: int, name: str = "a.example.test.") -> bytes:
    message = dns.message.make_query(name, "A", use_edns=0, options=[dns.edns.GenericOption(c, b"") for c in codes])
    return message.to_wire()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_answers(tls: Service, version: ssl.TLSVersion) -> None:
    with tls.connected(version) as sock:
        assert sock.selected_alpn_protocol() == "dot"
        for packet in [A] * 50 + [HUGE] * 3 + [query("nowhere.example.test.", identifier=i) for i in range(50)]:
            sock.sendall(framed(packet))
            assert reply_from(sock) == reference(packet)


def test_many_in_one_record_and_one_in_many(tls: Service) -> None:
    with tls.connected() as sock:
        sock.sendall(framed(A) * 300)
        for _ in range(300):
            assert reply_from(sock) == reference(A)
        for byte in framed(A):
            sock.sendall(bytes([byte]))
        assert reply_from(sock) == reference(A)


def test_more_replies_than_the_buffers_hold(tls: Service) -> None:
    with tls.connected() as sock:
        sock.sendall(framed(HUGE) * 60)
        for _ in range(60):
            assert reply_from(sock) == reference(HUGE)


def test_replies_are_padded_where_the_client_pads(tls: Service) -> None:
    """RFC 8467 section 4.1: to blocks of 468 bytes, on an encrypted transport only."""
    for name in ("a.example.test.", "nowhere.example.test.", "many.example.test.", "www.elsewhere.test."):
        packet = with_options(PADDING, name=name)
        with tls.connected() as sock:
            sock.sendall(framed(packet))
            reply = reply_from(sock)
            assert len(reply) % 468 == 0
            assert reply == reference(packet)
        with socket.create_connection(("127.0.0.1", tls.plain_port), PATIENCE_S) as plain:
            plain.sendall(framed(packet))
            message = dns.message.from_wire(reply_from(plain))
            assert PADDING not in [option.otype for option in message.options]


def test_keepalive_tells_the_idle_time(tls: Service) -> None:
    """RFC 7828, over both, with and without padding."""
    with (
        tls.connected() as sock,
        socket.create_connection(("127.0.0.1", tls.plain_port), PATIENCE_S) as plain,
    ):
        for one in (sock, plain):
            for codes in ((KEEPALIVE,), (KEEPALIVE, PADDING)):
                one.sendall(framed(with_options(*codes)))
                options = {option.otype: option for option in dns.message.from_wire(reply_from(one)).options}
                assert options[dns.edns.OptionType(KEEPALIVE)].to_wire() == (100).to_bytes(2, "big")


def test_no_tls_is_not_answered_and_hurts_nobody(tls: Service) -> None:
    with socket.create_connection(("127.0.0.1", tls.port), PATIENCE_S) as plain, tls.connected() as sock:
        plain.sendall(framed(A))
        with suppress(ConnectionResetError):
            while plain.recv(4096):  # a TLS alert at most
                pass
        sock.sendall(framed(A))
        assert reply_from(sock) == reference(A)


def test_tls_is_counted_apart(tls: Service) -> None:
    plain, encrypted = (tls.board.slot(63).counters(start) for start in (512, ENCRYPTED_COUNTERS))
    with tls.connected() as sock:
        sock.sendall(framed(A) * 3)
        for _ in range(3):
            reply_from(sock)
    assert tls.board.slot(63).counters()["requests_family"] == plain["requests_family"]
    now = tls.board.slot(63).counters(ENCRYPTED_COUNTERS)
    assert now["requests_family"][0] - encrypted["requests_family"][0] == 3


def test_a_silent_handshake_is_cut_off(tmp_path: Path) -> None:
    with (
        service(tmp_path, StreamLimits(idle_s=1.0)) as running,
        socket.create_connection(("127.0.0.1", running.port), PATIENCE_S) as plain,
    ):
        assert plain.recv(1) == b""


@pytest.mark.parametrize("told", [True, False], ids=["SIGHUP", "by itself"])
def test_the_certificate_is_reloaded_and_connections_stay(tmp_path: Path, told: bool) -> None:
    with service(tmp_path) as running, running.connected() as before:
        old = running.name()
        for new, path in zip(make_pair(tmp_path, "two.test"), (running.cert, running.key), strict=True):
            os.replace(new, path)
        if told:
            running.process.signal(signal.SIGHUP)
        wait_for("the new certificate is used", lambda: running.name() != old)
        before.sendall(framed(A))
        assert reply_from(before) == reference(A)


def test_a_pair_that_does_not_match_changes_nothing(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        old = running.name()
        cert, key = make_pair(tmp_path, "two.test")
        os.replace(key, running.key)
        running.process.signal(signal.SIGHUP)
        with running.connected() as sock:
            for _ in range(3):
                sock.sendall(framed(A))
                assert reply_from(sock) == reference(A)
        assert running.name() == old
        os.replace(cert, running.cert)
        running.process.signal(signal.SIGHUP)
        wait_for("the pair is whole", lambda: running.name() != old)


def test_messages_about_certificates(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "one.test")
    other, other_key = make_pair(tmp_path, "two.test")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    for pair, message in (
        ((cert, other_key), f"{other_key} is not the key of the certificate {cert}"),
        ((tmp_path / "none", key), "does not exist"),
        ((junk, key), f"{junk} has no certificate in PEM form"),
        ((cert, junk), "are not a certificate and its key in PEM form"),
    ):
        with pytest.raises(CertificateError, match=message):
            Certificate(*pair)
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(CertificateError, match="password"):
        Certificate(cert, locked)
    printed = subprocess.run(
        ["openssl", "x509", "-in", str(other), "-noout", "-enddate"], check=True, capture_output=True, text=True
    ).stdout
    assert expiry(other) == ssl.cert_time_to_seconds(printed.strip().partition("=")[2])


def has_dig_tls() -> bool:
    if shutil.which("dig") is None:
        return False
    return "+[no]tls" in subprocess.run(["dig", "-h"], capture_output=True, text=True, check=False).stdout


@pytest.mark.skipif(not has_dig_tls(), reason="no dig that speaks TLS")
def test_dig(tls: Service) -> None:
    command = ["dig", "@127.0.0.1", "-p", str(tls.port), "+tls", "+padding=128", "+keepalive", "+tries=1"]
    done = subprocess.run([*command, "two.example.test", "A"], capture_output=True, text=True, check=False)
    assert "status: NOERROR" in done.stdout, done.stdout + done.stderr
    assert "PAD" in done.stdout
    assert "TCP-KEEPALIVE" in done.stdout.upper().replace(" ", "-")


def test_swaps_while_answering(tls: Service) -> None:
    """Tables are swapped all the while: every answer is right, over TCP and TLS."""
    with (
        tls.connected() as sock,
        socket.create_connection(("127.0.0.1", tls.plain_port), PATIENCE_S) as plain,
    ):
        first = tls.board.live
        for revision in range(8, 40):
            for one in (sock, plain):
                one.sendall(framed(A) * 40)
            drive(tls.writer.apply({}, revision))
            for one in (sock, plain):
                for _ in range(40):
                    assert reply_from(one) == reference(A)
        assert tls.board.live != first
