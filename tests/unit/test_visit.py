"""A visit: a whole copy of the active table, of one generation, with nothing left behind and nobody held up."""

from __future__ import annotations

import os

import pytest

from shm import gates, layout, visit
from shm.board import Board
from shm.errors import NotRunning
from shm.layout import SlotKind
from shm.tables import TableWriter
from tests.support.processes import drive
from tests.support.tables import block

NAMES = 300


def content(version: int) -> dict[bytes, bytes]:
    names = [b"\4%04d\0" % i for i in range(NAMES)]
    return {name: block(name, 300, bytes([version])) for name in names}


def versions(copy: visit.Copy) -> set[bytes]:
    return {found.rstrip(b"\0")[-1:] for found in copy.table.blocks()}


@pytest.fixture
def board(instance: str) -> Board:
    return Board.create_or_attach(instance)


def test_nothing_is_published(board: Board) -> None:
    with pytest.raises(NotRunning):
        visit.copy_active(board)
    assert board.live_slots() == []


def test_a_copy_is_the_table(board: Board) -> None:
    writer = TableWriter(board)
    drive(writer.replace(content(1).values(), 7, {"zones": []}))
    copy = visit.copy_active(board)
    drive(writer.apply(dict(content(2)), 8))
    assert set(copy.table.blocks()) == set(content(1).values())
    assert copy.table.find(b"\x040007\0") == content(1)[b"\x040007\0"]
    assert (copy.table.revision, copy.live >> 1) == (7, 1)
    later = visit.copy_active(board)
    assert versions(later) == {b"\2"}
    copy.close()
    later.close()
    assert board.live_slots() == []
    writer.close()


def test_no_slot_gate_or_section_is_left(board: Board) -> None:
    writer = TableWriter(board)
    drive(writer.replace(content(1).values(), 1, {}))
    before = {path.name for path in board.names.existing()}
    for _ in range(3):
        visit.copy_active(board).close()
    slot = board.slot(visit.PREFERRED_SLOT)
    assert slot.get("kind") == SlotKind.FREE
    assert slot.get("section") % 2 == 0
    assert slot.get("section") > 0
    assert {path.name for path in board.names.existing()} - before == {f"standoff.{board.names.instance}.slot62.lock"}
    writer.close()


def test_a_gate_that_a_dead_holder_kept_stops_no_writer(board: Board) -> None:
    """The slot's last holder died inside: nobody would ever give its gate back to the writer."""
    writer = TableWriter(board)
    drive(writer.replace(content(1).values(), 1, {}))
    slot = board.claim(SlotKind.WORKER, preferred=visit.PREFERRED_SLOT)
    name = board.names.gate(slot.number, slot.get("gate") + 1)
    gates.create(name)
    slot.set("gate", slot.get("gate") + 1)
    slot._lock.release()  # as the kernel does
    claimed = board.claim(SlotKind.OTHER, preferred=visit.PREFERRED_SLOT)
    visit._do_without_gate(board, claimed)
    assert writer.lock.try_acquire()
    writer.lock.release()
    claimed.release()
    assert f"sem.{name.lstrip('/')}" not in os.listdir("/dev/shm")
    writer.close()


class Interrupted:
    """A board whose table is swapped whenever a visitor is between two stays."""

    def __init__(self, board: Board, monkeypatch: pytest.MonkeyPatch, swaps: int) -> None:
        self.writer = TableWriter(board)
        drive(self.writer.replace(content(1).values(), 1, {}))
        self.version, self.swaps = 1, swaps
        self.stays: list[float] = []
        stay = visit._Visit._stay

        def interrupted(self_: visit._Visit, source: memoryview, longest_s: float) -> bool:
            self.stays.append(longest_s)
            whole = stay(self_, source, 0.0 if longest_s == visit.LONGEST_STAY_S else longest_s)
            assert self_._slot.get("section") % 2 == 0
            if self.version <= self.swaps:
                self.version += 1
                drive(self.writer.apply(dict(content(self.version)), self.version))
            return whole

        monkeypatch.setattr(visit._Visit, "_stay", interrupted)
        monkeypatch.setattr(visit, "SLICE", 16384)


def test_a_copy_in_many_stays(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Interrupted(board, monkeypatch, swaps=0)
    copy = visit.copy_active(board)
    assert versions(copy) == {b"\1"}
    assert len(scene.stays) > 5
    copy.close()
    scene.writer.close()


@pytest.mark.parametrize("swaps", [1, 2, 3])
def test_a_swap_between_two_stays_means_to_begin_again(
    board: Board, monkeypatch: pytest.MonkeyPatch, swaps: int
) -> None:
    scene = Interrupted(board, monkeypatch, swaps)
    copy = visit.copy_active(board)
    assert versions(copy) == {bytes([1 + swaps])}
    assert copy.table.revision == 1 + swaps
    copy.close()
    scene.writer.close()


def test_the_last_stay_is_long_enough_or_it_is_given_up(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Interrupted(board, monkeypatch, swaps=100)
    copy = visit.copy_active(board)
    assert len(versions(copy)) == 1
    assert scene.stays[-1] == visit.LAST_STAY_S
    copy.close()
    monkeypatch.setattr(visit, "LAST_STAY_S", -1.0)
    with pytest.raises(visit.Crowded):
        visit.copy_active(board)
    assert board.live_slots() == []
    scene.writer.close()


def test_stays_are_shorter_than_a_leak() -> None:
    from server.supervision import LEAK_AFTER_S

    assert visit.LONGEST_STAY_S < visit.LAST_STAY_S < LEAK_AFTER_S
    assert layout.SLOTS - 2 == visit.PREFERRED_SLOT
