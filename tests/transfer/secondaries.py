"""NSD, Knot and BIND as secondaries of a primary on this machine, configured as docs/transfers.md says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "transfers.md"
ZONE = "example.test"
KEY_NAME = "transfer"
SECRET = "c2hhcmVkIHNlY3JldCBvZiBib3RoIHNpZGVz"
#: In the certificate of tests that have one.
PRIMARY_NAME = "primary.test"
KEY = f"{KEY_NAME}:hmac-sha256:{SECRET}"

#: What the page leaves to the reader: where the program listens and keeps its files; and who may look at its copy.
NSD = """
server:
    ip-address: 127.0.0.1
    port: {port}
    server-count: 1
    username: ""
    database: ""
    zonesdir: "{folder}"
    pidfile: "{folder}/nsd.pid"
    xfrdfile: "{folder}/xfrd.state"
    xfrdir: "{folder}"
    zonelistfile: "{folder}/zone.list"
    verbosity: 2
remote-control:
    control-enable: no
{page}
    provide-xfr: 127.0.0.1 NOKEY
"""
KNOT = """
server:
    listen: 127.0.0.1@{port}
    rundir: {folder}
database:
    storage: {folder}
log:
  - target: stderr
    any: info
acl:
  - id: looked_at
    address: 127.0.0.1
    action: transfer
template:
  - id: default
    storage: {folder}
{page}
"""
BIND = """
options {{
    directory "{folder}";
    pid-file "{folder}/named.pid";
    session-keyfile "{folder}/session.key";
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }};
    recursion no;
    notify no;
    allow-transfer {{ 127.0.0.1; }};
}};
controls {{ }};
{page}
"""


@dataclass(frozen=True)
class Kind:
    """How one of them is configured and started. `without_key`: what to replace on the page, by what."""

    program: str
    arguments: tuple[str, ...]
    config: str
    without_key: tuple[tuple[str, str], ...]


KINDS = {
    "nsd": Kind("nsd", ("-d", "-c"), NSD, ((r"(?s)^key:.*?\n\n", ""), (" transfer\n", " NOKEY\n"))),
    "knot": Kind("knotd", ("-c",), KNOT, ((r"(?s)^key:.*?\n\n", ""), ("    key: transfer\n", ""))),
    "bind": Kind("named", ("-g", "-n", "1", "-c"), BIND, ((r"(?s)^key .*?\n\n", ""), (" key transfer;", ";"))),
}


def block(name: str) -> str:
    found = re.search(rf"^```{name}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"no configuration of {name} in {PAGE}"
    return found[1]


def encrypted_block(kind: str, certificate: Path) -> str:
    """The page's for TLS, with the key from the one without."""
    key = re.search(KINDS[kind].without_key[0][0], block(kind))
    assert key
    text = (key[0] + block(f"{kind}-tls")).replace("ca.pem", str(certificate))
    return text.replace("primary.example", PRIMARY_NAME)


def configuration(
    kind: str, folder: Path, port: int, primary: int, *, signed: bool, certificate: Path | None = None
) -> str:
    """The page's, for addresses on this machine. `certificate`: for TLS, what the primary shows."""
    way = KINDS[kind]
    text = block(kind) if certificate is None else encrypted_block(kind, certificate)
    assert SECRET in text
    for theirs, ours in (("192.0.2.1@{}", f"127.0.0.1@{primary}"), ("port {}", f"port {primary}")):
        for number in (53, 853):
            text = re.sub(re.escape(theirs.format(number)) + r"\b", ours, text)
    text = text.replace("192.0.2.1", "127.0.0.1").replace("acl: notified", "acl: [notified, looked_at]")
    if not signed:
        for pattern, new in way.without_key:
            text = re.sub(pattern, new, text)
        assert KEY_NAME not in text
    return way.config.format(folder=folder, port=port, page=text.rstrip())


def program(name: str) -> str:
    """Where it is; the test is skipped if it is nowhere."""
    path = os.pathsep.join([str(ROOT / ".cache/tools/bin"), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"no {name}: deploy/prerequisites.sh test fetches it")
    return found


class Secondary:
    """One that runs."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self._log = port, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, name: str, type_: str) -> list[str]:
        """The data of the answer; empty if it has none (yet)."""
        question = dns.message.make_query(name, type_)
        try:
            reply = dns.query.udp(question, "127.0.0.1", timeout=2, port=self.port)
        except (OSError, dns.exception.DNSException):
            return []
        if reply.rcode() != dns.rcode.NOERROR:
            return []
        return sorted(rdata.to_text() for rrset in reply.answer for rdata in rrset)

    def serial(self) -> int:
        """0: it has no zone yet."""
        soa = self.ask(ZONE, "SOA")
        return int(soa[0].split()[2]) if soa else 0


@contextmanager
def secondary(
    kind: str, folder: Path, port: int, primary: int, *, signed: bool, certificate: Path | None = None
) -> Iterator[Secondary]:
    """Started; ended with the block."""
    way = KINDS[kind]
    executable = program(way.program)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config"
    config.write_text(configuration(kind, folder, port, primary, signed=signed, certificate=certificate))
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [executable, *way.arguments, str(config)], cwd=folder, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
    try:
        yield Secondary(port, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
