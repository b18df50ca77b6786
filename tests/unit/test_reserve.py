"""Serials above the revision: what is on disk is never below what has been answered, whenever the power fails."""

from __future__ import annotations

import random

from loader.reserve import AHEAD, NEAR, Reserve

APEX = b"\x07example\x00"


def test_a_serial_that_follows_the_revision_needs_nothing() -> None:
    reserve = Reserve()
    assert not any(reserve.note(APEX, number, number) for number in range(1, 100))
    assert not reserve.bounds


def test_the_bound_is_ahead_and_seldom_made_anew() -> None:
    reserve = Reserve()
    written = 0
    for number in range(1001, 1001 + 10 * AHEAD):
        before = reserve.bounds.get(APEX, 0)
        changed = reserve.note(APEX, number, number - 1)
        assert changed == (reserve.bounds[APEX] != before)
        assert reserve.bounds[APEX] > number + NEAR - 1
        written += changed
    assert written <= 20


def test_a_revision_that_has_caught_up() -> None:
    reserve = Reserve()
    assert reserve.note(APEX, 101, 100)
    assert not reserve.note(APEX, 200, 200), "a power cut now would lead to the bound: that it is said still"
    assert reserve.bounds
    assert reserve.note(APEX, 101 + AHEAD, 101 + AHEAD)
    assert not reserve.bounds
    assert not reserve.note(APEX, 102 + AHEAD, 102 + AHEAD)


def test_a_clean_end_and_a_zone_that_goes() -> None:
    reserve = Reserve()
    reserve.note(APEX, 101, 100)
    reserve.note(APEX, 102, 100)
    assert reserve.settle()
    assert reserve.bounds == {APEX: 102}
    assert not reserve.settle()
    assert reserve.end(APEX) == 102
    assert reserve.end(APEX) == 0
    assert not reserve.bounds


def test_power_cuts() -> None:
    """On disk is what was to be written some hundred changes ago, or just before a start publishes."""
    chance = random.Random(1)
    for _ in range(200):
        revision, highest, disk = 100, 101, {APEX: 101 + AHEAD}
        for _ in range(5):
            reserve = Reserve()
            reserve.begin(disk)
            number = disk[APEX]
            assert number >= highest
            disk, late = dict(reserve.bounds), -1
            for _ in range(chance.choice((1, 10, 1000, 3 * AHEAD))):
                number, revision = number + 1, revision + 1
                if reserve.note(APEX, number, revision):
                    late = chance.randrange(NEAR)
                elif late == 0:
                    disk = dict(reserve.bounds)
                late -= 1
            highest = number
