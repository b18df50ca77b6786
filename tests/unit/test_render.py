"""What is made from the table is up to date, complete, and well-formed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli import render
from cli.main import COMMANDS
from cli.origins import resolve
from cli.settings import Settings, rows

ROOT = Path(__file__).parents[2]


def test_rendered_files_are_up_to_date() -> None:
    assert render.stale(ROOT) == [], "run: python -m cli.render --write"


def test_check_names_what_drifted(tmp_path: Path) -> None:
    assert set(render.stale(tmp_path)) == set(render.FILES)
    render.write(tmp_path)
    assert render.stale(tmp_path) == []
    (tmp_path / "docs/settings.md").write_text("old")
    assert render.stale(tmp_path) == ["docs/settings.md"]


def test_the_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "cli.render", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert render.run([]) == 2


@pytest.mark.parametrize("name", ["docs/settings.md", "docs/man/standoff.toml.5"])
def test_every_setting_is_described(name: str) -> None:
    text = render.FILES[name]()
    for row in rows():
        assert row.variable in text
        assert render.roff(row.help) in text or row.help in text


def test_every_command_has_its_place_in_the_manual() -> None:
    text = render.command_page()
    for names in COMMANDS.values():
        for name in names:
            assert f'.SS "standoff {name} ' in text


def uncommented(text: str) -> str:
    return "\n".join(
        line.removeprefix("#") if " = " in line and line[:2] != "# " else line for line in text.split("\n")
    )


def test_the_sample_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "standoff.toml"
    path.write_text(render.sample_file())
    assert tomllib.loads(path.read_text()) == {}
    given = resolve("run", {"config": str(path)}, {})
    assert given == Settings(config=path)


def test_the_sample_file_uncommented_is_right_and_complete(tmp_path: Path) -> None:
    text = uncommented(render.sample_file())
    assert set(tomllib.loads(text)) == {row.name for row in rows() if row.key}
    for name in ("etcd-password", "etcd-ca.pem", "etcd-client.pem", "etcd-client.key", "tls.pem", "tls.key",
                 "cookie-secrets"):  # fmt: skip
        (tmp_path / name).touch()
    path = tmp_path / "standoff.toml"
    path.write_text(text.replace("/etc/standoff/", f"{tmp_path}/"))
    settings = resolve("run", {"config": str(path)}, {})
    for row in rows():
        if row.key and row.name not in render.SAMPLES:
            assert getattr(settings, row.name) == row.default


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", [name for name in render.FILES if "/man/" in name])
def test_man_pages_format_without_warnings(name: str) -> None:
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", str(ROOT / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Standoff manual" in done.stdout


def test_roff_escapes() -> None:
    assert render.roff("a-b \\ c\n.x\n'y") == "a\\-b \\e c\n\\&.x\n\\&'y"
