"""The supervisor: forks and watches the workers, owns the sockets. It does; `supervision.py` decides."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.control import ControlSocket
from server.cookie_secrets import CookieSecrets
from server.culprit import StackFile
from server.handover import Handover
from server.passage import Passage
from server.policy import Policy
from server.sockets import Address
from server.supervision import (
    Action,
    Close,
    Finish,
    Kill,
    Kind,
    Question,
    Report,
    Role,
    Start,
    Steer,
    Supervision,
    Terminate,
)
from server.vacancy import open_sockets
from server.watch import LockWatch
from server.worker import LEAKED, Limits, WorkerSetup, run_worker
from shm import layout
from shm.board import Board, WordView
from shm.layout import SlotKind
from shm.notify import notify, watchdog_interval_s
from shm.segment import LockFile

log = logging.getLogger(__name__)

#: How often the supervisor looks at its workers; a third of what a systemd watchdog would at least be set to.
TICK_S = 0.1
#: How often it looks whether the file of cookie secrets has changed, and the control socket is there.
LOOK_S = 1.0
#: Exit status of a child whose code raised.
CHILD_FAILED = 70


@dataclass(frozen=True, slots=True)
class Plan:
    """What the supervisor is to run."""

    instance: str
    addresses: tuple[Address, ...]
    tls_addresses: tuple[Address, ...]
    workers: int
    policy: Policy
    limits: Limits
    freebind: bool
    control_path: Path
    drain_timeout_s: float
    run_stream: Callable[[list[socket.socket], list[socket.socket]], int]  # listeners for TCP, and for TLS
    run_exporter: Callable[[], int] | None
    lock: LockFile
    cookies: CookieSecrets | None = None
    passage: Passage | None = None
    run_transfers: Callable[[], int] | None = None


class Supervisor:
    """One for an instance. `run` returns the exit status."""

    def __init__(self, plan: Plan, board: Board, control: ControlSocket) -> None:
        self._plan = plan
        self._board = board
        self._page = board.own_page(layout.SUPERVISOR_PAGE)
        self._words = WordView(self._page, layout.SUPERVISOR_WORDS)
        self._sockets = open_sockets(board, plan.addresses, plan.tls_addresses, plan.workers, freebind=plan.freebind)
        self._handovers: dict[int, Handover] = {}
        self._tree = Supervision(
            plan.workers,
            exporter=plan.run_exporter is not None,
            transfers=plan.run_transfers is not None,
            drain_timeout_s=plan.drain_timeout_s,
        )
        self._watch = LockWatch(board, self._words)
        self._control = control
        self._signals: list[int] = []
        self._finished = False
        self._ready = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT."""
        self._words.set("supervisor_pid", os.getpid())
        self._words.set("supervisor_started_ns", time.time_ns())
        self._words.set("metrics_errno", 0)
        self._sockets.steer(self._plan.workers)
        wakeup = self._catch_signals()
        gc.collect()
        gc.freeze()  # what is loaded by now stays shared with the workers
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._control.fileno(), select.POLLIN)
        watchdog = watchdog_interval_s()
        fed = looked = 0.0
        while not self._finished:
            now = time.monotonic()
            self._words.set("supervisor_heartbeat_ns", time.monotonic_ns())
            self._do(self._tree.tick(now))
            for pid, look in self._watch.looks(self._tree.children):
                self._do(self._tree.observed(pid, look, now))
            self._watch.tell(now)
            if now - looked > LOOK_S:
                looked = now
                self._control.look()
                if self._plan.cookies is not None:
                    self._plan.cookies.look()
            self._announce_ready()
            if watchdog is not None and now - fed > watchdog and self._answers():
                fed = now
                notify(WATCHDOG="1")
            for fd, _ in poll.poll(TICK_S * 1000):
                if fd == wakeup.fileno():
                    wakeup.recv(4096)
                else:
                    self._control.handle_ready({"scale": self._on_scale, "stop": self._on_stop})
            self._act_on_signals()
        self._sockets.close()
        return 0

    # ---- events

    def _catch_signals(self) -> socket.socket:
        """Handlers only queue; the loop acts."""
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._wakeup = (receiver, sender)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._signals.append(number))
        return receiver

    def _act_on_signals(self) -> None:
        now = time.monotonic()
        queued, self._signals = self._signals, []
        for number in queued:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._begin_stop(signal.Signals(number).name)
            elif number == signal.SIGTTIN:
                self._scale(self._tree.wanted + 1)
            elif number == signal.SIGTTOU:
                self._scale(self._tree.wanted - 1)
            elif number == signal.SIGHUP:
                self._on_hangup()
        while self._reap(now):
            pass

    def _on_hangup(self) -> None:
        """The stream worker has the certificate, we have the cookie secrets; nothing else can be reloaded."""
        log.info("SIGHUP: certificate and file of cookie secrets are read again; other settings need a restart")
        if self._plan.cookies is not None:
            self._plan.cookies.reload()
        for pid, child in self._tree.children.items():
            if child.role.kind is Kind.STREAM:
                _signal(pid, signal.SIGHUP)

    def _begin_stop(self, why: str) -> None:
        log.info("stopping (%s): answering what is queued", why)
        notify(STOPPING="1")
        self._do(self._tree.stop(time.monotonic()))

    def _reap(self, now: float) -> bool:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return False
        child = self._tree.children.get(pid)
        if child is not None:
            expected = child.kill_at is not None
            how = _describe(status)
            log.log(logging.INFO if expected else logging.ERROR, "%s (pid %d) %s", child.role, pid, how)
            if not expected:
                self._words.add("workers_died")
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == LEAKED:
                self._words.add("leaks_reported")
        self._watch.forget(pid)
        self._do(self._tree.exited(pid, now))
        return True

    def _scale(self, workers: int) -> str | None:
        """None, or why not."""
        before = self._tree.wanted
        try:
            actions = self._tree.scale(workers, time.monotonic())
        except ValueError as error:
            log.warning("%s", error)
            return str(error)
        log.info("workers: %d -> %d", before, workers)
        self._do(actions)
        if workers > before:
            self._sockets.steer(workers)
        self._ready = False
        return None

    def _on_scale(self, request: dict[str, Any]) -> dict[str, Any]:
        workers = request.get("workers")
        if not isinstance(workers, int):
            return {"ok": False, "message": "scale wants a number of workers"}
        before = self._tree.wanted
        problem = self._scale(workers)
        return {
            "ok": problem is None,
            "message": problem or f"workers: {before} -> {workers}",
            "workers": self._tree.wanted,
        }

    def _on_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self._begin_stop("asked by the control socket")
        return {"ok": True, "message": "stopping"}

    # ---- watching

    def _answers(self) -> bool:
        """Real progress, for the watchdog: some worker has had a heartbeat within the last second."""
        clock = time.monotonic_ns()
        return any(
            clock - slot.get("heartbeat_ns") < 1_000_000_000
            for _, slot in self._watch.slots(self._tree.children)
            if slot.get("kind") == SlotKind.WORKER
        )

    def _announce_ready(self) -> None:
        """READY=1 once a table is published and every worker answers from it."""
        if self._ready:
            return
        answering = sum(
            1 for _, slot in self._watch.slots(self._tree.children) if slot.get("kind") and slot.get("generation")
        )
        needed = self._tree.wanted + 1  # the stream worker
        if answering >= needed:
            self._ready = True
            answer = "1 worker answers" if self._tree.wanted == 1 else f"{self._tree.wanted} workers answer"
            log.info("ready: %s on %s", answer, ", ".join(map(str, self._plan.addresses)))
            notify(READY="1", STATUS=answer)

    # ---- doing

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(role):
                    self._start(role)
                case Terminate(pid):
                    _signal(pid, signal.SIGTERM)
                case Report(pid, role):
                    self._watch.report(pid, role, time.monotonic())
                case Question(pid):
                    self._watch.question(pid)
                case Kill(pid, role, reason):
                    log.error("%s (pid %d): %s%s; replacing it", role, pid, reason, self._watch.whereabouts(pid))
                    self._words.add("workers_condemned")
                    _signal(pid, signal.SIGKILL)
                case Steer(workers):
                    self._sockets.steer(workers)
                case Close(role):
                    self._close(role)
                case Finish():
                    self._finished = True
        self._words.set("workers_wanted", self._tree.wanted)

    def _start(self, role: Role) -> None:
        ends: tuple[Handover, Handover] | None = None
        if role.kind is Kind.WORKER:
            if role.index not in self._sockets.udp:
                self._open(role.index)
            ends = Handover.pair()
        sys.stdout.flush()
        sys.stderr.flush()
        stack = StackFile()
        try:
            pid = os.fork()
        except OSError as error:
            log.error("cannot fork %s: %s", role, error)
            stack.close()
            self._tree.start_failed(role, time.monotonic())
            return
        if pid == 0:
            if ends:
                ends[0].close()
            stack.listen()
            self._be(role, ends[1] if ends else None)
        self._watch.adopt(pid, stack)
        log.info("%s: pid %d", role, pid)
        self._words.add("workers_started")
        self._tree.started(role, pid, time.monotonic())
        if ends:
            ends[1].close()
            old = self._handovers.pop(role.index, None)
            if old is not None:
                old.close()
            self._handovers[role.index] = ends[0]

    def _open(self, worker: int) -> None:
        sockets = self._sockets.open_for(worker)
        for handover in self._handovers.values():
            handover.add(worker, sockets)

    def _close(self, role: Role) -> None:
        if role.kind is not Kind.WORKER:
            return
        handover = self._handovers.pop(role.index, None)
        if handover is not None:
            handover.close()
        for other in self._handovers.values():
            other.drop(role.index)
        self._sockets.close_for(role.index)

    def _be(self, role: Role, handover: Handover | None) -> None:
        """In the child: shed what is the supervisor's, run, leave. Never returns."""
        status = CHILD_FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal's reaches all, and means only us
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C reaches all; the supervisor tells us
            for sock in self._wakeup:
                sock.close()
            self._control.close(unlink=False)
            self._plan.lock.release()  # our copy: the supervisor's own stays locked, and dies with it alone
            self._page.close()
            self._board.close()  # a worker maps no page writable but its own
            for other in self._handovers.values():
                other.close()
            # A socket open in a child that does not read it would outlive its reader, and go on getting queries.
            self._sockets.close_parked()
            if role.kind is not Kind.WORKER:
                self._sockets.close_udp()
            if role.kind is not Kind.STREAM:
                self._sockets.close_tcp()
            if self._plan.passage is not None and role.kind not in (Kind.STREAM, Kind.TRANSFERS):
                self._plan.passage.close()
            _name_process(f"standoff {role}")
            status = self._run_role(role, handover)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _run_role(self, role: Role, handover: Handover | None) -> int:
        plan = self._plan
        if role.kind is Kind.STREAM:
            return plan.run_stream(self._sockets.tcp, self._sockets.tls)
        if role.kind is Kind.EXPORTER:
            assert plan.run_exporter is not None
            return plan.run_exporter()
        if role.kind is Kind.TRANSFERS:
            assert plan.run_transfers is not None
            return plan.run_transfers()
        policy = replace(plan.policy, identity=f"{plan.policy.identity}/{role.index}")
        setup = WorkerSetup(
            plan.instance,
            role.index,
            self._sockets.udp,
            handover,
            policy,
            plan.limits,
            plan.drain_timeout_s,
            plan.cookies,
        )
        return run_worker(setup)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"left with status {os.WEXITSTATUS(status)}"


def _name_process(name: str) -> None:
    """What `top` and `ps -c` show; at most 15 bytes."""
    try:
        Path("/proc/self/comm").write_text(name[:15])
    except OSError:
        pass
