"""A server on all addresses answers from the one that was asked; on an address that comes later, once it is there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.protocol.running import ask, ask_stream, free_port, running
from tests.support.packets import parsed, query

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


def can_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    command = ["unshare", "--net", "--map-root-user", "sh", "-c", f"{IN_NAMESPACE} true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="NOT tested here: no network namespaces, or no ip command")
def test_an_address_that_appears_later() -> None:
    """In a network namespace: bound before the address exists, answered once it does, and again after it was away."""
    script = f"import sys; sys.path[:0] = {sys.path!r}; from tests.protocol.test_binding import later; later()"
    command = [
        "unshare",
        "--net",
        "--map-root-user",
        "sh",
        "-c",
        f'{IN_NAMESPACE} "$@"',
        "-",
        sys.executable,
        "-c",
        script,
    ]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=root, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def later() -> None:
    """Inside the namespace."""
    import tempfile

    from tests.support.instances import fresh_instance

    address = "198.51.100.53"

    def ip(verb: str) -> None:
        subprocess.run(["ip", "address", verb, f"{address}/32", "dev", "lo"], check=True)

    with tempfile.TemporaryDirectory() as folder, fresh_instance() as instance:
        options = ("--workers", "2", "--freebind", "on")
        with running(Path(folder), instance, *options, listen=f"127.0.0.1,{address}") as port:
            assert parsed(ask(QUESTION, "127.0.0.1", port)).answer
            for _ in range(2):
                ip("add")
                for _ in range(10):
                    assert parsed(ask(QUESTION, address, port, address)).answer
                assert parsed(ask_stream(QUESTION, address, port)).answer
                ip("del")


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
