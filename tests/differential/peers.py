"""Standoff and four other servers, each on a free port of 127.0.0.1 with the same zone files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shm.segment import remove_instance
from tests.support.packets import query

ROOT = Path(__file__).resolve().parents[2]
ZONE_FOLDER = Path(__file__).parent / "zones"
ZONES = tuple(sorted(path.stem for path in ZONE_FOLDER.glob("*.zone")))
#: Seconds; for servers that do not come up, not a claim about speed.
PATIENCE_S = 20.0
IDENTITY, VERSION = "standoff-test", "as-tested"
COOKIE_SECRET = "000102030405060708090a0b0c0d0e0f"
#: The programs, by the name that tests give the server.
PROGRAMS = {"bind": "named", "nsd": "nsd", "knot": "knotd", "powerdns": "pdns_server"}


@dataclass(frozen=True, slots=True)
class Start:
    """What a server is started with."""

    folder: Path
    port: int

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


def bind(start: Start) -> list[str]:
    zones = "".join(
        f'zone "{zone}." {{ type primary; file "{ZONE_FOLDER}/{zone}.zone"; notify no; }};\n' for zone in ZONES
    )
    config = start.write("named.conf", f"""
options {{
    directory "{start.folder}"; pid-file none; session-keyfile none; managed-keys-directory "{start.folder}";
    listen-on port {start.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; empty-zones-enable no; allow-transfer {{ none; }};
    check-names primary ignore; check-integrity no; check-mx ignore;
    max-udp-size 1232; edns-udp-size 1232; server-id "{IDENTITY}"; version "{VERSION}";
    cookie-secret "{COOKIE_SECRET}"; rrset-order {{ order none; }};
}};
controls {{ }};
{zones}""")  # fmt: skip
    return ["-g", "-n", "1", "-c", config]


def nsd(start: Start) -> list[str]:
    zones = "".join(f'zone:\n  name: "{zone}."\n  zonefile: "{ZONE_FOLDER}/{zone}.zone"\n' for zone in ZONES)
    config = start.write("nsd.conf", f"""
server:
  ip-address: 127.0.0.1@{start.port}
  server-count: 1
  username: ""
  zonesdir: "{start.folder}"
  database: ""
  pidfile: "{start.folder}/nsd.pid"
  xfrdfile: "{start.folder}/xfrd.state"
  xfrdir: "{start.folder}"
  zonelistfile: "{start.folder}/zone.list"
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  identity: "{IDENTITY}"
  nsid: "ascii_{IDENTITY}"
  version: "{VERSION}"
  answer-cookie: yes
  cookie-secret: {COOKIE_SECRET}
remote-control:
  control-enable: no
{zones}""")  # fmt: skip
    return ["-d", "-c", config]


def knot(start: Start) -> list[str]:
    zones = "".join(f'  - domain: "{zone}."\n    file: "{ZONE_FOLDER}/{zone}.zone"\n' for zone in ZONES)
    config = start.write("knot.conf", f"""
server:
  rundir: "{start.folder}"
  listen: 127.0.0.1@{start.port}
  identity: "{IDENTITY}"
  nsid: "{IDENTITY}"
  version: "{VERSION}"
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "{start.folder}"
control:
  listen: "{start.folder}/knot.sock"
log:
  - target: stderr
    any: warning
mod-cookies:
  - id: c
    secret: 0x{COOKIE_SECRET}
template:
  - id: default
    storage: "{start.folder}"
    global-module: mod-cookies/c
    semantic-checks: off
    zonefile-sync: -1
    journal-content: none
zone:
{zones}""")  # fmt: skip
    return ["-c", config]


def powerdns(start: Start) -> list[str]:
    zones = "".join(f'zone "{zone}" {{ type master; file "{ZONE_FOLDER}/{zone}.zone"; }};\n' for zone in ZONES)
    start.write("named.conf", zones)
    start.write("pdns.conf", f"""
launch=bind
bind-config={start.folder}/named.conf
local-address=127.0.0.1
local-port={start.port}
socket-dir={start.folder}
daemon=no
guardian=no
disable-syslog=yes
loglevel=3
cache-ttl=0
query-cache-ttl=0
negquery-cache-ttl=0
receiver-threads=1
distributor-threads=1
server-id={IDENTITY}
version-string={VERSION}
security-poll-suffix=
udp-truncation-threshold=1232
dname-processing=yes
edns-cookie-secret={COOKIE_SECRET}
disable-axfr=yes
""")  # fmt: skip
    return [f"--config-dir={start.folder}"]


CONFIGURED: dict[str, Callable[[Start], list[str]]] = {"bind": bind, "nsd": nsd, "knot": knot, "powerdns": powerdns}


class Server:
    """One running server."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.port = free_port()
        self.log = folder / "log"
        self._instance = f"diff-{os.getpid()}"
        folder.mkdir()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )

    def _command(self, folder: Path) -> list[str]:
        if self.name != "standoff":
            program = shutil.which(PROGRAMS[self.name])
            assert program is not None
            return [program, *CONFIGURED[self.name](Start(folder, self.port))]
        sources = [part for zone in ZONES for part in ("--source", f"file:{ZONE_FOLDER}/{zone}.zone")]
        config = folder / "standoff.toml"
        config.write_text(f'cookie_secret = ["{COOKIE_SECRET}"]\n')
        config.chmod(0o600)
        return [
            sys.executable, "-m", "cli.main", "run", "--instance", self._instance, "--workers", "1",
            "--runtime-dir", str(folder), "--state-dir", "", "--config", str(config), "--identity", IDENTITY,
            "--listen", f"127.0.0.1:{self.port}", *sources,
        ]  # fmt: skip

    def wait(self) -> None:
        """Until it answers from every zone."""
        deadline = time.monotonic() + PATIENCE_S
        for zone in ZONES:
            while not self._answers(zone):
                assert self.process.poll() is None, f"{self.name} ended: {self.said()}"
                assert time.monotonic() < deadline, f"{self.name} does not answer for {zone}: {self.said()}"
                time.sleep(0.02)

    def _answers(self, zone: str) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", self.port))
            sock.settimeout(0.2)
            with suppress(OSError):
                sock.send(query(f"{zone}.", "SOA"))
                reply = sock.recv(4096)
                return reply[3] & 15 == 0 and bool(reply[2] & 4)
        return False

    def stop(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_S)
        self.process.kill()
        self.process.wait()
        if self.name == "standoff":
            remove_instance(self._instance)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def free_port() -> int:
    """A port of 127.0.0.1 that is free for UDP and TCP now."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port
