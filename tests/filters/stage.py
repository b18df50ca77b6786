"""A service of real processes that is fed from a real etcd, and backends that go down and up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Collection
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query

from loader.etcd import Etcd
from shm.board import Board
from shm.errors import StandoffError
from tests.support.etcd import EtcdServer, free_ports
from tests.support.mirroring import run_async

ROOT = Path(__file__).resolve().parents[2]
#: Seconds; for tests that hang, not claims about speed.
PATIENCE_S = 30.0


class Stage:
    """One instance. Its zone is example.test, in schema records."""

    def __init__(
        self, instance: str, etcd: EtcdServer, prefix: str, folder: Path, options: Collection[str],
        python_path: Path | None,
    ) -> None:  # fmt: skip
        self.instance, self.etcd, self.prefix, self.folder = instance, etcd, prefix, folder
        self.port, self.metrics_port = free_ports(2)
        for name in ("run", "state"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        self.runtime = ["--runtime-dir", str(folder / "run")]
        paths = [str(ROOT), *([str(python_path)] if python_path else [])]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "cli.main", "run", "--instance", instance, "--zone", "example.test",
                    "--source", f"etcd://{etcd.endpoint}{prefix}?schema=records", "--listen", f"127.0.0.1:{self.port}",
                    "--workers", "1", "--state-dir", str(folder / "state"),
                    "--metrics", f"127.0.0.1:{self.metrics_port}", *self.runtime, *options,
                ],
                cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip
        self.until("it is ready", lambda: self.ask("example.test", "SOA"))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """All processes are gone afterwards."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()

    # ---- in

    def put(self, **values: Any) -> None:
        """Owner's A records in one transaction each, in the order given. `__` in an owner is a dash."""

        async def body() -> None:
            async with Etcd(self.etcd.endpoint) as etcd:
                for owner, value in values.items():
                    key = f"{self.prefix}/example.test/{owner.replace('__', '-')}/A"
                    if value is None:
                        await etcd.delete(key)
                    else:
                        await etcd.put(key, json.dumps(value).encode())

        run_async(body())

    # ---- out

    def ask(self, name: str, type_: str = "A") -> list[str]:
        """The data of all answers, sorted; nothing if there is none, or no reply."""
        query = dns.message.make_query(name, type_)
        try:
            reply = dns.query.udp(query, "127.0.0.1", timeout=1.0, port=self.port)
        except (OSError, dns.exception.DNSException):
            return []
        return sorted(rdata.to_text() for rrset in reply.answer for rdata in rrset)

    def of(self, owner: str) -> list[str]:
        """The addresses of a name in the zone."""
        return self.ask(f"{owner}.example.test")

    def until(self, what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> float:
        """Seconds until it came true."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < patience_s, f"not within {patience_s} s: {what}\n{self.log}"
            time.sleep(0.02)
        return time.monotonic() - begun

    def throughout(self, seconds: float, condition: Callable[[], Any]) -> None:
        """It is true all the time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert condition(), self.log
            time.sleep(0.02)

    def standoff(self, *arguments: str) -> str:
        """What a `standoff` command on this instance prints."""
        return self.command(*arguments).stdout

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        runtime = [] if arguments[0] == "status" else self.runtime
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments, "--instance", self.instance, *runtime],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def targets(self) -> dict[str, str]:
        """Target -> state, as `standoff health` tells."""
        return {one["target"]: one["state"] for one in json.loads(self.standoff("health", "--json"))["targets"]}

    def metrics(self) -> dict[str, float]:
        """Those without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line[:1] != "#" and "{" not in line}

    # ---- processes

    @property
    def loader_pid(self) -> int:
        try:
            board = Board.attach(self.instance)
        except StandoffError:
            return 0
        try:
            return board.loader.get("loader_pid")
        finally:
            board.close()

    def helpers(self, module: str) -> list[int]:
        """Pids of the loader's children that run a module."""
        found = []
        with suppress(OSError):
            for pid in Path(f"/proc/{self.loader_pid}/task/{self.loader_pid}/children").read_text().split():
                with suppress(OSError):
                    if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                        found.append(int(pid))
        return found


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    assert pid > 1  # 0 would be ourselves
    os.kill(pid, signal.SIGKILL)


class Backend:
    """An HTTP server in a thread, down at first. `status` is what it answers."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self.status = 200
        self.requests: list[tuple[str, str]] = []  # path, host
        self._server: ThreadingHTTPServer | None = None

    def up(self) -> None:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                backend.requests.append((self.path, self.headers["Host"]))
                self.send_response(backend.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

        self._server = ThreadingHTTPServer((self.address, self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
