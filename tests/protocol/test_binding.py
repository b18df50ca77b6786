"""A server on all addresses answers from the one that was asked; on an address that comes later, once it is there.

Also what needs addresses of several networks: rate limits.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.protocol.running import PATIENCE_S, ask, ask_stream, family, free_port, running
from tests.support.instances import fresh_instance
from tests.support.packets import parsed, query

IPV6_FREEBIND = 78  # linux/in6.h
QUESTION = query("a.example.test.", edns=1232)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_all_ipv4_addresses(tmp_path: Path, instance: str) -> None:
    with running(tmp_path, instance, "--workers", "2", listen="0.0.0.0") as port:
        for address in ("127.0.0.1", "127.0.0.2", "127.9.8.7"):
            for _ in range(20):
                assert parsed(ask(QUESTION, address, port)).answer
            assert parsed(ask_stream(QUESTION, address, port)).answer


@pytest.mark.skipif(not has_ipv6(), reason="NOT tested here: no IPv6")
def test_all_addresses_of_both_families(tmp_path: Path, instance: str) -> None:
    with running(tmp_path, instance, "--workers", "2", listen="::,0.0.0.0") as port:
        for address in ("::1", "127.0.0.1", "127.0.0.3"):
            for _ in range(20):
                assert parsed(ask(QUESTION, address, port)).answer
            assert parsed(ask_stream(QUESTION, address, port)).answer


@pytest.mark.skipif(not has_ipv6(), reason="NOT tested here: no IPv6")
def test_an_ipv6_address(tmp_path: Path, instance: str) -> None:
    """Cookies and limits look at 16 bytes of address."""
    with running(tmp_path, instance, "--workers", "1", listen="::1") as port:
        packet = QUESTION[:-2] + b"\0\x0c\0\x0a\0\x08client-c"
        first, second = (parsed(ask(packet, "::1", port)).options[0].to_wire() for _ in range(2))
        assert first is not None
        assert len(first) == 24
        again = QUESTION[:-2] + b"\0\x1c\0\x0a\0\x18" + first
        assert parsed(ask(again, "::1", port)).options[0].to_wire() == first
        assert second is not None


#: Runs the part behind it in a network namespace of its own, with the loopback interface up.
IN_NAMESPACE = "ip link set lo up && exec "
UNSHARE = ("unshare", "--net", "--map-root-user", "sh", "-c")


def can_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    command = [*UNSHARE, f"{IN_NAMESPACE} true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0


NAMESPACE = pytest.mark.skipif(not can_unshare(), reason="NOT tested here: no network namespaces, or no ip command")


def run_in_namespace(function: Callable[[], None]) -> None:
    """A function of this module."""
    name = function.__name__
    script = f"import sys; sys.path[:0] = {sys.path!r}; from tests.protocol.test_binding import {name}; {name}()"
    command = [*UNSHARE, f'{IN_NAMESPACE} "$@"', "-", sys.executable, "-c", script]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=root, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@contextmanager
def server_inside(*options: str, listen: str) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder, fresh_instance() as instance:
        options = ("--workers", "2", *options)
        with running(Path(folder), instance, *options, listen=listen) as port:
            yield port


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@NAMESPACE
def test_an_address_that_appears_later() -> None:
    """In a network namespace: bound before the address exists, answered once it does, and again after it was away."""
    run_in_namespace(later)


def later() -> None:
    addresses = ["198.51.100.53/32"] + (["2001:db8::53/128"] if has_ipv6() else [])
    plain = [address.partition("/")[0] for address in addresses]
    with server_inside("--freebind", "on", listen=",".join(["127.0.0.1", *plain])) as port:
        assert parsed(ask(QUESTION, "127.0.0.1", port)).answer
        for _ in range(2):
            for address, bare in zip(addresses, plain, strict=True):
                ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in bare else []))
                for _ in range(10):
                    assert parsed(ask(QUESTION, bare, port, bare)).answer
                assert parsed(ask_stream(QUESTION, bare, port)).answer
                ip("address", "del", address, "dev", "lo")


@NAMESPACE
def test_wildcard_addresses_answer_from_the_one_asked() -> None:
    """Of both families, also for addresses that come after the start: the system would choose another source."""
    run_in_namespace(wildcards)


def wildcards() -> None:
    families = [("0.0.0.0", "198.51.100.{}", "/24")] + ([("::", "2001:db8::{}", "/64")] if has_ipv6() else [])
    for any_address, form, length in families:
        with server_inside(listen=any_address) as port:
            for number in range(10, 15):
                address = form.format(number)
                ip("address", "add", address + length, "dev", "lo", *(["nodad"] if ":" in form else []))
            for number in range(10, 15):
                for source in (10, 14):  # `ask` looks where the reply has come from
                    for _ in range(5):
                        assert parsed(ask(QUESTION, form.format(number), port, form.format(source))).answer
                assert parsed(ask_stream(QUESTION, form.format(number), port)).answer


@NAMESPACE
def test_rate_limits_are_for_networks() -> None:
    """A /24 and a /56 have a rate, whatever addresses of it ask; their neighbours have their own."""
    run_in_namespace(networks)


def networks() -> None:
    rate = 50
    cases = [("127.0.0.1", "198.51.100.0/22", [f"198.51.101.{n}" for n in range(1, 60)], "198.51.102.1")]
    if has_ipv6():
        inside = [f"2001:db8:0:1{n:02x}::{n}" for n in range(0, 60)]
        cases.append(("::1", "2001:db8::/32", inside, "2001:db8:0:200::1"))
    for server, local, crowd, neighbour in cases:
        ip(*(["-6"] if ":" in local else []), "route", "add", "local", local, "dev", "lo")
        with server_inside("--rrl-rate", str(rate), "--rrl-slip", "0", listen=server) as port:
            start = time.monotonic()
            answered = sum(asked_from(source, server, port, 20) for source in crowd)
            elapsed = time.monotonic() - start
            assert rate * 0.8 <= answered <= rate * (1 + elapsed) + 2, (answered, elapsed)
            assert asked_from(neighbour, server, port, rate // 5, PATIENCE_S) == rate // 5, server


def asked_from(source: str, server: str, port: int, count: int, patience_s: float = 0.1) -> int:
    """How many of so many queries are answered, the next one within the patience each time."""
    with socket.socket(family(source), socket.SOCK_DGRAM) as sock:
        if family(source) == socket.AF_INET6:  # that a route leads here is not enough for it
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind((source, 0))
        sock.connect((server, port))
        sock.settimeout(patience_s)
        for _ in range(count):
            sock.send(QUESTION)
        replies = 0
        with suppress(TimeoutError):
            while replies < count and sock.recv(4096):
                replies += 1
        return replies


def test_without_freebind_the_address_is_named(tmp_path: Path, instance: str) -> None:
    port = free_port(["127.0.0.1"])
    command = [
        sys.executable, "-m", "cli.main", "serve", "--instance", instance, "--runtime-dir", str(tmp_path),
        "--listen", f"198.51.100.53:{port}",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STANDOFF_")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=root, check=False, env=environment)
    assert result.returncode == 1
    assert f"cannot listen on 198.51.100.53:{port}" in result.stderr
