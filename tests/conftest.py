"""For all tests: say which code is under test, and let no test leave a lock held (lockcheck/plugin.py)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.instances import fresh_instance

COMPILED = ("shm._atomic", "shm._section", "shm._table", "server._batch", "server._stream")


# A change is judged by the same examples each time; new ones are looked for on people's machines, and by `make fuzz`.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("lockcheck"):  # the package is not installed: its entry point is not known
        config.pluginmanager.import_plugin("lockcheck.plugin")


#: Where tests judge how long somebody waited: folders and files of tests/. In CI each has one more try, and the report
#: tells of it: a virtual machine may stand still for a second, and nobody looks on who could tell that from a fault.
#: These load the machine themselves, and have it to themselves (run.py).
ALONE = ("torture",)
#: These mostly sleep: two of them leave more than half of two CPUs idle.
IN_PAIRS = (
    "leaks", "drill", "incident", "torture/test_fail_static.py", "torture/test_asker.py", "protocol/test_handshakes.py",
    "bench/test_generator.py", "bench/test_tcpflood.py", "filters/test_health_checks.py",
    "filters/test_windows_and_weights.py",
)  # fmt: skip
#: Beside those that judge waits, without doing so.
TOGETHER = ("torture/test_image_start.py",)
#: Folders, and files of them, that begin first side by side with others, so that all end at about the same time: what
#: takes longest, most of it waiting for another (etcd, a container, name servers), then the rest.
LONG = (
    "leaks", "drill", "etcd/test_production.py", "deploy", "fuzz", "etcd/test_running.py", "etcd/test_source.py",
    "packaging", "transfer/test_interleaving.py", "etcd/test_guard_drift.py", "transfer", "torture", "filters", "etcd",
    "protocol", "lockcheck", "model", "differential",
)  # fmt: skip
#: Set by run.py: which of the three run.
WHICH_VARIABLE = "STANDOFF_TESTS"
TESTS = Path(__file__).parent


def which_run(path: Path) -> str:
    """Of a file of tests: "together", "in pairs", or "alone"."""
    place = path.relative_to(TESTS)
    for run, places in (("together", TOGETHER), ("in pairs", IN_PAIRS), ("alone", ALONE)):
        if any(place.is_relative_to(one) for one in places):
            return run
    return "together"


def place_of(path: Path) -> int:
    """Of a file of tests, among those that run side by side."""
    place = path.relative_to(TESTS)
    return next((number for number, one in enumerate(LONG) if place.is_relative_to(one)), len(LONG))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if which := os.environ.get(WHICH_VARIABLE):
        sides: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            sides[which_run(item.path) == which].append(item)
        items[:] = sorted(sides[True], key=lambda item: place_of(item.path))
        config.hook.pytest_deselected(items=sides[False])
    if os.environ.get("CI"):
        for item in items:
            if which_run(item.path) != "together":
                item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_report_header() -> list[str]:
    """The hot path is compiled or there is none: name what was loaded."""
    return [f"compiled: {name} from {importlib.import_module(name).__file__}" for name in COMPILED]


@pytest.fixture
def instance() -> Iterator[str]:
    """The name of an instance that does not exist yet, removed afterwards."""
    with fresh_instance() as name:
        yield name
