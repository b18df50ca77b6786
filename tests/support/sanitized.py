"""A copy of the program whose compiled modules check every access: address and undefined-behaviour sanitizers.

Built into a folder of the test's own, never into the tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "shm/_atomic", "shm/_section", "shm/_table",
    "server/_answer", "server/_counters", "server/_limits", "server/_batch",
    "server/_stream",
)  # fmt: skip
FLAGS = (
    "-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-w",
    "-fPIC", "-shared", "-Ishm", "-Iserver",
)  # fmt: skip


def build(folder: Path) -> None:
    """Copy the sources into `folder` and compile them there. Raises CalledProcessError."""
    for room in ("shm", "server", "tests", "lockcheck"):
        ignore = shutil.ignore_patterns("*.so", "*.c", "*.stamp", "__pycache__")
        shutil.copytree(ROOT / room, folder / room, ignore=ignore, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    include = "-I" + sysconfig.get_paths()["include"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compilers = []
    for module in MODULES:
        subprocess.run([sys.executable, "-m", "cython", "-3", f"{module}.pyx"], cwd=folder, check=True)
        command = ["gcc", *FLAGS, include, f"{module}.c", "-o", f"{module}{suffix}", "-lpthread"]
        compilers.append((command, subprocess.Popen(command, cwd=folder)))
    for command, compiler in compilers:
        if compiler.wait():
            raise subprocess.CalledProcessError(compiler.returncode, command)


def environment() -> dict[str, str]:
    """For a Python that loads the sanitized modules."""
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    # dlopen'ed C++ extensions throw through libstdc++, which ASAN wants to see at its start.
    cpp = subprocess.run(["gcc", "-print-file-name=libstdc++.so.6"], capture_output=True, text=True, check=True)
    return os.environ | {
        "LD_PRELOAD": f"{library.stdout.strip()} {cpp.stdout.strip()}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Every object in a place of its own, so that a read beyond it is seen.
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
