"""All tests, as `make test` runs them: `python -m tests.run [ARGUMENTS OF PYTEST]`.

Three runs of pytest, and one summary at the end (conftest.py tells which files run when): first all tests that do not
judge how long somebody waited, more of them at a time than there are CPUs, for most wait; then, two at a time, those
that judge waits and leave the machine idle; then, alone, those that judge waits and load it. Exit status as pytest's: 0
if all passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ALONE, IN_PAIRS, TESTS, TOGETHER, WHICH_VARIABLE, which_run

ROOT = Path(__file__).resolve().parents[1]
#: More would wait for each other's etcds and builds.
MOST_AT_ONCE = 4
#: pytest's status when no test was selected.
NOTHING = 5


@dataclass
class Tally:
    """What came of the tests."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("failed", "passed", "skipped"), 0))
    failed: list[str] = field(default_factory=list)

    def add(self, report: Path) -> None:
        """Count what a JUnit file tells of."""
        for case in xml.parse(report).getroot().iter("testcase"):
            bad = case.find("failure") is not None or case.find("error") is not None
            outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
            self.counts[outcome] += 1
            if bad:
                self.failed.append(f"{case.get('classname')}::{case.get('name')}")


def run(which: str, options: list[str], report: Path) -> int:
    """pytest on the tests that are to run "together", "in pairs" or "alone" (conftest.py). Its exit status."""
    environment = {**os.environ, WHICH_VARIABLE: which}
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def side_by_side(number: int) -> list[str]:
    return ["-n", str(number), "--dist", "loadfile", "--no-loadscope-reorder"]


def main() -> int:
    arguments, started, tally = sys.argv[1:], time.monotonic(), Tally()
    at_once = min(MOST_AT_ONCE, 1 + (os.cpu_count() or 1))
    plan = {"together": side_by_side(at_once), "in pairs": side_by_side(2), "alone": []}
    if not any(Path(ROOT, argument.partition("::")[0]).exists() for argument in arguments):
        # They are sorted out anyway; not to look into the others' files at all saves some seconds.
        for place in (*IN_PAIRS, *ALONE):
            if not any(Path(one).is_relative_to(place) for one in TOGETHER):
                plan["together"].append(f"--ignore=tests/{place}")
            plan[which_run(TESTS / place)].append(f"tests/{place}")
    statuses = []
    with tempfile.TemporaryDirectory() as folder:
        for which, options in plan.items():
            report = Path(folder) / f"{which}.xml"
            statuses.append(run(which, [*options, *arguments], report))
            if report.exists():
                tally.add(report)
            if statuses[-1] not in (0, 1, NOTHING):  # interrupted, or called wrongly
                return statuses[-1]
            if statuses[-1] == 1 and {"-x", "--exitfirst"}.intersection(arguments):
                break
    for name in tally.failed:
        print(f"FAILED {name}")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in tally.counts.items() if count)
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    print(f"==== all in all: {counts or 'no tests'} in {minutes}:{seconds:02d} ====")
    return min(statuses) if all(status == NOTHING for status in statuses) else int(1 in statuses)


if __name__ == "__main__":
    sys.exit(main())
