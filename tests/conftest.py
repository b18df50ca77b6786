"""For all tests: say which code is under test, and let no test leave a lock held (lockcheck/plugin.py)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

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


#: Tests that judge how long clients waited: they have the machine to themselves (run.py). In CI each has one more try,
#: and the report tells of it: a virtual machine may stand still for a second, and nobody looks on who could tell that
#: from a fault.
JUDGE_WAITS = ("torture", "drill", "leaks", "incident", "protocol", "transfer", "bench")
#: Files of these folders take long, each for itself: side by side with others, who begins with them ends sooner.
LONG = ("deploy", "packaging", "lockcheck", "model", "differential", "etcd", "filters", "fuzz")
#: Set by run.py. "alone": only those; "together": only the others.
WHICH_VARIABLE = "STANDOFF_TESTS"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if which := os.environ.get(WHICH_VARIABLE):
        sides: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            sides[(item.path.parent.name in JUDGE_WAITS) == (which == "alone")].append(item)
        places = {name: place for place, name in enumerate(LONG)}
        items[:] = sorted(sides[True], key=lambda item: places.get(item.path.parent.name, len(LONG)))
        config.hook.pytest_deselected(items=sides[False])
    if os.environ.get("CI"):
        for item in items:
            if item.path.parent.name in JUDGE_WAITS:
                item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_report_header() -> list[str]:
    """The hot path is compiled or there is none: name what was loaded."""
    return [f"compiled: {name} from {importlib.import_module(name).__file__}" for name in COMPILED]


@pytest.fixture
def instance() -> Iterator[str]:
    """The name of an instance that does not exist yet, removed afterwards."""
    with fresh_instance() as name:
        yield name
