"""A server of real processes with a zone file, for tests that ask it over the loopback interface."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shm.segment import remove_instance
from tests.support.packets import query

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; for servers that do not come up, not a claim about speed.
PATIENCE_S = 20.0

ZONE = f"""
@      300 SOA ns hostmaster 7 7200 1800 86400 30
@      300 NS  ns
ns     300 A   192.0.2.53
a       60 A   192.0.2.1
five    60 A   192.0.2.11
five    60 A   192.0.2.12
five    60 A   192.0.2.13
five    60 A   192.0.2.14
five    60 A   192.0.2.15
text    60 TXT {" ".join('"' + "t" * 200 + '"' for _ in range(5))}
"""


@contextmanager
def running(
    folder: Path, instance: str, *options: str, listen: str = "127.0.0.1", config: str = "", content: str = ZONE
) -> Iterator[int]:
    """The port of a server that answers; it is stopped afterwards. `listen`: addresses, separated by commas."""
    zone, toml = folder / "example.test.zone", folder / "standoff.toml"
    zone.write_text(content)
    toml.write_text(config)
    toml.chmod(0o600)
    addresses = listen.split(",")
    port = free_port(addresses)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "cli.main", "run", "--instance", instance, "--runtime-dir", str(folder),
                "--state-dir", "", "--config", str(toml), "--source", f"file:{zone}",
                *(part for address in addresses for part in ("--listen", f"{bracketed(address)}:{port}")), *options,
            ],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until_ready(process, folder, addresses[0], port)
        yield port
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        process.kill()
        process.wait()
        remove_instance(instance)


def wait_until_ready(process: subprocess.Popen[bytes], folder: Path, address: str, port: int) -> None:
    """Over TCP, which no rate limits. Stops when the process has ended."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(OSError):
            reply = ask_stream(query("a.example.test."), loopback, port)
            if reply[3] & 15 == 0:
                return
        log = (folder / "log").read_text(errors="replace")[-3000:]
        assert process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.02)


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def free_port(addresses: list[str]) -> int:
    """Free on all of them, for UDP and TCP."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        with suppress(OSError):
            for address in addresses:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(family(address), kind) as sock:
                        if family(address) == socket.AF_INET6:
                            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                        sock.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND: an address that comes later
                        sock.bind((address, port))
            return port


def ask(packet: bytes, address: str, port: int, source: str = "", patience_s: float = PATIENCE_S) -> bytes:
    """The reply to a datagram, which has to come from where the question went. Raises TimeoutError."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sock.settimeout(patience_s)
        sock.sendto(packet, (address, port))
        reply, sender = sock.recvfrom(65535)
        assert sender[:2] == (address, port)
        return reply


def ask_stream(packet: bytes, address: str, port: int, source: str = "") -> bytes:
    with socket.create_connection((address, port), PATIENCE_S, (source, 0) if source else None) as sock:
        sock.sendall(len(packet).to_bytes(2, "big") + packet)
        with sock.makefile("rb") as stream:
            return stream.read(int.from_bytes(stream.read(2), "big"))
