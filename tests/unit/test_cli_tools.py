"""status, wait and lookup on a board and tables made here, with live slots, and without any."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import msgspec
import pytest
from click.testing import CliRunner, Result

from cli import view
from cli.commands import run as run_command
from cli.commands import status as status_command
from cli.main import standoff
from shm import layout, node, notes
from shm.board import Board, ClaimedSlot
from shm.layout import LoaderState, NodeFlag, SlotKind
from shm.rwlock import ReadLock
from shm.segment import LockFile, remove_instance
from shm.tables import TableWriter


def wire(name: str) -> bytes:
    return dns.name.from_text(name).to_wire() or b""


def rrset(type: str, *texts: str, ttl: int = 300) -> node.RRset:
    number = dns.rdatatype.from_text(type)
    records = b""
    for text in texts:
        data = dns.rdata.from_text(dns.rdataclass.IN, number, text).to_wire() or b""
        records += layout.OWNER_POINTER + number.to_bytes(2) + b"\0\1" + ttl.to_bytes(4) + len(data).to_bytes(2) + data
    return node.RRset(number, len(texts), records)


SOA = "ns1.example.test. hostmaster.example.test. 7 7200 1800 86400 30"


def zone_nodes() -> Iterator[bytes]:
    def make(name: str, flags: int, *sets: node.RRset) -> bytes:
        return node.pack(wire(name), flags, sets)

    soa = rrset("SOA", SOA)
    yield make(
        "example.test.",
        NodeFlag.APEX,
        soa,
        rrset("NS", "ns1.example.test."),
        node.RRset(layout.NEGATIVE_SOA, 1, soa.wire),
    )
    yield make("www.example.test.", 0, rrset("A", "192.0.2.1", "192.0.2.2"), rrset("TXT", '"a b" "c"'))
    yield make("alias.example.test.", 0, rrset("CNAME", "www.example.test."))
    yield make("wild.example.test.", NodeFlag.EMPTY | NodeFlag.WILDCARD_CHILD)
    yield make("*.wild.example.test.", 0, rrset("MX", "10 mail.example.test."))
    yield make("sub.example.test.", NodeFlag.DELEGATION, rrset("NS", "ns.sub.example.test."))
    yield make("ns.sub.example.test.", NodeFlag.BELOW_CUT, rrset("A", "192.0.2.53"))
    yield make("old.example.test.", NodeFlag.DNAME, rrset("DNAME", "example.net."))
    yield make("child.example.test.", NodeFlag.APEX | NodeFlag.DELEGATION, soa, rrset("NS", "ns1.example.test."))
    yield make("a\\.b\\032c.example.test.", 0, rrset("A", "192.0.2.9"))


@dataclass
class Instance:
    """A board, its loader's side, and slots claimed by this process."""

    name: str
    board: Board
    writer: TableWriter | None = None
    slots: list[ClaimedSlot] = field(default_factory=list)
    locks: list[LockFile] = field(default_factory=list)
    gates: list[ReadLock] = field(default_factory=list)

    def lock(self, what: str) -> None:
        lock = LockFile(self.board.names.lock(what))
        assert lock.try_acquire()
        self.locks.append(lock)

    def publish(self, revision: int) -> TableWriter:
        """As a loader does it, the first time and later."""
        if self.writer is None:
            self.lock("writer")
            self.writer = TableWriter(self.board)
            steps = self.writer.replace(zone_nodes(), revision, {"zones": [wire("example.test.")]})
        else:
            steps = self.writer.apply({}, revision)
        for pause in steps:
            time.sleep(pause)
        self.writer.words.set("loader_state", LoaderState.FRESH)
        self.writer.words.set("loader_pid", os.getpid())
        self.writer.words.set("source_seen_ns", time.time_ns())
        return self.writer

    def worker(self, number: int, *, revision: int = 0, kind: SlotKind = SlotKind.WORKER) -> ClaimedSlot:
        slot = self.board.claim(kind, number)
        self.gates.append(ReadLock(self.board, slot))  # the writer asks every live slot's gate
        self.slots.append(slot)
        self.adopt(slot, revision)
        return slot

    def adopt(self, slot: ClaimedSlot, revision: int) -> None:
        slot.set("generation", self.board.live >> 1)
        slot.set("revision", revision)

    def leave(self, at: int = -1) -> None:
        """A worker ends."""
        self.gates.pop(at).close()
        self.slots.pop(at).release()

    def supervise(self, wanted: int) -> None:
        self.lock("supervisor")
        page = self.board.own_page(layout.SUPERVISOR_PAGE)
        for word, value in (
            ("supervisor_pid", os.getpid()),
            ("supervisor_heartbeat_ns", time.monotonic_ns()),
            ("workers_wanted", wanted),
        ):
            page.store(layout.SUPERVISOR_WORDS[word], value)
        page.close()

    def call(self, *arguments: str) -> Result:
        return CliRunner().invoke(standoff, [arguments[0], "--instance", self.name, *arguments[1:]])

    def close(self) -> None:
        while self.slots:
            self.leave()
        if self.writer:
            self.writer.close()
        for lock in self.locks:
            lock.release()
        self.board.close()
        remove_instance(self.name)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"cli-{os.getpid()}"
    remove_instance(name)
    yield name
    remove_instance(name)


@pytest.fixture
def instance(name: str) -> Iterator[Instance]:
    made = Instance(name, Board.create_or_attach(name))
    yield made
    made.close()


@pytest.fixture
def healthy(instance: Instance) -> Instance:
    instance.publish(7)
    instance.supervise(2)
    for number in range(2):
        instance.worker(number, revision=7)
    instance.worker(0, revision=7, kind=SlotKind.STREAM)
    return instance


# ---------------------------------------------------------------- nothing there


@pytest.mark.parametrize("arguments", [["status"], ["wait", "--revision", "1"], ["lookup", "x.test"]])
def test_no_instance(name: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(standoff, [*arguments, "--instance", name])
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("standoff: there is no segment")


def test_an_instance_that_has_ended(instance: Instance) -> None:
    result = instance.call("status")
    assert result.exit_code == 3
    assert "is not running" in result.stderr
    assert result.stdout.startswith("down")
    assert instance.call("wait", "--revision", "1").exit_code == 3
    assert instance.call("lookup", "x.test").exit_code == 3


# ---------------------------------------------------------------- explain, with workers and without a loader


def test_explain_with_workers(healthy: Instance, tmp_path: Path) -> None:
    healthy.adopt(healthy.slots[1], 6)
    result = healthy.call("explain", "alias.example.test", "--runtime-dir", str(tmp_path))
    assert result.exit_code == 0
    assert "alias.example.test.  cname, zone example.test.: alias.example.test. is an alias" in result.stdout
    assert f"  worker 0 (pid {os.getpid()}, slot 0): generation 1, revision 7\n" in result.stdout
    assert f"  worker 1 (pid {os.getpid()}, slot 1): generation 1, revision 6\n" in result.stdout
    assert "  answer      www.example.test. 300 IN A 192.0.2.1\n" in result.stdout
    assert result.stderr == "standoff: no loader answers: which keys gave the records is not known\n"
    told = msgspec.json.decode(healthy.call("explain", "no.example.test", "--json", "--runtime-dir", "/nowhere").stdout)
    assert (told["steps"][0]["kind"], told["reply"]["rcode"], len(told["workers"])) == ("nxdomain", "NXDOMAIN", 3)


# ---------------------------------------------------------------- status


def test_status_of_a_healthy_instance(healthy: Instance) -> None:
    healthy.slots[0].page.map[layout.COUNTERS : layout.COUNTERS + 1] = b"\x05"
    result = healthy.call("status", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    status = msgspec.json.decode(result.stdout)
    assert status["verdict"] == {"state": "ok", "reasons": []}
    assert (status["generation"], status["revision"], status["instance"]) == (1, 7, healthy.name)
    assert status["loader"]["alive"]
    assert (status["loader"]["state"], status["loader"]["names"]) == ("fresh", 10)
    assert [(worker["kind"], worker["worker"], worker["queries"]) for worker in status["workers"]] == [
        ("worker", 0, 5), ("worker", 1, 0), ("stream", 0, 0),
    ]  # fmt: skip
    assert all(worker["pid"] == os.getpid() and worker["heartbeat_age"] < 5 for worker in status["workers"])


def test_status_for_people(healthy: Instance) -> None:
    assert healthy.writer
    healthy.writer.note("etcd [red]1[/red] away\n")
    text = healthy.call("status").stdout
    assert text.startswith("ok  instance")
    for part in ("generation 1", "revision 7", "fresh, pid", "10 names", "2 workers wanted", "etcd [red]1[/red] away"):
        assert part in text
    assert "\x1b" not in text


def state(instance: Instance) -> tuple[str, str]:
    verdict = view.judge(view.collect(instance.board))
    return verdict.state, "; ".join(verdict.reasons)


def test_status_without_a_loader(healthy: Instance) -> None:
    healthy.locks[0].release()
    assert healthy.call("status").exit_code == 0
    assert state(healthy) == ("degraded", "no loader is running: answers are from its last table")


def test_status_of_a_dead_worker(healthy: Instance) -> None:
    healthy.leave(0)
    assert state(healthy) == ("degraded", "1 of 2 workers are alive")


def test_status_without_workers(healthy: Instance) -> None:
    while healthy.slots:
        healthy.leave()
    assert state(healthy) == ("down", "no worker is alive")
    assert healthy.call("status").exit_code == 1


def test_status_of_a_server_on_an_older_segment(instance: Instance) -> None:
    """Somebody has removed the segment, and a loader has made a new one."""
    instance.publish(7)
    instance.lock("supervisor")
    verdict, reasons = state(instance)
    assert verdict == "down"
    assert reasons.startswith("no worker is alive")
    assert "attached to an older segment of shared memory: then restart it" in reasons


def test_status_before_the_first_table(instance: Instance) -> None:
    instance.supervise(1)
    instance.worker(0)
    verdict, reasons = state(instance)
    assert verdict == "down"
    assert "nothing has been published yet" in reasons
    assert "no loader is running" in reasons


# ---------------------------------------------------------------- the verdict, on plain values


def healthy_status() -> view.Status:
    worker = view.Worker(
        slot=0, kind="worker", worker=0, pid=1, heartbeat_age=0.1, generation=5, revision=9, queries=1, section_age=None
    )
    return view.Status(
        instance="x",
        generation=5,
        revision=9,
        published_age=60.0,
        loader=view.Loader(
            alive=True, pid=1, state="fresh", heartbeat_age=0.1, source_age=0.1, names=1, keys=1, rejects=3, relists=0,
            drift=0, table_bytes=1, note="", write_lock_held=None,
        ),
        supervisor=view.Supervisor(
            alive=True, pid=1, heartbeat_age=0.1, workers_wanted=1, workers_started=1, workers_died=0,
            workers_condemned=0,
        ),
        workers=[worker, msgspec.structs.replace(worker, kind="stream", slot=1)],
    )  # fmt: skip


def test_a_line_of_status_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    long = "source etcd://" + "host.example:2379," * 20 + " is away"
    status = healthy_status()
    status = msgspec.structs.replace(status, loader=msgspec.structs.replace(status.loader, note=long))
    status_command.show(status, view.judge(status), "/var/lib/standoff")
    assert any(line.strip() == long for line in capsys.readouterr().out.splitlines())


Change = Callable[[view.Status], view.Status]
change = msgspec.structs.replace


def loader(**values: Any) -> Change:
    return lambda status: change(status, loader=change(status.loader, **values))


def supervisor(**values: Any) -> Change:
    return lambda status: change(status, supervisor=change(status.supervisor, **values))


def worker(number: int, **values: Any) -> Change:
    def apply(status: view.Status) -> view.Status:
        workers = list(status.workers)
        workers[number] = change(workers[number], **values)
        return change(status, workers=workers)

    return apply


@pytest.mark.parametrize(
    ("how", "expected", "reason"),
    [
        (loader(), "ok", ""),
        (loader(state="stale", note="source file:a: away"), "degraded", "a source cannot be read: file:a: away"),
        (loader(state="stale", note="answers come from x"), "degraded", "cannot be read: answers come from x"),
        (loader(state="stale", note="change 4 is held: x"), "degraded", "cannot be read: answers are from the last"),
        (loader(history_unwritable=1, note="state: history x: full"), "degraded", "degraded: history x: full"),
        (loader(note="state: x-health.json: full"), "degraded", "degraded: x-health.json: full"),
        (loader(image_unwritable=1), "degraded", "image cannot be written: look into the log"),
        (loader(heartbeat_age=9.0), "degraded", "the loader has not moved for 9 s"),
        (loader(write_lock_held=0.5), "degraded", "the loader (pid 1) has held the write lock for 0.50 s"),
        (supervisor(alive=False), "degraded", "no supervisor is running"),
        (supervisor(metrics_errno=errno.EADDRINUSE), "degraded", "metrics are not served: address already in use"),
        (supervisor(heartbeat_age=6.0), "degraded", "the supervisor has not moved"),
        (supervisor(workers_wanted=2), "degraded", "1 of 2 workers are alive"),
        (worker(0, heartbeat_age=7.0), "down", "no worker has moved for 7 s"),
        (worker(1, heartbeat_age=7.0), "degraded", "stream 0 (pid 1, slot 1) has not moved for 7 s"),
        (worker(0, generation=4), "degraded", "answers from generation 4, 5 is live"),
        (worker(0, section_age=0.3), "degraded", "worker 0 (pid 1, slot 0) has been inside the read lock for 0.30 s"),
        (worker(0, section_age=0.2), "ok", ""),
        (lambda s: change(worker(0, generation=4)(s), published_age=0.1), "ok", ""),
        (lambda s: change(s, workers=s.workers[1:]), "down", "no worker is alive"),
        (lambda s: change(s, generation=0), "down", "nothing has been published yet"),
    ],
)
def test_verdicts(how: Change, expected: str, reason: str) -> None:
    verdict = view.judge(how(healthy_status()))
    assert verdict.state == expected
    assert reason in str(verdict)


def test_one_name_is_not_several() -> None:
    change = loader(held_changes=1, held_names=1, pinned_names=1, pinned_age=3.0, rejected_names=1)
    held, pinned, rejected = view.judge(change(healthy_status())).reasons
    assert "a change (1 name, for 0 s)" in held
    assert "for 3 s: 1 name does not follow" in pinned
    assert rejected.startswith("1 name is answered")


def test_a_reason_for_each_source_and_nothing_of_what_else_is_noted() -> None:
    note = notes.join([
        notes.of_source("file:a", "gone\nfor ever"), notes.of_source("etcd://b/c", "connection refused"), "",
        "filter f is bypassed at x.: slow", "change 4 is held: 8 of 9 names",
    ])  # fmt: skip
    verdict = view.judge(loader(state="stale", note=note, names_unfiltered=1)(healthy_status()))
    assert verdict.reasons == [
        "a source cannot be read: file:a: gone for ever",
        "a source cannot be read: etcd://b/c: connection refused",
        "a filter is bypassed at 1 name: filter f is bypassed at x.: slow",
    ]
    verdict = view.judge(loader(alarms=1, note=note)(healthy_status()))
    assert verdict.reasons == ["alarm: file:a: gone for ever; etcd://b/c: connection refused"]


# ---------------------------------------------------------------- wait


def test_wait_is_over_at_once_when_all_are_there(healthy: Instance) -> None:
    result = healthy.call("wait", "--revision", "7")
    assert (result.exit_code, result.output) == (0, "")


def test_wait_names_those_that_lag(healthy: Instance) -> None:
    healthy.publish(8)
    healthy.adopt(healthy.slots[0], 8)
    result = healthy.call("wait", "--revision", "8", "--timeout", "0.05", "--json")
    assert result.exit_code == 1
    assert f"worker 1 (pid {os.getpid()}, slot 1) is at 7; stream 0" in result.stderr
    answer = msgspec.json.decode(result.stdout)
    assert (answer["done"], answer["reached"], len(answer["lagging"])) == (False, 7, 2)


def test_wait_sees_the_last_worker_arrive(healthy: Instance) -> None:
    healthy.publish(8)

    def adopt() -> None:
        for slot in healthy.slots:
            time.sleep(0.05)
            healthy.adopt(slot, 8)

    thread = threading.Thread(target=adopt)
    thread.start()
    result = healthy.call("wait", "--revision", "8", "--timeout", "20", "--json")
    thread.join()
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout)["waited"] >= 0.14


def test_wait_does_not_wait_for_the_dead(healthy: Instance) -> None:
    healthy.publish(8)
    for slot in healthy.slots[1:]:
        healthy.adopt(slot, 8)
    healthy.leave(0)
    assert healthy.call("wait", "--revision", "8", "--timeout", "0").exit_code == 0


def test_no_worker_is_not_every_worker(healthy: Instance) -> None:
    while healthy.slots:
        healthy.leave()
    result = healthy.call("wait", "--revision", "1", "--timeout", "0")
    assert result.exit_code == 1
    assert "no worker is alive" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--revision", "-1"], ["--revision", "1", "--timeout", "-1"]])
def test_wrong_use_of_wait(name: str, arguments: list[str]) -> None:
    assert CliRunner().invoke(standoff, ["wait", *arguments]).exit_code == 2


# ---------------------------------------------------------------- lookup


@pytest.mark.parametrize(
    ("arguments", "status", "records", "told"),
    [
        (["www.example.test"], 0, ["A 192.0.2.1", "A 192.0.2.2"], "answer, zone example.test. (generation 1"),
        (["WWW.Example.TEST.", "txt"], 0, ['TXT "a b" "c"'], "answer"),
        (["www.example.test", "ANY"], 0, ["A 192.0.2.1", "A 192.0.2.2", 'TXT "a b" "c"'], "answer"),
        (["example.test", "SOA"], 0, [f"SOA {SOA}"], "answer"),
        (["alias.example.test"], 0, ["CNAME www.example.test."], "cname, alias.example.test. is an alias"),
        (["alias.example.test", "CNAME"], 0, ["CNAME www.example.test."], "answer"),
        (["x.wild.example.test", "MX"], 0, ["MX 10 mail.example.test."], "made from the wildcard *.wild.example.test."),
        (["x.y.wild.example.test", "MX"], 0, ["MX 10 mail.example.test."], "wildcard"),
        (["x.wild.example.test", "A"], 1, [], "nodata, *.wild.example.test. has other types; made from the wildcard"),
        (["wild.example.test", "A"], 1, [], "nodata, wild.example.test. has no records, only names beneath it"),
        (["www.example.test", "AAAA"], 1, [], "nodata, www.example.test. has other types"),
        (["a.b.www.example.test"], 1, [], "nxdomain, a.b.www.example.test. does not exist; the nearest name"),
        (["host.sub.example.test"], 0, ["NS ns.sub.example.test."], "delegation, sub.example.test. is delegated"),
        (["ns.sub.example.test"], 0, ["NS ns.sub.example.test."], "delegation"),
        (["sub.example.test", "DS"], 1, [], "nodata"),
        (["x.old.example.test"], 0, ["DNAME example.net."], "dname, names beneath old.example.test. are redirected"),
        (["old.example.test"], 1, [], "nodata"),
        (["child.example.test", "SOA"], 0, [f"SOA {SOA}"], "zone child.example.test."),
        (["child.example.test", "DS"], 1, [], "nodata, child.example.test. has other types, zone example.test."),
        (["www.example.net"], 1, [], "refused, no zone here holds www.example.net."),
        (["www.example.test", "TYPE65534"], 1, [], "nodata"),
        (["a\\.b\\032c.example.test"], 0, ["A 192.0.2.9"], "answer"),
    ],
)
def test_lookup(instance: Instance, arguments: list[str], status: int, records: list[str], told: str) -> None:
    instance.publish(7)
    result = instance.call("lookup", *arguments)
    assert [line.split(" IN ")[1] for line in result.stdout.splitlines()] == records
    assert told in result.stderr
    assert result.exit_code == status


def test_lookup_prints_what_a_zone_file_takes(instance: Instance) -> None:
    instance.publish(7)
    assert instance.call("lookup", "X.wild.example.test", "MX").stdout == (
        "x.wild.example.test. 300 IN MX 10 mail.example.test.\n"
    )


def test_lookup_as_json(instance: Instance) -> None:
    instance.publish(7)
    answer = msgspec.json.decode(instance.call("lookup", "x.wild.example.test", "MX", "--json").stdout)
    assert answer == {
        "name": "x.wild.example.test.",
        "type": "MX",
        "kind": "wildcard",
        "why": "made from the wildcard *.wild.example.test.",
        "zone": "example.test.",
        "owner": "*.wild.example.test.",
        "records": [{"name": "x.wild.example.test.", "ttl": 300, "type": "MX", "data": "10 mail.example.test."}],
        "generation": 1,
        "revision": 7,
    }


@pytest.mark.parametrize("arguments", [["a..b"], ["x.test", "NOTYPE"], ["x" * 64], []])
def test_wrong_use_of_lookup(name: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(standoff, ["lookup", "--instance", name, *arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_lookup_sees_one_version(instance: Instance) -> None:
    """Beside a loader that swaps as fast as it can."""
    writer = instance.publish(7)
    over = threading.Event()

    def swap() -> None:
        revision = 8
        while not over.is_set():
            block = node.pack(wire("www.example.test."), 0, [rrset("A", *[f"192.0.2.{revision % 250}"] * 2)])
            for _ in writer.apply({wire("www.example.test."): block}, revision):
                pass
            revision += 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(20):
            answer = msgspec.json.decode(instance.call("lookup", "www.example.test", "--json").stdout)
            last = {int(record["data"].rsplit(".", 1)[1]) for record in answer["records"]}
            assert last == {answer["revision"] % 250} or answer["revision"] == 7
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------- what run looks at


def test_run_waits_until_all_workers_answer(instance: Instance) -> None:
    assert not run_command.is_ready(instance.name)
    instance.publish(7)
    instance.supervise(2)
    instance.worker(0, revision=7, kind=SlotKind.STREAM)
    instance.worker(0, revision=7)
    assert not run_command.is_ready(instance.name)
    slot = instance.worker(1)
    slot.set("generation", 0)
    assert not run_command.is_ready(instance.name)
    instance.adopt(slot, 7)
    assert run_command.is_ready(instance.name)
    assert not run_command.is_ready("no-such-instance")


def test_run_finds_something_to_try(instance: Instance) -> None:
    instance.publish(7)
    assert run_command.survey(instance.name) == (["example.test"], "www.example.test A")


@pytest.mark.parametrize("what", ["writer", "supervisor", "run", "slot"])
def test_run_leaves_a_running_instance_alone(instance: Instance, what: str) -> None:
    if what == "slot":
        instance.worker(0)
    else:
        instance.lock(what)
    before = set(instance.board.names.existing())
    result = instance.call("run", "--source", "file:x.zone")
    assert result.exit_code == 1
    assert f"instance {instance.name} is running already" in result.stderr
    assert before <= set(instance.board.names.existing())
