"""A pytest plugin: a test that leaves a lock held fails, and says who acquired it where.

It sees locks that report to the spool (spool.py): Standoff's read and write locks in every process that has the
variable STANDOFF_LOCK_DEBUG in its environment, as children of the test run have, and the locks of `threading`,
`multiprocessing` and `posix_ipc` that it is asked to watch:

    lockcheck_watch = package.module:LOCK     in the configuration, one a line: for the whole session
    watch_locks("package.module:LOCK")        a fixture: for one test
    lock = lockcheck.watch.watch(lock)        an object

A lock of another process or thread is given `lockcheck_grace` seconds to be released: a worker that goes on working
holds a lock now and then, and only one and the same holding that lasts is a leak. A process that died with a lock in
its hands has leaked it. `@pytest.mark.lock_left_ok("why")` allows a test to leave locks, such as those of a process
that it kills.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from threading import get_native_id

import pytest

from lockcheck import spool
from lockcheck.spool import Entry
from lockcheck.watch import Patch

#: Seconds between two looks at locks of other processes.
_PAUSE_S = 0.01
MARKER = "lock_left_ok"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lockcheck", "locks that tests leave held")
    group.addoption("--no-lockcheck", action="store_true", help="do not look for locks that tests leave held")
    parser.addini("lockcheck_watch", "locks to watch, as module:attribute, one a line", type="linelist", default=[])
    parser.addini("lockcheck_grace", "seconds in which another process may release a lock", default="0.3")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}(reason): the test may leave locks held, for this reason")
    if not config.getoption("--no-lockcheck", default=False):
        config.pluginmanager.register(Watcher(config), "lockcheck-watcher")


class Watcher:
    """Lives as long as the session, and looks at the spool after every test."""

    def __init__(self, config: pytest.Config) -> None:
        self._grace = float(config.getini("lockcheck_grace"))
        self._targets: list[str] = config.getini("lockcheck_watch")
        shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="lockcheck-", dir=shared_memory))
        self.folder.chmod(0o1777)  # processes that have changed their user report, too
        self._before = os.environ.get(spool.VARIABLE)
        os.environ[spool.VARIABLE] = str(self.folder)
        self._patches: list[Patch] = []
        self._known: set[str] = set()
        self._owner = os.getpid()

    def pytest_sessionstart(self) -> None:
        try:
            self._patches = [Patch(target) for target in self._targets]
        except (ValueError, ImportError, AttributeError) as error:
            raise pytest.UsageError(f"lockcheck_watch: {error}") from error

    def pytest_unconfigure(self) -> None:
        if os.getpid() != self._owner:
            return
        for patch in self._patches:
            patch.undo()
        if self._before is None:
            os.environ.pop(spool.VARIABLE, None)
        else:
            os.environ[spool.VARIABLE] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """After the test and its fixtures are done."""
        yield
        if os.getpid() != self._owner:
            return
        left = self.left()
        if left and item.get_closest_marker(MARKER) is None:
            pytest.fail("\n".join(entry.describe() for entry in left), pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        marker = item.get_closest_marker(MARKER)
        if marker is not None and not (marker.args or marker.kwargs):
            pytest.fail(f"@pytest.mark.{MARKER} needs a reason", pytrace=False)

    def left(self) -> list[Entry]:
        """Locks that are held and stay so. Each is told once."""
        held = {e.name: e for e in spool.read(self.folder) if e.name not in self._known}
        deadline = time.monotonic() + self._grace
        while any(self._may_yet_release(e) for e in held.values()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
            still = {e.name for e in spool.read(self.folder)}
            held = {name: e for name, e in held.items() if name in still}
        self._known.update(held)
        return list(held.values())

    @staticmethod
    def _may_yet_release(entry: Entry) -> bool:
        return entry.is_alive and (entry.pid, entry.thread) != (os.getpid(), get_native_id())


@pytest.fixture
def watch_locks() -> Iterator[Callable[..., None]]:
    """`watch_locks("module:attribute", ...)`: watch these locks until the test is over."""
    patches: list[Patch] = []

    def watch_them(*targets: str) -> None:
        patches.extend(Patch(target) for target in targets)

    yield watch_them
    for patch in reversed(patches):
        patch.undo()
