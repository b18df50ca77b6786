"""What is shipped works: source archive, wheel, clean environment, a DNS answer (the script of `make wheel`)."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
ZONE = ROOT / "deploy/sample/example.test.zone"
READY_PATIENCE_S = 30


def project() -> dict[str, Any]:
    """pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


@dataclass(frozen=True)
class Shipped:
    """The archives and an environment that has nothing but the wheel and what it asks for."""

    sdist: Path
    wheel: Path
    command: Path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = tmp_path_factory.mktemp("wheel")
    dist, environment = folder / "dist", folder / "venv"
    made = subprocess.run(
        [ROOT / ".ci/wheel", sys.executable, dist, environment], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return Shipped(sdist, wheel, environment / "bin/standoff")


def test_the_wheel_holds_every_module_and_nothing_generated(shipped: Shipped) -> None:
    names = set(zipfile.ZipFile(shipped.wheel).namelist())
    tools = project()["tool"]["setuptools"]
    rooms = {name for name in tools["packages"]["find"]["include"] if "." not in name and (ROOT / name).is_dir()}
    sources = {
        str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".pyi", ".pxd")
    }  # fmt: skip
    assert sources <= names
    assert [name for name in names if name.endswith((".c", ".pyc"))] == []
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == rooms
    for module in tools["ext-modules"]:
        stem = module["name"].replace(".", "/") + "."
        assert any(name.startswith(stem) and name.endswith(".so") for name in names)


def test_the_source_archive_can_be_built_tested_and_installed(shipped: Shipped) -> None:
    with tarfile.open(shipped.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "Makefile",
        "LICENSE",
        "deploy/standoff-server.service",
        "docs/deploy.md",
        "tests/unit/test_house.py",
    } <= names
    assert {"shm/_table.pyx", "shm/layout.pxd", "shm/_atomic.h", "server/_batch.pyx"} <= names
    generated = [name for name in names if name.endswith((".c", ".so", ".pyc"))]
    assert [name for name in generated if not name.startswith(("bench/", "tests/"))] == []


def test_the_command_knows_its_version(shipped: Shipped, tmp_path: Path) -> None:
    version = project()["project"]["version"]
    said = subprocess.run([shipped.command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout == f"standoff {version}\n"


@pytest.fixture
def instance() -> Iterator[str]:
    """A name that is this test's own; nothing of it may be left in shared memory."""
    name = f"test-wheel-{os.getpid()}"
    yield name
    left = [path.name for path in Path("/dev/shm").glob(f"*standoff.{name}.*")]
    for file in left:
        Path("/dev/shm", file).unlink()
    assert left == []


def free_port() -> int:
    """A port on 127.0.0.1 that is free now, for UDP and TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        port: int = tcp.getsockname()[1]
        return port


def read_event(process: subprocess.Popen[str]) -> dict[str, object]:
    """The first line that `standoff run --json` writes."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], READY_PATIENCE_S)
    assert ready, f"not ready after {READY_PATIENCE_S} s"
    event: dict[str, object] = json.loads(process.stdout.readline())
    return event


def test_it_serves_a_zone_file(shipped: Shipped, instance: str, tmp_path: Path) -> None:
    if shutil.which("dig") is None:
        pytest.skip("dig is not on the PATH (`make test` fetches it)")
    port = str(free_port())
    process = subprocess.Popen(
        [shipped.command, "run", "--json", "--source", f"file:{ZONE}", "--listen", f"127.0.0.1:{port}",
         "--workers", "2", "--instance", instance, "--runtime-dir", tmp_path],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert read_event(process)["event"] == "ready"
        for options in (["+notcp"], ["+tcp"]):
            answer = subprocess.run(
                ["dig", "@127.0.0.1", "-p", port, "+noall", "+answer", *options, "ns1.example.test", "A"],
                capture_output=True, text=True, check=True, timeout=15,
            ).stdout  # fmt: skip
            assert answer.split()[-2:] == ["A", "192.0.2.1"]
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 0
