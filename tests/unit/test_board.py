"""The control segment: slots are claimed, taken over from the dead, and written by their holder alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shm import layout
from shm.board import Board
from shm.errors import NoFreeSlot
from shm.layout import SlotKind
from shm.rwlock import ReadLock
from tests.support.processes import child

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def board(instance: str) -> Iterator[Board]:
    board = Board.create_or_attach(instance)
    yield board
    board.close()


def test_a_fresh_board(board: Board) -> None:
    assert board.live == 0
    assert board.live_slots() == []
    assert board.loader_note == ""
    assert not any(board.loader.as_dict().values())
    assert not any(board.supervisor.as_dict().values())


def test_everybody_sees_the_same_words(instance: str, board: Board) -> None:
    words = board.own_page(0)
    words.store(layout.LOADER_WORDS["revision"], 42)
    other = Board.attach(instance)
    assert other.loader.get("revision") == 42
    other.close()
    again = Board.create_or_attach(instance)
    assert again.loader.get("revision") == 42, "attached, not made anew"
    again.close()
    words.close()


def test_claim_and_release(board: Board) -> None:
    slot = board.claim(SlotKind.WORKER, 3)
    assert (slot.number, slot.get("kind"), slot.get("worker"), slot.get("pid")) == (0, SlotKind.WORKER, 3, os.getpid())
    assert board.live_slots() == [0]
    assert board.is_alive(0)
    slot.release()
    assert board.live_slots() == []
    assert not board.is_alive(0)


def test_a_preferred_slot(board: Board) -> None:
    first = board.claim(SlotKind.STREAM, preferred=63)
    second = board.claim(SlotKind.STREAM, preferred=63)
    assert (first.number, second.number) == (63, 0)
    for slot in (first, second):
        slot.release()


def test_no_free_slot(board: Board) -> None:
    slots = [board.claim(SlotKind.WORKER) for _ in board.slots]
    assert [slot.number for slot in slots] == list(board.slots)
    with pytest.raises(NoFreeSlot, match="run fewer workers"):
        board.claim(SlotKind.WORKER)
    slots[17].release()
    assert board.claim(SlotKind.WORKER).number == 17


@pytest.mark.lock_left_ok("the holder is killed inside")
@pytest.mark.parametrize("inside", [False, True])
def test_a_killed_holders_slot_goes_on_where_it_was(instance: str, board: Board, inside: bool) -> None:
    """A writer that waits on the old section sees it change; counters go on counting."""

    def work(pipe: Connection) -> None:
        own = Board.attach(instance)
        slot = own.claim(SlotKind.WORKER, preferred=5)
        slot.add("batches", 7)
        lock = ReadLock(own, slot)
        with lock.read():
            pass
        if inside:
            lock.read().__enter__()
        pipe.send(slot.get("section"))
        pipe.recv()

    with child(work) as worker:
        section = worker.hear()
        assert section % 2 == inside
        assert board.is_alive(5)
        worker.kill()
    assert not board.is_alive(5)
    assert 5 not in board.live_slots()
    gate = board.slot(5).get("gate")
    slot = board.claim(SlotKind.WORKER, preferred=5)
    assert slot.number == 5
    assert slot.get("section") > section
    assert slot.get("section") % 2 == 0
    assert slot.get("gate") == gate
    assert slot.get("batches") == 7
    assert (slot.get("generation"), slot.get("revision"), slot.get("since_ns")) == (0, 0, 0)
    lock = ReadLock(board, slot)
    assert slot.get("gate") == gate + 1
    with lock.read():
        assert slot.get("section") % 2 == 1
    lock.close()
    slot.release()


def test_a_stopped_holder_is_alive(instance: str, board: Board) -> None:
    def work(pipe: Connection) -> None:
        Board.attach(instance).claim(SlotKind.WORKER)
        pipe.send(1)
        pipe.recv()

    with child(work) as worker:
        worker.hear()
        worker.stop()
        assert board.is_alive(0)
        assert board.claim(SlotKind.WORKER).number == 1


def test_counters_and_histograms(board: Board) -> None:
    slot = board.claim(SlotKind.WORKER)
    offset, _ = layout.counter_offsets()["responses_rcode"]
    slot.words.add(offset + 8 * 3, 5)
    slot.words.add(layout.HOLD_HISTOGRAM + 8 * 2)
    view = board.slot(0)
    assert view.counters()["responses_rcode"][3] == 5
    assert view.histogram(layout.HOLD_HISTOGRAM)[:4] == [0, 0, 1, 0]
    assert view.as_dict().keys() == layout.SLOT_WORDS.keys()
    slot.maximum("hold_max_ns", 9)
    slot.maximum("hold_max_ns", 4)
    assert view.get("hold_max_ns") == 9
    slot.release()


def test_a_view_is_read_only(board: Board) -> None:
    stores: list[Callable[[], object]] = [
        lambda: board.loader.set("revision", 1),
        lambda: board.supervisor.set("supervisor_pid", 1),
        lambda: board.slot(3).set("pid", 1),
        lambda: board.words.store(layout.LIVE, 1),
        lambda: board.words.add(layout.LIVE),
        lambda: board.words.store_fenced(layout.LIVE, 1),
    ]
    for set_ in stores:
        with pytest.raises(TypeError, match="read-only"):
            set_()
    assert board.live == 0


@pytest.mark.parametrize("offset", [-8, 4, layout.control_size(), layout.control_size() - 4, 2**62])
def test_words_outside_are_refused(board: Board, offset: int) -> None:
    with pytest.raises(IndexError, match="no word"):
        board.words.load(offset)


def test_closed_words(board: Board) -> None:
    words = board.own_page(0)
    words.close()
    words.close()
    with pytest.raises(ValueError, match="closed"):
        words.load(0)


def test_a_worker_maps_nothing_writable_but_its_own_page(instance: str) -> None:
    """A stray store into the board faults; the kernel says what is mapped how."""
    Board.create_or_attach(instance).close()
    code = f"""
        import ctypes, resource
        from shm.board import Board
        from shm.layout import SlotKind
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        board = Board.attach({instance!r})
        slot = board.claim(SlotKind.WORKER)
        maps = [line.split() for line in open("/proc/self/maps") if ".control" in line]
        for span, mode, *_ in maps:
            start, end = (int(part, 16) for part in span.split("-"))
            print(mode, end - start, flush=True)
        start = next(int(span.split("-")[0], 16) for span, mode, *_ in maps if "w" not in mode)
        ctypes.memset(start, 0, 1)
        print("written")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert sorted(done.stdout.splitlines()) == [f"r--s {layout.control_size()}", f"rw-s {layout.PAGE}"]
    assert done.returncode == -signal.SIGSEGV
