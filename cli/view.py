"""What an instance looks like from outside: read from the control board into plain values, and judged (pure)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

from cli.output import counted
from shm import notes
from shm.board import Board, SlotView
from shm.layout import STATE_KINDS, LoaderState, SlotKind
from shm.segment import is_held

#: A worker passes through its loop at least every 100 ms, a loader or supervisor every second or so. One that is
#: silent for this long has missed many turns; short enough that an operator sees it at once.
SILENT_AFTER_S = 5.0
#: A published version reaches every worker within milliseconds; one that lags for so long is stuck.
LAGGING_AFTER_S = 1.0
#: R6: a stay inside the lock that the supervisor reports; the same figure as in server/supervision.py.
LEAK_AFTER_S = 0.25
LAST_GOOD = "answers are from the last good table"


_COUNTS = (
    "names", "keys", "rejects", "kept", "relists", "drift", "table_bytes", "checks_up", "checks_down",
    "names_unfiltered", "held_changes", "held_names", "rejected_names", "pinned_names", "pinned_revision",
    "snapshot_unwritable", "history_unwritable", "image_unwritable", "held_unwritable",
)  # fmt: skip


class Loader(msgspec.Struct, frozen=True, kw_only=True):
    """Ages in seconds; None: never. event_age, progress_age, relist_age, alarms: of etcd sources (shm/layout.py)."""

    alive: bool
    pid: int
    state: str
    heartbeat_age: float | None
    source_age: float | None
    event_age: float | None = None
    progress_age: float | None = None
    relist_age: float | None = None
    alarms: int = 0
    names: int
    keys: int
    rejects: int
    kept: int = 0
    relists: int
    drift: int
    table_bytes: int
    checks_up: int = 0
    checks_down: int = 0
    names_unfiltered: int = 0
    held_changes: int = 0
    held_names: int = 0
    held_age: float | None = None
    rejected_names: int = 0
    pinned_names: int = 0
    pinned_revision: int = 0
    pinned_age: float | None = None
    snapshot_unwritable: int = 0
    history_unwritable: int = 0
    image_unwritable: int = 0
    held_unwritable: int = 0
    note: str
    write_lock_held: float | None


class Supervisor(msgspec.Struct, frozen=True, kw_only=True):
    alive: bool
    pid: int
    heartbeat_age: float | None
    workers_wanted: int
    workers_started: int
    workers_died: int
    workers_condemned: int
    metrics_errno: int = 0


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A slot that a live process holds."""

    slot: int
    kind: str
    worker: int
    pid: int
    heartbeat_age: float | None
    generation: int
    revision: int
    queries: int
    section_age: float | None

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.kind} {self.worker} (pid {self.pid}, slot {self.slot})"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """An instance at one moment. `revision` and `generation` are those of the live table; 0: nothing published."""

    instance: str
    generation: int
    revision: int
    published_age: float | None
    loader: Loader
    supervisor: Supervisor
    workers: list[Worker]

    @property
    def running(self) -> bool:
        return self.loader.alive or self.supervisor.alive or bool(self.workers)


class Verdict(msgspec.Struct, frozen=True):
    """ok: all is well; degraded: queries are answered, but look; down: queries are not answered as they should be."""

    state: str
    reasons: list[str]

    def __str__(self) -> str:
        return f"{self.state}: {'; '.join(self.reasons)}" if self.reasons else self.state


def collect(board: Board) -> Status:
    """Read the board. Each word is whole, but they are not all of one instant: a worker may seem a generation ahead."""
    monotonic, wall = time.monotonic_ns(), time.time_ns()
    words = board.loader
    loader = Loader(
        alive=is_held(board.names.lock("writer")),
        pid=words.get("loader_pid"),
        state=_name_of(LoaderState, words.get("loader_state")),
        heartbeat_age=_age(monotonic, words.get("loader_heartbeat_ns")),
        source_age=_age(wall, words.get("source_seen_ns")),
        event_age=_age(wall, words.get("watch_event_ns")),
        progress_age=_age(wall, words.get("watch_progress_ns")),
        relist_age=_age(wall, words.get("relisted_ns")),
        alarms=words.get("source_alarms"),
        held_age=_age(wall, words.get("held_since_ns")),
        pinned_age=_age(wall, words.get("pinned_since_ns")),
        note=board.loader_note,
        write_lock_held=_age(monotonic, words.get("write_hold_since_ns")),
        **{name: words.get(name) for name in _COUNTS},
    )
    words = board.supervisor
    supervisor = Supervisor(
        alive=is_held(board.names.lock("supervisor")),
        pid=words.get("supervisor_pid"),
        heartbeat_age=_age(monotonic, words.get("supervisor_heartbeat_ns")),
        **{f"workers_{name}": words.get(f"workers_{name}") for name in ("wanted", "started", "died", "condemned")},
        metrics_errno=words.get("metrics_errno"),
    )
    return Status(
        instance=board.names.instance,
        generation=board.live >> 1,
        revision=board.loader.get("revision"),
        published_age=_age(wall, board.loader.get("published_ns")),
        loader=loader,
        supervisor=supervisor,
        workers=[_worker(slot, monotonic) for slot in board.workers()],
    )


def judge(status: Status) -> Verdict:
    """The verdict on a status, with every reason."""
    down = list(_why_down(status))
    reasons = down + list(_why_degraded(status))
    return Verdict("down" if down else "degraded" if reasons else "ok", reasons)


def _why_down(status: Status) -> Iterator[str]:
    udp = [worker for worker in status.workers if worker.kind == "worker"]
    if not udp:
        yield "no worker is alive" if status.supervisor.alive else "no server is running"
        if status.supervisor.alive and not status.supervisor.pid:  # it has said nothing in this segment
            yield "the server is just starting, or attached to an older segment of shared memory: then restart it"
    elif all(_silent(worker.heartbeat_age) for worker in udp):
        yield f"no worker has moved for {min(worker.heartbeat_age or 0 for worker in udp):.0f} s"
    if status.generation == 0:
        yield "nothing has been published yet"


def _why_degraded(status: Status) -> Iterator[str]:
    loader, supervisor = status.loader, status.supervisor
    if not loader.alive:
        yield "no loader is running: answers are from its last table"
    elif loader.state == "stale":
        for line in notes.of_sources(loader.note) or [notes.about(loader.note, "answers come from") or LAST_GOOD]:
            yield f"a source cannot be read: {line}"
    elif loader.alarms:
        yield f"alarm: {'; '.join(notes.of_sources(loader.note))}"
    elif _silent(loader.heartbeat_age):
        yield f"the loader has not moved for {loader.heartbeat_age:.0f} s"
    if loader.alive and loader.names_unfiltered:
        why = notes.about(loader.note, "is bypassed at")
        yield f"a filter is bypassed at {counted(loader.names_unfiltered, 'name')}: {why}"
    if loader.alive:
        kinds = [kind for kind in STATE_KINDS if getattr(loader, f"{kind}_unwritable")]
        unknown = [f"{', '.join(kinds)} cannot be written: look into the log"] if kinds else []
        yield from notes.of_states(loader.note) or unknown
    yield from _why_held(loader)
    if loader.write_lock_held is not None and loader.write_lock_held > LEAK_AFTER_S:
        yield f"the loader (pid {loader.pid}) has held the write lock for {loader.write_lock_held:.2f} s"
    if status.workers and not supervisor.alive:
        yield "no supervisor is running: a worker that dies is not replaced"
    elif supervisor.alive and _silent(supervisor.heartbeat_age):
        yield f"the supervisor has not moved for {supervisor.heartbeat_age:.0f} s"
    if supervisor.alive and supervisor.metrics_errno:
        yield f"metrics are not served: {os.strerror(supervisor.metrics_errno).lower()}; the log says where"
    udp = [worker for worker in status.workers if worker.kind == "worker"]
    if supervisor.alive and 0 < len(udp) < supervisor.workers_wanted:
        yield f"{len(udp)} of {supervisor.workers_wanted} workers are alive"
    settled = status.published_age is not None and status.published_age > LAGGING_AFTER_S
    for worker in status.workers:
        if _silent(worker.heartbeat_age):
            yield f"{worker.title} has not moved for {worker.heartbeat_age:.0f} s"
        elif settled and worker.generation < status.generation:
            yield f"{worker.title} answers from generation {worker.generation}, {status.generation} is live"
        if worker.section_age is not None and worker.section_age > LEAK_AFTER_S:
            yield f"{worker.title} has been inside the read lock for {worker.section_age:.2f} s"


def _why_held(loader: Loader) -> Iterator[str]:
    if loader.held_changes:
        changes = "a change" if loader.held_changes == 1 else f"{loader.held_changes} changes"
        names = counted(loader.held_names, "name")
        yield (
            f"HELD: the guard holds back {changes} ({names}, for {loader.held_age or 0:.0f} s): "
            "`standoff pending` shows what, then approve or reject"
        )
    if loader.pinned_age is not None:
        names = f"{counted(loader.pinned_names, 'name')} {'does' if loader.pinned_names == 1 else 'do'}"
        yield (
            f"PINNED at revision {loader.pinned_revision} for {loader.pinned_age:.0f} s: {names} "
            "not follow the source until `standoff resume`"
        )
    if loader.rejected_names:
        names = f"{counted(loader.rejected_names, 'name')} {'is' if loader.rejected_names == 1 else 'are'}"
        yield f"{names} answered against the source's word (standoff pending --rejected)"


def _silent(age: float | None) -> bool:
    return age is not None and age > SILENT_AFTER_S


def _worker(slot: SlotView, monotonic: int) -> Worker:
    inside = slot.get("section") & 1
    return Worker(
        slot=slot.number,
        kind=_name_of(SlotKind, slot.get("kind")),
        worker=slot.get("worker"),
        pid=slot.get("pid"),
        heartbeat_age=_age(monotonic, slot.get("heartbeat_ns")),
        generation=slot.get("generation"),
        revision=slot.get("revision"),
        queries=sum(slot.counters()["requests_family"]),
        section_age=_age(monotonic, slot.get("since_ns")) if inside else None,
    )


def _name_of(kind: type[LoaderState] | type[SlotKind], value: int) -> str:
    try:
        return kind(value).name.lower()
    except ValueError:
        return f"unknown ({value})"


def _age(now_ns: int, then_ns: int) -> float | None:
    """Seconds since a stamp, rounded to milliseconds; never negative: another process may have stamped just now."""
    return round(max(0, now_ns - then_ns) / 1e9, 3) if then_ns else None
