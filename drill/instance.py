"""A throw-away instance: name, ports and folders of its own, started by the `standoff` command, leaving no trace."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drill.child import launch
from shm.board import Board, SlotView
from shm.errors import StandoffError
from shm.layout import SlotKind
from shm.segment import is_held, remove_instance

ZONE = "drill.test"
#: The name whose address tells the version of the table.
VERSION_NAME = f"version.{ZONE}"
HOSTS = [f"h{i}.{ZONE}" for i in range(20)]
#: How long anything may take that is not measured: a start, a stop. For machines that are busy.
PATIENCE_S = 20.0
POLL_S = 0.002
_numbers = itertools.count(1)


class DrillFailed(StandoffError):
    """A drill cannot go on: something it has to rely on did not happen."""


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> float:
    """Seconds until it came true. Raises DrillFailed."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > patience_s:
            raise DrillFailed(f"not within {patience_s:g} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - start


def free_port() -> int:
    """A port on 127.0.0.1 that nobody has now, neither for UDP nor for TCP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port


def version_address(version: int) -> int:
    """10.x.y.z"""
    return 10 << 24 | version


def dotted(address: int) -> str:
    return ".".join(map(str, address.to_bytes(4, "big")))


def host_address(number: int) -> int:
    """Of HOSTS[number]: 192.0.2.x"""
    return 0xC0000200 | number


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the instance's log. `pid` 0: not a log line, but a message of `standoff run` itself."""

    pid: int
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Swap:
    """A table that was swapped in. `asked_ns`: when its loader first wanted the lock for it."""

    generation: int
    asked_ns: int
    done_ns: int

    @property
    def waited_s(self) -> float:
        return max(0, self.done_ns - self.asked_ns) / 1e9


class Swaps(threading.Thread):
    """Looks at the board every 2 ms, and writes down each swap and how long it had been wanted."""

    def __init__(self, board: Board) -> None:
        super().__init__(daemon=True)
        self._board = board
        self._over = threading.Event()
        self.list: list[Swap] = []

    def run(self) -> None:
        live, asked = self._board.live, 0
        words = self._board.loader
        while not self._over.wait(POLL_S):
            now = time.monotonic_ns()
            asked = asked or words.get("write_wait_since_ns") or words.get("write_hold_since_ns")
            if self._board.live != live:
                live = self._board.live
                self.list.append(Swap(live >> 1, asked or now, now))
                asked = 0

    def stop(self) -> None:
        self._over.set()
        self.join()


class Instance:
    """`standoff run` on a source of its own, or `serve` and `load` if `apart`.

    `close` leaves nothing: no process, no shared memory, no file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        source: str = "",
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        self.name = f"drill-{os.getpid()}-{next(_numbers)}"
        self.workers, self.port, self.version = workers, free_port(), 0
        self._folder = folder / self.name
        (self._folder / "run").mkdir(parents=True, mode=0o700)
        self._zone = self._folder / "zone.jsonl"
        self._log = self._folder / "log"
        self._empty = self._folder / "empty.toml"
        self._empty.touch()
        self._source = source or f"file:{self._zone}"
        self._environment = {"STANDOFF_FAULTS": "1", **(environment or {})}
        self._board: Board | None = None
        self._swaps: Swaps | None = None
        self.write_version(1)
        remove_instance(self.name)  # of a drill that had our pid and was killed
        serving = [
            "--listen", f"127.0.0.1:{self.port}", "--workers", str(self.workers), "--drain-timeout", "0.2", *options
        ]  # fmt: skip
        loading = ["--source", self._source, "--zone", ZONE]
        commands = {"serve": serving, "load": loading} if apart else {"run": [*serving, *loading]}
        self.processes = {command: self._start(command, options) for command, options in commands.items()}

    def _start(self, command: str, options: Sequence[str]) -> Any:
        with self._log.open("ab") as log:
            return launch(
                "cli.main", command, "--config", str(self._empty), "--instance", self.name, "--log-format", "json",
                "--runtime-dir", str(self._folder / "run"), *options,
                signal_=signal.SIGTERM, environment=self._environment, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Every worker answers from a table."""

        def ready() -> bool:
            if any(process.poll() is not None for process in self.processes.values()):
                raise DrillFailed(f"the throw-away instance ended: {self._log.read_text(errors='replace')[-600:]}")
            return self.all_answer()

        wait_for("the throw-away instance is ready", ready)
        self._swaps = Swaps(self.board)
        self._swaps.start()

    def all_answer(self) -> bool:
        """Every UDP worker that is wanted lives and has a table."""
        with suppress(StandoffError):
            slots = [slot for slot in self.board.workers() if slot.get("kind") == SlotKind.WORKER]
            return sum(1 for slot in slots if slot.get("generation")) >= self.workers
        return False

    @property
    def board(self) -> Board:
        if self._board is None:
            self._board = Board.attach(self.name)
        return self._board

    # ---- who is there

    def worker(self, number: int = 0) -> SlotView:
        """The slot of a live worker. Raises DrillFailed."""
        for slot in self.board.workers():
            if slot.get("kind") == SlotKind.WORKER and slot.get("worker") == number:
                return slot
        raise DrillFailed(f"worker {number} is not there")

    @property
    def loader_pid(self) -> int:
        """Of the loader at work; 0: there is none."""
        return self.board.loader.get("loader_pid") if is_held(self.board.names.lock("writer")) else 0

    def wait_for_successor(self, pid: int, patience_s: float = PATIENCE_S) -> float:
        """Seconds until every worker is there and none has this pid any more."""

        def replaced() -> bool:
            return self.all_answer() and all(slot.get("pid") != pid for slot in self.board.workers())

        return wait_for(f"process {pid} is replaced", replaced, patience_s)

    # ---- changes

    def write_version(self, version: int) -> None:
        """What the source says from now on; the loader looks at it twice a second."""
        addresses = {VERSION_NAME: version_address(version)}
        addresses |= {name: host_address(number) for number, name in enumerate(HOSTS)}
        rows = ({"name": name + ".", "type": "A", "ttl": 60, "data": dotted(a)} for name, a in addresses.items())
        new = self._zone.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new.replace(self._zone)
        self.version = version

    @property
    def swaps(self) -> list[Swap]:
        """Since it was ready."""
        return list(self._swaps.list) if self._swaps is not None else []

    def publish(self, patience_s: float = PATIENCE_S) -> Swap:
        """Write the next version and wait until it is swapped in."""
        before = len(self.swaps)
        self.write_version(self.version + 1)
        wait_for(f"version {self.version} is published", lambda: len(self.swaps) > before, patience_s)
        return self.swaps[before]

    # ---- what it says

    def log(self) -> list[Line]:
        lines = []
        for text in self._log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(text)
                lines.append(Line(entry["pid"], entry["level"], entry["message"]))
            except (ValueError, KeyError, TypeError):
                lines.append(Line(0, "", text))
        return lines

    def reports(self) -> list[str]:
        """What was said of leaks."""
        return [line.message for line in self.log() if "lock leaked" in line.message or "lock held" in line.message]

    # ---- the end

    def close(self) -> None:
        """Stop everything, by force if need be."""
        if self._swaps is not None:
            self._swaps.stop()
        family = {pid: born for process in self.processes.values() for pid, born in _family(process.pid).items()}
        for pid in family:
            _signal(pid, signal.SIGCONT)  # the stopped cannot leave
        for process in self.processes.values():
            process.terminate()
        with suppress(Exception):
            for process in self.processes.values():
                process.wait(8.0)
        for pid, born in family.items():
            if _born(pid) == born:
                _signal(pid, signal.SIGKILL)
        for process in self.processes.values():
            process.kill()
            process.wait()
        if self._board is not None:
            self._board.close()
        remove_instance(self.name)


def _family(pid: int) -> dict[int, int]:
    """A process and its descendants: pid -> when it was born, so that a reused pid is not mistaken for it."""
    parents = {int(entry): _stat(int(entry)) for entry in filter(str.isdigit, os.listdir("/proc"))}
    found = {pid}
    while more := {child for child, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {member: parents[member][1] for member in found if member in parents}


def _stat(pid: int) -> tuple[int, int]:
    """(parent, birth) of a process; (0, 0) if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return int(fields[1]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0, 0


def _born(pid: int) -> int:
    return _stat(pid)[1]


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
