"""Shared-memory segments and lock files of an instance: names, create, attach, unlink. No other module does this.

`multiprocessing.shared_memory` is not used: it maps only read-write, creates with mode 0600, and before Python 3.13
hands every attached segment to a resource tracker that unlinks it when any one process exits. `posix_ipc` and `mmap`
have none of these traps on any supported version (docs/decisions.md).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pwd
import re
import time
from dataclasses import dataclass
from pathlib import Path

import posix_ipc

from shm.errors import NotRunning, SegmentError

#: Where Linux keeps POSIX shared memory. Lock files live here too: whoever shares the memory shares the locks, in
#: another container as well.
SHM_FOLDER = Path("/dev/shm")
INSTANCE_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

#: Control segment, gates and lock files are for the instance's group as well: loader and server may be two users.
SHARED_MODE = 0o660
#: Tables belong to the loader's user; the group reads.
TABLE_MODE = 0o640


@dataclass(frozen=True, slots=True)
class Names:
    """What the parts of an instance are called. Raises SegmentError for a name that is not [a-z0-9-]{1,32}."""

    instance: str

    def __post_init__(self) -> None:
        if not INSTANCE_PATTERN.fullmatch(self.instance):
            raise SegmentError(
                f"instance {self.instance!r}: use 1 to 32 characters of a-z, 0-9 and '-', the first not '-'"
            )

    @property
    def prefix(self) -> str:
        return f"standoff.{self.instance}."

    @property
    def control(self) -> str:
        return f"/{self.prefix}control"

    def table(self, serial: int) -> str:
        return f"/{self.prefix}table.{serial}"

    def gate(self, slot: int, incarnation: int) -> str:
        return f"/{self.prefix}gate.{slot}.{incarnation}"

    def lock(self, what: str) -> Path:
        """Path of a lock file: "writer", "create", "supervisor" or "slotN"."""
        return SHM_FOLDER / f"{self.prefix}{what}.lock"

    def existing(self) -> list[Path]:
        """Every file of this instance in shared memory."""
        return [*SHM_FOLDER.glob(f"{self.prefix}*"), *SHM_FOLDER.glob(f"sem.{self.prefix}*")]


class Segment:
    """A mapped segment. `map` is the mapping; `close` unmaps, the segment lives on until `unlink`."""

    def __init__(self, name: str, mapping: mmap.mmap) -> None:
        self.name = name
        self.map = mapping
        self.size = len(mapping)

    @classmethod
    def create(cls, name: str, size: int, mode: int) -> Segment:
        """A new, zeroed, writable segment of `size` bytes, its memory reserved.

        Raises SegmentError if it exists, is not permitted, or /dev/shm has no room (found now, not as SIGBUS later).
        """
        try:
            memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode)
        except posix_ipc.ExistentialError:
            raise SegmentError(f"segment {name} exists already") from None
        except (OSError, posix_ipc.PermissionsError) as error:
            raise SegmentError(f"cannot create segment {name} in {SHM_FOLDER}: {error}") from error
        try:
            os.fchmod(memory.fd, mode)  # the umask does not count
            os.posix_fallocate(memory.fd, 0, size)
            return cls(name, mmap.mmap(memory.fd, size))
        except OSError as error:
            posix_ipc.unlink_shared_memory(name)
            raise SegmentError(
                f"cannot reserve {size >> 10} KiB for segment {name}: {error.strerror}; free some of {SHM_FOLDER} "
                f"or give it more (mount -o remount,size=… {SHM_FOLDER})"
            ) from error
        finally:
            memory.close_fd()

    @classmethod
    def attach(cls, name: str, *, writable: bool = False, prefault: bool = False, page: int | None = None) -> Segment:
        """Map an existing segment, whole or only the page at offset `page`.

        Raises NotRunning if there is none, SegmentError if it may not be used (another user's, empty).
        """
        fd = _open(name, writable)
        try:
            status = os.fstat(fd)
            if writable:
                _check_owner(name, status)
            if status.st_size == 0 or (page is not None and status.st_size < page + mmap.PAGESIZE):
                raise SegmentError(f"segment {name} is truncated ({status.st_size} bytes); {how_to_remove(name)}")
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if prefault else 0)
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            length = status.st_size if page is None else mmap.PAGESIZE
            return cls(name, mmap.mmap(fd, length, flags=flags, prot=access, offset=page or 0))
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap. Views of the mapping must be gone; one that is left keeps it mapped until it goes."""
        try:
            self.map.close()
        except BufferError:
            pass  # unmapped when the last view is collected

    def unlink(self) -> None:
        unlink(self.name)


def _open(name: str, writable: bool) -> int:
    try:
        return posix_ipc.SharedMemory(name, read_only=not writable).fd  # type: ignore[no-any-return]
    except posix_ipc.ExistentialError:
        raise NotRunning(f"there is no segment {name}: is the instance running?") from None
    except (OSError, posix_ipc.PermissionsError) as error:
        raise SegmentError(f"segment {name} belongs to {_owner(name)}: {error}; {how_to_share(name)}") from error


def _check_owner(name: str, status: os.stat_result) -> None:
    """Never write into what a stranger laid under our name: it must be ours, or be shared with a group of ours."""
    shared = status.st_mode & 0o060 == 0o060 and status.st_gid in {os.getegid(), *os.getgroups()}
    if status.st_uid != os.geteuid() and not shared:
        raise SegmentError(f"segment {name} belongs to {_owner(name)}, not to us; {how_to_share(name)}")


def _owner(name: str) -> str:
    try:
        uid = (SHM_FOLDER / name.lstrip("/")).stat().st_uid
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"
    except OSError:
        return "another user"


def how_to_share(name: str) -> str:
    return f"run as that user, choose another --instance, or remove {SHM_FOLDER}{name}"


def how_to_remove(name: str) -> str:
    return f"stop the instance and remove {SHM_FOLDER}{name}, or choose another --instance"


def segment_bytes(name: str) -> int | None:
    """Size of a segment, None if there is none."""
    try:
        return (SHM_FOLDER / name.lstrip("/")).stat().st_size
    except FileNotFoundError:
        return None


def unlink(name: str) -> None:
    """Remove a segment's name; processes that map it keep it. Nothing happens if it is gone already.

    Raises SegmentError if it is another user's.
    """
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass
    except (OSError, posix_ipc.PermissionsError) as error:
        raise SegmentError(f"cannot remove segment {name} of {_owner(name)}: {error}; {how_to_share(name)}") from error


def remove_instance(instance: str) -> int:
    """Remove every segment, semaphore and lock file of an instance that has stopped; how many there were."""
    files = Names(instance).existing()
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


class LockFile:
    """An flock that the kernel frees when its holder dies: the one truth about who is alive.

    An flock belongs to the open file, which a fork shares: open it after the fork, in the process that it stands for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def try_acquire(self, patience_s: float = 0.0) -> bool:
        """Take the lock; False if another process holds it.

        A probe (`is_held`) holds it for an instant, so a claimant asks for up to `patience_s` seconds.
        """
        fd = open_lock_file(self.path)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(0.001)
            else:
                self._fd = fd
                return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def held_by_us(self) -> bool:
        return self._fd is not None


def open_lock_file(path: Path) -> int:
    """A descriptor of a lock file, created if need be. Raises SegmentError if it is not permitted."""
    try:
        while True:
            try:
                return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                try:
                    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SHARED_MODE)
                except FileExistsError:
                    continue
                os.fchmod(fd, SHARED_MODE)
                return fd
    except OSError as error:
        raise SegmentError(
            f"lock file {path}: {error.strerror}; run as its owner, choose another --instance, or remove it"
        ) from error


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock file. Read-only access is enough."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
