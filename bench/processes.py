"""The processes of a benchmark: built, started, pinned to cores, and stopped again, by pid and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shm.board import Board
from shm.errors import StandoffError
from shm.layout import SlotKind
from shm.segment import remove_instance

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / "bench" / "bin"
C_FLAGS = ["-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow"]
STOP_S = 10.0
#: Until the first answer; 1M names from etcd may take a while.
START_S = 120.0

Result = dict[str, Any]


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Cores:
    """Who runs where. On two cores, all but the measured server shares the generator's."""

    server: int
    generator: int
    rest: frozenset[int]

    @classmethod
    def available(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise BenchError("a benchmark needs two cores, one of them for the load generator")
        return cls(usable[0], usable[1], frozenset(usable[2:] or usable[1:2]))


def build_tools() -> None:
    """Compile the C programs into bench/bin, if their sources are newer."""
    if shutil.which("gcc") is None:
        raise BenchError("the load generator is C: it needs gcc")
    BIN.mkdir(exist_ok=True)
    sources = ROOT / "bench"
    newest = max(path.stat().st_mtime for path in sources.glob("*.[ch]"))
    for tool in ("flood", "tcpflood", "echo"):
        if not (BIN / tool).exists() or (BIN / tool).stat().st_mtime < newest:
            subprocess.run(["gcc", *C_FLAGS, "-o", BIN / tool, sources / f"{tool}.c"], check=True)


def free_port() -> int:
    """A UDP and TCP port on 127.0.0.1 that is free now."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def pin(pid: int, cores: frozenset[int]) -> None:
    """Move every thread of a process."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cores)


def share_priority(pid: int) -> None:
    """Give a process's session our priority: with autogroups, niceness counts within a session only (sched(7))."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def descendants(pid: int) -> Iterator[int]:
    """A process, its children, theirs, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            after_name = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        parents.setdefault(int(after_name[1]), []).append(int(entry))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += parents.get(one, [])


class Child:
    """A process that ends with the `with` block, at the latest."""

    def __init__(self, command: Sequence[str | Path], log: Path, *, cores: frozenset[int] | None = None) -> None:
        self._log = log
        self._command = [str(part) for part in command]
        self._cores = cores
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise BenchError(f"{self._command[0]} has not been started")
        return self._process

    def __enter__(self) -> Self:
        prefix = ["taskset", "-c", ",".join(map(str, sorted(self._cores)))] if self._cores else []
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                prefix + self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        share_priority(self._process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                for pid in reversed(list(descendants(process.pid))):
                    os.kill(pid, signal.SIGKILL)
                process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            end = self._log.read_text()[-2000:]
            raise BenchError(f"{' '.join(self._command)} has ended with {self.process.returncode}:\n{end}")


class Echo(Child):
    """The bare echo on the server's core."""

    def __init__(self, port: int, cores: Cores, folder: Path) -> None:
        super().__init__([BIN / "echo", "127.0.0.1", str(port)], folder / "echo.log", cores=frozenset({cores.server}))
        self.port = port

    def __enter__(self) -> Self:
        super().__enter__()
        if self.process.stdout is None or self.process.stdout.readline() != "ready\n":
            self.check_alive()
        return self


@dataclass
class Memory:
    """Bytes."""

    tables: list[int] = field(default_factory=list)
    control: int = 0
    private_worker: list[int] = field(default_factory=list)
    private_loader: int = 0

    def as_dict(self, names: int) -> Result:
        return {**vars(self), "bytes_per_name_and_table": max(self.tables, default=0) / names}


class Standoff(Child):
    """The service: loader and server in one foreground tree, started by its command."""

    def __init__(
        self,
        sources: Sequence[str],
        cores: Cores,
        folder: Path,
        *,
        workers: int = 1,
        instance: str = "",
        more: Sequence[str] = (),
    ) -> None:
        """instance: of a service before, to go on with; more: options."""
        self.port = free_port()
        self.workers = workers
        self.instance = instance or f"bench-{os.getpid()}-{self.port}"
        self._place = cores
        options = ["--listen", f"127.0.0.1:{self.port}", "--workers", str(workers), "--instance", self.instance]
        options += ["--runtime-dir", str(folder), "--log-level", "warning"]
        options += more
        for source in sources:
            options += ["--source", source]
        super().__init__([sys.executable, "-m", "cli.main", "run", *options], folder / "standoff.log")
        self.started_at = 0.0

    def __enter__(self) -> Self:
        self.started_at = time.monotonic()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        remove_instance(self.instance)  # it does so itself, unless it had to be killed

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        for pid in reversed(list(descendants(self.process.pid))):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait_for_answer(self, query: bytes, right_end: bytes) -> float:
        """Seconds from the start to the first answer to `query` that ends as a right one does."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", self.port))
            sock.settimeout(0.002)
            while True:
                try:
                    sock.send(query)
                    if sock.recv(1500).endswith(right_end):
                        return time.monotonic() - self.started_at
                    time.sleep(0.002)  # no table yet: asked without a pause, it takes a core from the loader
                except TimeoutError:
                    pass
                except ConnectionRefusedError:
                    time.sleep(0.002)
                self.check_alive()
                if time.monotonic() > self.started_at + START_S:
                    raise BenchError(f"no right answer in {START_S:.0f} s; see {self._log}")

    def worker_pids(self, kind: SlotKind = SlotKind.WORKER) -> list[int]:
        """Of live UDP workers, or of those of another kind."""
        board = self._board()
        try:
            slots = map(board.slot, board.live_slots())
            return sorted(slot.get("pid") for slot in slots if slot.get("kind") == kind)
        finally:
            board.close()

    def loader_words(self) -> dict[str, int]:
        """What the loader tells of itself in shared memory."""
        board = self._board()
        try:
            return board.loader.as_dict()
        finally:
            board.close()

    def _board(self) -> Board:
        self.check_alive()
        try:
            return Board.attach(self.instance)
        except StandoffError as error:
            raise BenchError(f"the service has no shared memory: {error}") from error

    def pin_to_cores(self, kind: SlotKind = SlotKind.WORKER) -> None:
        """Workers of this kind to the measured core, everything else away from it."""
        wanted = self.workers if kind == SlotKind.WORKER else 1
        deadline = time.monotonic() + START_S
        while len(workers := self.worker_pids(kind)) < wanted:
            if time.monotonic() > deadline:
                raise BenchError(f"{len(workers)} of {wanted} workers came up")
            time.sleep(0.02)
        for pid in descendants(self.process.pid):
            pin(pid, frozenset({self._place.server}) if pid in workers else self._place.rest)
            share_priority(pid)

    def memory(self) -> Memory:
        """What the instance has in shared memory, and what its processes have for themselves."""
        memory = Memory()
        for path in Path("/dev/shm").glob(f"standoff.{self.instance}.*"):
            if ".table." in path.name:
                memory.tables.append(path.stat().st_size)
            elif path.name.endswith(".control"):
                memory.control = path.stat().st_size
        memory.private_worker = [private_bytes(pid) for pid in self.worker_pids()]
        memory.private_loader = private_bytes(self.loader_words()["loader_pid"])
        return memory


def private_bytes(pid: int) -> int:
    """Memory that would be free if this process ended."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.M))


def run_ns(pids: Sequence[int]) -> int:
    """CPU time that these processes have used, all threads."""
    return sum(
        int(path.read_text().split()[0]) for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def flood_command(port: int, queries: Path, cores: Cores, *options: str, tool: str = "flood") -> list[str]:
    core = ["taskset", "-c", str(cores.generator)]
    return [*core, str(BIN / tool), "-p", str(port), "-f", str(queries), "-C", str(cores.server), *options]


def flood(
    port: int, queries: Path, cores: Cores, *options: str, servers: Sequence[int] = (), tool: str = "flood"
) -> Result:
    """One run of a generator; what its line says, and the CPU time that the `servers` spent on an answer."""
    command = flood_command(port, queries, cores, *options, tool=tool)
    before = run_ns(servers)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S)
    if done.returncode != 0:
        raise BenchError(f"{tool} failed: {done.stderr}")
    result: Result = json.loads(done.stdout)
    result["complaints"] = done.stderr.splitlines()
    result["cpu_us"] = (run_ns(servers) - before) / 1000 / max(result["received"], 1)
    return result


def dnsperf(port: int, queries: Path, cores: Cores, seconds: float) -> Result | None:
    """The same with a tool that is not ours; None if it is not installed."""
    if shutil.which("dnsperf") is None:
        return None
    command = ["taskset", "-c", str(cores.generator), "dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(queries)]
    command += ["-l", str(seconds), "-c", "16", "-q", "256", "-t", "1"]
    text = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S).stdout
    found = {
        "qps": re.search(r"Queries per second:\s+([\d.]+)", text),
        "lost": re.search(r"Queries lost:\s+(\d+)", text),
        "average_us": re.search(r"Average Latency \(s\):\s+([\d.]+)", text),
    }
    if not all(found.values()):
        return None
    values = {name: float(match[1]) for name, match in found.items() if match}
    values["average_us"] *= 1e6
    codes: dict[str, int] = {}
    for code, count in re.findall(r"([A-Z]+) (\d+) \([\d.]+%\)", text):
        codes[code] = int(count)
    return {**values, "rcodes": codes}
