"""A drill of the source: etcd goes away, by SIGKILL and by SIGSTOP, and comes back."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from drill.child import launch
from drill.instance import (
    HOSTS,
    VERSION_NAME,
    ZONE,
    DrillFailed,
    dotted,
    free_port,
    host_address,
    version_address,
    wait_for,
)
from drill.scene import Scene, Skipped
from shm.layout import LoaderState

PREFIX = "/drill"
#: How long the loader may take to say that its source is away, and to find it again: it asks with growing pauses.
LONGEST_NOTICE_S = 10.0
LONGEST_RETURN_S = 10.0


class EtcdProcess:
    """An etcd of the drill's own."""

    def __init__(self, folder: Path) -> None:
        program = os.environ.get("STANDOFF_ETCD") or shutil.which("etcd")
        if not program or not os.access(program, os.X_OK):
            raise Skipped("no etcd: put one on PATH, or name it in $STANDOFF_ETCD")
        self._program = os.path.abspath(program)
        self._folder = folder / "etcd"
        self._folder.mkdir(mode=0o700)
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._peer = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """For the first time, or on the data of before."""
        url = f"http://{self.endpoint}"
        with (self._folder / "log").open("ab") as log:
            self._process = launch(
                self._program, "--name", "drill", "--data-dir", str(self._folder / "data"),
                "--listen-client-urls", url, "--advertise-client-urls", url,
                "--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer,
                "--initial-cluster", f"drill={self._peer}",
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_for("etcd answers", self._answers, 30)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise DrillFailed(f"etcd ended: {(self._folder / 'log').read_text(errors='replace')[-600:]}")
        with suppress(OSError):
            self._call("maintenance/status", {})
            return True
        return False

    def put(self, **values: int) -> None:
        """Addresses of names of the zone."""
        for name, address in values.items():
            key = f"{PREFIX}/{ZONE}/{name}/A"
            self._call("kv/put", {"key": _base64(key), "value": _base64(dotted(address))})

    def _call(self, path: str, body: dict[str, str]) -> None:
        """By etcd's JSON gateway: the drill forks no process with a gRPC in it. Raises OSError."""
        request = urllib.request.Request(f"http://{self.endpoint}/v3/{path}", json.dumps(body).encode())
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as answer:
            answer.read()

    def signal(self, number: int) -> None:
        """To it and what it has started: what is on PATH may be a script."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def etcd_down(scene: Scene) -> None:
    """Answers go on without etcd, the age of what is answered is told, and changes come once it is back."""
    etcd = EtcdProcess(scene.folder)
    scene.keep(etcd.kill)
    etcd.start()
    hosts = {name.partition(".")[0]: host_address(number) for number, name in enumerate(HOSTS)}
    version_label = VERSION_NAME.partition(".")[0]
    etcd.put(**hosts, **{version_label: version_address(1)})
    scene.did(f"started etcd on {etcd.endpoint}")
    ours = scene.instance(source=f"etcd://{etcd.endpoint}{PREFIX}?schema=records")
    client = scene.client(ours.port)
    scene.pause(0.5)
    words = ours.board.loader
    notices, returns = [], []
    for version, (what, away, back) in enumerate(
        (
            ("killed", etcd.kill, etcd.start),
            ("stopped", lambda: etcd.signal(signal.SIGSTOP), lambda: etcd.signal(signal.SIGCONT)),
        ),
        2,
    ):
        away()
        scene.did(f"etcd is {what}")
        notices.append(
            wait_for("the loader says that etcd is away", lambda: words.get("loader_state") == LoaderState.STALE, 30)
        )
        scene.did(f"the loader says so after {notices[-1]:.1f} s: {ours.board.loader_note[:60]}")
        scene.pause(1.0)
        back()
        since = time.monotonic()
        etcd.put(**{version_label: version_address(version)})
        wait_for(f"version {version} is published", lambda n=version: len(ours.swaps) >= n - 1, 30)  # type: ignore[misc]
        returns.append(time.monotonic() - since)
        scene.did(f"etcd is back; a change is published {returns[-1]:.2f} s later")
        scene.pause(0.5)
    seen = scene.saw(client)
    scene.check_clients(seen, versions=3)
    scene.check(
        f"the loader tells of it within {LONGEST_NOTICE_S:g} s",
        max(notices) <= LONGEST_NOTICE_S,
        f"{max(notices):.1f} s",
    )
    slowest = max(returns)
    promise = f"a change goes through within {LONGEST_RETURN_S:g} s once it is back"
    scene.check(promise, slowest <= LONGEST_RETURN_S, f"{slowest:.2f} s")
    scene.check("clients get it", seen.first(version_address(3)) is not None, dotted(version_address(3)))
