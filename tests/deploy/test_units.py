"""The systemd units, as far as they can be checked without booting anything (tests/deploy/test_systemd.py boots)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES = ["standoff-server.service", "standoff-loader.service"]
UNITS = [*SERVICES, "standoff.target"]
#: `systemd-analyze security`, in tenths: 0 is a service that can do nothing. Measured 2026-11: 16 and 15.
WORST_EXPOSURE = 20


def directives(unit: str) -> dict[str, list[str]]:
    """Every NAME=value of a unit file, whatever its section."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / unit).read_text().splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on the PATH (`make test` fetches it)")
    result = subprocess.run(
        [program, "--no-pager", *map(str, arguments)],
        env={**os.environ, "SYSTEMD_COLORS": "0"}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if "/run/systemd/': Permission denied" in result.stderr:
        pytest.skip("systemd-analyze makes /run/systemd first: where systemd does not run that takes root")
    return result


@pytest.fixture
def units_that_could_start(tmp_path: Path) -> list[Path]:
    """Copies whose command exists on this machine, which is all that `verify` asks of a command."""
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit
        text = (DEPLOY / unit).read_text().replace("/opt/standoff/bin/standoff", "/bin/true")
        copy.write_text(text.replace("man:standoff(1) ", "").replace("Documentation=man:standoff(1)\n", ""))
        copies.append(copy)
    return copies


def test_systemd_has_nothing_to_say(units_that_could_start: list[Path]) -> None:
    result = systemd_analyze("verify", *units_that_could_start)
    about_ours = [line for line in result.stderr.splitlines() if "standoff" in line]
    assert about_ours == []
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_stays_low(unit: str) -> None:
    result = systemd_analyze("security", "--offline=true", f"--threshold={WORST_EXPOSURE}", DEPLOY / unit)
    assert result.returncode == 0, result.stdout[-400:] + result.stderr


@pytest.mark.parametrize("unit", SERVICES)
def test_shared_memory_survives_a_restart_of_either_unit(unit: str) -> None:
    found = directives(unit)
    assert found["RemoveIPC"] == ["no"]
    assert "DynamicUser" not in found
    assert "PrivateIPC" not in found
    assert "RuntimeDirectory" not in found  # the two users share /run/standoff: tmpfiles.d makes it


def test_two_users_in_one_group() -> None:
    server, loader = map(directives, SERVICES)
    assert server["Group"] == loader["Group"] == ["standoff"]
    assert server["User"] != loader["User"]
    users = (DEPLOY / "sysusers.d/standoff.conf").read_text()
    for service in (server, loader):
        assert f"u {service['User'][0]} " in users


def test_neither_half_waits_for_the_other() -> None:
    for unit in UNITS:
        found = directives(unit)
        assert not {"Requires", "Requisite", "BindsTo", "Upholds"} & found.keys()
        ordering = " ".join(found.get("After", []) + found.get("Before", []))
        assert "standoff" not in ordering


def test_only_the_server_may_bind_low_ports() -> None:
    server, loader = map(directives, SERVICES)
    assert server["AmbientCapabilities"] == server["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    assert "AmbientCapabilities" not in loader
    assert loader["CapabilityBoundingSet"] == [""]


@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_keeps_it_running(unit: str) -> None:
    found = directives(unit)
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert int(found["WatchdogSec"][0]) > 0
