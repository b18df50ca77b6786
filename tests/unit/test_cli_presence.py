"""A source that is not there: what `run`, `load`, `check` and `status` say of it, as processes where it matters."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cli import checks
from cli.main import standoff
from cli.presence import SourceMissing, SourceWrong, need_files, need_right_urls, running_instances
from cli.settings import Settings
from drill.instance import free_port
from loader import image, start
from loader.snapshot import Snapshot
from shm.board import Board
from shm.tables import TableWriter
from tests.support.instances import fresh_instance

ROOT = Path(__file__).parents[2]
ZONE = "$ORIGIN example.test.\n@ 60 IN SOA ns1 hostmaster 7 7200 1800 86400 30\n@ 60 IN NS ns1\nns1 60 IN A 192.0.2.1\n"
PATIENCE_S = 30.0


@pytest.fixture
def instance() -> Iterator[str]:
    with fresh_instance() as name:
        yield name


def settings(instance: str, folder: Path, *sources: Path, **more: object) -> Settings:
    made = {"instance": instance, "source": [f"file:{path}" for path in sources], "state_dir": folder / "state"}
    return Settings(**(made | more))  # type: ignore[arg-type]


def test_a_slip_of_the_pen_is_told_with_what_was_meant(instance: str, tmp_path: Path) -> None:
    (tmp_path / "example.test.zone").write_text(ZONE)
    with pytest.raises(SourceMissing) as caught:
        need_files(settings(instance, tmp_path, tmp_path / "exmaple.test.zone"))
    text = str(caught.value)
    assert f"there is no such file or folder in {tmp_path}; did you mean example.test.zone?" in text
    assert "--missing wait" in text


def test_every_source_has_to_be_there(instance: str, tmp_path: Path) -> None:
    """Nothing is published before all have told."""
    there = tmp_path / "example.test.zone"
    there.write_text(ZONE)
    need_files(settings(instance, tmp_path, there, tmp_path))
    with pytest.raises(SourceMissing, match="there is no folder"):
        need_files(settings(instance, tmp_path, there, tmp_path / "no" / "a.zone"))


def test_it_is_waited_for_if_it_may_come(instance: str, tmp_path: Path) -> None:
    need_files(settings(instance, tmp_path, tmp_path / "a.zone", missing="wait"))


def test_it_is_waited_for_while_an_image_answers(instance: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f"{instance}.image").touch()
    need_files(settings(instance, tmp_path, tmp_path / "a.zone"))


def test_it_is_waited_for_while_a_table_is_live(instance: str, tmp_path: Path) -> None:
    board = Board.create_or_attach(instance)
    with pytest.raises(SourceMissing):
        need_files(settings(instance, tmp_path, tmp_path / "a.zone"))
    writer = TableWriter(board)
    for _ in writer.replace(iter(()), 1, {}):
        pass
    need_files(settings(instance, tmp_path, tmp_path / "a.zone"))
    writer.close()
    board.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("etcd://127.0.0.1:2379/names?shema=records", "unknown parameter shema"),
        ("etcd://127.0.0.1:2379/names?schema=record", "unknown schema 'record'"),
        ("etcd://127.0.0.1:2379/names?schema=skydns", "give them with --zone"),
    ],
)
def test_a_wrong_url_is_told_before_anything_starts(url: str, reason: str, instance: str, tmp_path: Path) -> None:
    with pytest.raises(SourceWrong, match=reason):
        need_right_urls(settings(instance, tmp_path, source=[url]))
    right = ["etcd://127.0.0.1:2379/names?schema=records", "file:a.zone"]
    need_right_urls(settings(instance, tmp_path, source=right))
    (tmp_path / "state").mkdir()
    image.path_of(settings(instance, tmp_path)).write_bytes(b"x")  # type: ignore[union-attr]
    need_right_urls(settings(instance, tmp_path, source=[url]))  # answers go on from that


# ---------------------------------------------------------------- as processes


@pytest.mark.parametrize("command", ["run", "load"])
def test_it_fails_at_once(command: str, instance: str, tmp_path: Path) -> None:
    arguments = ["--instance", instance, "--runtime-dir", str(tmp_path), "--state-dir", ""]
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", command, "--source", f"file:{tmp_path}/a.zone", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith(f"standoff: source file:{tmp_path}/a.zone: there is no such file or folder")


@contextmanager
def running(instance: str, folder: Path, *options: str) -> Iterator[Path]:
    """`standoff run`; what it prints is in the file."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "run", "--instance", instance, "--runtime-dir", str(folder / "run"),
             "--state-dir", "", "--listen", f"127.0.0.1:{free_port()}", "--workers", "1", *options],
            cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def eventually(holds: Callable[[], bool], what: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_who_asks_for_a_wrong_instance_is_told_the_right_one(instance: str, tmp_path: Path) -> None:
    zone = tmp_path / "example.test.zone"
    zone.write_text(ZONE)
    with running(instance, tmp_path, "--source", f"file:{zone}") as log:
        eventually(lambda: "Ctrl-C ends it" in log.read_text(), "ready")
        assert instance in running_instances()
        result = CliRunner().invoke(standoff, ["status", "--instance", f"{instance}-x"])
        assert result.exit_code == 3
        assert "(running: --instance " in result.stderr
        assert instance in result.stderr.partition("(running: ")[2]
    assert instance not in running_instances()


def status(instance: str) -> tuple[str, list[str]]:
    result = CliRunner().invoke(standoff, ["status", "--json", "--instance", instance])
    verdict = msgspec.json.decode(result.stdout)["verdict"] if result.exit_code in (0, 1) else {}
    return verdict.get("state", ""), verdict.get("reasons", [])


def test_what_is_said_while_a_zone_file_is_broken_and_mended(instance: str, tmp_path: Path) -> None:
    zone = tmp_path / "example.test.zone"
    zone.write_text(ZONE)
    with running(instance, tmp_path, "--source", f"file:{zone}") as log:
        eventually(lambda: status(instance)[0] == "ok", "ok")

        def write(text: str) -> None:
            new = zone.with_suffix(".new")
            new.write_text(text)
            os.replace(new, zone)

        write(ZONE + "www 60 IN A 192.0.2.300\n")
        eventually(lambda: status(instance)[0] == "degraded", "degraded")
        (reason,) = status(instance)[1]
        assert reason.startswith("a source cannot be read: ")
        assert f"{zone}:5" in reason
        assert "its last good content stays" in reason
        eventually(lambda: f"{zone}:5" in log.read_text(), "told")
        time.sleep(1.5)  # looks and tells that have nothing new to say
        assert log.read_text().count(f"{zone}:5") == 1

        write(ZONE.replace(" 7 7200", " 8 7200") + "www 60 IN A 192.0.2.3\n")
        eventually(lambda: status(instance)[0] == "ok", "ok again")
        said = log.read_text()
        assert f"{zone} read again: zone example.test. 3 names, serial 8" in said


def test_a_source_without_names_gets_no_line_to_try(instance: str, tmp_path: Path) -> None:
    folder = tmp_path / "zones"
    folder.mkdir()
    with running(instance, tmp_path, "--source", f"file:{folder}", "--json") as log:
        eventually(lambda: "Ctrl-C ends it" in log.read_text(), "ready")
        said = log.read_text()
    assert "the source holds no names yet" in said
    assert "dig @" not in said
    assert '"try":null' in said


# ---------------------------------------------------------------- check, and the order of options


def test_check_does_not_count_the_names_of_what_it_cannot_read(tmp_path: Path) -> None:
    broken = tmp_path / "example.test.zone"
    broken.write_text(ZONE + "www 60 IN A 192.0.2.300\n")
    result = CliRunner().invoke(standoff, ["check", "load", "--source", f"file:{broken}"])
    assert result.exit_code == 1
    assert "files hold" not in result.stdout


def test_check_warns_of_what_will_be_waited_for(tmp_path: Path) -> None:
    arguments = ["check", "load", "--source", f"file:{tmp_path}/a.zone", "--missing"]
    assert CliRunner().invoke(standoff, [*arguments, "fail"]).exit_code == 1
    result = CliRunner().invoke(standoff, [*arguments, "wait"])
    assert result.exit_code == 0
    assert "it will be waited for" in result.stdout


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (["--instance", "x", "status"], "standoff status --instance x"),
        (["--json", "--instance", "x", "status", "-h"], "standoff status --json --instance x -h"),
    ],
)
def test_options_before_the_command_are_put_right(given: list[str], right: str) -> None:
    result = CliRunner().invoke(standoff, given)
    assert result.exit_code == 2
    assert f"options come after the command: {right}" in result.output


def test_an_option_without_a_command_is_told_where_it_belongs() -> None:
    result = CliRunner().invoke(standoff, ["--instance", "x"])
    assert result.exit_code == 2
    assert "standoff COMMAND --instance" in result.output


def test_metrics_at_an_address_that_is_in_use(instance: str, tmp_path: Path) -> None:
    zone = tmp_path / "example.test.zone"
    zone.write_text(ZONE)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = "{}:{}".format(*other.getsockname())
        with running(instance, tmp_path, "--source", f"file:{zone}", "--metrics", address) as log:
            expected = ("degraded", ["metrics are not served: address already in use; the log says where"])
            eventually(lambda: status(instance) == expected, expected)
            time.sleep(2.5)  # two more tries
            assert log.read_text().count(f"metrics {address}: address already in use") == 1
            assert "Traceback" not in log.read_text()
            other.close()
            eventually(lambda: status(instance)[0] == "ok", "ok once it is free")


@contextmanager
def nobody() -> Iterator[None]:
    """What follows is done by somebody who may not look into folders of ours."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_state_dir_that_we_may_not_look_into_is_no_reason_not_to_start(instance: str, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "state").mkdir(parents=True)
    source = tmp_path / "missing.zone"
    ours = settings(instance, hidden, source)
    hidden.chmod(0)
    try:
        with nobody():
            with pytest.raises(SourceMissing):  # it is not there, and no image either, as far as one can tell
                need_files(ours)
            assert start.restore(ours) is None
            assert Snapshot(hidden / "state" / "x.sqlite", "source").load() is None
            assert list(checks.state_dir(ours))
    finally:
        hidden.chmod(0o700)
