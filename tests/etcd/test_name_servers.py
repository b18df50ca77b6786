"""etcd by its name, while name servers are dead. For root: /etc/resolv.conf is another one meanwhile."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dns.exception
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from tests.support.etcd import EtcdServer

NAME = "etcd.standoff.test"
SILENT, ANSWERS = "127.53.0.1", "127.53.0.2"
CLIENT = """
import asyncio, sys, time
from loader import etcd_channel
from loader.etcd import Etcd
from loader.etcd_channel import EtcdUnavailable

async def main():
    begun = time.monotonic()
    try:
        async with Etcd(sys.argv[1]) as etcd:
            print("revision", await etcd.revision())
    except EtcdUnavailable as error:
        print(error)
    print(f"{time.monotonic() - begun:.1f}")

etcd_channel.LOOKUP_S = float(sys.argv[2])
asyncio.run(main())
"""


def answer(sock: socket.socket, stopped: threading.Event) -> None:
    """An address for every name."""
    while not stopped.is_set():
        with suppress(TimeoutError, dns.exception.DNSException):
            packet, peer = sock.recvfrom(512)
            query = dns.message.from_wire(packet)
            reply = dns.message.make_response(query)
            if query.question[0].rdtype == dns.rdatatype.A:
                reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "127.0.0.1"))
            sock.sendto(reply.to_wire(), peer)


@pytest.fixture
def name_servers() -> Iterator[None]:
    """One that is silent, and one that answers."""
    stopped = threading.Event()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answers,
    ):
        answers.settimeout(0.1)
        try:
            silent.bind((SILENT, 53))
            answers.bind((ANSWERS, 53))
        except OSError as error:
            pytest.skip(f"needs port 53: {error}")
        thread = threading.Thread(target=answer, args=(answers, stopped))
        thread.start()
        yield
        stopped.set()
        thread.join()


def connect(folder: Path, endpoint: str, servers: list[str], lookup_s: float) -> list[str]:
    """What a client says that asks these name servers, two seconds each."""
    lines = [*(f"nameserver {one}" for one in servers), "options timeout:2 attempts:1", "search ."]
    (folder / "resolv.conf").write_text("\n".join(lines) + "\n")
    probe = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']
    command = [*probe, str(folder / "resolv.conf"), sys.executable, "-c", CLIENT, endpoint, str(lookup_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "Operation not permitted" in done.stderr or "ermission denied" in done.stderr:
        pytest.skip("needs a mount namespace")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_first_name_server_is_dead(shared_etcd: EtcdServer, name_servers: None, tmp_path: Path) -> None:
    """What it takes to ask the next one is longer than an endpoint may take to answer."""
    said, _ = connect(tmp_path, f"{NAME}:{shared_etcd.port}", [SILENT, ANSWERS], 12)
    assert said.startswith("revision ")


def test_all_name_servers_are_dead(shared_etcd: EtcdServer, name_servers: None, tmp_path: Path) -> None:
    begun = time.monotonic()
    said, took = connect(tmp_path, f"{NAME}:{shared_etcd.port}", [SILENT, SILENT, SILENT], 1)
    assert "no name server has told its address within 1 s" in said
    assert float(took) < 2
    assert time.monotonic() - begun < 5, "the end of the process waits for the name servers"
