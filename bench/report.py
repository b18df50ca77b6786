"""A benchmark's figures as a table, as a plot, and against those of an earlier run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.processes import Result

#: Figure, path in the result, target in words (docs/performance.md), format. Ratios need no unit.
ROWS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("answers, ratio to echo", ("throughput", "ratio_to_echo", "median"), "≥ 0.92", "{:.3f}"),
    ("  the same by CPU time an answer", ("throughput", "ratio_to_echo_cpu", "median"), "≥ 0.92", "{:.3f}"),
    ("  a fifth of them negative", ("throughput", "ratio_negative", "median"), "", "{:.3f}"),
    ("  swapping, over not swapping", ("throughput", "ratio_swapping", "median"), "≥ 0.97", "{:.3f}"),
    ("  the same by CPU time an answer", ("throughput", "ratio_swapping_cpu", "median"), "≥ 0.97", "{:.3f}"),
    ("  swaps a second meanwhile", ("throughput", "swaps_per_s", "median"), "", "{:.0f}"),
    ("  by dnsperf, ratio to echo", ("dnsperf", "ratio"), "", "{:.3f}"),
    ("p99.9 at 50k q/s, swapping over still", ("latency", "p999_swapping_over_still"), "≤ 1.2", "{:.2f}"),
    ("  the same, the server's part alone", ("latency", "p999_server_swapping_over_still"), "≤ 1.2", "{:.2f}"),
    ("change → answered, idle, p50 ms", ("propagation", "idle", "p50_ms"), "≤ 3", "{:.2f}"),
    ("  p99 ms", ("propagation", "idle", "p99_ms"), "≤ 10", "{:.2f}"),
    ("  longest ms", ("propagation", "idle", "max_ms"), "", "{:.2f}"),
    ("change → answered, under load, p50 ms", ("propagation", "loaded", "p50_ms"), "≤ 3", "{:.2f}"),
    ("  p99 ms", ("propagation", "loaded", "p99_ms"), "≤ 10", "{:.2f}"),
    ("  longest ms", ("propagation", "loaded", "max_ms"), "", "{:.2f}"),
    ("  of it the write into the source, p50 ms", ("propagation", "loaded", "source_write_p50_ms"), "", "{:.2f}"),
    ("start to first answer, zone file, s", ("start", "file_s"), "", "{:.2f}"),
    ("start to first answer, etcd, s", ("start", "etcd_s"), "", "{:.2f}"),
    ("lock, share of the loop's instructions", ("lock", "share"), "≤ 0.01", "{:.4f}"),
    ("bytes a name and table", ("memory", "bytes_per_name_and_table"), "≤ 100", "{:.0f}"),
)
LATENCIES = ("p50_us", "p99_us", "p999_us", "max_us")


def lookup(result: Result, path: tuple[str, ...]) -> float | None:
    """A figure; None if this run did not measure it."""
    value: object = result
    for step in path:
        if not isinstance(value, dict) or value.get(step) is None:
            return None
        value = value[step]
    return float(value) if isinstance(value, int | float) else None


def show(result: Result, before: Result | None = None, console: Console | None = None) -> None:
    """Print the tables; with `before`, how each figure stands to the earlier one."""
    console = console or Console()
    machine = result["machine"]
    table = Table(title=f"{result['names']:,} names, {machine['cores']} cores, commit {result['commit']}")
    for heading in ("", "measured", "target"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    if before is not None:
        table.add_column(f"over {before['commit']}", justify="right")
    for label, path, target, form in ROWS:
        value, old = lookup(result, path), lookup(before, path) if before else None
        cells = [label, "-" if value is None else form.format(value), target]
        if before is not None:
            cells.append(f"{value / old:.3f}" if value is not None and old else "-")
        table.add_row(*cells)
    console.print(table)
    if before is not None and before["names"] != result["names"]:
        console.print(f"warning: the earlier run had {before['names']:,} names", style="yellow")
    console.print(_latencies(result))
    _print_memory(result, console)
    faults = {
        f"{part}: {kind}": count
        for part in ("throughput", "latency")
        for kind, count in result.get(part, {}).get("faults", {}).items()
        if count
    }
    console.print("not right: " + (", ".join(f"{k} {v}" for k, v in faults.items()) or "nothing"))
    for warning in result.get("warnings", []):
        console.print(f"warning: {warning}", style="yellow")


def tell(rows: Iterable[tuple[str, str, str]], result: Result) -> None:
    """What, measured, goal, for people on stderr; the result as one JSON line on stdout."""
    table = Table("what", "measured", "goal")
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
    print(json.dumps(result))


def _latencies(result: Result) -> Table:
    table = Table(title="µs at 50,000 q/s, median of the rounds")
    table.add_column("", no_wrap=True)
    for heading in ("p50", "p99", "p99.9", "longest", "generator late"):
        table.add_column(heading, justify="right")
    for case, figures in result.get("latency", {}).get("summary", {}).items():
        table.add_row(case, *(f"{figures[name]:.0f}" for name in (*LATENCIES, "late_us")))
        table.add_row("  from send to arrival", *(f"{figures['server_' + name]:.0f}" for name in LATENCIES), "")
    return table


def _print_memory(result: Result, console: Console) -> None:
    memory = result.get("memory")
    if not memory:
        return
    tables = " + ".join(f"{size / 1e6:.1f}" for size in memory["tables"])
    workers = ", ".join(f"{size / 1e6:.1f}" for size in memory["private_worker"])
    console.print(
        f"memory, MB: tables {tables} (shared by all workers), control {memory['control'] / 1e6:.1f}, "
        f"private to each worker {workers}, private to the loader {memory['private_loader'] / 1e6:.1f}"
    )


def plot(result: Result, path: Path) -> bool:
    """A picture of the rounds and the latencies; False if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rounds = result["throughput"]["rounds"]
    for name in ("echo", "standoff", "negative", "swapping"):
        left.plot(range(1, len(rounds) + 1), [r[name]["qps"] / 1000 for r in rounds], marker="o", label=name)
    most = max(r[name]["qps"] for r in rounds for name in ("echo", "standoff", "negative", "swapping")) / 1000
    left.set(title="answers on one core", xlabel="round", ylabel="1000 q/s", ylim=(0, 1.1 * most))
    left.set_xticks(range(1, len(rounds) + 1))
    left.legend(loc="lower left")
    summary = result["latency"]["summary"]
    width = 0.8 / len(summary)
    for number, (case, figures) in enumerate(summary.items()):
        places = [i + number * width for i in range(len(LATENCIES))]
        right.bar(places, [figures[f"server_{name}"] for name in LATENCIES], width, label=case)
    right.set(title="from send to arrival, at 50,000 q/s", ylabel="µs", yscale="log")
    right.set_xticks([i + 0.4 - width / 2 for i in range(len(LATENCIES))], ["p50", "p99", "p99.9", "longest"])
    right.legend()
    figure.suptitle(f"Standoff {result['commit']}, {result['names']:,} names, {result['when']}")
    figure.savefig(path, dpi=110)
    return True
