"""Correct code that looks like a leak from one side or the other: no findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lockcheck.snippets import found

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


@pytest.mark.parametrize("name", SILENT)
def test_silence(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, SILENT[name]) in ([], ["blocking"] if "wait()" in SILENT[name] else [])
