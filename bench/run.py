"""The benchmark: `make bench`, or `python -m bench.run [--quick] [--names N] [--against OTHER.json]`.

The server's workers have one core, the load generator another, everything else what is left. Compare ratios of one run:
absolute figures of shared machines drift by a third within minutes. Results go to bench/out/TIME.json and .png. About
three minutes, with --quick 40 seconds; ends by itself, and stops what it started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import changer, lockcost, measures, report, zones
from bench.measures import Plan, Target
from bench.processes import ROOT, BenchError, Cores, Echo, Result, Standoff, build_tools, free_port, share_priority
from tests.support.etcd import EtcdServer, binaries

OUT = ROOT / "bench" / "out"
PREFIX = "/bench"
#: Changes a second while propagation is measured: far enough apart to be told from each other.
PROPAGATION_RATE = 20
#: Load beside it, q/s.
PROPAGATION_LOAD = 50_000
#: More load than this before we begin makes figures of no use.
QUIET_LOAD = 0.5

Say = Callable[[str], None]


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Standoff against a bare echo on the same core.")
    parser.add_argument("--quick", action="store_true", help="less of everything: about 40 seconds")
    parser.add_argument("--names", type=int, default=100_000, help="names in the table (default 100000)")
    parser.add_argument("--workers", type=int, default=1, help="UDP workers, all on the one core (default 1)")
    parser.add_argument("--no-etcd", action="store_true", help="serve and change a zone file instead")
    parser.add_argument(
        "--nice", type=int, default=0, help="run all at this priority, e.g. -10 on a shared machine (root)"
    )
    parser.add_argument("--against", type=Path, metavar="JSON", help="an earlier result to compare with")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the result (default bench/out)")
    return parser.parse_args(arguments)


def make_plan(arguments: argparse.Namespace) -> Plan:
    if arguments.quick:
        return Plan(arguments.names, 2, 0.8, 1.0, 1, 3.0, arguments.workers)
    return Plan(arguments.names, 5, 2.0, 3.0, 3, 10.0, arguments.workers)


def describe_machine() -> Result:
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cores": os.cpu_count(),
        "model": model[0] if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write_zone_files(folder: Path, names: int) -> tuple[Path, Path]:
    """A zone file, and the folder with a file for the changing set that is served beside it."""
    zone = folder / f"{zones.ZONE}.zone"
    zones.write_zone(zone, names)
    changing = folder / "changing"
    changing.mkdir()
    return zone, changing


def measure_file_start(plan: Plan, cores: Cores, folder: Path, zone: Path) -> float:
    with Standoff([f"file:{zone}"], cores, folder, workers=plan.workers) as standoff:
        return measures.start_up(standoff, plan.names)


def measure(plan: Plan, with_etcd: bool, folder: Path, say: Say) -> Result:
    """Everything, in order. Raises BenchError."""
    cores = Cores.available()
    result: Result = {"start": {}, "warnings": []}
    build_tools()
    say("making data")
    zones.make(folder, plan.names)
    measures.write_set_queries(folder)
    zone, changing = write_zone_files(folder, plan.names)
    with contextlib.ExitStack() as stack:
        say("start from a zone file")
        result["start"]["file_s"] = measure_file_start(plan, cores, folder, zone)
        if with_etcd:
            say("filling etcd")
            etcd = EtcdServer(next(iter(binaries().values())), folder / "etcd")
            stack.callback(etcd.kill)
            etcd.start()
            result["start"]["fill_etcd_s"] = measures.fill_etcd(etcd.endpoint, PREFIX, plan.names)
            sources = [f"etcd://{etcd.endpoint}{PREFIX}?schema=records"]
            change_target = f"etcd://{etcd.endpoint}{PREFIX}"
        else:
            set_file = changing / "set.jsonl"
            set_file.write_text(changer.set_lines(changer.set_addresses(0)))
            sources = [f"file:{zone}", f"file:{set_file}"]
            change_target = str(set_file)
        say("start from etcd" if with_etcd else "start")
        standoff = stack.enter_context(Standoff(sources, cores, folder, workers=plan.workers))
        result["start"]["etcd_s" if with_etcd else "files_s"] = measures.start_up(standoff, plan.names)
        echo = stack.enter_context(Echo(free_port(), cores, folder))
        standoff.pin_to_cores()
        pids = standoff.worker_pids()
        target = Target(standoff, echo, cores, folder, change_target, folder / "changes")
        run_measurements(target, plan, result, say)
        count_lock(result, say)
        if standoff.worker_pids() != pids:
            result["warnings"].append("a worker was replaced during the benchmark")
    return result


def count_lock(result: Result, say: Say) -> None:
    """The lock's share of the worker's instructions, where valgrind can count them."""
    if shutil.which("valgrind") is None or shutil.which("callgrind_annotate") is None:
        result["warnings"].append("the lock's share was not counted: valgrind is not installed")
        return
    say("counting the lock's instructions")
    result["lock"] = lockcost.count()


def run_measurements(target: Target, plan: Plan, result: Result, say: Say) -> None:
    result["throughput"] = measures.throughput(target, plan, say)
    result["latency"] = measures.latency(target, plan, say)
    result["propagation"] = {}
    for case, load in (("idle", 0), ("loaded", PROPAGATION_LOAD)):
        say(f"propagation of changes, {case}")
        result["propagation"][case] = measures.propagation(target, plan.propagation_s, PROPAGATION_RATE, load)
    say("dnsperf")
    result["dnsperf"] = measures.second_opinion(target, max(plan.closed_s, 1.0))
    result["memory"] = target.standoff.memory().as_dict(plan.names)
    result["loader"] = target.standoff.loader_words()
    busy = [r["standoff"].get("core_busy", 1.0) for r in result["throughput"]["rounds"]]
    if min(busy) < 0.95:
        result["warnings"].append(f"the server's core was only {min(busy):.0%} busy: the generator was the limit")


def main(arguments: list[str] | None = None) -> int:
    options = read_arguments(arguments)
    if options.names < 1000:
        print("bench: --names: at least 1000", file=sys.stderr)
        return 2
    if options.nice:
        os.nice(options.nice)
        share_priority(os.getpid())
    before: Result | None = json.loads(options.against.read_text()) if options.against else None
    with_etcd = not options.no_etcd and bool(binaries())
    result: Result = {"when": time.strftime("%Y-%m-%d %H:%M"), "commit": commit(), "names": options.names}
    result["machine"] = describe_machine()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {what}", file=sys.stderr, flush=True)

    # SIGTERM ends it as Ctrl-C does: with everything stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="standoff-bench-") as folder:
        try:
            result.update(measure(make_plan(options), with_etcd, Path(folder), say))
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    if result["machine"]["load"] > QUIET_LOAD:
        result["warnings"].append(
            f"load was {result['machine']['load']:.1f} before the start: the machine was not quiet"
        )
    if not with_etcd:
        result["warnings"].append("no etcd: changes were made in a file")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / time.strftime("%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(result, indent=1))
    report.show(result, before)
    drawn = report.plot(result, path.with_suffix(".png"))
    print(f"{path}" + (f", {path.with_suffix('.png').name}" if drawn else " (no plot: matplotlib is not installed)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
