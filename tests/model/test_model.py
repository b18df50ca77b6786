"""The lock's rules, checked by the model checker spin: shm/rwlock.pml says what is modelled and what is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parents[2] / "shm" / "rwlock.pml"
TOOLS = ("spin", "gcc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)),
        reason="the lock's model is NOT checked here: it needs spin and gcc (apt-get install spin gcc)",
    ),
]

ASSERTION = "assertion violated"
NO_WAY_ON = "invalid end state"

#: Rule left out or mistake made -> what the checker must say of it. None may pass unnoticed: a model that finds
#: nothing wrong with a broken lock proves nothing about a whole one.
MUTANTS = {
    "NOGRACE": ASSERTION,
    "NOFENCE": ASSERTION,
    "WRONGDEAD": ASSERTION,
    "JOINODD": ASSERTION,
    "EAGERJOIN": ASSERTION,
    "NORENEW": NO_WAY_ON,
    "NOTIMEOUT": NO_WAY_ON,
    "STANDOFF": NO_WAY_ON,
}


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def check(folder: Path, *, rounds: int, changes: int, mutant: str | None = None) -> str:
    """What pan prints of the model: `rounds` passes a worker, `changes` published by each loader."""
    defines = [f"-DLR={rounds}", f"-DLW={changes}"] + ([f"-D{mutant}"] if mutant else [])
    run(["spin", "-a", *defines, str(MODEL)], folder)
    # SAFETY: assertions and invalid end states. COLLAPSE: a third of the memory. -w: the generated C is not ours.
    run(["gcc", "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-DNOFAIR", "-o", "pan", "pan.c"], folder)
    return run(["./pan", "-m10000"], folder)


def assert_exhaustive(report: str, at_least_states: int) -> None:
    """No error, nothing cut short, and not a model so small that it says nothing."""
    assert "errors: 0" in report, report
    assert "max search depth too small" not in report, report
    assert "Search not completed" not in report, report
    stored = re.search(r"(\d+) states, stored", report)
    assert stored is not None, report
    assert int(stored[1]) >= at_least_states, report


@pytest.mark.parametrize(("rounds", "changes", "states"), [(1, 1, 300_000), (2, 2, 2_000_000)])
def test_the_rules_hold_whoever_dies_whenever(tmp_path: Path, rounds: int, changes: int, states: int) -> None:
    assert_exhaustive(check(tmp_path, rounds=rounds, changes=changes), states)


def test_safety_does_not_rest_on_the_gates(tmp_path: Path) -> None:
    assert_exhaustive(check(tmp_path, rounds=2, changes=2, mutant="NOGATES"), 100_000)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_rule_is_found(tmp_path: Path, mutant: str) -> None:
    report = check(tmp_path, rounds=1, changes=1, mutant=mutant)
    assert "errors: 1" in report, report
    assert MUTANTS[mutant] in report, report
    assert (tmp_path / "rwlock.pml.trail").exists()


def test_every_mutant_of_the_model_is_run() -> None:
    """The header's list, the model's #ifdefs and this file name the same mutants."""
    text = MODEL.read_text()
    used = set(re.findall(r"^#ifn?def (\w+)$", text, re.M)) - {"LR", "LW"}
    listed = set(re.findall(r"^ \*   ([A-Z]{4,})  ", text, re.M))
    assert used == listed == set(MUTANTS) | {"NOGATES"}
