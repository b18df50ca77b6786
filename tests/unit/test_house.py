"""House rules that import-linter cannot see: what compiled modules may cimport, and that each has its neighbours."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("shm", "server", "loader", "cli")
CYTHON_SOURCES = sorted(
    path for room in ROOMS for suffix in ("pyx", "pxd") for path in (ROOT / room).glob(f"*.{suffix}")
)
CYTHON_MODULES = [path for path in CYTHON_SOURCES if path.suffix == ".pyx"]

#: What each room may name besides itself and C: its floor plan is docs/architecture.md.
MAY_USE = {"shm": set(), "server": {"shm"}, "loader": {"shm"}, "cli": {"shm", "server", "loader"}}
#: A compiled module does what its caller cannot do fast enough. Processes, threads and locks are not among that.
FORBIDDEN = {"asyncio", "fcntl", "multiprocessing", "os", "posix_ipc", "signal", "socket", "subprocess", "threading"}

IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", re.MULTILINE)


def imported_rooms(path: Path) -> set[str]:
    """Top-level names that a Cython source imports or cimports."""
    return {(match[1] or match[2]).split(".")[0] for match in IMPORT.finditer(path.read_text())}


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_compiled_modules_to_check() -> None:
    assert {where(path) for path in CYTHON_MODULES} >= {"shm/_table.pyx", "shm/_atomic.pyx"}


@pytest.mark.parametrize("path", CYTHON_SOURCES, ids=where)
def test_cython_sources_stay_in_their_room(path: Path) -> None:
    room = path.parent.name
    others = imported_rooms(path) & set(ROOMS) - {room}
    assert others <= MAY_USE[room]
    assert not imported_rooms(path) & FORBIDDEN


@pytest.mark.parametrize("path", CYTHON_SOURCES, ids=where)
def test_cython_sources_hold_cython_only(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"^\s*include\s+[\"']", text, re.MULTILINE), "one .pyx, one unit: cimport instead of include"
    assert not re.search(r"^\s*cdef extern from [^\n]*:\s*\n\s*(\"\"\"|''')", text, re.MULTILINE), "C goes into a .h"
    later = text.split("\n", 1)[1] if "\n" in text else ""
    assert not re.search(r"^#\s*cython:", later, re.MULTILINE), "compiler directives stand in line 1 only"


@pytest.mark.parametrize("path", CYTHON_MODULES, ids=where)
def test_a_compiled_module_has_its_types_and_is_built(path: Path) -> None:
    assert path.with_suffix(".pyi").exists(), "type checkers see only the stub"
    with (ROOT / "pyproject.toml").open("rb") as file:
        modules = {module["name"] for module in tomllib.load(file)["tool"]["setuptools"]["ext-modules"]}
    assert f"{path.parent.name}.{path.stem}" in modules


def test_the_import_pattern_sees_every_form() -> None:
    lines = [
        "from shm.layout cimport (",
        "cimport cython",
        "import os",
        "    from loader import y",
        "from libc.math cimport z",
    ]
    text = "\n".join(lines)
    found = {(match[1] or match[2]).split(".")[0] for match in IMPORT.finditer(text)}
    assert found == {"shm", "cython", "os", "loader", "libc"}
