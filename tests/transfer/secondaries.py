"""NSD, Knot and BIND as secondaries of a primary on this machine, configured as docs/transfers.md says."""

from __future__ import annotations

import os
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
import dns.rdatatype
import pytest

ROOT = Path(__file__).resolve().parents[2]
ZONE = "example.test"
KEY_NAME = "transfer"
SECRET = "c2hhcmVkIHNlY3JldCBvZiBib3RoIHNpZGVz"
KEY = f"{KEY_NAME}:hmac-sha256:{SECRET}"

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
{key}
zone:
    name: {zone}
    zonefile: {zone}.zone
    request-xfr: 127.0.0.1@{primary} {key_name}
    allow-notify: 127.0.0.1 {key_name}
    provide-xfr: 127.0.0.1 NOKEY
"""
NSD_KEY = """
key:
    name: {name}
    algorithm: hmac-sha256
    secret: "{secret}"
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
{key}
remote:
  - id: primary
    address: 127.0.0.1@{primary}
    {key_line}
acl:
  - id: notified
    address: 127.0.0.1
    action: notify
    {key_line}
  - id: looked_at
    address: 127.0.0.1
    action: transfer
zone:
  - domain: {zone}
    storage: {folder}
    master: primary
    acl: [notified, looked_at]
"""
KNOT_KEY = """
key:
  - id: {name}
    algorithm: hmac-sha256
    secret: {secret}
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
{key}
zone "{zone}" {{
    type secondary;
    file "{zone}.db";
    primaries port {primary} {{ 127.0.0.1{key_line}; }};
}};
"""
BIND_KEY = 'key "{name}" {{ algorithm hmac-sha256; secret "{secret}"; }};'


@dataclass(frozen=True)
class Kind:
    """How one of them is configured and started."""

    program: str
    arguments: tuple[str, ...]
    config: str
    key: str
    key_line: str = ""


KINDS = {
    "nsd": Kind("nsd", ("-d", "-c"), NSD, NSD_KEY),
    "knot": Kind("knotd", ("-c",), KNOT, KNOT_KEY, "key: {name}"),
    "bind": Kind("named", ("-g", "-n", "1", "-c"), BIND, BIND_KEY, " key {name}"),
}


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
def secondary(kind: str, folder: Path, port: int, primary: int, *, signed: bool) -> Iterator[Secondary]:
    """Started; ended with the block."""
    way = KINDS[kind]
    executable = program(way.program)
    folder.mkdir(parents=True, exist_ok=True)
    names = {"name": KEY_NAME, "secret": SECRET}
    config = folder / "config"
    config.write_text(
        way.config.format(
            folder=folder,
            port=port,
            primary=primary,
            zone=ZONE,
            key=way.key.format(**names) if signed else "",
            key_name=KEY_NAME if signed else "NOKEY",
            key_line=way.key_line.format(**names) if signed else "",
        )
    )
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
