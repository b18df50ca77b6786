"""The compiled modules under the address and undefined-behaviour sanitizers.

One million mutated packets: no crash, no difference between the answerers, no reply that dnspython cannot read. And the
unit tests of the table and the hot path again, where a read one byte too far is an error.

STANDOFF_FUZZ_MINUTES: how long (default: a million packets). STANDOFF_SEED: repeats a run.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sanitized

MINUTES = float(os.environ.get("STANDOFF_FUZZ_MINUTES") or 0)
SEED = int(os.environ.get("STANDOFF_SEED") or random.SystemRandom().randrange(1, 2**32))
PACKETS = int(os.environ.get("STANDOFF_FUZZ_PACKETS") or 1_000_000)
PARTS = min(4, len(os.sched_getaffinity(0)))
#: Seconds; for a run that hangs, not a claim about speed.
PATIENCE_S = 1500 + 60 * MINUTES
FUZZER = ("tests.fuzz.fuzzer", f"--seed={SEED}", f"--plain={sanitized.ROOT}")
SUITES = (
    "test_table.py", "test_table_damage.py", "test_hot_path.py", "test_stream_pieces.py", "test_stream_deferred.py",
    "test_limits.py",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(PATIENCE_S + 60),
    pytest.mark.skipif(
        shutil.which("gcc") is None or importlib.util.find_spec("Cython") is None,
        reason="NOT fuzzed here: the sanitized build needs gcc and Cython",
    ),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sanitized program."""
    folder = tmp_path_factory.mktemp("sanitized")
    sanitized.build(folder)
    return folder


def start(tree: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=tree, env=sanitized.environment() | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """Its output, once it has ended well."""
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0, f"seed {SEED}, status {process.returncode}\n{output[-8000:]}"
    return output


def test_the_sanitizers_watch(tree: Path) -> None:
    """A stray write of the kind they are here for ends the process."""
    code = "import ctypes, shm._table, server._batch; b = ctypes.create_string_buffer(8); ctypes.memset(b, 0, 4000000)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=sanitized.environment(), capture_output=True, text=True, check=False
    )
    assert process.returncode == 99
    assert "AddressSanitizer" in process.stderr
    maps = subprocess.run(
        [sys.executable, "-c", "import server._batch; print(server._batch.__file__)"], cwd=tree,
        env=sanitized.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert maps.stdout.startswith(str(tree))


def test_a_million_mutated_packets(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amount = (f"--packets={PACKETS // PARTS}", f"--minutes={MINUTES}")
    parts = [start(tree, *FUZZER, *amount, f"--part={part}") for part in range(PARTS)]
    try:
        reports = [finish(part) for part in parts]
    finally:
        for part in parts:
            part.kill()
            part.wait()
    with capsys.disabled():
        print("\n" + "".join(reports), end="")


def test_a_spoilt_reply_is_noticed(tree: Path) -> None:
    """The fuzzer can fail."""
    process = start(tree, *FUZZER, "--packets=2000", STANDOFF_FUZZ_SABOTAGE="900")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "reference " in output
    assert "hot path " in output


@pytest.mark.parametrize("suite", SUITES)
def test_unit_tests_again(tree: Path, suite: str) -> None:
    arguments = ("pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=600", f"tests/unit/{suite}")
    finish(start(tree, *arguments, STANDOFF_SEED=str(SEED), STANDOFF_DAMAGE_ROUNDS="600"))
