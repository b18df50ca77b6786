"""`standoff` as a primary: its process, its zone by AXFR, and an etcd to feed it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.query
import dns.rdatatype
import dns.tsig
import dns.tsigkeyring
import dns.zone

from shm.board import Board
from tests.support.processes import wait_for
from tests.transfer.secondaries import KEY, ROOT, ZONE

PATIENCE_S = 40.0
Records = set[tuple[str, int, str, str]]


class Primary:
    """One that runs."""

    def __init__(self, port: int, instance: str, log: Path) -> None:
        self.port, self.instance, self._log = port, instance, log
        self.notified: socket.socket | None = None  # a test's own secondary
        self.tls_port = 0
        self.board: Board  # of tests that look at it
        self.sockets_at_rest = 0  # of its stream worker, with nobody connected

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def standoff(command: str, folder: Path, instance: str, port: int, *options: str) -> Iterator[Primary]:
    """`run` or `serve`, with the key that secondaries.py knows."""
    log = folder / "standoff.log"
    runtime = folder / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STANDOFF_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "cli.main", command, "--config", "/dev/null", "--instance", instance,
                "--runtime-dir", str(runtime), "--listen", f"127.0.0.1:{port}", "--workers", "1",
                "--drain-timeout", "0.2", "--log-level", "debug", *options,
            ],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            env=environment | {"STANDOFF_TSIG_KEY": KEY},
        )  # fmt: skip
    try:
        yield Primary(port, instance, log)
    finally:
        process.terminate()
        process.wait(20)


def wait_until_published(instance: str) -> Board:
    def attached() -> Board | None:
        try:
            return Board.attach(instance)
        except Exception:
            return None

    found: list[Board] = []
    wait_for("there is a board", lambda: found or found.extend(filter(None, [attached()])) or found, PATIENCE_S)
    wait_for("a table is published", lambda: found[0].live, PATIENCE_S)
    return found[0]


def transfer(port: int, *, signed: bool = False, zone: str = ZONE, type_: str = "AXFR") -> Records:
    """A whole zone as dnspython reads it: name, TTL, type, data. Checks signatures, and that the SOA ends it."""
    records: Records = set()
    name, _, secret = KEY.split(":")
    keyring = dns.tsigkeyring.from_text({name: secret}) if signed else None
    messages = dns.query.xfr(
        "127.0.0.1", zone, type_, port=port, relativize=False, keyring=keyring, lifetime=PATIENCE_S, timeout=PATIENCE_S
    )
    for message in messages:
        for rrset in message.answer:
            kind = dns.rdatatype.to_text(rrset.rdtype)
            records |= {(rrset.name.to_text().lower(), rrset.ttl, kind, rdata.to_text().lower()) for rdata in rrset}
    return records


def wait_until_both_give(theirs: int, ours: int, *, signed: bool = False) -> Records:
    """The zone, once a secondary gives the same as we do.

    It takes a new version up in other processes (NSD), and resets connections to those before.
    """
    found: list[Records] = []

    def same() -> bool:
        try:
            found[:] = [transfer(theirs), transfer(ours, signed=signed)]
        except (ConnectionError, EOFError):
            return False
        return found[0] == found[1]

    wait_for("both give the same zone", same, PATIENCE_S)
    return found[0]


def put(endpoint: str, key: str, value: str) -> None:
    """Into etcd, by its JSON gateway."""
    body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value.encode()).decode()}
    request = urllib.request.Request(f"http://{endpoint}/v3/kv/put", json.dumps(body).encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        answer.read()
