"""What dig makes of us: NSID, cookies, zone version, CHAOS names."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.protocol.running import running
from tests.support.instances import fresh_instance

DIG = shutil.which("dig")

pytestmark = pytest.mark.skipif(DIG is None, reason="NOT tested here: no dig; `make test` fetches it")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("dig")
    with fresh_instance() as instance, running(folder, instance, "--workers", "1", "--identity", "ns-7") as port:
        yield port


def dig(port: int, *arguments: str) -> str:
    assert DIG is not None
    command = [DIG, "@127.0.0.1", "-p", str(port), "+tries=1", "+time=10", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def knows(option: str) -> bool:
    """Whether this dig does."""
    assert DIG is not None
    result = subprocess.run([DIG, option, "-v"], capture_output=True, text=True, timeout=30, check=False)
    return "Invalid option" not in result.stdout + result.stderr


def test_nsid(port: int) -> None:
    assert re.search(r'NSID: [0-9a-f ]+\("ns-7/0/\d+"\)', dig(port, "+nsid", "a.example.test"))


def test_cookie(port: int) -> None:
    assert "(good)" in dig(port, "+cookie", "a.example.test")
    again = re.search(r"COOKIE: ([0-9a-f]{48}) \(good\)", dig(port, "+cookie=0102030405060708", "a.example.test"))
    assert again
    text = dig(port, f"+cookie={again[1]}", "a.example.test")
    assert f"COOKIE: {again[1]} (good)" in text


def test_zone_version(port: int) -> None:
    """Debian's dig of 2023 has no +zoneversion: the option by its number then."""
    if knows("+zoneversion"):
        assert "ZONEVERSION" in dig(port, "+zoneversion", "a.example.test")
    else:
        assert re.search(r"OPT=19: 02 00 00 00 00 07", dig(port, "+ednsopt=19", "a.example.test"))


def test_all_at_once_with_everything_else_dig_has(port: int) -> None:
    text = dig(port, "+nsid", "+cookie", "+ednsopt=19", "+dnssec", "+subnet=192.0.2.0/24", "+padding=64", "+expire",
               "+keepalive", "a.example.test")  # fmt: skip
    assert "status: NOERROR" in text
    assert "192.0.2.1" in text
    assert "flags: do;" in text


def test_badvers_and_dig_coming_back(port: int) -> None:
    assert "BADVERS" in dig(port, "+edns=1", "+noednsnegotiation", "a.example.test")
    assert "192.0.2.1" in dig(port, "+edns=1", "a.example.test")


def test_extended_error(port: int) -> None:
    assert "EDE: 20 (Not Authoritative)" in dig(port, "www.elsewhere.test")


def test_truncated_and_again_over_tcp(port: int) -> None:
    text = dig(port, "+bufsize=512", "text.example.test", "TXT")
    assert "Truncated, retrying in TCP mode" in text
    assert "ANSWER: 1," in text


@pytest.mark.parametrize(
    "name", ["id.server", "hostname.bind", "version.server", "generation.server", "revision.server"]
)
def test_chaos(port: int, name: str) -> None:
    text = dig(port, "+short", name, "CH", "TXT")
    assert re.fullmatch(r'"[^"]+"\n', text)
    if name == "id.server":
        assert text.startswith('"ns-7/')
