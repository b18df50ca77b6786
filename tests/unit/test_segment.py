"""Segments, lock files and instance names: what is refused is refused with a reason, and nothing is overwritten."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import posix_ipc
import pytest

from shm import layout
from shm.board import Board
from shm.errors import LayoutMismatch, NotRunning, SegmentError
from shm.segment import (
    SHARED_MODE,
    SHM_FOLDER,
    TABLE_MODE,
    LockFile,
    Names,
    Segment,
    is_held,
    remove_instance,
    segment_bytes,
)
from tests.support.processes import child

ROOT = Path(__file__).resolve().parents[2]
STRANGER = 65534  # nobody
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's segments need root to be made")


def path_of(instance: str, what: str = "control") -> Path:
    return SHM_FOLDER / f"standoff.{instance}.{what}"


@contextmanager
def umask(value: int) -> Iterator[None]:
    old = os.umask(value)
    try:
        yield
    finally:
        os.umask(old)


def as_stranger(body: str) -> str:
    """What `body` prints when another user without our groups runs it."""
    # What is imported later may lie where a stranger may not look.
    code = "import os; from shm.board import Board; from shm.errors import SegmentError\n"
    code += "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n" + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a/b", "..", "a" * 33, "a.b", "ä", "a\n"])
def test_instance_names_that_are_none(name: str) -> None:
    with pytest.raises(SegmentError, match="use 1 to 32 characters"):
        Names(name)


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 32])
def test_instance_names(name: str) -> None:
    assert Names(name).control == f"/standoff.{name}.control"


def test_one_instance_is_not_the_beginning_of_another(instance: str) -> None:
    Board.create_or_attach(instance).close()
    assert remove_instance(instance[:-1]) == 0
    assert segment_bytes(Names(instance).control) == layout.control_size()


# ---------------------------------------------------------------- modes and room


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(instance: str, mask: int) -> None:
    names = Names(instance)
    with umask(mask):
        Segment.create(names.control, 4096, SHARED_MODE).close()
        Segment.create(names.table(1), 4096, TABLE_MODE).close()
        lock = LockFile(names.lock("writer"))
        assert lock.try_acquire()
        lock.release()
    modes = {path.name.removeprefix(names.prefix): stat.S_IMODE(path.stat().st_mode) for path in names.existing()}
    assert modes == {"control": 0o660, "table.1": 0o640, "writer.lock": 0o660}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM])
def test_no_room_is_found_at_once_and_leaves_nothing(
    instance: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(SegmentError, match=r"cannot reserve 4096 KiB .* free some of /dev/shm"):
        Segment.create(Names(instance).table(1), 4 << 20, TABLE_MODE)
    assert Names(instance).existing() == []


def test_a_limit_on_file_sizes_is_an_error_not_a_signal(instance: str) -> None:
    code = f"""
        import resource, signal
        from shm.segment import Segment, Names
        from shm.errors import SegmentError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            Segment.create(Names({instance!r}).table(1), 4 << 20, 0o640)
        except SegmentError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "cannot reserve" in done.stdout
    assert Names(instance).existing() == []


def test_what_exists_is_not_made_again(instance: str) -> None:
    name = Names(instance).table(1)
    first = Segment.create(name, 4096, TABLE_MODE)
    first.map[:3] = b"abc"
    with pytest.raises(SegmentError, match="exists already"):
        Segment.create(name, 8192, TABLE_MODE)
    assert first.map[:3] == b"abc"
    first.close()


def test_nothing_there(instance: str) -> None:
    with pytest.raises(NotRunning, match="is the instance running"):
        Segment.attach(Names(instance).control)
    with pytest.raises(NotRunning):
        Board.attach(instance)
    assert Names(instance).existing() == []


# ---------------------------------------------------------------- what is refused


def control_of(instance: str, content: bytes) -> Path:
    path = path_of(instance)
    path.write_bytes(content)
    return path


def whole_control(instance: str) -> bytes:
    Board.create_or_attach(instance).close()
    content = path_of(instance).read_bytes()
    remove_instance(instance)
    return content


@pytest.mark.parametrize(
    "size", [1, 8, 10, 23, 24, 4096, 8192, layout.control_size() - 1, layout.control_size() + 4096]
)
@pytest.mark.parametrize("open_", [Board.attach, Board.create_or_attach])
def test_a_truncated_control_segment(instance: str, size: int, open_: object) -> None:
    content = (whole_control(instance) + bytes(4096))[:size]
    path = control_of(instance, content)
    with pytest.raises(SegmentError, match=f"remove {path}"):
        open_(instance)  # type: ignore[operator]
    assert path.read_bytes() == content


def test_an_empty_control_segment_is_nobodys(instance: str) -> None:
    """Its creator died before it gave it a size."""
    path = control_of(instance, b"")
    with pytest.raises(SegmentError, match="truncated"):
        Board.attach(instance)
    Board.create_or_attach(instance).close()
    assert path.stat().st_size == layout.control_size()


def test_an_unfinished_control_segment_is_made_anew(instance: str) -> None:
    """Its creator died before it wrote the magic, its last step."""
    content = bytearray(whole_control(instance))
    content[:8] = bytes(8)
    control_of(instance, bytes(content))
    Board.create_or_attach(instance).close()


@pytest.mark.parametrize(
    ("at", "error"),
    [(0, SegmentError), (8, LayoutMismatch), (12, LayoutMismatch), (16, LayoutMismatch), (20, LayoutMismatch)],
)
def test_another_format(instance: str, at: int, error: type[Exception]) -> None:
    content = bytearray(whole_control(instance))
    content[at] ^= 1
    path = control_of(instance, bytes(content))
    for open_ in (Board.attach, Board.create_or_attach):
        with pytest.raises(error, match=f"remove {path}"):
            open_(instance)
    assert path.read_bytes() == content


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_a_strangers_control_segment_is_not_written(instance: str, mode: int) -> None:
    """He laid a well-formed one under our name: we may look, but not claim a slot or write a page in it."""
    path = control_of(instance, whole_control(instance))
    os.chown(path, STRANGER, STRANGER)
    path.chmod(mode)
    before = path.read_bytes()
    board = Board.attach(instance)
    with pytest.raises(SegmentError, match="belongs to user nobody, not to us; run as that user"):
        board.own_page(0)
    with pytest.raises(SegmentError, match="belongs to user nobody, not to us"):
        board.claim(layout.SlotKind.WORKER)
    board.close()
    assert path.read_bytes() == before


@needs_root
def test_a_group_may_share(instance: str) -> None:
    """Loader and server as two users of one group."""
    path = control_of(instance, whole_control(instance))
    os.chown(path, STRANGER, os.getegid())
    path.chmod(0o660)
    Board.attach(instance).claim(layout.SlotKind.WORKER).release()


@needs_root
def test_a_stranger_is_told_why(instance: str) -> None:
    Board.create_or_attach(instance).close()
    text = as_stranger(f"""
        for open_ in Board.attach, Board.create_or_attach:
            try:
                open_({instance!r})
            except SegmentError as error:
                print(error)
    """)
    first, second = text.splitlines()
    assert "belongs to user root" in first
    assert "choose another --instance" in first
    assert "Permission denied" in second


@needs_root
def test_a_strangers_empty_segment_cannot_be_removed_and_we_say_so(instance: str) -> None:
    """/dev/shm is sticky: only its owner, and root, may unlink it."""
    control_of(instance, b"").chmod(0o666)
    path_of(instance, "create.lock").touch()
    path_of(instance, "create.lock").chmod(0o666)
    text = as_stranger(f"""
        try:
            Board.create_or_attach({instance!r})
        except SegmentError as error:
            print(error)
    """)
    assert "cannot remove" in text


@needs_root
def test_a_symbolic_link_in_place_of_a_lock_file_is_not_followed(instance: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("x")
    path_of(instance, "create.lock").symlink_to(target)
    with pytest.raises(SegmentError, match="lock file"):
        Board.create_or_attach(instance)
    assert target.read_text() == "x"


def test_a_read_only_mapping_cannot_be_written(instance: str) -> None:
    name = Names(instance).table(1)
    Segment.create(name, 4096, TABLE_MODE).close()
    segment = Segment.attach(name)
    with pytest.raises(TypeError, match="modify a readonly"):
        segment.map[0] = 1
    segment.close()


def test_a_stray_store_into_a_read_only_mapping_faults(instance: str) -> None:
    """Not a convention: the page is mapped without PROT_WRITE."""
    name = Names(instance).table(1)
    Segment.create(name, 4096, TABLE_MODE).close()
    code = f"""
        import ctypes, resource
        from shm.segment import Segment
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        segment = Segment.attach({name!r})
        class View(ctypes.Structure):
            _fields_ = [("buf", ctypes.c_void_p), ("rest", ctypes.c_byte * 200)]
        view = View()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(segment.map), ctypes.byref(view), 0)
        print(ctypes.string_at(view.buf, 1), flush=True)
        ctypes.memset(view.buf, 1, 1)
        print("written")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, check=False)
    assert done.stdout == b"b'\\x00'\n"
    assert done.returncode == -signal.SIGSEGV


# ---------------------------------------------------------------- segments outlive processes

#: STANDOFF_PYTHONS names others that have posix_ipc, with ':' between them.
PYTHONS = [sys.executable, *filter(None, os.environ.get("STANDOFF_PYTHONS", "").split(":"))]
ATTACHER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from shm.segment import Segment, Names
segment = Segment.attach(Names({instance!r}).table(1), writable={writable})
assert segment.map[:5] == b"hello"
print("attached", flush=True)
if {killed}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_a_process_that_goes_takes_no_segment_with_it(instance: str, python: str, writable: bool, killed: bool) -> None:
    """What multiprocessing.shared_memory gets wrong before Python 3.13: its tracker unlinks what others use."""
    name = Names(instance).table(1)
    segment = Segment.create(name, 4096, TABLE_MODE)
    segment.map[:5] = b"hello"
    code = ATTACHER.format(root=str(ROOT), instance=instance, writable=writable, killed=killed)
    done = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout == "attached\n", done.stderr
    assert done.returncode == (-signal.SIGKILL if killed else 0)
    assert done.stderr == "", "no tracker complains either"
    assert segment_bytes(name) == 4096
    again = Segment.attach(name)
    assert again.map[:5] == b"hello"
    again.close()
    segment.close()


# ---------------------------------------------------------------- lock files


def test_a_lock_file_says_who_lives(instance: str) -> None:
    path = Names(instance).lock("writer")
    assert not is_held(path)

    def hold(pipe: Connection) -> None:
        lock = LockFile(path)
        pipe.send(lock.try_acquire())
        pipe.recv()

    with child(hold) as holder:
        assert holder.hear()
        assert is_held(path)
        assert not LockFile(path).try_acquire()
        holder.stop()
        assert is_held(path), "stopped is not dead"
        holder.kill()
        assert not is_held(path)
    lock = LockFile(path)
    assert lock.try_acquire()
    assert lock.held_by_us
    lock.release()
    assert not lock.held_by_us


def test_a_probe_does_not_disturb_a_patient_claimant(instance: str) -> None:
    path = Names(instance).lock("slot0")
    lock = LockFile(path)
    assert lock.try_acquire()
    lock.release()

    def probe(pipe: Connection) -> None:
        pipe.send("probing")
        while not pipe.poll():
            is_held(path)

    with child(probe) as prober:
        prober.hear()
        for _ in range(50):
            assert lock.try_acquire(patience_s=5.0)
            lock.release()
        prober.tell()


def test_removing_an_instance_removes_everything(instance: str) -> None:
    names = Names(instance)
    board = Board.create_or_attach(instance)
    board.claim(layout.SlotKind.WORKER).release()
    posix_ipc.Semaphore(names.gate(0, 1), posix_ipc.O_CREX).close()
    Segment.create(names.table(1), 4096, TABLE_MODE).close()
    board.close()
    assert remove_instance(instance) == 5
    assert names.existing() == []
