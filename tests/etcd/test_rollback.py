"""An operator goes back in a running service with a real etcd: what clients are answered, and what outlives what."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cli import asking
from cli.settings import Settings
from loader.etcd import Etcd
from shm.errors import NotRunning
from tests.etcd.test_running import Asking, Running
from tests.support.etcd import EtcdServer
from tests.support.instances import fresh_instance
from tests.torture.service import Service, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ZONE = "example.test"


class Rolled(Running):
    """A service with a history and an image."""

    def begin(self, *options: str) -> None:
        self.start("records", "--image-interval", "300", *options)

    def host(self, name: str, *addresses: str) -> int:
        """Its new addresses in etcd; none: it goes."""
        key = f"/names/{ZONE}/{name}/A"
        return self.put(key, json.dumps(addresses).encode()) if addresses else self.delete(key)

    def until_host(self, name: str, *expected: str) -> None:
        self.until(f"{name}.{ZONE}", *expected)

    def serial(self) -> int:
        return int(self.ask(ZONE, "SOA")[0].split()[2])

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        folder = ["--state-dir", str(self.state)] if arguments[0] in ("history", "diff", "rollback") else []
        return self.service.standoff(*arguments, *self._runtime, *folder)

    def told(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def until_applied(self, revision: int) -> None:
        """The loader has taken it in; while the table is pinned readers do not see it."""
        wait_for("it is taken in", lambda: self._model_revision() >= revision)

    def _model_revision(self) -> int:
        settings = Settings(instance=self.service.instance, runtime_dir=Path(self._runtime[1]))
        with suppress(NotRunning):  # killed a moment ago
            return int(asking.request(settings, "status")["revision"])
        return 0

    def pinned_names(self) -> int:
        return self.service.board.loader.get("pinned_names")

    def reasons(self) -> str:
        return " ".join(self.status()["verdict"]["reasons"])


@pytest.fixture
def rolled(newest_binary: Path, tmp_path: Path) -> Iterator[Rolled]:
    with fresh_instance() as instance:
        etcd = EtcdServer(newest_binary, tmp_path / "etcd", "--unsafe-no-fsync").start()
        made = Rolled(Service(instance, free_port(), tmp_path, etcd, workers=2), etcd, tmp_path)
        try:
            yield made
        finally:
            made.service.close()
            etcd.kill()
            print(made.service.said())


def test_back_and_on_again(rolled: Rolled) -> None:
    """The story of docs/history.md, with a loader that is killed in the middle of it."""
    rolled.host("www", "192.0.2.1")
    rolled.host("mail", "192.0.2.25")
    rolled.begin()
    rolled.until_host("www", "192.0.2.1")
    good = rolled.host("www", "192.0.2.2")
    rolled.until_host("www", "192.0.2.2")
    with Asking(rolled, f"www.{ZONE}") as seen:
        wait_for("the first answer", lambda: seen.count)
        rolled.host("www", "192.0.2.66")
        rolled.host("mail")
        rolled.until_host("mail", "NXDOMAIN")
        bad = rolled.serial()

        dry = rolled.told("rollback", str(good), "--dry-run")
        assert {one["name"] for one in dry["names"]} == {f"www.{ZONE}.", f"mail.{ZONE}."}
        assert rolled.ask(f"mail.{ZONE}") == ["NXDOMAIN"]
        no_terminal = rolled.run("rollback", str(good))
        assert no_terminal.returncode == 2
        assert "give --yes" in no_terminal.stderr

        assert rolled.told("rollback", str(good), "--yes")["held"] == 2
        assert rolled.ask(f"www.{ZONE}") == ["192.0.2.2"], "at once, when the command has ended"
        assert rolled.ask(f"mail.{ZONE}") == ["192.0.2.25"]
        pinned = rolled.serial()
        assert pinned > bad
        assert f"PINNED at revision {good} " in rolled.reasons()
        assert rolled.metric("standoff_pinned") == 1

        # What comes meanwhile waits.
        rolled.until_applied(rolled.host("new", "192.0.2.7"))
        wait_for("three names wait", lambda: rolled.pinned_names() == 3)
        assert rolled.ask(f"new.{ZONE}") == ["NXDOMAIN"]
        assert rolled.serial() == pinned

        rolled.kill_loader()
        rolled.until_applied(rolled.host("www", "192.0.2.3"))
        wait_for("it is pinned still", lambda: rolled.pinned_names() == 3)
        assert f"PINNED at revision {good} " in rolled.reasons()
        assert rolled.ask(f"www.{ZONE}") == ["192.0.2.2"]
        assert rolled.ask(f"new.{ZONE}") == ["NXDOMAIN"]
        assert rolled.serial() == pinned
        waiting = rolled.told("pending")["differences"]
        assert {one["name"] for one in waiting} == {f"{name}.{ZONE}." for name in ("www", "mail", "new")}

        assert rolled.told("resume")["names"] == 3
        assert rolled.ask(f"www.{ZONE}") == ["192.0.2.3"]
        assert rolled.ask(f"new.{ZONE}") == ["192.0.2.7"]
        assert rolled.ask(f"mail.{ZONE}") == ["NXDOMAIN"]
        assert rolled.serial() > pinned
        assert "PINNED" not in rolled.reasons()
        rolled.host("www", "192.0.2.4")
        rolled.until_host("www", "192.0.2.4")
    assert seen.seen == [[f"192.0.2.{number}"] for number in (2, 66, 3, 4)], f"in {seen.count} answers"
    whys = [entry["why"] for entry in rolled.told("history")["entries"]]
    assert whys[:3] == ["change", "resume", "rollback"]
    assert "unknown" not in whys, "killed at rest, a loader leaves no hole"
    again = rolled.run("resume")
    assert again.returncode == 1
    assert "the table is not pinned" in again.stderr


def test_a_reboot_while_pinned(rolled: Rolled) -> None:
    """Memory is gone, etcd is away: the image has what was pinned, and it stays until somebody resumes."""
    good = rolled.host("www", "192.0.2.1")
    rolled.begin()
    rolled.until_host("www", "192.0.2.1")
    rolled.host("www", "192.0.2.66")
    rolled.until_host("www", "192.0.2.66")
    rolled.told("rollback", str(good), "--yes")
    pinned = rolled.serial()
    image = next(rolled.state.glob("*.image"))
    written = time.time()
    wait_for("the image is written", lambda: image.stat().st_mtime > written - 1)
    time.sleep(0.5)
    rolled.service.power_cut()
    rolled.host("www", "192.0.2.67")
    rolled.service.start_run()
    wait_for("the service answers", rolled.service.ready)
    rolled.until_host("www", "192.0.2.1")
    wait_for("it is pinned", lambda: rolled.pinned_names() == 1)
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.1"]
    assert rolled.serial() >= pinned
    rolled.told("resume")
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.67"]
    assert rolled.serial() > pinned


def test_serials_after_a_power_cut(rolled: Rolled) -> None:
    """A rollback had lifted them above the revision, and the image is older than what was answered last."""
    good = rolled.host("www", "192.0.2.1")
    rolled.begin()
    rolled.until_host("www", "192.0.2.1")
    rolled.host("www", "192.0.2.2")
    rolled.until_host("www", "192.0.2.2")
    for _ in range(4):
        rolled.told("rollback", str(good), "--yes")
        rolled.told("resume")
    for number in range(3, 20):
        revision = rolled.host("www", f"192.0.2.{number}")
        rolled.until_host("www", f"192.0.2.{number}")
    for _ in range(2):
        answered = rolled.serial()
        assert answered > revision
        rolled.service.power_cut()
        revision = rolled.host("www", "192.0.2.66")
        rolled.service.start_run()
        wait_for("the service answers", rolled.service.ready)
        rolled.until_host("www", "192.0.2.66")
        assert rolled.serial() > answered
        revision = rolled.host("www", "192.0.2.67")
        rolled.until_host("www", "192.0.2.67")
    answered = rolled.serial()
    rolled.kill_loader()
    rolled.host("www", "192.0.2.68")
    rolled.until_host("www", "192.0.2.68")
    assert rolled.serial() == answered + 1, "the memory was there"
    rolled.service.close()
    rolled.service.forget()
    rolled.service.start_run()
    wait_for("the service answers", rolled.service.ready)
    rolled.host("www", "192.0.2.69")
    rolled.until_host("www", "192.0.2.69")
    assert rolled.serial() == answered + 2, "an end in order"


def test_a_reboot_in_order_leaves_no_hole(rolled: Rolled) -> None:
    """The image that a loader leaves at its end is the table that its history ends with."""
    good = rolled.host("www", "192.0.2.1")
    rolled.begin()
    rolled.until_host("www", "192.0.2.1")
    rolled.host("www", "192.0.2.2")
    rolled.until_host("www", "192.0.2.2")
    rolled.service.close()
    rolled.service.forget()
    rolled.host("www", "192.0.2.3")
    rolled.service.start_run()
    wait_for("the service answers", rolled.service.ready)
    rolled.until_host("www", "192.0.2.3")
    whys = [entry["why"] for entry in rolled.told("history")["entries"]]
    assert whys in (["change", "change", "first"], ["restart", "change", "first"]), "as the snapshot was first, or etcd"
    rolled.told("rollback", str(good), "--yes")
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.1"]


def test_back_while_everything_changes(rolled: Rolled) -> None:
    """200 changes a second go on all the time: each state that is gone back to is exactly what it was."""
    hosts = 20
    rolled.host("counter", "10.0.0.0")
    rolled.begin("--history", "20000")
    rolled.until_host("counter", "10.0.0.0")
    done = threading.Event()

    def address(number: int) -> bytes:
        return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}".encode()

    async def change() -> None:
        number = 0
        async with Etcd(rolled.etcd.endpoint) as client:
            while not done.is_set():
                number += 1
                host = (f"/names/{ZONE}/h{number % hosts}/A", address(number))
                await client.transact([host, (f"/names/{ZONE}/counter/A", address(number))], [])
                await asyncio.sleep(0.005)

    def number(text: str) -> int:
        _, *parts = map(int, text.split("."))
        return int.from_bytes(bytes(parts))

    def content() -> dict[str, int]:
        found = map(json.loads, rolled.service.standoff("export", "--format", "jsonl").stdout.splitlines())
        return {one["name"].partition(".")[0]: number(_first(one["data"])) for one in found if one["type"] == "A"}

    changing = threading.Thread(target=lambda: asyncio.run(change()))
    changing.start()
    try:
        serial = 0
        for _ in range(4):
            seen = rolled.service.board.live >> 1
            wait_for("a hundred changes more", lambda seen=seen: (rolled.service.board.live >> 1) > seen + 100)
            entries = rolled.told("history", "--limit", "200")["entries"]
            chosen = next(entry for entry in entries[50:] if entry["why"] == "change")
            rolled.told("rollback", f"n{chosen['number']}", "--yes")
            found = content()
            count = found.pop("counter")
            expected = {f"h{n % hosts}": n for n in range(max(1, count - hosts + 1), count + 1)}
            assert found == expected
            assert rolled.serial() > serial
            serial = rolled.serial()
            time.sleep(0.1)
            assert content()["counter"] == count, "pinned"
            rolled.told("resume")
            after = content()["counter"]
            assert after > count
            assert rolled.serial() > serial
            serial = rolled.serial()
    finally:
        done.set()
        changing.join()
    assert rolled.told("diff", "now", "now")["names"] == []


def _first(data: Any) -> str:
    return str(data[0] if isinstance(data, list) else data)


def test_what_cannot_be_told(rolled: Rolled) -> None:
    rolled.host("www", "192.0.2.1")
    rolled.begin("--history", "3")
    rolled.until_host("www", "192.0.2.1")
    for number in range(2, 8):
        rolled.host("www", f"192.0.2.{number}")
        rolled.until_host("www", f"192.0.2.{number}")
    assert "is not kept any more" in rolled.run("rollback", "n1", "--yes").stderr
    assert rolled.run("rollback", "n1", "--yes").returncode == 1
    assert "there is no entry n99" in rolled.run("rollback", "n99", "--yes").stderr
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.7"]
    assert rolled.told("rollback", "now", "--yes")["held"] == 0, "frozen as it is"
    rolled.until_applied(rolled.host("www", "192.0.2.8"))
    wait_for("it waits", lambda: rolled.pinned_names() == 1)
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.7"]
    rolled.told("rollback", "n5", "--yes")  # from one state to another
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.5"]
    rolled.told("resume")
    assert rolled.ask(f"www.{ZONE}") == ["192.0.2.8"]
