"""The server's rows of the table of settings (cli/settings.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cli import values
from cli.rows import ABUSE, ANSWERS, DNS, SERVING, TRANSFERS, row

#: Slots for readers are 64 (shm/layout.py): four stay for the stream worker and for replacements that overlap.
MAX_WORKERS = 60
#: Networks whose addresses nobody on the internet can forge usefully: no victim to reflect to.
NOT_LIMITED = (
    "127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7",
    "fe80::/10",
)  # fmt: skip


def available_cpus() -> int:
    """CPUs that this process may use, at most MAX_WORKERS."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """How questions are answered, and whose."""

    listen: Annotated[
        list[str],
        row("Answer DNS here, on UDP and TCP; give it once for each address.", DNS, SERVING, form=values.LISTEN),
    ] = msgspec.field(default_factory=lambda: ["127.0.0.1:5300"])
    workers: Annotated[
        int,
        row(
            "UDP worker processes.",
            DNS, SERVING, unit="processes", ge=1, le=MAX_WORKERS, default_text="CPUs this process may use",
        ),
    ] = msgspec.field(default_factory=available_cpus)  # fmt: skip
    max_udp_size: Annotated[
        int,
        row(
            "Largest UDP answer, whatever the client offers; longer ones are truncated and asked again over TCP.",
            DNS, SERVING, unit="bytes", ge=512, le=4096,
        ),
    ] = 1232  # fmt: skip
    tcp_clients: Annotated[
        int, row("TCP connections at a time.", DNS, SERVING, unit="connections", ge=1, le=100000)
    ] = 1000  # fmt: skip
    tcp_clients_per_address: Annotated[
        int,
        row(
            "TCP connections at a time of one address (IPv6: of one /64), so that none takes all of tcp_clients; "
            "0: no limit.",
            DNS, SERVING, unit="connections", ge=0, le=100000,
        ),
    ] = 250  # fmt: skip
    tcp_idle: Annotated[
        float, row("Close a TCP connection that is silent for so long.", DNS, SERVING, unit="seconds", ge=0.1, le=3600)
    ] = 10.0
    tls_listen: Annotated[
        list[str],
        row(
            "Answer DNS over TLS (RFC 7858) here, by convention on port 853; needs tls_cert and tls_key. The limits of "
            "TCP hold for both together.",
            DNS, SERVING, form=values.LISTEN,
        ),
    ] = []  # fmt: skip
    tls_cert: Annotated[
        Path | None,
        row(
            "Certificate for tls_listen, with the chain behind it (PEM). It is loaded again when the files change, and "
            "on SIGHUP; a pair that does not work is reported, and the old one stays in use.",
            DNS, SERVING, form=values.FILE,
        ),
    ] = None  # fmt: skip
    tls_key: Annotated[
        Path | None,
        row("Private key of tls_cert (PEM, without a password).", DNS, SERVING, form=values.FILE),
    ] = None
    drain_timeout: Annotated[
        float,
        row("How long a stopping server may finish what it has begun.", DNS, SERVING, unit="seconds", ge=0, le=300),
    ] = 5.0
    metrics: Annotated[
        str,
        row("Serve /metrics (Prometheus), /health and /ready here; empty: nowhere.", DNS, SERVING, form=values.METRICS),
    ] = ""

    freebind: Annotated[
        Literal["on", "off"],
        row("Listen on addresses that no interface has yet.", DNS, SERVING),
    ] = "off"

    order: Annotated[
        Literal["rotate", "fixed", "random"],
        row("Order of the addresses in an answer: another first one each time, as stored, or any.", ANSWERS, SERVING),
    ] = "rotate"
    max_answers: Annotated[
        int,
        row(
            "Addresses in an answer at most, each as often as the others; 0: all. With order = fixed the first ones.",
            ANSWERS, SERVING, ge=0, le=65535,
        ),
    ] = 0  # fmt: skip
    stale_after: Annotated[
        float,
        row(
            "Tell in answers (extended error 3) once the source has been silent for so long; 0: never.",
            ANSWERS, SERVING, unit="seconds", ge=0, le=31536000,
        ),
    ] = 60.0  # fmt: skip
    identity: Annotated[
        str,
        row(
            "What NSID and id.server say, followed by worker and generation.",
            ANSWERS, SERVING, form=values.TEXT, default_text="the host's name",
        ),
    ] = ""  # fmt: skip
    chaos: Annotated[
        Literal["on", "off"],
        row(
            "Answer id.server, version.server, generation.server and revision.server in class CHAOS.", ANSWERS, SERVING
        ),
    ] = "on"
    cookie_secret: Annotated[
        list[str],
        row(
            "Secret of DNS cookies (RFC 9018), the same on all machines that share an address. The first one signs, "
            "all are accepted: put a new one in front, drop the old one an hour later.",
            ANSWERS, SERVING, form=values.COOKIE_SECRET, flag=False, secret=True, default_text="drawn at start",
        ),
    ] = []  # fmt: skip
    cookie_secret_file: Annotated[
        Path | None,
        row(
            "File with the secrets of DNS cookies, one a line, 8 at most, instead of cookie_secret. It is read again "
            "when it changes, and on SIGHUP; one that does not work is reported, and the secrets from before stay.",
            ANSWERS, SERVING, form=values.FILE,
        ),
    ] = None  # fmt: skip

    rrl_rate: Annotated[
        float,
        row(
            "Answers a second over UDP to one network (/24 or /56), all workers together; 0: no limit. Clients with a "
            "valid cookie are not limited.",
            ABUSE, SERVING, unit="answers a second", ge=0, le=1000000,
        ),
    ] = 200.0  # fmt: skip
    rrl_slip: Annotated[
        int,
        row(
            "Of the answers beyond rrl_rate, send every so manieth truncated, so that real clients come back by TCP; "
            "0: none, 1: all.",
            ABUSE, SERVING, ge=0, le=10,
        ),
    ] = 2  # fmt: skip
    rrl_exempt: Annotated[
        list[str],
        row(
            "Networks that are not limited.",
            ABUSE, SERVING, form=values.NETWORK, default_text="loopback, private and link-local networks",
        ),
    ] = msgspec.field(default_factory=lambda: list(NOT_LIMITED))  # fmt: skip
    refuse: Annotated[
        list[str], row("Clients that get REFUSED.", ABUSE, SERVING, form=values.NETWORK)
    ] = []  # fmt: skip
    drop: Annotated[
        list[str], row("Clients that get no answer.", ABUSE, SERVING, form=values.NETWORK)
    ] = []  # fmt: skip

    transfer_allow: Annotated[
        list[str],
        row(
            "Who may have whole zones (AXFR, IXFR): a network, the name of a tsig_key, or both as NETWORK#KEY.",
            TRANSFERS, SERVING, form=values.GRANT,
        ),
    ] = []  # fmt: skip
    notify: Annotated[
        list[str],
        row(
            "Secondaries to be told when a zone has changed, of each zone; port 53 if none is given.",
            TRANSFERS, SERVING, form=values.NOTIFIED,
        ),
    ] = []  # fmt: skip
    tsig_key: Annotated[
        list[str],
        row(
            "Key of signed messages (TSIG). It has no flag: command lines are for all to see.",
            TRANSFERS, SERVING, form=values.TSIG_KEY, flag=False, secret=True,
        ),
    ] = []  # fmt: skip
