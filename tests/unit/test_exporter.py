"""The exporter over HTTP: Prometheus reads all of it, and /ready tells the truth."""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server import exporter
from server._counters import Counters
from server.answer import Policy, answer
from server.exporter import Exporter, listen
from server.sockets import Address
from shm import layout
from shm.board import Board, ClaimedSlot, WordView
from shm.layout import SlotKind
from shm.rwlock import ReadLock
from shm.tables import TableWriter
from tests.support.packets import query
from tests.support.processes import drive
from tests.support.tables import example_blocks, example_table
from tests.torture.service import wait_for


@pytest.fixture
def board(instance: str) -> Iterator[Board]:
    board = Board.create_or_attach(instance)
    yield board
    board.close()


@contextmanager
def exporting(board: Board) -> Iterator[str]:
    server = Exporter(Address("127.0.0.1", 0), board, "1.2.3")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def url(board: Board) -> Iterator[str]:
    with exporting(board) as url:
        yield url


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(url: str) -> dict[str, Metric]:
    status, text = get(url + "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family: Metric, **labels: str) -> list[float]:
    return [sample.value for sample in family.samples if labels.items() <= sample.labels.items()]


def work(board: Board, kind: SlotKind, index: int = 0) -> tuple[ClaimedSlot, ReadLock]:
    """A slot that has answered three queries."""
    slot = board.claim(kind, index)
    lock = ReadLock(board, slot)
    counters = Counters(slot.words)
    for name, type_ in (("a", "A"), ("nowhere", "A"), ("a", "TYPE65280")):
        packet = query(f"{name}.example.test.", type_, edns=1232, dnssec_ok=True)
        counters.count(packet, answer(packet, example_table(), Policy()))
    counters.count(b"short", None)
    with lock.read():
        pass
    slot.set("heartbeat_ns", time.monotonic_ns())
    slot.set("generation", 1)
    return slot, lock


def test_every_metric_is_well_formed_on_an_empty_board(url: str) -> None:
    families = scrape(url)
    (build,) = [
        sample for family in families.values() for sample in family.samples if sample.name == "standoff_build_info"
    ]
    assert build.labels == {"version": "1.2.3"}
    assert all(family.documentation for family in families.values())
    assert all(family.name.startswith("standoff_") for family in families.values())


def test_an_address_that_is_in_use_is_told_once_and_taken_when_it_is_free(
    board: Board, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "RETRY_S", 0.01)
    caplog.set_level(logging.INFO)
    words = WordView(board.own_page(layout.SUPERVISOR_PAGE), layout.SUPERVISOR_WORDS)
    made: list[Exporter] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address(*other.getsockname())
        thread = threading.Thread(target=lambda: made.append(listen(address, board, "1.2.3", words)), daemon=True)
        thread.start()
        wait_for("it is told", lambda: board.supervisor.get("metrics_errno") == errno.EADDRINUSE)
        time.sleep(0.1)  # some more tries, of which nobody is told
        assert not made
    thread.join(20)
    made[0].server_close()
    assert board.supervisor.get("metrics_errno") == 0
    assert [record.message for record in caplog.records] == [
        f"metrics {address}: address already in use; they are not served, but queries are answered; trying again",
        f"metrics {address}: served now",
    ]


def test_what_was_answered_is_counted(board: Board, url: str) -> None:
    slot, lock = work(board, SlotKind.WORKER)
    families = scrape(url)
    mine = {"server": str(slot.number), "proto": "udp"}
    assert samples(families["standoff_dns_responses"], **mine, rcode="NOERROR") == [2]
    assert samples(families["standoff_dns_responses"], **mine, rcode="NXDOMAIN") == [1]
    assert samples(families["standoff_dns_requests_type"], **mine, type="A") == [2]
    assert samples(families["standoff_dns_requests_type"], **mine, type="other") == [2], "the short one has no type"
    assert samples(families["standoff_dns_dropped"], **mine, reason="short") == [1]
    assert samples(families["standoff_dns_edns_requests"], **mine) == [3]
    assert samples(families["standoff_dns_do_requests"], **mine) == [3]
    assert sum(samples(families["standoff_dns_requests"], **mine)) == 4
    assert samples(families["standoff_worker_up"], server=str(slot.number)) == [1]
    lock.close()
    slot.release()


def test_counters_outlive_their_worker_under_the_same_labels(board: Board, url: str) -> None:
    slot, lock = work(board, SlotKind.STREAM)
    mine = {"server": str(slot.number), "proto": "tcp"}
    assert samples(scrape(url)["standoff_dns_responses"], **mine, rcode="NOERROR") == [2]
    lock.close()
    slot.release()
    families = scrape(url)
    assert samples(families["standoff_dns_responses"], **mine, rcode="NOERROR") == [2]
    assert samples(families["standoff_worker_up"], server=str(slot.number)) == [0]


def test_histograms_are_cumulative(board: Board, url: str) -> None:
    slot, lock = work(board, SlotKind.WORKER)
    for bucket in (0, 12, 20, 33):
        slot.words.add(layout.HOLD_HISTOGRAM + 8 * bucket, 5)
    for family in scrape(url).values():
        if family.type == "histogram":
            for server in {sample.labels.get("server") for sample in family.samples}:
                buckets = [s for s in family.samples if s.name.endswith("_bucket") and s.labels.get("server") == server]
                counts = [s.value for s in buckets]
                edges = [float(s.labels["le"]) for s in buckets]
                assert counts == sorted(counts)
                assert edges == sorted(edges)
                assert edges[-1] == float("inf")
                total = [
                    s.value for s in family.samples if s.name.endswith("_count") and s.labels.get("server") == server
                ]
                assert total == [counts[-1]]
    lock.close()
    slot.release()


def test_ready(board: Board, url: str) -> None:
    page = board.own_page(layout.SUPERVISOR_PAGE)
    page.store(layout.SUPERVISOR_WORDS["workers_wanted"], 2)

    def ready() -> tuple[int, list[str]]:
        status, text = get(url + "/ready")
        detail = json.loads(text)
        assert detail["ready"] == (status == 200)
        return status, detail["missing"]

    assert ready() == (503, ["no table is published", "0 of 2 workers answer"])
    writer = TableWriter(board)
    drive(writer.replace(example_blocks(), 7, {}))
    assert ready() == (503, ["0 of 2 workers answer"])
    first, lock = work(board, SlotKind.WORKER, 0)
    assert ready() == (503, ["1 of 2 workers answer"])
    stream, _ = work(board, SlotKind.STREAM)
    assert ready() == (503, ["1 of 2 workers answer"]), "the stream worker is no UDP worker"
    second, _ = work(board, SlotKind.WORKER, 1)
    assert ready() == (200, [])
    second.set("generation", 0)
    assert ready()[0] == 503, "it has no table yet"
    second.set("generation", 1)
    second.set("heartbeat_ns", time.monotonic_ns() - 5_000_000_000)
    assert ready()[0] == 503, "it is stuck"
    second.set("heartbeat_ns", time.monotonic_ns())
    assert ready()[0] == 200
    second._lock.release()
    assert ready()[0] == 503, "it is dead"
    lock.close()
    for slot in (first, stream):
        slot.release()
    writer.close()
    page.close()


def test_other_pages(url: str) -> None:
    assert get(url + "/health") == (200, "OK\n")
    assert get(url + "/")[0] == 404
    assert get(url + "/metrics?name[]=standoff_build")[0] == 200
    request = urllib.request.Request(url + "/metrics", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request, timeout=10):
        pass
    assert refused.value.code == 501
    refused.value.close()


def test_an_address_in_use_says_so(board: Board, url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match=r"in use|cannot listen"):
        Exporter(Address("127.0.0.1", port), board, "1")
