"""Every rule, where it must speak and where it must be silent."""

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

SILENT = {
    "with": """
        def f(x):
            with lock:
                if x:
                    return 1
                x()
        """,
    "try finally": """
        def f(x):
            lock.acquire()
            try:
                return x()
            finally:
                lock.release()
        """,
    "released on each path": """
        def f(x):
            lock.acquire()
            if x:
                lock.release()
                return
            lock.release()
        """,
    "tried": """
        def f(x):
            if not lock.acquire(blocking=False):
                return False
            try:
                return x()
            finally:
                lock.release()
        """,
    "tried, result in a variable": """
        def f(x):
            got = lock.acquire(timeout=1)
            try:
                return x()
            finally:
                if got:
                    lock.release()
        """,
    "walrus": """
        def f(x):
            if (got := lock.acquire(timeout=1)):
                lock.release()
        """,
    "loop until it is had": """
        def f(x):
            while not lock.acquire(False):
                x()
            lock.release()
        """,
    "one flag, two tests": """
        def f(shared):
            if shared:
                lock.acquire()
            try:
                int("1")
            finally:
                if shared:
                    lock.release()
        """,
    "a flag of one's own": """
        def f(x):
            held = False
            try:
                x()
                lock.acquire()
                held = True
                x()
            finally:
                if held:
                    lock.release()
        """,
    "release, then acquire again": """
        def f(x):
            with lock:
                lock.release()
                try:
                    x()
                finally:
                    lock.acquire()
        """,
    "lent by the caller": """
        class C:
            def __init__(self):
                self.lock = threading.Lock()
            def f(self):
                self.lock.release()
                time.sleep(1)
                self.lock.acquire()
        """,
    "wrapper": """
        class C:
            def __init__(self):
                self.lock = threading.Lock()
            def acquire(self):
                self.lock.acquire()
            def release(self):
                self.lock.release()
            def __enter__(self):
                self.acquire()
            def __exit__(self, *_):
                self.release()
            def use(self, x):
                self.acquire()
                try:
                    x()
                finally:
                    self.release()
        """,
    "wrapper that tries": """
        class C:
            def __init__(self):
                self.lock = threading.Lock()
            def try_it(self, x):
                if not self.lock.acquire(False):
                    return False
                return True
            def done(self):
                self.lock.release()
        """,
    "wrapper of parameters": """
        def take(lock):
            lock.acquire()
        """,
    "posix_ipc: an exception tells": """
        def f():
            try:
                gate.acquire(0)
            except posix_ipc.BusyError:
                return False
            gate.release()
            return True
        """,
    "producer and consumer": """
        def produce():
            sem.release()
        def consume():
            sem.acquire()
        """,
    "handed to a container": """
        def f(waiters):
            waiter = threading.Lock()
            waiter.acquire()
            waiters.append(waiter)
        """,
    "handed to a callback": """
        def f(future):
            lock.acquire()
            future.add_done_callback(lambda _: lock.release())
        """,
    "kept in a global": """
        KEPT = None
        def f(make):
            global KEPT
            if KEPT is None:
                new_lock = make()
                new_lock.acquire()
                KEPT = new_lock
            return KEPT
        """,
    "taken by async with": """
        class C:
            lock: threading.Lock
            async def f(self, x):
                async with self.lock:
                    await x
        """,
    "returned": """
        def f():
            mine = threading.Lock()
            mine.acquire()
            return mine
        """,
    "cleanup by ExitStack": """
        def f(stack, x):
            lock.acquire()
            stack.callback(lock.release)
            x()
        """,
    "reentrant": """
        def f(x):
            with rlock:
                with rlock:
                    x()
        """,
    "condition is its lock": """
        class C:
            def __init__(self):
                self.lock = threading.RLock()
                self.changed = threading.Condition(self.lock)
            def f(self):
                with self.lock:
                    with self.changed:
                        self.changed.wait()
        """,
    "asyncio": """
        async def f(x):
            await asyncio.wait_for(alock.acquire(), 1)
            try:
                await x
            finally:
                alock.release()
        """,
    "many locks": """
        def f(locks):
            for lock in locks:
                lock.acquire()
            for lock in locks:
                lock.release()
        """,
    "exit of the process": """
        def f():
            lock.acquire()
            os._exit(1)
        """,
    "asked first": """
        def f():
            if lock.locked():
                lock.release()
        """,
    "contextmanager": """
        @contextmanager
        def held():
            lock.acquire()
            try:
                yield
            finally:
                lock.release()
        """,
    "one order": """
        def f():
            with lock, other: pass
        def g():
            with lock:
                with other: pass
        """,
    "orders under one gate": """
        def f():
            with rlock, lock, other: pass
        def g():
            with rlock, other, lock: pass
        """,
    "taken once more": """
        def f():
            with rlock, lock:
                with rlock: pass
        """,
    "a signal": """
        class C:
            def __init__(self):
                self.wakeup = threading.Lock()
            def wait(self, done):
                self.wakeup.acquire(False)
                self.wakeup.acquire()
                self.wakeup.release()
            def wake(self):
                self.wakeup.release()
        """,
    "tried, in the other order": """
        def f():
            with lock, other: pass
        def g():
            with other:
                if lock.acquire(False):
                    lock.release()
        """,
    "does not block": """
        def f(child):
            with lock:
                os.waitpid(child, os.WNOHANG)
                time.sleep(0)
        """,
    "blocks outside": """
        def f():
            with lock:
                pass
            time.sleep(1)
        """,
    "a semaphore bounds waiting": """
        def f():
            with sem:
                time.sleep(1)
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


@pytest.mark.parametrize("name", SILENT)
def test_silence(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, SILENT[name]) in ([], ["blocking"] if "wait()" in SILENT[name] else [])


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
