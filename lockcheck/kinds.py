"""Tables: what makes a lock, what is called like one, and which methods take and give back."""

from __future__ import annotations

import re

from lockcheck.model import Kind


def _threading_like(family: str, module: str) -> dict[str, Kind]:
    return {
        "Lock": Kind(f"{module}.Lock", family),
        "RLock": Kind(f"{module}.RLock", family, reentrant=True),
        "Condition": Kind(f"{module}.Condition", family, reentrant=True, condition=True),
        "Semaphore": Kind(f"{module}.Semaphore", family, counting=True),
        "BoundedSemaphore": Kind(f"{module}.BoundedSemaphore", family, counting=True),
    }


_THREADING = _threading_like("threading", "threading")
_MULTIPROCESSING = _threading_like("multiprocessing", "multiprocessing")
_ASYNCIO = _threading_like("asyncio", "asyncio") | {"Condition": Kind("asyncio.Condition", "asyncio", condition=True)}

READ_LOCK = Kind("ReadLock", "standoff")
POSIX_SEMAPHORE = Kind("posix_ipc.Semaphore", "posix_ipc", counting=True, raises=True)
#: posix_ipc.Semaphore(..., initial_value=1): a mutex.
POSIX_MUTEX = Kind("posix_ipc.Semaphore(1)", "posix_ipc", raises=True)
GUESS = Kind("a lock by its name", "guess", reentrant=True)
ASYNC_GUESS = Kind("an asyncio lock by its name", "asyncio", reentrant=True)
GUESSED_SEMAPHORE = Kind("a semaphore by its name", "guess", counting=True)

#: Dotted names of classes and factories.
CONSTRUCTORS: dict[str, Kind] = {
    **{f"threading.{name}": kind for name, kind in _THREADING.items()},
    **{f"multiprocessing.{name}": kind for name, kind in _MULTIPROCESSING.items()},
    **{f"multiprocessing.synchronize.{name}": kind for name, kind in _MULTIPROCESSING.items()},
    **{f"asyncio.{name}": kind for name, kind in _ASYNCIO.items()},
    **{f"asyncio.locks.{name}": kind for name, kind in _ASYNCIO.items()},
    "threading._RLock": _THREADING["RLock"],
    "threading._CRLock": _THREADING["RLock"],
    "_thread.allocate_lock": _THREADING["Lock"],
    "_thread.allocate": _THREADING["Lock"],
    "_thread.lock": _THREADING["Lock"],
    "_thread.LockType": _THREADING["Lock"],
    "_thread.RLock": _THREADING["RLock"],
    "posix_ipc.Semaphore": POSIX_SEMAPHORE,
    "shm.rwlock.ReadLock": READ_LOCK,
    "shm._section.Section": READ_LOCK,
}

#: What `anything.Lock()` makes when nothing is known of `anything`: a context, a manager, a green library.
BY_METHOD: dict[str, Kind] = {**_THREADING, "allocate_lock": _THREADING["Lock"]}

#: Other classes that the rules know something of; factories with what they make.
OTHER_TYPES: dict[str, str] = {
    "threading.Thread": "thread",
    "threading.Event": "event",
    "threading.Barrier": "barrier",
    "multiprocessing.Process": "process",
    "multiprocessing.Event": "event",
    "multiprocessing.Queue": "queue",
    "multiprocessing.JoinableQueue": "queue",
    "queue.Queue": "queue",
    "queue.LifoQueue": "queue",
    "queue.PriorityQueue": "queue",
    "queue.SimpleQueue": "queue",
    "subprocess.Popen": "popen",
    "socket.socket": "socket",
    "socket.create_connection": "socket",
    "logging.getLogger": "logger",
    "logging.Logger": "logger",
    "open": "file",
    "io.open": "file",
    "io.FileIO": "file",
    "os.fdopen": "file",
    "concurrent.futures.Future": "future",
}

_NAME = re.compile(
    r"(^|_)(lock|rlock|wlock|rwlock|mutex|sem|sema|semaphore|cond|condition|glock|lck|mtx)s?(_|$|\d)|[a-z](Lock|Mutex|Semaphore)s?$"
    r"|^(Lock|Mutex)$",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"(file|path|dir|name|count|timeout|type|class|cls|held|locked|factory|manager|owner|id)s?_?$|^is_|^has_|^un|^pid"
)
_SEMAPHORE = re.compile(r"sem(a(phore)?)?s?\d*$", re.IGNORECASE)


def guess(name: str) -> Kind | None:
    """What a variable of this name seems to be."""
    if not _NAME.search(name) or _NOT.search(name.lower()):
        return None
    return GUESSED_SEMAPHORE if _SEMAPHORE.search(name) else GUESS


#: method -> (action, mode). `with lock.read():` goes by WITH_MODES.
METHODS: dict[str, tuple[str, str]] = {
    "acquire": ("acquire", ""),
    "acquire_lock": ("acquire", ""),
    "release": ("release", ""),
    "release_lock": ("release", ""),
    "__enter__": ("acquire", ""),
    "__exit__": ("release", ""),
    "__aenter__": ("acquire", ""),
    "__aexit__": ("release", ""),
}

#: Methods of read-write locks in use; they count on whatever is called like a lock.
RW_METHODS: dict[str, tuple[str, str]] = {
    "acquire_read": ("acquire", "read"),
    "release_read": ("release", "read"),
    "acquire_write": ("acquire", "write"),
    "release_write": ("release", "write"),
    "read_acquire": ("acquire", "read"),
    "read_release": ("release", "read"),
    "write_acquire": ("acquire", "write"),
    "write_release": ("release", "write"),
    "acquire_read_lock": ("acquire", "read"),
    "release_read_lock": ("release", "read"),
    "acquire_write_lock": ("acquire", "write"),
    "release_write_lock": ("release", "write"),
    "lock": ("acquire", ""),
    "unlock": ("release", ""),
}

WITH_MODES: dict[str, str] = {
    "read": "read",
    "write": "write",
    "read_lock": "read",
    "write_lock": "write",
    "rlock": "read",
    "wlock": "write",
    "reader_lock": "read",
    "writer_lock": "write",
    "gen_rlock": "read",
    "gen_wlock": "write",
    "get_lock": "",
}
