"""Every rule where it must speak; test_silence.py has where it must not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.lockcheck.snippets import found

LEAK = {
    "early return": """
        def f(x):
            lock.acquire()
            if x:
                return 1
            lock.release()
        """,
    "raise": """
        def f(x):
            lock.acquire()
            if x:
                raise ValueError
            lock.release()
        """,
    "break": """
        def f(xs):
            for x in xs:
                lock.acquire()
                if x:
                    break
                lock.release()
        """,
    "continue, in a loop that never ends": """
        def f(lock, next_query):
            while True:
                query = next_query()
                lock.acquire_read()
                if query is None:
                    continue
                lock.release_read()
        """,
    "continue, with a reentrant lock": """
        def f(xs):
            for x in xs:
                rlock.acquire()
                if x:
                    continue
                rlock.release()
        """,
    "end of function": """
        def f():
            lock.acquire()
        """,
    "yield": """
        def f():
            lock.acquire()
            yield 1
            lock.release()
        """,
    "await": """
        async def f(x):
            await alock.acquire()
            await x
            alock.release()
        """,
    "tried, then returned": """
        def f(x):
            if lock.acquire(False):
                if x:
                    return True
                lock.release()
            return False
        """,
    "result in a variable": """
        def f(x):
            got = lock.acquire(timeout=1)
            if not got:
                return
            if x:
                return
            lock.release()
        """,
    "handler that returns": """
        def f(x):
            lock.acquire()
            try:
                x()
            except ValueError:
                return None
            lock.release()
        """,
    "except Exception does not see a closed generator": """
        def f():
            lock.acquire()
            try:
                yield 1
            except Exception:
                pass
            lock.release()
        """,
    "match": """
        def f(x):
            lock.acquire()
            match x:
                case 1:
                    lock.release()
                case 2:
                    pass
        """,
    "a user of a wrapper that forgets": """
        class Box:
            def __init__(self):
                self._hidden = threading.Lock()
            def open(self):
                self._hidden.acquire()
            def close(self):
                self._hidden.release()
        class User:
            def __init__(self):
                self.box = Box()
            def use(self, x):
                self.box.open()
                if x:
                    return
                self.box.close()
        """,
    "attribute of a class, in another method": """
        class C:
            def __init__(self):
                self.lock = multiprocessing.Lock()
            def f(self, x):
                self.lock.acquire()
                if x:
                    return
                self.lock.release()
        """,
}

OTHERS = {
    "exception-leak": """
        def f(x):
            lock.acquire()
            x()
            lock.release()
        """,
    "exception-leak ": """
        def f(x):
            lock.acquire()
            try:
                x()
            except ValueError:
                pass
            lock.release()
        """,
    "double-acquire": """
        def f():
            with lock:
                lock.acquire()
                lock.release()
        """,
    "double-acquire ": """
        class C:
            def __init__(self):
                self.lock = threading.Lock()
            def f(self):
                with self.lock:
                    self.g()
            def g(self):
                with self.lock: pass
        """,
    "unmatched-release": """
        def f(x):
            if x:
                lock.acquire()
            lock.release()
        """,
    "unmatched-release ": """
        def f(x):
            try:
                x()
                lock.acquire()
            finally:
                lock.release()
        """,
    "unmatched-release  ": """
        def f(x):
            lock.acquire()
            if x:
                lock.release()
            else:
                lock.release()
            lock.release()
        """,
    "unmatched-release   ": """
        def f():
            try:
                gate.acquire(0)
            finally:
                gate.release()
        """,
    "unmatched-release    ": """
        def f():
            lock.release()
        """,
    "order": """
        def f():
            with lock, other: pass
        def g():
            with other, lock: pass
        """,
    "order ": """
        class C:
            def __init__(self):
                self.a = threading.Lock()
                self.b = threading.Lock()
            def f(self):
                with self.a:
                    self.g()
            def g(self):
                with self.b: pass
            def h(self):
                with self.b:
                    with self.a: pass
        """,
    "order  ": """
        def f():
            with lock, other: pass
        def g():
            with other, rlock: pass
        def h():
            with rlock, lock: pass
        """,
    "blocking": """
        def f():
            with lock:
                time.sleep(1)
        """,
    "blocking ": """
        log = logging.getLogger()
        def f():
            with lock:
                log.info("x")
        """,
    "blocking  ": """
        async def f(x):
            with lock:
                await x
        """,
    "blocking   ": """
        def f():
            with lock:
                subprocess.run(["true"])
        """,
    "blocking    ": """
        class C:
            def __init__(self):
                self.ready = threading.Event()
                self.lock = threading.Lock()
            def f(self):
                with self.lock:
                    self.ready.wait()
        """,
}


@pytest.mark.parametrize("name", LEAK)
def test_leaks(tmp_path: Path, name: str) -> None:
    assert "leak" in found(tmp_path, LEAK[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_rules(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, OTHERS[name]) == [name.strip()]


def test_locks_are_followed_across_modules(tmp_path: Path) -> None:
    from lockcheck.check import check

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .locks import LOCK\n")
    (package / "locks.py").write_text("import threading\nLOCK = threading.Lock()\nOTHER = threading.Lock()\n")
    one = "from . import LOCK\nfrom .locks import OTHER\ndef f():\n    with LOCK, OTHER: pass\n"
    two = "from package import locks\ndef g():\n    with locks.OTHER, locks.LOCK: pass\n"
    (package / "one.py").write_text(one)
    (package / "two.py").write_text(textwrap.dedent(two))
    result = check([str(package)])
    assert [str(f.rule) for f in result.findings] == ["order"]
    assert {str(use.key) for use in result.locks} == {"package.locks.LOCK", "package.locks.OTHER"}


def test_the_leak_of_2015(tmp_path: Path) -> None:
    source = """
        import shm.rwlock
        from tests.support.naive_lock import NaiveLock

        class Answers:
            def __init__(self, name, board, slot):
                self._lock = NaiveLock(name)
                self._ours = shm.rwlock.ReadLock(board, slot)
            def naive(self, name):
                self._lock.acquire_read()
                if name not in self.table:
                    return None
                answer = self.table[name]
                self._lock.release_read()
                return answer
            def ours(self, name):
                self._ours.__enter__()
                if name not in self.table:
                    return None
                answer = self.table[name]
                self._ours.__exit__(None, None, None)
                return answer
        """
    assert found(tmp_path, source) == ["leak", "leak"]
