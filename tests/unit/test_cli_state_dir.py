"""Which state_dir is in use is told: by run, status, and who asks for a history that is not kept."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shm.segment import remove_instance
from tests.unit.test_cli_run import ROOT, Service

NONE = "none: no snapshot, history, image"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    remove_instance(made.instance)


@pytest.mark.parametrize("kept", [True, False])
def test_the_state_dir_is_told(service: Service, kept: bool) -> None:
    folder = service.folder / "state" if kept else ""
    process = subprocess.Popen(
        service.command("run", "--json", "--state-dir", str(folder)),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        assert process.stdout.readline()
        told = msgspec.json.decode(service.call("status", "--json").stdout)
        assert told["state_dir"] == str(folder)
        assert f"state_dir   {folder or NONE}\n" in service.call("status").stdout
        for arguments in (["history"], ["rollback", "now", "--dry-run"]):
            asked = service.call(*arguments)
            assert (asked.returncode == 0) == kept, asked.stderr
            said = "standoff: the loader keeps no history: it has no state_dir\n"
            assert kept or asked.stderr == said
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert f"standoff: state_dir: {folder or NONE}\n" in errors
    finally:
        process.kill()
        process.communicate()
    assert service.call("status").returncode == 3  # nobody to ask
