"""The data of the benchmarks: N names as a zone file, and queries for flood and dnsperf. Same N and seed, same bytes.

    python -m bench.zones 100000 DIR

writes DIR/perf.test.zone, flood.txt (each query with the address that its answer must have), share.txt (a tenth of
them for names that do not exist, a tenth for a type that the name has not), any.txt (for echo, which has no data) and
dnsperf.txt.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

ZONE = "perf.test"
#: Names that a benchmark changes while it runs; the queries of flood.txt never ask for them.
CHANGING = 1000
#: A query file longer than this only takes longer to load.
MAX_QUERIES = 200_000

_HEAD = f"""$ORIGIN {ZONE}.
$TTL 300
@ SOA ns1.{ZONE}. hostmaster.{ZONE}. 1 7200 1800 86400 30
@ NS ns1.{ZONE}.
ns1 A 127.0.0.1
"""


def host(number: int) -> str:
    """Name of host `number`: 20 bytes in wire form, as the memory target has it."""
    return f"h{number:07d}.{ZONE}"


def addresses(count: int, seed: int = 1) -> Iterator[str]:
    """The hosts' addresses, in 10.0.0.0/8."""
    source = random.Random(seed)
    for _ in range(count):
        value = source.getrandbits(24)
        yield f"10.{value >> 16}.{value >> 8 & 255}.{value & 255}"


def write_zone(path: Path, count: int, seed: int = 1, extra: str = "") -> None:
    """A zone file of `count` hosts; `extra` lines come last."""
    with path.open("w") as file:
        file.write(_HEAD)
        file.writelines(f"h{i:07d} A {address}\n" for i, address in enumerate(addresses(count, seed)))
        file.write(extra)


def write_queries(folder: Path, count: int, seed: int = 1) -> None:
    """The query files, in an order of their own."""
    known = list(addresses(count, seed))
    order = list(range(count))
    source = random.Random(seed + 1)
    source.shuffle(order)
    order = order[:MAX_QUERIES]
    with (folder / "flood.txt").open("w") as flood, (folder / "any.txt").open("w") as any_answer:
        for i in order:
            flood.write(f"{host(i)} A {known[i]}\n")
            any_answer.write(f"{host(i)} A any\n")
    with (folder / "share.txt").open("w") as share, (folder / "dnsperf.txt").open("w") as dnsperf:
        for i in order:
            draw = source.random()
            if draw < 0.1:
                line = f"x{i:07d}.{ZONE} A", "nxdomain"
            elif draw < 0.2:
                line = f"{host(i)} AAAA", "nodata"
            else:
                line = f"{host(i)} A", known[i]
            share.write(" ".join(line) + "\n")
            dnsperf.write(line[0] + "\n")


def make(folder: Path, count: int, seed: int = 1) -> None:
    """All files, into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_zone(folder / f"{ZONE}.zone", count, seed)
    write_queries(folder, count, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make benchmark data.")
    parser.add_argument("count", type=int, help="names")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.count, arguments.seed)


if __name__ == "__main__":
    main()
