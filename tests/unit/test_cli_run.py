"""The whole service from the command line: run, and every tool beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import msgspec
import pytest

from shm.segment import Names, remove_instance

pytest.importorskip("server._batch", reason="the compiled modules are not built")

ROOT = Path(__file__).parents[2]
STANDOFF = [sys.executable, "-c", "from cli.main import main; main()"]
ZONE = """\
$ORIGIN example.test.
$TTL 60
@ SOA ns1 hostmaster 1 7200 1800 86400 30
@ NS ns1
ns1 A 192.0.2.1
www A 192.0.2.80
"""


class Service:
    def __init__(self, folder: Path) -> None:
        self.instance = f"cli-all-{os.getpid()}"
        self.folder = folder
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port: int = trial.getsockname()[1]
        (folder / "example.zone").write_text(ZONE)
        (folder / "standoff.toml").write_text(
            f'source = ["file:{folder}/example.zone"]\nlisten = ["127.0.0.1:{self.port}"]\nworkers = 2\n'
            f'instance = "{self.instance}"\nruntime_dir = "{folder}/run"\n'
        )

    def command(self, *arguments: str) -> list[str]:
        return [*STANDOFF, arguments[0], "--config", str(self.folder / "standoff.toml"), *arguments[1:]]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=30)

    def ask(self) -> str:
        answer = dns.query.udp(dns.message.make_query("www.example.test", "A"), "127.0.0.1", 5, self.port)
        return str(answer.answer[0][0])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    remove_instance(made.instance)


def test_run_and_the_tools_beside_it(service: Service) -> None:
    assert service.call("check").returncode == 0
    process = subprocess.Popen(
        service.command("run", "--json"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        ready = msgspec.json.decode(process.stdout.readline())
        assert ready["zones"] == ["example.test"]
        assert ready["try"] == f"dig @127.0.0.1 -p {service.port} www.example.test A"
        assert service.ask() == "192.0.2.80"

        status = msgspec.json.decode(service.call("status", "--json").stdout)
        assert status["verdict"]["state"] == "ok", status
        assert len(status["workers"]) == 3
        assert sum(worker["queries"] for worker in status["workers"]) == 1

        for part, name in (("supervisor", "standoff server\n"), ("loader", "standoff loader\n")):
            assert Path(f"/proc/{status[part]['pid']}/comm").read_text() == name

        found = service.call("lookup", "www.example.test")
        assert found.stdout == "www.example.test. 60 IN A 192.0.2.80\n"
        scaled = service.call("scale", "3", "--json")
        assert (scaled.returncode, msgspec.json.decode(scaled.stdout)["workers"]) == (0, 3)

        zone = service.folder / "new"
        zone.write_text(ZONE.replace("192.0.2.80", "192.0.2.81").replace("hostmaster 1", "hostmaster 2"))
        zone.rename(service.folder / "example.zone")
        assert service.call("wait", "--revision", str(status["revision"] + 1), "--timeout", "20").returncode == 0
        assert {service.ask() for _ in range(10)} == {"192.0.2.81"}

        again = service.call("check")
        assert again.returncode == 0
        assert "is in use, and this instance is running" in again.stdout
        server, loader = status["supervisor"]["pid"], status["loader"]["pid"]
        second = service.call("run")
        assert second.returncode == 1
        assert f"is running already (server: pid {server}, loader: pid {loader}): stop it" in second.stderr
        second = service.call("serve")
        assert second.returncode == 1
        assert f"has a server already (pid {server}); stop it" in second.stderr
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()
    assert Names(service.instance).existing() == []
    assert service.call("status").returncode == 3


def test_run_on_a_port_in_use(service: Service) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
        busy.bind(("127.0.0.1", service.port))
        done = service.call("run")
    assert done.returncode == 1
    assert f"127.0.0.1:{service.port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert Names(service.instance).existing() == []
