"""TCP with persistent connections on one core, beside Knot DNS on the same core.

    python -m bench.tcp [--rounds N] [--seconds S] [--connections N] [--names N]

Standoff's stream worker, and then Knot with one TCP worker, has the measured core to itself; tcpflood has another, and
asks over 100 connections with 1 query under way on each (a request a packet: what the sockets cost) and with 10
(pipelined). Both serve one zone file. Rounds are interleaved, ratios are within a round: `ratio` of answers a second,
`cpu` of answers a CPU second. One JSON line at the end. Without Knot only our own figures are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import zones
from bench.measures import middle, start_up
from bench.processes import (
    START_S,
    BenchError,
    Child,
    Cores,
    Result,
    Standoff,
    build_tools,
    descendants,
    flood,
    free_port,
)
from shm.layout import SlotKind

DEPTHS = (1, 10)
#: Of answers a second, over Knot.
GOAL = 0.5
#: A core less busy than this was not what bounded the throughput.
BUSY = 0.95
FAULTS = ("lost", "wrong", "mixed", "unmatched", "errors")


class Knot(Child):
    """knotd with one TCP worker, all of it on the measured core."""

    def __init__(self, zone: Path, cores: Cores, folder: Path) -> None:
        self.port = free_port()
        config = folder / "knot.conf"
        config.write_text(
            f"""
server:
  rundir: "{folder}"
  listen: 127.0.0.1@{self.port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
  tcp-max-clients: 1000
database:
  storage: "{folder}"
log:
  - target: stderr
    any: warning
template:
  - id: default
    storage: "{folder}"
    semantic-checks: off
    zonefile-sync: -1
    journal-content: none
zone:
  - domain: "{zones.ZONE}."
    file: "{zone}"
"""
        )
        super().__init__(["knotd", "-c", config], folder / "knot.log", cores=frozenset({cores.server}))

    def pids(self) -> list[int]:
        return list(descendants(self.process.pid))

    def wait_for_answer(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            self.check_alive()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                query = bytes.fromhex("0001 0000 0001 0000 0000 0000")
                query += b"".join(bytes([len(part)]) + part.encode() for part in zones.ZONE.split(".")) + b"\0\0\6\0\1"
                sock.sendall(len(query).to_bytes(2, "big") + query)
                if sock.recv(65536)[5:6] == b"\0":  # NOERROR, RA off
                    return
            time.sleep(0.05)
        raise BenchError(f"no answer from knotd in {START_S:.0f} s")


def measure(rounds: int, seconds: float, connections: int, names: int, folder: Path) -> Result:
    """Raises BenchError."""
    cores = Cores.available()
    zones.make(folder, names)
    zone = folder / f"{zones.ZONE}.zone"
    has_knot = shutil.which("knotd") is not None
    runs: dict[str, list[Result]] = {}
    with contextlib.ExitStack() as stack:
        standoff = stack.enter_context(Standoff([f"file:{zone}"], cores, folder))
        start_up(standoff, names)
        standoff.pin_to_cores(SlotKind.STREAM)
        servers = {"standoff": (standoff.port, standoff.worker_pids(SlotKind.STREAM))}
        if has_knot:
            knot = stack.enter_context(Knot(zone, cores, folder))
            knot.wait_for_answer()
            servers["knot"] = (knot.port, knot.pids())
        for number in range(rounds):
            for depth in DEPTHS:
                for name, (port, pids) in servers.items():
                    print(f"round {number + 1} of {rounds}: {name}, {depth} a connection", file=sys.stderr)
                    options = ["-c", str(connections), "-d", str(depth), "-w", "0.5", "-t", str(seconds)]
                    result = flood(port, folder / "flood.txt", cores, *options, servers=pids, tool="tcpflood")
                    runs.setdefault(f"{name} {depth}", []).append(result)
    return {"connections": connections, "names": names, "knot": has_knot, **summary(runs)}


def summary(runs: dict[str, list[Result]]) -> Result:
    """Medians of the rounds; ratios over Knot, each within its round."""
    result: Result = {"runs": {}, "ratios": {}}
    for case, results in runs.items():
        figures = ("qps", "cpu_us", "p50_us", "p99_us", "core_busy")
        result["runs"][case] = {f: middle([one.get(f, 1.0) for one in results])["median"] for f in figures}
        result["runs"][case]["faults"] = sum(one[kind] for one in results for kind in FAULTS)
    for depth in DEPTHS:
        pairs = list(zip(runs[f"standoff {depth}"], runs.get(f"knot {depth}", []), strict=False))
        if pairs:
            result["ratios"][str(depth)] = {
                "ratio": middle([ours["qps"] / theirs["qps"] for ours, theirs in pairs]),
                "cpu": middle([theirs["cpu_us"] / ours["cpu_us"] for ours, theirs in pairs]),
            }
    return result


def show(result: Result, console: Console) -> None:
    table = Table(title=f"TCP, {result['connections']} connections, one core, {result['names']:,} names")
    for heading in ("depth", "", "answers/s", "CPU µs", "p50 µs", "p99 µs", "core busy", "not right"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for case, run in result["runs"].items():
        name, depth = case.split()
        cells = [f"{run['qps']:,.0f}", f"{run['cpu_us']:.2f}", f"{run['p50_us']:.0f}", f"{run['p99_us']:.0f}"]
        table.add_row(depth, name, *cells, f"{run['core_busy']:.0%}", str(run["faults"]))
    console.print(table)
    if not result["knot"]:
        console.print("no knotd: nothing to compare with")
    for depth, ratios in result["ratios"].items():
        goal = f" (goal ≥ {GOAL})"
        shares = [
            f"{ratios[kind]['median']:.2f} ({ratios[kind]['lowest']:.2f} to {ratios[kind]['highest']:.2f})"
            for kind in ("ratio", "cpu")
        ]
        console.print(
            f"over Knot, {depth} a connection: {shares[0]} by answers a second{goal}, {shares[1]} by CPU time"
        )
    for case, run in result["runs"].items():
        if run["core_busy"] < BUSY:
            console.print(
                f"warning: {case}: its core was only {run['core_busy']:.0%} busy: the generator was the limit"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--names", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="standoff-bench-") as folder:
        try:
            build_tools()
            result = measure(options.rounds, options.seconds, options.connections, options.names, Path(folder))
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    show(result, Console(stderr=True))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
