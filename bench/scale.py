"""What a million names cost: starts, one change among them, many changes a second. Part of `make bench`.

    python -m bench.scale [--names N] [--seconds S] [--full | --quick]

    cold       etcd has the names, we have nothing: until the last name is answered right; of it what a bare client
               needs for the same list; the loader's peak of memory
    image      everything is killed and shared memory lost: until the first right answer, from the image of the table;
               caught up: until a table made of snapshot and etcd is answered from
    change     CPU time from an event to the swap, among a thousand names and among N: the model, the guard and both
               tables in one process, no etcd
    stream     20,000 changes a second in transactions of etcd for S seconds: how long after the last one all are
               applied; every name is compared in the end

One JSON line at the end. It takes two minutes, with --full (changes for a minute) three, with --quick (100,000 names)
half of one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import measures, report, streaming, zones
from bench.processes import BenchError, Cores, Result, Standoff
from loader.etcd import Etcd
from loader.etcd_channel import EtcdError
from loader.feed import schema_parse, update_of
from loader.gate import Gate
from loader.guard import Limits
from loader.model import Changes, Listing, Put
from loader.publisher import Publisher
from loader.zone import Zones
from shm.board import Board
from shm.segment import remove_instance
from shm.tables import TableWriter
from tests.support.etcd import EtcdServer, binaries

PREFIX = "/bench"
FEW = 1000
CHANGES = 2000
PATIENCE_S = 120.0

A = 1


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


class Scene:
    """One etcd with the names, one instance with a folder for its state."""

    def __init__(self, etcd: EtcdServer, folder: Path, names: int) -> None:
        self.etcd, self.folder, self.names = etcd, folder, names
        self.source = f"etcd://{etcd.endpoint}{PREFIX}?schema=records"
        self.cores = Cores.available()
        self.instance = ""

    def service(self) -> Standoff:
        """Not started yet; each time of the same instance, as after a reboot."""
        more = ["--state-dir", str(self.folder / "state")]
        service = Standoff([self.source], self.cores, self.folder, instance=self.instance, more=more)
        self.instance = service.instance
        return service

    def known(self, service: Standoff, generation: int) -> bool:
        """Whether a worker answers from this generation or a later one."""
        board = Board.attach(service.instance)
        try:
            found = [slot.get("generation") for slot in board.workers()]
            return bool(found) and min(found) >= generation
        finally:
            board.close()


def peak_mb(pid: int) -> float:
    """The most memory that a process has had, its shared memory included."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def bare_list(endpoint: str) -> float:
    """Seconds that a client needs which does nothing with what it gets."""

    async def read() -> None:
        async with Etcd(endpoint) as etcd:
            async for _ in etcd.pages(PREFIX + "/", 100_000):
                pass

    start = time.monotonic()
    asyncio.run(read())
    return time.monotonic() - start


def starts(scene: Scene) -> tuple[Result, Result]:
    """Cold, and from the image."""
    say("cold start from etcd")
    with scene.service() as service:
        first = measures.start_up(service, scene.names)
        pid = service.loader_words()["loader_pid"]
        image = scene.folder / "state" / f"{service.instance}.image"
        streaming.wait_for(image.exists, "an image")
        streaming.wait_for(lambda: list((scene.folder / "state").glob("*.sqlite")), "a snapshot")
        time.sleep(3.0)  # the snapshot's first write
        cold = {"first_answer_s": first, "loader_peak_mb": peak_mb(pid), "image_mb": image.stat().st_size / 1e6}
        service.kill()
    remove_instance(scene.instance)
    say("start from the image")
    with scene.service() as service:
        first = measures.start_up(service, scene.names)
        if service.loader_words()["publishes"] > 1:
            raise BenchError("the first answer was not the image's")
        streaming.wait_for(
            lambda: service.loader_words()["publishes"] > 1 and scene.known(service, 2), "a table of the sources"
        )
        caught_up = time.monotonic() - service.started_at
        peak = peak_mb(service.loader_words()["loader_pid"])
        service.kill()
    remove_instance(scene.instance)
    return cold, {"first_answer_s": first, "caught_up_s": caught_up, "loader_peak_mb": peak}


# ---------------------------------------------------------------- one change


async def one_change(names: int, writer: TableWriter) -> float:
    """Milliseconds of CPU time a change, the median."""
    model = Zones((), 300)
    publisher = Publisher(writer, model, 1, gate=Gate(Limits(), model, time.monotonic, time.time))
    parse = schema_parse("records", PREFIX)
    puts = [
        Put(f"{PREFIX}/{zones.ZONE}/h{i:07d}/A", f'"{address}"'.encode(), i + 1)
        for i, address in enumerate(zones.addresses(names))
    ]
    await publisher.take(0, update_of(Listing(puts, names), parse, prefix=PREFIX))
    await publisher.publish()
    draw, cpu = random.Random(1), []
    for number in range(1, CHANGES + 1):
        put = Put(
            puts[draw.randrange(names)].key, f'"10.{number >> 8 & 255}.{number & 255}.1"'.encode(), names + number
        )
        before = time.process_time()
        await publisher.take(0, update_of(Changes([put], names + number), parse))
        await publisher.publish()
        cpu.append(time.process_time() - before)
    return statistics.median(cpu) * 1000


def change_among(names: int) -> float:
    instance = f"bench-scale-{names}"
    board = Board.create_or_attach(instance)
    writer = TableWriter(board)
    try:
        return asyncio.run(one_change(names, writer))
    finally:
        writer.close()
        board.close()
        remove_instance(instance)


# ---------------------------------------------------------------- many changes


def stream(scene: Scene, seconds: float) -> Result:
    with scene.service() as service:
        measures.start_up(service, scene.names)
        streaming.wait_for(lambda: service.loader_words()["publishes"] > 1, "a table of the sources")
        return streaming.stream(service, scene.etcd.endpoint, scene.names - 1, seconds, put_of)


def put_of(host: int, address: str) -> tuple[str, bytes]:
    return f"{PREFIX}/{zones.ZONE}/h{host:07d}/A", f'"{address}"'.encode()


# ---------------------------------------------------------------- all of it


def measure(names: int, seconds: float, folder: Path) -> Result:
    found = binaries()
    if not found:
        raise BenchError("it needs an etcd")
    etcd = EtcdServer(next(iter(found.values())), folder / "etcd", "--quota-backend-bytes", str(8 << 30))
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.kill)
        etcd.start()
        say(f"filling etcd with {names} names")
        measures.fill_etcd(etcd.endpoint, PREFIX, names)
        scene = Scene(etcd, folder, names)
        result: Result = {"names": names, "bare_list_s": bare_list(etcd.endpoint)}
        result["cold"], result["image"] = starts(scene)
        say("one change")
        few, many = change_among(FEW), change_among(names)
        result["change"] = {"few_ms": few, "many_ms": many, "ratio": many / few}
        result["stream"] = stream(scene, seconds)
    return result


def rows(result: Result) -> Iterator[tuple[str, str, str]]:
    """What, measured, goal."""
    cold, image, change, many = result["cold"], result["image"], result["change"], result["stream"]
    yield "cold from etcd: first right answer", f"{cold['first_answer_s']:.1f} s", "15 s"
    yield "of it a bare client's list", f"{result['bare_list_s']:.1f} s", "5 s"
    yield "loader's peak, shared memory included", f"{cold['loader_peak_mb']:.0f} MB", "1000 MB"
    yield "from the image: first right answer", f"{image['first_answer_s']:.2f} s", "1 s"
    yield "caught up after that", f"{image['caught_up_s'] - image['first_answer_s']:.1f} s", "5 s"
    yield f"one change among {result['names']} names over {FEW}", f"{change['ratio']:.2f}", "1.5"
    yield "its CPU time", f"{change['many_ms']:.2f} ms", ""
    yield from streaming.rows(many)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.scale", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of changes (default 10)")
    parser.add_argument("--full", action="store_true", help="changes for a minute")
    parser.add_argument("--quick", action="store_true", help="100,000 names, changes for 3 s")
    options = parser.parse_args(arguments)
    if options.full:
        options.seconds = 60.0
    if options.quick:
        options.names, options.seconds = 100_000, 3.0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="standoff-bench-") as folder:
        try:
            result = measure(options.names, options.seconds, Path(folder))
        except (BenchError, EtcdError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    report.tell(rows(result), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
