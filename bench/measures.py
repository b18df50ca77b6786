"""What is measured. Each function runs one measurement and returns plain numbers for the report."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import dns.message

from bench import changer, zones
from bench.processes import ROOT, Child, Cores, Echo, Result, Standoff, dnsperf, flood, flood_command
from loader.etcd import Etcd

#: Queries a second of the open loop.
RATE = 50_000
#: Changes a second that a run is disturbed with.
SWAP_RATES = (50, 100)
#: Keys that one transaction may write by etcd's default.
TXN_KEYS = 128
WARM_UP_S = 0.3
#: An answer from every worker is awaited on this many sockets for each: SO_REUSEPORT spreads them at random.
SOCKETS_A_WORKER = 16


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    names: int
    rounds: int
    closed_s: float
    open_s: float
    open_rounds: int
    propagation_s: float
    workers: int = 1


@dataclass(frozen=True)
class Target:
    """The service under test and what surrounds it."""

    standoff: Standoff
    echo: Echo
    cores: Cores
    folder: Path
    change_target: str
    change_log: Path

    def data(self, name: str) -> Path:
        return self.folder / name


def wire_query(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(f"{name}.", kind, id=1).to_wire()


def fill_etcd(endpoint: str, prefix: str, count: int) -> float:
    """Put the benchmark's names into etcd; seconds that it took."""
    keys = [
        (f"{prefix}/{zones.ZONE}/h{i:07d}/A", f'"{address}"'.encode())
        for i, address in enumerate(zones.addresses(count))
    ]
    return fill_keys(endpoint, [*keys, (changer.set_key(prefix), changer.set_value(0))])


def fill_keys(endpoint: str, keys: Iterable[tuple[str, bytes]]) -> float:
    """Put keys into etcd, many in a transaction; seconds that it took."""

    async def fill() -> None:
        async with Etcd(endpoint) as etcd:
            room = asyncio.Semaphore(8)

            async def write(batch: list[tuple[str, bytes]]) -> None:
                async with room:
                    await etcd.transact(batch)

            left = iter(keys)
            await asyncio.gather(*map(write, iter(lambda: list(islice(left, TXN_KEYS)), [])))

    start = time.monotonic()
    asyncio.run(fill())
    return time.monotonic() - start


def start_up(standoff: Standoff, names: int) -> float:
    """Seconds from the start of the command to the first right answer, for the name that is loaded last."""
    *_, address = zones.addresses(names)
    return standoff.wait_for_answer(wire_query(zones.host(names - 1)), socket.inet_aton(address))


@contextlib.contextmanager
def changes(target: Target, rate: float) -> Iterator[Path]:
    """Changes at `rate` a second while the block runs; yields the log of changes."""
    log = target.change_log
    command = [sys.executable, "-m", "bench.changer", target.change_target, str(rate), str(log)]
    with Child(command, target.folder / "changer.log", cores=target.cores.rest) as child:
        if child.process.stdout is None or child.process.stdout.readline() != "ready\n":
            child.check_alive()
        yield log


def throughput(target: Target, plan: Plan, progress: Callable[[str], None]) -> Result:
    """Rounds of closed loops on the measured core; every ratio is within a round, because machines drift.

    The `_cpu` ratios compare CPU time an answer instead: they hold even if others use the cores, too.
    """
    options = ["-w", str(WARM_UP_S), "-t", str(plan.closed_s), "-g", "16"]
    workers = target.standoff.worker_pids()
    rounds = []

    def ask_echo() -> Result:
        servers = [target.echo.process.pid]
        return flood(target.echo.port, target.data("any.txt"), target.cores, *options, servers=servers)

    def ask(queries: str) -> Result:
        return flood(target.standoff.port, target.data(queries), target.cores, *options, servers=workers)

    for number in range(plan.rounds):
        progress(f"throughput, round {number + 1} of {plan.rounds}")
        results = {"echo": ask_echo(), "standoff": ask("flood.txt"), "negative": ask("share.txt")}
        swaps_before = target.standoff.loader_words()["publishes"]
        with changes(target, SWAP_RATES[-1]):
            results["swapping"] = ask("sets.txt")
        results["swapping"]["swaps"] = target.standoff.loader_words()["publishes"] - swaps_before
        rounds.append(results)
    return {
        "rounds": rounds,
        "ratio_to_echo": middle([r["standoff"]["qps"] / r["echo"]["qps"] for r in rounds]),
        "ratio_to_echo_cpu": middle([r["echo"]["cpu_us"] / r["standoff"]["cpu_us"] for r in rounds]),
        "ratio_negative": middle([r["negative"]["qps"] / r["echo"]["qps"] for r in rounds]),
        "ratio_swapping": middle([r["swapping"]["qps"] / r["standoff"]["qps"] for r in rounds]),
        "ratio_swapping_cpu": middle([r["standoff"]["cpu_us"] / r["swapping"]["cpu_us"] for r in rounds]),
        "swaps_per_s": middle([r["swapping"]["swaps"] / (plan.closed_s + WARM_UP_S) for r in rounds]),
        "faults": faults([result for r in rounds for result in r.values()]),
    }


def latency(target: Target, plan: Plan, progress: Callable[[str], None]) -> Result:
    """Open loops at RATE: the bare echo (what this machine does to anybody), without changes, and with.

    On two cores etcd and the loader share the generator's, which then is late; `server_` figures leave that out.
    """
    options = ["-r", str(RATE), "-w", str(WARM_UP_S), "-t", str(plan.open_s)]
    runs: dict[str, list[Result]] = {}
    for number in range(plan.open_rounds):
        progress(f"latency at {RATE} q/s, round {number + 1} of {plan.open_rounds}")
        runs.setdefault("echo", []).append(flood(target.echo.port, target.data("any.txt"), target.cores, *options))
        for rate in (0, *SWAP_RATES):
            with changes(target, rate) if rate else contextlib.nullcontext():
                result = flood(target.standoff.port, target.data("sets.txt"), target.cores, *options)
            runs.setdefault(f"{rate} changes/s", []).append(result)
    ends = ("p50_us", "p99_us", "p999_us", "max_us")
    figures = (*ends, *(f"server_{end}" for end in ends), "late_us")
    summary = {case: {f: statistics.median(r[f] for r in results) for f in figures} for case, results in runs.items()}
    still, swapping = summary["0 changes/s"], summary[f"{SWAP_RATES[-1]} changes/s"]
    return {
        "runs": runs,
        "summary": summary,
        "p999_swapping_over_still": swapping["p999_us"] / still["p999_us"],
        "p999_server_swapping_over_still": swapping["server_p999_us"] / still["server_p999_us"],
        "faults": faults([result for results in runs.values() for result in results]),
    }


def faults(results: list[Result]) -> dict[str, int]:
    """Everything that was not a right answer, in all runs."""
    return {kind: sum(r[kind] for r in results) for kind in ("lost", "wrong", "mixed", "back", "unmatched", "errors")}


def middle(values: list[float]) -> dict[str, float]:
    """Median and extremes of the rounds."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


class Probe:
    """Asks every worker for the changing set all the time, and notes when all of them knew of a change."""

    def __init__(self, port: int, workers: int) -> None:
        count = 1 if workers == 1 else SOCKETS_A_WORKER * workers
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for one in self._sockets:
            one.connect(("127.0.0.1", port))
            one.settimeout(0.05)
        self._query = wire_query(changer.SET)
        self._known = [-1] * count
        self.seen_ns: dict[int, int] = {}
        self.unanswered = 0  # within the socket's time-out

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        reached: int | None = None  # what all knew before the first change that counts
        while time.monotonic() < end:
            for i, one in enumerate(self._sockets):
                self._ask(i, one)
            now = time.monotonic_ns()
            least = min(self._known)
            if reached is None:
                reached = least if least >= 0 else None
            elif least > reached:
                self.seen_ns.update(dict.fromkeys(range(reached + 1, least + 1), now))
                reached = least

    def _ask(self, number: int, sock: socket.socket) -> None:
        try:
            sock.send(self._query)
            answer = sock.recv(1500)
        except OSError:
            self.unanswered += 1
            return
        if answer[3] & 15 == 0 and answer[7]:
            self._known[number] = int.from_bytes(answer[-3:], "big")

    def close(self) -> None:
        for one in self._sockets:
            one.close()


def propagation(target: Target, seconds: float, rate: float, load: int) -> Result:
    """From the moment a change is sent to the source until every worker answers with it, `load` q/s on the side."""
    probe = Probe(target.standoff.port, target.standoff.workers)
    with contextlib.ExitStack() as stack:
        stack.callback(probe.close)
        if load:
            options = ["-r", str(load), "-z", "-w", "0", "-t", str(seconds + 2)]
            command = flood_command(target.standoff.port, target.data("flood.txt"), target.cores, *options)
            background = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            stack.callback(background.communicate)
            stack.callback(background.terminate)
        log = stack.enter_context(changes(target, rate))
        probe.run(seconds)
    sent = {int(n): (int(at), int(done)) for n, at, done in map(str.split, log.read_text().splitlines())}
    times = sorted((probe.seen_ns[n] - sent[n][0]) / 1e6 for n in probe.seen_ns if n in sent)
    writes = sorted((sent[n][1] - sent[n][0]) / 1e6 for n in probe.seen_ns if n in sent)
    if not times:
        return {"changes": 0, "load": load, "unanswered": probe.unanswered}
    return {
        "changes": len(times),
        "load": load,
        "unanswered": probe.unanswered,
        "p50_ms": quantile(times, 0.5),
        "p99_ms": quantile(times, 0.99),
        "max_ms": times[-1],
        "source_write_p50_ms": quantile(writes, 0.5),
        "source_write_p99_ms": quantile(writes, 0.99),
    }


def quantile(ordered: list[float], share: float) -> float:
    """Of values in ascending order."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def second_opinion(target: Target, seconds: float) -> Result | None:
    """dnsperf on the bare echo and on the service; None without dnsperf."""
    bare = dnsperf(target.echo.port, target.data("dnsperf.txt"), target.cores, seconds)
    ours = dnsperf(target.standoff.port, target.data("dnsperf.txt"), target.cores, seconds)
    if bare is None or ours is None:
        return None
    return {"echo": bare, "standoff": ours, "ratio": ours["qps"] / bare["qps"]}


def write_set_queries(folder: Path) -> None:
    """sets.txt: flood.txt with a question for the changing set after every fifteenth query."""
    with (folder / "flood.txt").open() as source, (folder / "sets.txt").open("w") as result:
        for number, line in enumerate(source):
            result.write(line)
            if number % 15 == 0:
                result.write(f"{changer.SET} A set:{changer.SET_SIZE}\n")
