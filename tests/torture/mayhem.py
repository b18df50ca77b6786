"""Hits processes of a service at random, by a seed, and watches its board meanwhile for what the verdict needs."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from loader import faults as loader_faults
from server import faults
from shm.board import SlotView
from shm.layout import SlotKind
from tests.support.etcd import EtcdServer
from tests.torture.service import Service

WORKER, STREAM, LOADER, ETCD = "worker", "stream", "loader", "etcd"
KILL, STOP, LEAK, LOOP = "kill", "stop", "leak", "endless-loop"
#: A worker stays inside the read lock until it is replaced.
INSIDE = ("stuck-inside", "blocked-inside", "stopped-inside")
#: The loader does not come back from these.
DEADLY = (KILL, "stopped-inside", "blocked-inside", "killed-inside")
#: Eats a core until it is replaced: one at a time, or it is the machine that is measured.
GREEDY = ("stuck-inside", LOOP)
WEIGHTS = {
    (WORKER, KILL): 4, (WORKER, STOP): 6, (WORKER, LEAK): 4, (WORKER, LOOP): 1,
    (WORKER, "stuck-inside"): 1, (WORKER, "blocked-inside"): 1, (WORKER, "stopped-inside"): 1,
    (STREAM, KILL): 1, (STREAM, STOP): 1,
    (LOADER, KILL): 1, (LOADER, STOP): 2, (LOADER, "stopped-inside"): 1, (LOADER, "killed-inside"): 1,
    (LOADER, "blocked-inside"): 1,
    (ETCD, STOP): 1,
}  # fmt: skip
#: Half of the stops end before a neighbour even notices, or soon after; the longest long after they were condemned.
STOPS_S = ((0.005, 0.3), (0.3, 2.0))
ETCD_STOP_S = (0.005, 0.3)
#: Between two hits. A query has to outlive one hit within 100 ms: 50 ms until the neighbour looks after the victim's
#: socket, and its time to answer. Were the neighbour hit before it has, the next would begin to count anew.
PAUSE_S = (0.12, 0.45)
#: Between two deaths of the loader: `standoff run` starts one that has lived for 5 s again without a growing pause.
LOADER_REST_S = 6.0
#: Between two hits on the stream worker, of which there is one: its client may have an answer in between.
STREAM_REST_S = 1.0
POLL_S = 0.004
#: Stays shorter than this are ordinary.
LONG_NS = 50_000_000


@dataclass
class Hit:
    """`ended_ns`: when a stopped process was told to go on; 0 = it never was."""

    victim: str
    fault: str
    at_ns: int
    pid: int
    index: int = 0
    slot: int = 0
    ends_ns: int = 0
    ended_ns: int = 0


@dataclass
class Stay:
    """Somebody inside the lock, as seen from outside: never longer than it was."""

    pid: int
    slot: int
    since_ns: int
    until_ns: int


class Watcher(threading.Thread):
    """Looks at the board some hundred times a second: stays in the read lock, holds of the write lock, publishes."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._board = service.board
        self._over = threading.Event()
        self._inside: dict[int, tuple[int, Stay]] = {}
        self._hold = 0
        self.stays: list[Stay] = []
        self.holds: list[Stay] = []
        self.publishes: list[tuple[int, int, int]] = []  # time, revision, the loader's pid

    def run(self) -> None:
        slots = [self._board.slot(number) for number in self._board.slots]
        while not self._over.wait(POLL_S):
            self._look_at_loader()
            for slot in slots:
                if slot.get("kind"):
                    self._look_at(slot)

    def _look_at(self, slot: SlotView) -> None:
        section, now = slot.get("section"), time.monotonic_ns()
        known = self._inside.get(slot.number)
        if not section & 1:
            self._inside.pop(slot.number, None)
        elif known is None or known[0] != section:
            self._inside[slot.number] = section, Stay(slot.get("pid"), slot.number, now, now)
        elif now - known[1].since_ns > LONG_NS and self._board.is_alive(slot.number):
            stay = known[1]
            if stay.until_ns == stay.since_ns:
                self.stays.append(stay)
            stay.until_ns = now

    def _look_at_loader(self) -> None:
        words, now = self._board.loader, time.monotonic_ns()
        revision, hold = words.get("revision"), words.get("write_hold_since_ns")
        if not self.publishes or self.publishes[-1][1] != revision:
            self.publishes.append((now, revision, words.get("loader_pid")))
        if hold and hold == self._hold and now - hold > LONG_NS:
            if not self.holds or self.holds[-1].since_ns != hold:
                self.holds.append(Stay(words.get("loader_pid"), 0, hold, now))
            self.holds[-1].until_ns = now
        self._hold = hold

    def stop(self) -> None:
        self._over.set()
        self.join()


@dataclass
class Mayhem:
    """At most all workers but one are afflicted at a time, one of them inside the lock, and one loader."""

    service: Service
    etcd: EtcdServer
    dice: random.Random
    hits: list[Hit] = field(default_factory=list)
    _open: list[Hit] = field(default_factory=list)
    _loader_rests_until: float = 0.0
    _stream_rests_until: float = 0.0

    def rage(self, seconds: float) -> None:
        """Hit for so long; then end all stops and wait until everything has recovered."""
        end, due = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            self._mend()
            if now >= due and self._strike():
                due = time.monotonic() + self.dice.uniform(*PAUSE_S)
            time.sleep(0.005)
        patience = time.monotonic() + 30
        while self._open:
            self._mend()
            assert time.monotonic() < patience, f"not recovered after 30 s: {self._open}"
            time.sleep(0.01)

    def end_stops(self) -> None:
        """Whatever happened: nobody is left stopped."""
        for hit in self._open:
            if hit.ends_ns and not hit.ended_ns:
                self._continue(hit)

    # ---- recovering

    def _mend(self) -> None:
        now = time.monotonic_ns()
        for hit in list(self._open):
            if hit.ends_ns and not hit.ended_ns and now >= hit.ends_ns:
                self._continue(hit)
            if self._recovered(hit):
                self._open.remove(hit)
                if hit.victim == LOADER and self.service.loader_pid != hit.pid:
                    self._loader_rests_until = time.monotonic() + LOADER_REST_S
                if hit.victim == STREAM:
                    self._stream_rests_until = time.monotonic() + STREAM_REST_S

    def _continue(self, hit: Hit) -> None:
        with suppress(ProcessLookupError):
            os.kill(hit.pid, signal.SIGCONT)
        hit.ended_ns = time.monotonic_ns()

    def _recovered(self, hit: Hit) -> bool:
        if hit.ends_ns and not hit.ended_ns:
            return False
        if hit.victim == ETCD:
            return True
        if hit.victim == LOADER:
            words = self.service.board.loader
            pid = self.service.loader_pid
            if hit.fault == STOP and pid == hit.pid:
                return words.get("loader_heartbeat_ns") > hit.ended_ns
            return pid not in (0, hit.pid) and words.get("published_ns") > words.get("loader_started_ns")
        kind = SlotKind.WORKER if hit.victim == WORKER else SlotKind.STREAM
        slots = [s for s in self.service.slots(kind) if s.get("generation") and s.get("worker") == hit.index]
        if hit.fault == STOP and any(s.get("pid") == hit.pid for s in slots):
            return any(s.get("pid") == hit.pid and s.get("heartbeat_ns") > hit.ended_ns for s in slots)
        return any(s.get("pid") != hit.pid for s in slots)

    # ---- hitting

    def _strike(self) -> bool:
        """Draw a hit; False if the victim cannot be hit now."""
        ((victim, fault),) = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        stop_s = self.dice.uniform(*(ETCD_STOP_S if victim == ETCD else self.dice.choice(STOPS_S)))
        hit = self._aim(victim, fault)
        if hit is None:
            return False
        self.hits.append(hit)
        self._open.append(hit)
        number = _signal(victim, fault)
        hit.at_ns = time.monotonic_ns()
        if fault == STOP:
            hit.ends_ns = hit.at_ns + int(stop_s * 1e9)
        with suppress(ProcessLookupError):
            os.kill(hit.pid, number)
        return True

    def _aim(self, victim: str, fault: str) -> Hit | None:
        afflicted = [hit for hit in self._open if hit.victim == victim]
        if victim == WORKER:
            return self._aim_at_worker(fault, afflicted)
        if afflicted:
            return None
        if victim == ETCD:
            return Hit(victim, fault, 0, self.etcd.pid)
        if victim == LOADER:
            pid = self.service.loader_pid
            if fault in DEADLY and time.monotonic() < self._loader_rests_until:
                return None
            return Hit(victim, fault, 0, pid) if pid else None
        if time.monotonic() < self._stream_rests_until:
            return None
        slots = [slot for slot in self.service.slots(SlotKind.STREAM) if slot.get("generation")]
        return Hit(victim, fault, 0, slots[0].get("pid"), slots[0].get("worker"), slots[0].number) if slots else None

    def _aim_at_worker(self, fault: str, afflicted: list[Hit]) -> Hit | None:
        spoken_for = {hit.index for hit in afflicted}
        slots = [slot for slot in self.service.slots(SlotKind.WORKER) if slot.get("generation")]
        well = [slot for slot in slots if slot.get("worker") not in spoken_for]
        at_it = {hit.fault for hit in afflicted}
        if len(well) < 2 or any(fault in kind and at_it.intersection(kind) for kind in (INSIDE, GREEDY)):
            return None
        slot = self.dice.choice(well)
        return Hit(WORKER, fault, 0, slot.get("pid"), slot.get("worker"), slot.number)


def _signal(victim: str, fault: str) -> int:
    if fault in (KILL, STOP):
        return signal.SIGKILL if fault == KILL else signal.SIGSTOP
    return loader_faults.signal_of(fault) if victim == LOADER else faults.signal_of(fault)
