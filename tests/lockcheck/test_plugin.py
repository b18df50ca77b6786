"""The pytest plugin: it fails the test that leaves a lock held, in this process, in a worker, dead or alive."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lockcheck import spool
from lockcheck.watch import Patch, WatchedLock, watch

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inner(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> pytest.Pytester:
    """A test run of its own, in a process of its own, with the plugin."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(spool.VARIABLE, raising=False)
    pytester.makeini("[pytest]\nlockcheck_grace = 0.2\n")
    if not request.config.pluginmanager.has_plugin("lockcheck"):
        pytester.plugins = ["lockcheck.plugin"]  # not installed: the entry point does not name it
    return pytester


def run(inner: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    inner.makepyfile(source)
    return inner.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


def test_a_watched_lock_left_held_fails_the_test(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        import threading
        from lockcheck.watch import watch
        lock = watch(threading.Lock(), "the lock")
        def test_leaks():
            lock.acquire()
        def test_next_is_not_blamed():
            pass
        def test_releases():
            lock.release()
            with lock: pass
        """,
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaks*",
            "lock the lock is still held: acquired at *.py:5 by process * (this process)",
        ]
    )


def test_fixtures_may_release(inner: pytest.Pytester) -> None:
    source = """
        import pytest, threading
        from lockcheck.watch import watch
        @pytest.fixture
        def held():
            lock = watch(threading.RLock())
            lock.acquire()
            yield lock
            lock.release()
        def test_it(held):
            with held: pass
        """
    run(inner, source).assert_outcomes(passed=1)


def test_the_configuration_names_locks(inner: pytest.Pytester) -> None:
    inner.makepyfile(library="import threading\nclass Pool:\n    LOCK = threading.Lock()\nOTHER = threading.Lock()\n")
    inner.makeini("[pytest]\nlockcheck_watch =\n    library:Pool.LOCK\n")
    source = """
        import library
        def test_leaks():
            library.Pool.LOCK.acquire()
        def test_by_fixture(watch_locks):
            watch_locks("library:OTHER")
            library.OTHER.acquire()
        """
    result = run(inner, source, "--import-mode=prepend")
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["lock library:Pool.LOCK is still held*", "lock library:OTHER is still held*"])


def test_a_name_that_is_wrong_is_a_usage_error(inner: pytest.Pytester) -> None:
    inner.makeini("[pytest]\nlockcheck_watch = nowhere:LOCK\n")
    result = run(inner, "def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*lockcheck_watch: No module named 'nowhere'*"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_dies_with_the_lock(inner: pytest.Pytester, method: str) -> None:
    source = f"""
        import multiprocessing, os
        from lockcheck.watch import watch
        context = multiprocessing.get_context({method!r})
        def work(lock):
            lock.acquire()
            os._exit(0)
        def test_child():
            lock = watch(context.Lock(), "shared")
            child = context.Process(target=work, args=(lock,))
            child.start()
            child.join()
        """
    result = run(inner, source, "--import-mode=prepend")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["lock shared is still held: acquired at *.py:5 by process * (dead)"])


def test_a_child_that_lives_on(inner: pytest.Pytester) -> None:
    """One that goes on taking and releasing is no leak; one that sits on the lock is."""
    source = """
        import multiprocessing, time
        import pytest
        from lockcheck.watch import watch
        context = multiprocessing.get_context("fork")
        def work(lock, pause, hold):
            while True:
                with lock:
                    time.sleep(hold)
                time.sleep(pause)
        @pytest.fixture(scope="module")
        def start():
            children = []
            def start(pause, hold):
                child = context.Process(target=work, args=(watch(context.Lock(), "shared"), pause, hold), daemon=True)
                child.start()
                children.append(child)
                time.sleep(0.3)
            yield start
            for child in children:
                child.kill()
                child.join()
        def test_busy(start):
            start(0.001, 0.03)
        def test_stuck(start):
            start(0.001, 1000)
        @pytest.mark.lock_left_ok("both are killed when the module ends")
        def test_last(): pass
        """
    result = run(inner, source)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_stuck*", "lock shared is*by process * (still running)"])


def test_a_marker_with_a_reason_allows_it(inner: pytest.Pytester) -> None:
    source = """
        import threading, pytest
        from lockcheck.watch import watch
        @pytest.mark.lock_left_ok("the test is about this")
        def test_allowed():
            watch(threading.Lock()).acquire()
        @pytest.mark.lock_left_ok
        def test_no_reason():
            pass
        """
    result = run(inner, source, "--strict-markers")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*lock_left_ok needs a reason*"])


def test_it_can_be_turned_off(inner: pytest.Pytester) -> None:
    source = """
        import os, threading
        from lockcheck.watch import watch
        def test_leaks():
            watch(threading.Lock()).acquire()
            assert "STANDOFF_LOCK_DEBUG" not in os.environ
        """
    run(inner, source, "--no-lockcheck").assert_outcomes(passed=1)


LEAK_OF_2015 = """
    import multiprocessing, os, sys
    import pytest
    from lockcheck.watch import watch
    from tests.support.naive_lock import NaiveLock

    NAME = os.environ["INSTANCE"]
    context = multiprocessing.get_context("fork")

    class Naive:
        def __init__(self):
            self.lock = NaiveLock(NAME)
            self.lock._permits = watch(self.lock._permits, "naive", "read")
        def enter(self):
            self.lock.acquire_read()
        def leave(self):
            self.lock.release_read()
        def close(self):
            self.lock.unlink()

    class Ours:
        def __init__(self):
            from shm.rwlock import RWLock
            self.lock = RWLock(NAME)
        def enter(self):
            self.lock.read().__enter__()
        def leave(self):
            self.lock.read().__exit__(None, None, None)
        def close(self):
            pass

    def answer(lock, name, table={"known": "192.0.2.1"}):
        lock.enter()
        if name not in table:
            return None
        found = table[name]
        lock.leave()
        return found

    def worker(kind, name):
        answer(kind(), name)
        os._exit(0)

    @pytest.mark.parametrize("name", ["known", "unknown"])
    @pytest.mark.parametrize("kind", [Naive, Ours])
    def test_here(kind, name):
        lock = kind()
        answer(lock, name)
        lock.close()

    @pytest.mark.parametrize("name", ["known", "unknown"])
    @pytest.mark.parametrize("kind", [Naive, Ours])
    def test_in_a_worker(kind, name):
        child = context.Process(target=worker, args=(kind, name))
        child.start()
        child.join()
        if kind is Naive:
            kind().close()
    """


def test_the_leak_of_2015(inner: pytest.Pytester, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both locks, in this process and in a forked worker: the test whose code path leaks is the one that fails."""
    monkeypatch.setenv("INSTANCE", instance)
    result = run(inner, LEAK_OF_2015)
    result.assert_outcomes(passed=8, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_here?Naive-unknown?*",
            "read lock naive is still held: acquired at *.py:* by process * (this process)",
            "*ERROR at teardown of test_here?Ours-unknown?*",
            "read lock * slot * is still held: acquired at *.py:25 by process * (this process)",
            "*ERROR at teardown of test_in_a_worker?Naive-unknown?*",
            "read lock naive is still held: acquired at *.py:* by process * (dead)",
            "*ERROR at teardown of test_in_a_worker?Ours-unknown?*",
            "read lock * slot * is still held: acquired at *.py:25 by process * (dead)",
            "    *.py:25 Ours.enter",
            "    *.py:* answer",
            "    *.py:* worker",
        ],
        consecutive=False,
    )


def test_our_write_lock_reports_too(inner: pytest.Pytester, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANCE", instance)
    source = """
        import os
        from shm.rwlock import RWLock
        def test_leaks():
            global writing
            writing = RWLock(os.environ["INSTANCE"]).write()
            writing.__enter__()
        def test_ends():
            writing.__exit__(None, None, None)
        """
    result = run(inner, source)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["write lock * is still held: acquired at *.py:6 by process * (this process)"])


# The spool and watched locks by themselves


def test_both_writers_write_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shm.lockdebug import Holding

    monkeypatch.setenv(spool.VARIABLE, str(tmp_path))
    path = spool.write("a", "read")
    assert path is not None
    keys = set(json.loads(path.read_text()))
    spool.erase(path)
    assert list(spool.read(tmp_path)) == []
    holding = Holding("a", "read")
    (entry,) = spool.read(tmp_path)
    (file,) = tmp_path.glob("*.held")
    assert set(json.loads(file.read_text())) == keys
    assert (entry.lock, entry.mode, entry.pid, entry.is_alive) == ("a", "read", os.getpid(), True)
    holding.end()
    assert list(spool.read(tmp_path)) == []


def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(spool.VARIABLE, raising=False)
    assert spool.write("a") is None
    monkeypatch.setenv(spool.VARIABLE, str(tmp_path / "gone"))
    assert spool.write("a") is None


def test_an_entry_outlives_its_process_but_not_its_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(spool.VARIABLE, str(tmp_path))
    path = spool.write("a")
    assert path is not None
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"born": content["born"] + 1}))  # the pid is used again
    (entry,) = spool.read(tmp_path)
    assert not entry.is_alive
    assert "(dead)" not in entry.describe()  # it is our own pid


class FakeLock:
    """Gives what it is told to."""

    name = "/fake"
    answer: object = True

    def acquire(self, *_: object) -> object:
        return self.answer

    def release(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("answer", "held"), [(True, 1), (None, 1), (False, 0)])
def test_a_watched_lock_tells_what_it_got(
    answer: object, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(spool.VARIABLE, str(tmp_path))
    fake = FakeLock()
    fake.answer = answer
    lock = watch(fake)
    assert isinstance(lock, WatchedLock)
    assert watch(lock) is lock
    assert lock.acquire(False) is answer
    assert [e.lock for e in spool.read(tmp_path)] == ["/fake"] * held
    lock.release()
    assert list(spool.read(tmp_path)) == []


@pytest.mark.parametrize("target", ["no-colon", ":x", "os:nothing", "nowhere:x"])
def test_patches_refuse_what_is_not_there(target: str) -> None:
    with pytest.raises((ValueError, ImportError, AttributeError)):
        Patch(target)
