"""etcd's hard cases through running processes: refused values, a snapshot that is harmed, alarms; seen by clients and
by `standoff status`, `standoff rejects` and /metrics."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import dns.rcode
import pytest

from loader.etcd import Etcd
from loader.etcd_channel import EtcdError
from tests.etcd.test_production import overfill
from tests.support.etcd import EtcdServer
from tests.support.instances import fresh_instance
from tests.support.mirroring import run_async
from tests.torture.service import Service, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
#: Keys of www.example.test in either schema, a good value, another, and one that is refused.
SCHEMAS = {
    "records": ("/names/example.test/www/A", b"192.0.2.1", b"192.0.2.2", b"not an address"),
    "skydns": ("/names/test/example/www", b'{"host":"192.0.2.1"}', b'{"host":"192.0.2.2"}', b'{"host":1}'),
}


class Running:
    """Everything on one machine: `standoff run`, and a source in etcd that keeps a snapshot."""

    def __init__(self, service: Service, etcd: EtcdServer, folder: Path) -> None:
        self.service, self.etcd = service, etcd
        self.state = folder / "state"
        self._metrics = free_port()
        self._runtime = ["--runtime-dir", str(folder / "run")]

    def start(self, schema: str = "records", *options: str) -> None:
        source = f"etcd://{self.etcd.endpoint}/names?schema={schema}"
        self.service.source = [
            "--source", source, "--zone", "example.test", "--state-dir", str(self.state), "--image-interval", "0",
            "--metrics", f"127.0.0.1:{self._metrics}", *options,
        ]  # fmt: skip
        self.service.start_run()
        wait_for("the service answers", self.service.ready)

    def ask(self, name: str, type_: str = "A") -> list[str]:
        query = dns.message.make_query(name, type_)
        with suppress(dns.exception.Timeout):
            answer, _ = dns.query.udp_with_fallback(query, "127.0.0.1", port=self.service.port, timeout=5)
            if answer.rcode():
                return [dns.rcode.to_text(answer.rcode())]
            return sorted(str(rr) for rrset in answer.answer for rr in rrset)
        return ["no answer"]

    def until(self, name: str, *expected: str, type_: str = "A") -> None:
        wait_for(f"{name} answers {expected}", lambda: self.ask(name, type_) == sorted(expected))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.service.standoff("status", "--json").stdout)
        return found

    def reject_list(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.service.standoff("rejects", "--json", *self._runtime).stdout)[
            "rejects"
        ]
        return found

    def rejects(self) -> dict[str, str]:
        return {one["key"]: one["reason"] for one in self.reject_list()}

    def kill_loader(self) -> None:
        """SIGKILL; another one is at work afterwards."""
        pid = self.service.loader_pid
        os.kill(pid, signal.SIGKILL)
        wait_for("another loader is there", lambda: self.service.loader_pid not in (0, pid))

    def loader_memory(self) -> int:
        """Octets that the loader has for itself."""
        text = Path(f"/proc/{self.service.loader_pid}/smaps_rollup").read_text()
        return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Private_"))

    def metric(self, name: str) -> float:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def snapshot(self) -> Path:
        (found,) = self.state.glob(f"*-{8 * '[0-9a-f]'}.sqlite")
        return found

    def kept(self, query: str) -> list[Any]:
        """From the snapshot; nothing as long as it is not there."""
        with (
            suppress(sqlite3.Error, ValueError),
            closing(sqlite3.connect(f"file:{self.snapshot()}?mode=ro", uri=True)) as db,
        ):
            return db.execute(query).fetchall()
        return []

    def put(self, key: str | bytes, value: bytes) -> int:
        return run_async(self._put(key, value))

    async def _put(self, key: str | bytes, value: bytes) -> int:
        async with Etcd(self.etcd.endpoint) as client:
            return await client.put(key, value)

    def delete(self, key: str) -> int:
        async def body() -> int:
            async with Etcd(self.etcd.endpoint) as client:
                return await client.delete(key)

        return run_async(body())


class Asking:
    """Asks for one name all the time; what came, each kind once."""

    def __init__(self, running: Running, name: str) -> None:
        self.seen: list[list[str]] = []
        self.count = 0
        self._running, self._name = running, name
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._done.is_set()  # one more after it is told: that one has the last state
            found = self._running.ask(self._name)
            self.count += 1
            if found not in self.seen:
                self.seen.append(found)
            time.sleep(0.002)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture
def make_running(newest_binary: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """With flags for etcd; once a test."""
    with fresh_instance() as instance:
        made: list[Running] = []

        def make(*flags: str) -> Running:
            etcd = EtcdServer(newest_binary, tmp_path / "etcd", *flags).start()
            made.append(Running(Service(instance, free_port(), tmp_path, etcd, workers=1), etcd, tmp_path))
            return made[-1]

        yield make
        for running in made:
            running.service.close()
            running.etcd.kill()
            print(running.service.said())


@pytest.mark.parametrize("schema", ["records", "skydns"])
def test_a_refused_value_leaves_the_last_good_one(make_running: Callable[..., Running], schema: str) -> None:
    """... over a power cut, with etcd away and back; until the key is deleted."""
    running = make_running()
    key, good, better, bad = SCHEMAS[schema]
    first = running.put(key, good)
    running.start(schema, "--on-reject", "keep")
    running.until("www.example.test", "192.0.2.1")
    refused = running.put(key, bad)
    wait_for("the key is among the rejects", lambda: key in running.rejects())
    assert running.rejects()[key].endswith(f"last good value of revision {first} kept")
    assert running.ask("www.example.test") == ["192.0.2.1"]
    assert (running.metric("standoff_source_rejects"), running.metric("standoff_source_kept")) == (1, 1)
    assert running.status()["loader"]["kept"] == 1
    wait_for("it is on disk", lambda: running.kept("SELECT mod_revision FROM last_good") == [(first,)])
    running.service.power_cut()
    running.etcd.kill()
    running.start(schema, "--on-reject", "keep")
    running.until("www.example.test", "192.0.2.1")
    wait_for("the key is among the rejects", lambda: key in running.rejects())
    assert running.rejects()[key].endswith(f"last good value of revision {first} kept")
    running.etcd.start()
    last = running.put(key, better)
    running.until("www.example.test", "192.0.2.2")
    assert last > refused
    wait_for("nothing is rejected", lambda: not running.rejects())
    running.put(key, bad)
    wait_for("the key is among the rejects", lambda: key in running.rejects())
    assert running.rejects()[key].endswith(f"last good value of revision {last} kept")
    assert running.ask("www.example.test") == ["192.0.2.2"]
    running.delete(key)
    running.until("www.example.test", "NXDOMAIN")
    wait_for("nothing is rejected", lambda: not running.rejects())
    wait_for("nothing is kept", lambda: running.kept("SELECT COUNT(*) FROM last_good") == [(0,)])
    running.put(key, bad)
    wait_for("the key is among the rejects", lambda: key in running.rejects())
    assert running.ask("www.example.test") == ["NXDOMAIN"]


def test_without_keep_a_refused_value_costs_the_key(make_running: Callable[..., Running]) -> None:
    running = make_running()
    key, good, _, bad = SCHEMAS["records"]
    running.put(key, good)
    running.start()
    running.until("www.example.test", "192.0.2.1")
    running.put(key, bad)
    running.until("www.example.test", "NXDOMAIN")
    assert running.metric("standoff_source_kept") == 0


@pytest.mark.parametrize("how", ["overwritten", "removed", "removed while etcd is away", "removed after a restart"])
def test_a_snapshot_harmed_while_running_is_whole_again(make_running: Callable[..., Running], how: str) -> None:
    """And holds what a start without etcd needs, without a change in etcd meanwhile."""
    running = make_running()

    async def fill() -> None:
        async with Etcd(running.etcd.endpoint) as client:
            for start in range(0, 5000, 100):
                names = range(start, start + 100)
                await client.transact(
                    [(f"/names/example.test/h{i}/A", f"10.0.{i >> 8}.{i & 255}".encode()) for i in names]
                )

    run_async(fill())
    running.start()
    running.until("h4999.example.test", "10.0.19.135")
    wait_for("it is on disk", lambda: running.kept("SELECT COUNT(*) FROM entries") == [(5000,)])
    harmed = running.snapshot()
    if "restart" in how:  # from the snapshot, and nothing is written to it
        pid = running.service.loader_pid
        os.kill(pid, signal.SIGKILL)
        wait_for("it goes on from there", lambda: "going on from there" in running.service.said())
        wait_for("another loader answers", lambda: running.service.loader_pid not in (0, pid))
    if how != "overwritten":
        if "away" in how:
            running.etcd.kill()
            wait_for("it is away", lambda: running.status()["loader"]["state"] == "stale")
        harmed.unlink()
        if "away" in how:
            wait_for("it is noticed", lambda: "taken away" in running.service.said())
            running.etcd.start()
    else:
        with closing(sqlite3.connect(harmed)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = harmed.stat().st_size
        with harmed.open("r+b") as file:
            file.seek(8192)
            file.write(os.urandom(size - 8192))

    def whole() -> bool:
        if not harmed.exists() or (how == "overwritten" and not list(running.state.glob("*.damaged-*"))):
            return False
        complete = running.kept("SELECT complete FROM state") == [(1,)]
        return complete and running.kept("SELECT COUNT(*) FROM entries") == [(5000,)]

    seconds = wait_for("the snapshot is whole", whole, 40)
    print(f"whole again after {seconds:.1f} s")
    assert bool(list(running.state.glob("*.damaged-*"))) == (how == "overwritten")
    running.put("/names/example.test/new/A", b"10.1.0.1")
    wait_for("changes go on to it", lambda: running.kept("SELECT COUNT(*) FROM entries") == [(5001,)])
    running.service.power_cut()
    running.etcd.kill()
    running.start()
    assert running.ask("h0.example.test") == ["10.0.0.0"]
    assert running.ask("new.example.test") == ["10.1.0.1"]


def test_status_and_metrics_tell_how_the_watch_is(make_running: Callable[..., Running]) -> None:
    running = make_running("--quota-backend-bytes", str(1 << 20))
    running.put("/names/example.test/www/A", b"192.0.2.1")
    running.start()
    running.until("www.example.test", "192.0.2.1")
    wait_for("etcd has confirmed the watch", lambda: running.status()["loader"]["progress_age"] is not None)
    loader = running.status()["loader"]
    assert loader["event_age"] is None
    assert loader["relist_age"] < 60
    running.put("/names/example.test/www/A", b"192.0.2.2")
    running.until("www.example.test", "192.0.2.2")
    loader = running.status()["loader"]
    assert loader["event_age"] < 30
    assert loader["drift"] == loader["alarms"] == 0
    assert running.metric("standoff_watch_event_age_seconds") < 30
    assert running.metric("standoff_watch_progress_age_seconds") < 30
    assert running.metric("standoff_relist_age_seconds") < 90
    assert running.metric("standoff_drift_total") == 0
    shown = running.service.standoff("status").stdout
    assert "watch: last event" in shown
    assert "progress confirmed" in shown
    assert "the last list" in shown

    async def fill() -> None:
        async with Etcd(running.etcd.endpoint) as client:
            with pytest.raises(EtcdError, match="space exceeded"):
                await overfill(client)

    run_async(fill())
    wait_for("the alarm is told", lambda: running.metric("standoff_source_alarms") == 1)
    verdict = running.status()["verdict"]
    assert verdict["state"] == "degraded"
    assert "NOSPACE" in str(verdict["reasons"])
    assert running.ask("www.example.test") == ["192.0.2.2"]


def test_a_loader_that_starts_anew_without_etcd_tells_how_old_answers_are(make_running: Callable[..., Running]) -> None:
    """... without a snapshot: it has nothing but the table of the loader before."""
    running = make_running()
    running.put("/names/example.test/www/A", b"192.0.2.1")
    running.start("records", "--state-dir", "", "--stale-after", "4")
    running.until("www.example.test", "192.0.2.1")
    wait_for("all is well", lambda: running.status()["verdict"]["state"] == "ok")
    wait_for("etcd has confirmed the watch", lambda: running.status()["loader"]["progress_age"] is not None)
    running.etcd.kill()
    wait_for("etcd is missed", lambda: running.metric("standoff_loader_state") == 3)
    assert "etcds://" not in running.service.said()  # it has worked without TLS
    before = running.service.loader_pid
    running.service.kill(before)
    wait_for("another loader has begun", lambda: running.service.loader_pid not in (0, before))
    wait_for("it is degraded", lambda: running.metric("standoff_loader_state") == 3)
    (reason,) = running.status()["verdict"]["reasons"]
    source = f"etcd://{running.etcd.endpoint}/names?schema=records"
    refused = "connection refused; is it running, and is the port right?"
    assert reason == f"a source cannot be read: {source}: etcd {running.etcd.endpoint}: {refused}"
    for name in ("watch_progress", "relist", "source"):
        assert 0 < running.metric(f"standoff_{name}_age_seconds") < 60
    query = dns.message.make_query("www.example.test", "A", use_edns=0)

    def told() -> bool:
        answer = dns.query.udp(query, "127.0.0.1", port=running.service.port, timeout=5)
        assert answer.answer
        return any(getattr(option, "code", None) == dns.edns.EDECode.STALE_ANSWER for option in answer.options)

    wait_for("answers say that they are old", told)


def test_a_disk_that_cannot_be_written_is_told_until_it_can(make_running: Callable[..., Running]) -> None:
    running = make_running()
    running.put("/names/example.test/www/A", b"192.0.2.1")
    running.start("records", "--image-interval", "1")
    kinds = ("snapshot", "history", "image")

    def writable() -> list[float]:
        return [running.metric(f'standoff_state_writable{{kind="{kind}"}}') for kind in kinds]

    wait_for("all is well", lambda: running.status()["verdict"]["state"] == "ok" and running.snapshot().exists())
    assert writable() == [1, 1, 1]
    aside = running.state.rename(running.state.with_name("aside"))
    running.state.write_text("no folder")  # root may write anywhere else
    running.put("/names/example.test/www/A", b"192.0.2.2")
    running.until("www.example.test", "192.0.2.2")
    wait_for("no file can be written", lambda: writable() == [0, 0, 0], 40)
    verdict = running.status()["verdict"]
    assert verdict["state"] == "degraded"
    for kind, reason in zip(kinds, verdict["reasons"], strict=True):
        assert reason.startswith(f"{kind} {running.state}")
        assert " cannot be written: " in reason
    running.state.unlink()
    aside.rename(running.state)
    wait_for("all is written", lambda: writable() == [1, 1, 1], 40)
    wait_for("all is well again", lambda: running.status()["verdict"]["state"] == "ok")
