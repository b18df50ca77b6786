"""A service of real processes for torture: started by the command, looked into through its board, killed by pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shm.board import Board, SlotView
from shm.errors import StandoffError
from shm.layout import SlotKind
from shm.segment import is_held, remove_instance
from tests.support.etcd import EtcdServer

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/names"
#: Seconds; for tests that hang, not claims about speed.
PATIENCE_S = 20.0


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> float:
    """Seconds until it came true."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < patience_s, f"not within {patience_s} s: {what}"
        time.sleep(0.002)
    return time.monotonic() - start


class Part:
    """One `standoff` process and what it forks."""

    def __init__(self, command: str, log: Path, *options: str) -> None:
        self.command = command
        # No session of its own: the kernel shares out the CPU by sessions (sched_autogroup), and the asker, which
        # measures how busy the machine is, would measure that of another.
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", command, *options],
                cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def loader_pid(self) -> int:
        """Of `standoff load`: the child that does the work; 0 while there is none."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def kill(self) -> None:
        """SIGKILL; to a loader and its parent at once."""
        loader = self.loader_pid if self.command == "load" else 0
        self.process.kill()
        if loader:
            os.kill(loader, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


class Service:
    """The parts of one instance. `start_*` may be called in any order and more than once."""

    def __init__(self, instance: str, port: int, folder: Path, etcd: EtcdServer, workers: int = 2) -> None:
        self.instance, self.port, self.folder, self.workers = instance, port, folder, workers
        self.log = folder / "service.log"
        self.parts: list[Part] = []
        self._board: Board | None = None
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        self._common = ["--instance", instance]
        self._runtime = ["--runtime-dir", str(runtime)]
        self._server = ["--listen", f"127.0.0.1:{port}", "--workers", str(workers), *self._runtime]
        # The changer takes away more names than the guard lets go of: some fifty a second of three hundred.
        self.source = ["--source", f"etcd://{etcd.endpoint}{PREFIX}?schema=records", "--guard-floor", "1000"]

    def set_workers(self, workers: int) -> None:
        """Before anything is started."""
        self.workers = workers
        self._server[self._server.index("--workers") + 1] = str(workers)

    def add_server_options(self, *options: str) -> None:
        """Before anything is started."""
        self._server += options

    def start_run(self) -> Part:
        return self._start("run", *self._server, *self.source)

    def start_server(self) -> Part:
        return self._start("serve", *self._server)

    def start_loader(self) -> Part:
        return self._start("load", *self.source, *self._runtime)

    def _start(self, command: str, *options: str) -> Part:
        part = Part(command, self.log, *self._common, *options)
        self.parts.append(part)
        return part

    def standoff(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `standoff` command on this instance, to its end."""
        runtime = self._runtime if arguments[0] == "scale" else []
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments, *self._common, *runtime],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S + 10, check=False,
        )  # fmt: skip

    # ---- looking in

    @property
    def board(self) -> Board:
        if self._board is None:
            self._board = Board.attach(self.instance)
        return self._board

    def slots(self, kind: SlotKind) -> list[SlotView]:
        """Live ones."""
        try:
            return [slot for slot in self.board.workers() if slot.get("kind") == kind]
        except StandoffError:
            return []

    def pids(self, kind: SlotKind) -> list[int]:
        return [slot.get("pid") for slot in self.slots(kind)]

    @property
    def supervisor_pid(self) -> int:
        return self.board.supervisor.get("supervisor_pid") if self.lives("supervisor") else 0

    @property
    def loader_pid(self) -> int:
        return self.board.loader.get("loader_pid") if self.lives("writer") else 0

    def lives(self, lock: str) -> bool:
        return is_held(self.board.names.lock(lock))

    def published(self) -> bool:
        """A loader lives and has published a table."""
        try:
            return self.lives("writer") and self.board.live != 0
        except StandoffError:
            return False

    def ready(self) -> bool:
        """Every worker answers from a table."""
        workers = [slot for slot in self.slots(SlotKind.WORKER) if slot.get("generation")]
        return len(workers) >= self.workers and any(slot.get("generation") for slot in self.slots(SlotKind.STREAM))

    def adopted(self) -> int:
        """The revision that every live worker answers from, at least, as for `standoff wait`. 0 if one has none."""
        slots = [*self.slots(SlotKind.WORKER), *self.slots(SlotKind.STREAM)]
        return min((slot.get("revision") for slot in slots), default=0)

    def total(self, counter: str, *kinds: SlotKind) -> int:
        """Sum of a counter array, or a word, over every slot that was ever held, its dead holders included.

        `kinds`: only slots that stand for those now.
        """
        total = 0
        for slot in map(self.board.slot, self.board.slots):
            if not kinds or slot.get("kind") in kinds:
                arrays = slot.counters()
                total += sum(arrays[counter]) if counter in arrays else slot.get(counter)
        return total

    # ---- the end

    def processes(self) -> list[int]:
        """Pids of every process of this instance, orphans included: its unique name is in their command lines."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                arguments = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if self.instance.encode() in arguments:
                    found.append(int(entry))
        return found

    def kill(self, pid: int) -> None:
        """SIGKILL to one of the instance's processes that is not our child."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def power_cut(self) -> None:
        """SIGKILL to every process, and the memory is lost."""
        for part in self.parts:
            part.process.send_signal(signal.SIGKILL)
        for pid in self.processes():
            self.kill(pid)
        for part in self.parts:
            part.process.wait()
        wait_for("all are gone", lambda: not self.processes())
        self.forget()

    def forget(self) -> None:
        """The memory that they shared is lost; nobody runs any more."""
        self.parts.clear()
        remove_instance(self.instance)
        if self._board is not None:
            self._board.close()
            self._board = None

    def close(self) -> list[int]:
        """Stop everything; the pids that did not stop by themselves and were killed."""
        for part in self.parts:
            with suppress(ProcessLookupError):
                part.process.terminate()
        for part in self.parts:
            with suppress(subprocess.TimeoutExpired):
                part.process.wait(PATIENCE_S)
        left = self.processes()
        for pid in left:
            self.kill(pid)
        for part in self.parts:
            part.process.wait()
        if self._board is not None:
            self._board.close()
        return left

    def said(self) -> str:
        """The end of what the processes printed."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


def free_port() -> int:
    """A port on 127.0.0.1 that is free now for UDP and TCP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port


def ask_all(port: int, questions: Sequence[bytes]) -> dict[bytes, bytes]:
    """Each question (a wire packet) to its answer over UDP, one after the other."""
    answers = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(1.0)
        for question in questions:
            sock.send(question)
            answers[question] = sock.recv(4096)
    return answers
