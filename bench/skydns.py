"""What a million SkyDNS keys cost: a cold start from etcd, and one change. Part of `make bench`.

    python -m bench.skydns [--keys N] [--shape plain|external|pairs] [--semantics coredns|strict] [--stream S] [--quick]

    cold     etcd has the keys, we have nothing: until the key that is listed last is answered right, and the loader's
             CPU time; what etcd needs for the same list; the loader's peak of memory, its own and with what it shares
    change   from the put to the first right answer, p50 and p90: of one key among N, of one among a thousand, and of
             one beneath an apex with 10,000 more
    stream   with --stream S: 20,000 changes a second for S seconds (bench/streaming.py); not of pairs

Shapes: plain, `/skydns/test/perf/h1 {"host":…,"ttl":60}`; external, as ExternalDNS writes them, with a random label
that `targetstrip` takes off and a registry's text: two names a key in the coredns semantics; pairs, the same with two
keys a host, as for a load balancer with two addresses. One JSON line at the end. It takes two minutes;
--quick (100,000 keys) half of one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import measures, report, streaming, zones
from bench.processes import START_S, BenchError, Cores, Result, Standoff, run_ns
from loader.etcd import Etcd
from tests.support.etcd import EtcdServer, binaries

ZONE, CROWD = "perf.test", "crowd.test"
CROWD_KEYS = 10_000
FEW = 1000
CHANGES = 100
TEXT = "heritage=external-dns,external-dns/owner=default,external-dns/resource=service/default/h%07d"


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def key(prefix: str, zone: str, number: int, shape: str) -> str:
    """The one with this number."""
    path = "/".join(reversed(zone.split(".")))
    tail = "" if shape == "plain" else f"/{number * 2654435761 & 0xFFFFFFFF:08x}"
    return f"{prefix}/{path}/{host(number, shape)}{tail}"


def host(number: int, shape: str) -> str:
    """Of key `number`."""
    return f"h{number // 2 if shape == 'pairs' else number:07d}"


def value(number: int, address: str, shape: str) -> bytes:
    if shape == "plain":
        return b'{"host":"%s","ttl":60}' % address.encode()
    return json.dumps({"host": address, "text": TEXT % number, "targetstrip": 1}, separators=(",", ":")).encode()


def keys(prefix: str, count: int, shape: str) -> Iterator[tuple[str, bytes]]:
    """`count` in one zone, 10,000 in another."""
    for zone, hosts in ((ZONE, count), (CROWD, CROWD_KEYS)):
        for number, address in enumerate(zones.addresses(hosts)):
            yield key(prefix, zone, number, shape), value(number, address, shape)


def bare_list(endpoint: str, prefix: str) -> float:
    """Seconds that etcd needs for the list: its answers are not looked at."""

    async def read() -> None:
        async with Etcd(endpoint) as etcd:
            start, more = f"{prefix}/".encode(), True
            while more:
                page = await etcd.call("Range", 60.0, key=start, range_end=f"{prefix}0".encode(), limit=100_000)
                start, more = page.kvs[-1].key + b"\0", page.more

    before = time.monotonic()
    asyncio.run(read())
    return time.monotonic() - before


class Peak(threading.Thread):
    """Looks at a process's memory twenty times a second. What it has for itself has no high-water mark of its own."""

    def __init__(self, service: Standoff) -> None:
        super().__init__(daemon=True)
        self._service = service
        self.private_mb = self.all_mb = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        pid = 0
        while not self._over.wait(0.05):
            with contextlib.suppress(OSError, BenchError):
                pid = pid or self._service.loader_words()["loader_pid"]
                text = Path(f"/proc/{pid}/status").read_text()
                found = {name: int(kib) / 1024 for name, kib in re.findall(r"(VmHWM|RssAnon):\s+(\d+)", text)}
                self.private_mb = max(self.private_mb, found["RssAnon"])
                self.all_mb = found["VmHWM"]

    def end(self) -> Result:
        self._over.set()
        self.join()
        return {"loader_private_mb": self.private_mb, "loader_peak_mb": self.all_mb}


class Scene:
    """One etcd, and services that follow a prefix of it."""

    def __init__(self, etcd: EtcdServer, folder: Path, shape: str, semantics: str) -> None:
        self.etcd, self.folder, self.shape, self.semantics = etcd, folder, shape, semantics
        self.cores = Cores.available()

    @contextlib.contextmanager
    def service(self, prefix: str) -> Iterator[Standoff]:
        """Without a snapshot: what that costs is another benchmark's matter."""
        more = ["--zone", ZONE, "--zone", CROWD, "--state-dir", "", "--semantics", self.semantics]
        with Standoff(
            [f"etcd://{self.etcd.endpoint}{prefix}?schema=skydns"], self.cores, self.folder, more=more
        ) as one:
            yield one

    def start(self, service: Standoff, count: int) -> float:
        """Seconds until the last host is answered."""
        *_, address = zones.addresses(count)
        query = measures.wire_query(f"{host(count - 1, self.shape)}.{ZONE}")
        return service.wait_for_answer(query, socket.inet_aton(address))

    def put_of(self, number: int, address: str) -> tuple[str, bytes]:
        """See bench/streaming.py."""
        return key("/many", ZONE, number, self.shape), value(number, address, self.shape)

    def change(self, service: Standoff, prefix: str, zone: str, count: int) -> Result:
        """Put another address, ask until it is there."""
        took: list[float] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, asyncio.Runner() as runner:
            sock.connect(("127.0.0.1", service.port))
            sock.settimeout(1.0)
            etcd = Etcd(self.etcd.endpoint)
            runner.run(etcd.open())
            for round_ in range(CHANGES):
                number = (round_ * 7919 + 1) % (count - 1)
                address = f"10.200.{round_ >> 8}.{round_ & 255}"
                query = measures.wire_query(f"{host(number, self.shape)}.{zone}")
                start = time.monotonic()
                put = etcd.put(key(prefix, zone, number, self.shape), value(number, address, self.shape))
                runner.run(put)
                while socket.inet_aton(address) not in ask(sock, query):
                    if time.monotonic() > start + START_S:
                        raise BenchError(f"a change was not answered in {START_S:.0f} s")
                    time.sleep(0.0002)
                took.append((time.monotonic() - start) * 1000)
                time.sleep(0.01)
            runner.run(etcd.close())
        return {"p50_ms": statistics.median(took), "p90_ms": sorted(took)[CHANGES * 9 // 10]}


def ask(sock: socket.socket, query: bytes) -> bytes:
    sock.send(query)
    return sock.recv(4096)


def measure(count: int, shape: str, semantics: str, seconds: float, folder: Path) -> Result:
    found = binaries()
    if not found:
        raise BenchError("it needs an etcd")
    etcd = EtcdServer(next(iter(found.values())), folder / "etcd", "--quota-backend-bytes", str(8 << 30))
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.kill)
        etcd.start()
        say(f"filling etcd with {count} keys")
        measures.fill_keys(etcd.endpoint, keys("/many", count, shape))
        measures.fill_keys(etcd.endpoint, keys("/few", FEW, shape))
        scene = Scene(etcd, folder, shape, semantics)
        result: Result = {"keys": count, "shape": shape, "semantics": semantics}
        result["bare_list_s"] = bare_list(etcd.endpoint, "/many")
        say("cold start from etcd")
        with scene.service("/many") as service:
            peak = Peak(service)
            peak.start()
            result["first_answer_s"] = scene.start(service, count)
            result["loader_cpu_s"] = run_ns([service.loader_words()["loader_pid"]]) / 1e9
            time.sleep(3.0)
            result |= peak.end()
            say("changes")
            result["among_many"] = scene.change(service, "/many", ZONE, count)
            result["beneath_crowd"] = scene.change(service, "/many", CROWD, CROWD_KEYS)
            if seconds:
                result["stream"] = streaming.stream(service, etcd.endpoint, count, seconds, scene.put_of)
        with scene.service("/few") as service:
            scene.start(service, FEW)
            time.sleep(1.0)
            result["among_few"] = scene.change(service, "/few", ZONE, FEW)
    return result


def rows(result: Result) -> Iterator[tuple[str, str, str]]:
    """What, measured, goal."""
    many, few, crowd = result["among_many"], result["among_few"], result["beneath_crowd"]
    yield "cold from etcd: first right answer", f"{result['first_answer_s']:.1f} s", "15 s"
    yield "the loader's CPU time until then", f"{result['loader_cpu_s']:.1f} s", ""
    yield "etcd's own list", f"{result['bare_list_s']:.1f} s", "5 s"
    yield "loader's peak, its own memory", f"{result['loader_private_mb']:.0f} MB", "1000 MB"
    yield "with what it shares", f"{result['loader_peak_mb']:.0f} MB", ""
    yield f"one change among {result['keys']} keys", f"p50 {many['p50_ms']:.1f}, p90 {many['p90_ms']:.1f} ms", ""
    yield f"over one among {FEW}", f"{many['p50_ms'] / few['p50_ms']:.2f}", "1.5"
    yield f"beneath an apex with {CROWD_KEYS}", f"p50 {crowd['p50_ms']:.1f}, p90 {crowd['p90_ms']:.1f} ms", "10 ms"
    if "stream" in result:
        yield from streaming.rows(result["stream"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.skydns", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--shape", choices=("plain", "external", "pairs"), default="plain")
    parser.add_argument("--semantics", choices=("coredns", "strict"), default="coredns")
    parser.add_argument("--stream", type=float, default=0.0, metavar="S", help="many changes, for S seconds")
    parser.add_argument("--quick", action="store_true", help="100,000 keys")
    options = parser.parse_args(arguments)
    if options.stream and options.shape == "pairs":
        parser.error("--stream needs a shape with one key a host")
    folder = Path(tempfile.mkdtemp(prefix="standoff-bench-"))
    try:
        keys_wanted = 100_000 if options.quick else options.keys
        result = measure(keys_wanted, options.shape, options.semantics, options.stream, folder)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.tell(rows(result), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
