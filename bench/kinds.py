"""Each kind of answer over a bare echo: A, NXDOMAIN, wildcard, referral, CNAME, EDNS with cookie, a large set, a mix.

    python -m bench.kinds [--rounds N] [--seconds S]

Rounds are interleaved and every ratio is within a round; `cpu` compares CPU time an answer, which other load disturbs
least. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measures import middle, wire_query
from bench.processes import Cores, Echo, Result, Standoff, build_tools, flood, free_port

NAMES = 20_000
ZONE = "kinds.test"
#: Kind -> goal, over echo.
GOALS = {"A": 0.85, "NXDOMAIN": 0.75, "wildcard": 0.75, "referral": 0.75, "CNAME": 0.75, "EDNS+cookie": 0.75,
         "10 addresses": 0.75, "mix": 0.75}  # fmt: skip


def write_zone(path: Path) -> None:
    """JSON lines with NAMES names of each kind."""
    chance = random.Random(1)

    def address() -> str:
        return f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(256)}"

    with path.open("w") as file:

        def record(name: str, type_: str, data: str | list[str]) -> None:
            file.write(json.dumps({"name": f"{name}{ZONE}.", "type": type_, "ttl": 300, "data": data}) + "\n")

        record("", "SOA", f"ns1.{ZONE}. hostmaster.{ZONE}. 1 3600 600 604800 300")
        record("", "NS", f"ns1.{ZONE}.")
        record("ns1.", "A", "127.0.0.1")
        for i in range(NAMES):
            record(f"h{i:06d}.", "A", address())
            record(f"c{i:06d}.", "CNAME", f"h{i:06d}.{ZONE}.")
            record(f"d{i:06d}.", "NS", f"ns.d{i:06d}.{ZONE}.")
            record(f"ns.d{i:06d}.", "A", address())
            record(f"*.w{i:06d}.", "A", address())
            record(f"s{i:06d}.", "A", [address() for _ in range(10)])


def write_queries(folder: Path) -> dict[str, Path]:
    """A query file for each kind."""
    forms = {
        "A": "h{i:06d}.{z} A answer",
        "NXDOMAIN": "x{i:06d}.{z} A nxdomain",
        "wildcard": "any.w{i:06d}.{z} A answer",
        "referral": "www.d{i:06d}.{z} A any",
        "CNAME": "c{i:06d}.{z} A any",
        "10 addresses": "s{i:06d}.{z} A answer",
    }
    chance = random.Random(2)
    lines = {
        kind: [form.format(i=i, z=ZONE) for i in chance.sample(range(NAMES), NAMES)] for kind, form in forms.items()
    }
    lines["mix"] = [chance.choice(group) for group in zip(*lines.values(), strict=True)]
    lines["echo"] = [line.rsplit(" ", 1)[0] + " any" for line in lines["A"]]
    files = {kind: folder / f"{kind.replace(' ', '-')}.txt" for kind in lines}
    for kind, path in files.items():
        path.write_text("\n".join(lines[kind]) + "\n")
    return files | {"EDNS+cookie": files["A"]}


def measure(rounds: int, seconds: float, folder: Path) -> Result:
    cores = Cores.available()
    zone = folder / "kinds.jsonl"
    write_zone(zone)
    files = write_queries(folder)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in GOALS}
    faults = 0
    with Standoff([f"file:{zone}"], cores, folder) as standoff, Echo(free_port(), cores, folder) as echo:
        standoff.wait_for_answer(wire_query(f"ns1.{ZONE}"), bytes([127, 0, 0, 1]))
        standoff.pin_to_cores()
        workers = standoff.worker_pids()
        options = ["-w", "0.3", "-t", str(seconds), "-g", "16"]
        for number in range(rounds):
            base = flood(echo.port, files["echo"], cores, *options, servers=[echo.process.pid])
            for kind in GOALS:
                print(f"round {number + 1} of {rounds}: {kind}", file=sys.stderr)
                extra = ["-k"] if kind == "EDNS+cookie" else []
                result = flood(standoff.port, files[kind], cores, *options, *extra, servers=workers)
                found[kind].append((result["qps"] / base["qps"], base["cpu_us"] / result["cpu_us"]))
                faults += result["lost"] + result["wrong"]
    kinds = {
        kind: {"ratio": middle([q for q, _ in pairs])["median"], "cpu": middle([c for _, c in pairs])["median"]}
        for kind, pairs in found.items()
    }
    return {"kinds": kinds, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    build_tools()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.rounds, arguments.seconds, Path(folder))
    table = Table(title=f"answers on one core over a bare echo, {6 * NAMES:,} names")
    for heading in ("kind", "ratio", "by CPU time", "goal"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, figures in result["kinds"].items():
        table.add_row(kind, f"{figures['ratio']:.3f}", f"{figures['cpu']:.3f}", f"≥ {GOALS[kind]}")
    Console(stderr=True).print(table)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
