"""Prometheus text, `/ready` and `/health`, read from the control segment. Runs in a process of its own.

Counters live in shared memory, one writer a word, and outlive the workers: any process can tell all of them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from server.sockets import Address
from shm import layout
from shm.board import Board, SlotView, WordView
from shm.layout import DropReason, LoaderState, SlotKind

log = logging.getLogger(__name__)

_TYPE_NAMES = (
    "A",
    "NS",
    "CNAME",
    "SOA",
    "PTR",
    "MX",
    "TXT",
    "AAAA",
    "SRV",
    "DS",
    "TLSA",
    "SVCB",
    "HTTPS",
    "ANY",
    "CAA",
    "other",
)
_RCODE_NAMES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
_PROTOCOLS = {SlotKind.WORKER: "udp", SlotKind.STREAM: "tcp"}
#: A worker is well if its heartbeat is younger than this.
WELL_NS = 1_000_000_000
#: How often an address that is in use is tried again.
RETRY_S = 1.0

assert len(_TYPE_NAMES) == len(layout.COUNTED_TYPES) + 1


def _rcode(number: int) -> str:
    return _RCODE_NAMES[number] if number < len(_RCODE_NAMES) else f"RCODE{number}"


class BoardCollector:
    """Reads every metric from the board at the moment it is asked."""

    def __init__(self, board: Board, version: str) -> None:
        self._board = board
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        slots = [slot for slot in map(self._board.slot, self._board.slots) if slot.get("section")]
        yield InfoMetricFamily("standoff_build", "The running build.", {"version": self._version})
        yield from _dns(slots)
        yield from _workers(self._board, slots)
        yield from _lock(slots)
        yield from _write_lock(self._board)
        yield from _loader(self._board)
        yield from _supervisor(self._board)


def _dns(slots: list[SlotView]) -> Iterator[Metric]:
    requests = CounterMetricFamily("standoff_dns_requests", "Requests by family.", labels=["server", "proto", "family"])
    types = CounterMetricFamily(
        "standoff_dns_requests_type", "Requests by question type.", labels=["server", "proto", "type"]
    )
    responses = CounterMetricFamily("standoff_dns_responses", "Responses.", labels=["server", "proto", "rcode"])
    dropped = CounterMetricFamily(
        "standoff_dns_dropped", "Messages left without an answer.", labels=["server", "proto", "reason"]
    )
    plain = {
        "truncated": CounterMetricFamily(
            "standoff_dns_truncated", "Responses with TC set.", labels=["server", "proto"]
        ),
        "request_bytes": CounterMetricFamily(
            "standoff_dns_request_bytes", "Bytes of requests.", labels=["server", "proto"]
        ),
        "response_bytes": CounterMetricFamily(
            "standoff_dns_response_bytes", "Bytes of responses.", labels=["server", "proto"]
        ),
        "edns": CounterMetricFamily("standoff_dns_edns_requests", "Requests with EDNS.", labels=["server", "proto"]),
        "dnssec_ok": CounterMetricFamily(
            "standoff_dns_do_requests", "Requests with the DO bit.", labels=["server", "proto"]
        ),
    }
    for labels, counters in _counted(slots):
        for family, value in zip(("1", "2"), counters["requests_family"], strict=True):
            requests.add_metric([*labels, family], value)
        for name, value in zip(_TYPE_NAMES, counters["requests_type"], strict=True):
            types.add_metric([*labels, name], value)
        for number, value in enumerate(counters["responses_rcode"]):
            if value or number < len(_RCODE_NAMES):
                responses.add_metric([*labels, _rcode(number)], value)
        for reason in DropReason:
            dropped.add_metric([*labels, reason.name.lower()], counters["dropped"][reason])
        for name, metric in plain.items():
            metric.add_metric(labels, counters[name][0])
    yield from (requests, types, responses, dropped, *plain.values())


def _counted(slots: list[SlotView]) -> Iterator[tuple[list[str], dict[str, list[int]]]]:
    """Labels `server` and `proto`, and the counters under them."""
    for slot in slots:
        protocol = _PROTOCOLS.get(SlotKind(slot.get("counted_kind")), "udp")
        yield [str(slot.number), protocol], slot.counters()
        if protocol == "tcp":
            yield [str(slot.number), "dot"], slot.counters(layout.ENCRYPTED_COUNTERS)


def _workers(board: Board, slots: list[SlotView]) -> Iterator[Metric]:
    now = time.monotonic_ns()
    up = GaugeMetricFamily(
        "standoff_worker_up", "1 while the slot's process is alive and beats.", labels=["server", "kind"]
    )
    age = GaugeMetricFamily("standoff_worker_heartbeat_age_seconds", "Age of the heartbeat.", labels=["server"])
    generation = GaugeMetricFamily("standoff_worker_generation", "Table generation answered from.", labels=["server"])
    revision = GaugeMetricFamily("standoff_worker_revision", "Source revision answered from.", labels=["server"])
    expiry = GaugeMetricFamily(
        "standoff_tls_certificate_expiry_timestamp_seconds", "When the TLS certificate in use ends.", labels=["server"]
    )
    words = {
        name: CounterMetricFamily(f"standoff_worker_{name}", help_, labels=["server"])
        for name, help_ in (
            ("declined", "Queries answered by the reference instead of the hot path."),
            ("batches", "Batches served."),
            ("neighbour_batches", "Batches served for a worker that did not."),
            ("receive_errors", "Failed receives."),
            ("send_errors", "Replies that could not be sent."),
            ("table_damaged", "Lookups that found the table damaged."),
        )
    }
    for slot in slots:
        server = str(slot.number)
        kind = slot.get("kind")
        silent = now - slot.get("heartbeat_ns")
        alive = bool(kind) and silent < WELL_NS and board.is_alive(slot.number)
        up.add_metric([server, SlotKind(kind).name.lower()], int(alive))
        if alive:
            age.add_metric([server], silent / 1e9)
            generation.add_metric([server], slot.get("generation"))
            revision.add_metric([server], slot.get("revision"))
            if slot.get("certificate_expires_s"):
                expiry.add_metric([server], slot.get("certificate_expires_s"))
        for name, metric in words.items():
            metric.add_metric([server], slot.get(name))
    yield from (up, age, generation, revision, expiry, *words.values())


def _lock(slots: list[SlotView]) -> Iterator[Metric]:
    waits = CounterMetricFamily("standoff_lock_reader_waits", "Reads that found their gate taken.", labels=["server"])
    past = CounterMetricFamily(
        "standoff_lock_past_gate", "Reads that went past a gate that stayed taken.", labels=["server"]
    )
    hold = HistogramMetricFamily("standoff_lock_read_hold_seconds", "Time a reader was inside.", labels=["server"])
    wait = HistogramMetricFamily(
        "standoff_lock_read_wait_seconds", "Time a reader waited for its gate; 0 where it was free.", labels=["server"]
    )
    for slot in slots:
        server = str(slot.number)
        waits.add_metric([server], slot.get("gate_waits"))
        past.add_metric([server], slot.get("past_gate"))
        held, waited = slot.histogram(layout.HOLD_HISTOGRAM), slot.histogram(layout.GATE_WAIT_HISTOGRAM)
        hold.add_metric([server], *_exposed(held))
        wait.add_metric([server], *_exposed(waited, max(0, sum(held) - sum(waited))))
    yield from (waits, past, hold, wait)


def _write_lock(board: Board) -> Iterator[Metric]:
    for name, help_, offset in (
        ("wait", "From asking for the write lock to having it.", layout.WRITE_WAIT_HISTOGRAM),
        ("hold", "Time the write lock was held.", layout.WRITE_HOLD_HISTOGRAM),
        ("grace", "From the swap until every reader had left the old table.", layout.GRACE_HISTOGRAM),
    ):
        histogram = [board.words.load(offset + 8 * i) for i in range(layout.HISTOGRAM_BUCKETS)]
        buckets, rough_sum = _exposed(histogram)
        prefix = "standoff_lock_grace" if name == "grace" else f"standoff_lock_write_{name}"
        yield HistogramMetricFamily(f"{prefix}_seconds", help_, buckets=buckets, sum_value=rough_sum)
    yield CounterMetricFamily(
        "standoff_lock_leaks", "Holders reported for staying in the lock.", value=board.supervisor.get("leaks_reported")
    )


def _exposed(histogram: list[int], zeros: int = 0) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' cumulative buckets from 2 µs to 2 s, and a sum as exact as log2 buckets allow."""
    buckets, total, rough_sum = [], zeros, 0.0
    for i, count in enumerate(histogram):
        total += count
        rough_sum += count * 1.5 * 2**i / 1e9  # the middle of the bucket
        if 10 <= i <= 30:
            buckets.append((str(2 ** (i + 1) / 1e9), float(total)))
    return [*buckets, ("+Inf", float(total))], rough_sum


def _loader(board: Board) -> Iterator[Metric]:
    words = board.loader.as_dict()
    now, clock = time.time(), time.monotonic_ns()
    gauges = {
        "standoff_loader_state": ("0 starting, 1 listing, 2 fresh, 3 stale, 4 standby.", words["loader_state"]),
        "standoff_loader_heartbeat_age_seconds": (
            "Age of the loader's heartbeat.",
            (clock - words["loader_heartbeat_ns"]) / 1e9 if words["loader_heartbeat_ns"] else float("nan"),
        ),
        "standoff_source_age_seconds": ("Since the source's last sign of life.", _since(now, words["source_seen_ns"])),
        "standoff_watch_event_age_seconds": (
            "Since the last event of a watch of etcd.",
            _since(now, words["watch_event_ns"]),
        ),
        "standoff_watch_progress_age_seconds": (
            "Since etcd last sent an event or said that there is none to send.",
            _since(now, words["watch_progress_ns"]),
        ),
        "standoff_relist_age_seconds": (
            "Since the last list of etcd that was compared in full.",
            _since(now, words["relisted_ns"]),
        ),
        "standoff_source_alarms": (
            "etcd sources that have raised an alarm (NOSPACE, CORRUPT).",
            words["source_alarms"],
        ),
        "standoff_table_generation": ("Generation of the live table.", board.live >> 1),
        "standoff_table_revision": ("Source revision of the live table.", words["revision"]),
        "standoff_table_names": ("Names in the live table.", words["names"]),
        "standoff_table_bytes": ("Size of the live table's segment.", words["table_bytes"]),
        "standoff_source_keys": ("Keys held from the source.", words["keys"]),
        "standoff_source_rejects": ("Keys whose value is refused at present.", words["rejects"]),
        "standoff_source_kept": ("Of these, keys that go on with their last good value.", words["kept"]),
        "standoff_checks_up": ("Targets of health checks that are up, or not known yet.", words["checks_up"]),
        "standoff_checks_down": ("Targets of health checks that are down.", words["checks_down"]),
        "standoff_names_unfiltered": ("Names at which a filter is bypassed.", words["names_unfiltered"]),
        "standoff_guard_held_changes": ("Changes that the guard holds back.", words["held_changes"]),
        "standoff_guard_held_names": ("Names in them.", words["held_names"]),
        "standoff_guard_held_seconds": (
            "For how long the oldest of them has been held; 0: none is.",
            max(0.0, now - words["held_since_ns"] / 1e9) if words["held_since_ns"] else 0.0,
        ),
        "standoff_guard_rejected_names": ("Names answered against the source's word.", words["rejected_names"]),
        "standoff_pinned": (
            "1 while the table is pinned and does not follow the source.",
            bool(words["pinned_since_ns"]),
        ),
        "standoff_pinned_names": ("Names that the source has changed since.", words["pinned_names"]),
        "standoff_lock_write_wait_max_seconds": ("Longest wait for the write lock.", words["write_wait_max_ns"] / 1e9),
        "standoff_lock_write_hold_max_seconds": ("Longest hold of the write lock.", words["write_hold_max_ns"] / 1e9),
        "standoff_lock_grace_max_seconds": ("Longest wait for readers to leave.", words["grace_max_ns"] / 1e9),
    }
    writable = GaugeMetricFamily("standoff_state_writable", "0 if the last write to state_dir failed.", labels=["kind"])
    for kind in layout.STATE_KINDS:
        writable.add_metric([kind], int(not words[f"{kind}_unwritable"]))
    yield writable
    for name, (help_, value) in gauges.items():
        yield GaugeMetricFamily(name, help_, value=value)
    counters = {
        "standoff_publishes": ("Tables swapped in.", "publishes"),
        "standoff_lock_write_retries": ("Attempts of the writer that found a gate busy.", "write_retries"),
        "standoff_lock_dead_skipped": ("Dead readers the writer skipped.", "dead_skipped"),
        "standoff_relists": ("Scheduled or forced full listings.", "relists"),
        "standoff_drift": ("Differences that re-lists found and repaired.", "drift"),
        "standoff_table_grown": ("Rebuilds into a larger segment.", "grown"),
        "standoff_check_flips": ("Targets of health checks that went up or down.", "check_flips"),
        "standoff_checker_starts": ("Starts of the health checker's process.", "checker_starts"),
        "standoff_filter_bypasses": ("Times that a filter was bypassed at a name.", "filter_bypasses"),
    }
    for name, (help_, word) in counters.items():
        yield CounterMetricFamily(name, help_, value=words[word])


def _since(now: float, then_ns: int) -> float:
    """Seconds; NaN: never."""
    return max(0.0, now - then_ns / 1e9) if then_ns else float("nan")


def _supervisor(board: Board) -> Iterator[Metric]:
    words = board.supervisor.as_dict()
    yield GaugeMetricFamily("standoff_workers_wanted", "Workers that should run.", value=words["workers_wanted"])
    yield CounterMetricFamily("standoff_children_started", "Processes forked.", value=words["workers_started"])
    yield CounterMetricFamily("standoff_children_died", "Processes that died unasked.", value=words["workers_died"])
    yield CounterMetricFamily(
        "standoff_children_condemned", "Processes replaced for being stuck.", value=words["workers_condemned"]
    )


def readiness(board: Board) -> tuple[bool, dict[str, Any]]:
    """Whether every wanted worker answers from a published table, and what is missing."""
    now = time.monotonic_ns()
    slots = [slot for slot in map(board.slot, board.slots) if slot.get("kind") == SlotKind.WORKER]
    answering = sum(
        1 for s in slots if s.get("generation") and now - s.get("heartbeat_ns") < WELL_NS and board.is_alive(s.number)
    )
    wanted = board.supervisor.get("workers_wanted")
    missing = []
    if not board.live:
        missing.append("no table is published")
    if answering < wanted:
        missing.append(f"{answering} of {wanted} workers answer")
    state = LoaderState(board.loader.get("loader_state")).name.lower()
    return not missing, {
        "ready": not missing, "missing": missing, "generation": board.live >> 1,
        "revision": board.loader.get("revision"), "loader": state,
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """GET only."""

    server: Exporter
    timeout = 5

    def do_GET(self) -> None:
        path = self.path.split("?", 1)[0]
        if path == "/metrics":
            self._send(200, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        elif path == "/ready":
            ready, detail = readiness(self.server.board)
            self._send(200 if ready else 503, "application/json", json.dumps(detail).encode() + b"\n")
        elif path == "/health":
            self._send(200, "text/plain", b"OK\n")
        else:
            self._send(404, "text/plain", b"/metrics, /ready and /health are here\n")

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s " + format, self.client_address[0], *args)


class Exporter(ThreadingHTTPServer):
    """Serves the board's metrics."""

    daemon_threads = True

    def __init__(self, address: Address, board: Board, version: str) -> None:
        self.address_family = address.family
        self.board = board
        self.registry = CollectorRegistry()
        self.registry.register(BoardCollector(board, version))
        super().__init__((address.host, address.port), Handler)


def run_exporter(instance: str, address: Address, version: str) -> int:
    """The exporter's main: until its supervisor is gone."""
    parent = os.getppid()

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    board = Board.attach(instance)
    words = WordView(board.own_page(layout.SUPERVISOR_PAGE), layout.SUPERVISOR_WORDS)
    listen(address, board, version, words).serve_forever()
    return 0


def listen(address: Address, board: Board, version: str, words: WordView) -> Exporter:
    """As soon as the address can be had; until then the log and a word say why not."""
    told = 0
    while True:
        try:
            server = Exporter(address, board, version)
        except OSError as error:
            number = error.errno or errno.EIO
            words.set("metrics_errno", number)
            if number != told:
                why = os.strerror(number).lower()
                log.error("metrics %s: %s; they are not served, but queries are answered; trying again", address, why)
            told = number
            time.sleep(RETRY_S)
            continue
        words.set("metrics_errno", 0)
        if told:
            log.info("metrics %s: served now", address)
        return server
