"""The three filters, each by itself: what stays, and when they want to be asked again."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import names, targets
from loader.attributes import NONE, Attributes
from loader.filters import RR, Context, Kept, RRsets
from loader.filters.health import health
from loader.filters.weights import sample, weights
from loader.filters.windows import windows
from loader.rdata import TXT, A

OWNER, ZONE = names.from_text("www.example.test"), names.from_text("example.test")


def at(now: float, seed: bytes = b"", known: dict[str, bool] | None = None, owner: bytes = OWNER) -> Context:
    return Context(now, owner, ZONE, seed, known or {})


def a(last: int, ttl: int = 60, attributes: Attributes = NONE) -> RR:
    return RR(A, ttl, bytes((192, 0, 2, last)), "k", attributes)


def lasts(rrsets: RRsets | Kept) -> list[int]:
    return [rr.data[-1] for rr in (rrsets.rrsets if isinstance(rrsets, Kept) else rrsets).get(A, [])]


# ---------------------------------------------------------------- windows


def test_a_window_opens_and_closes() -> None:
    rrsets = {A: [a(1, attributes=Attributes(not_before=100.0, not_after=1000.0)), a(2)]}
    before = windows(rrsets, at(99.9))
    assert (lasts(before), before.again) == ([2], 100.0)
    inside = windows(rrsets, at(100.0))
    assert (lasts(inside), inside.again) == ([1, 2], 940.0)  # 60 s before the end the TTL begins to fall
    after = windows(rrsets, at(1000.0))
    assert (lasts(after), after.again) == ([2], None)


def test_a_name_may_come_to_nothing() -> None:
    assert windows({A: [a(1, attributes=Attributes(not_after=5.0))]}, at(5.0)) == Kept({}, None)


@given(end=st.floats(1, 1000), ttl=st.integers(0, 500))
def test_no_resolver_keeps_a_record_beyond_its_window(end: float, ttl: int) -> None:
    now, asked = 0.0, 0
    rrsets = {A: [a(1, ttl, Attributes(not_after=end)), a(2, 2 * ttl)], TXT: [RR(TXT, 900, b"\0")]}
    while True:
        kept = windows(rrsets, at(now))
        until = math.inf if kept.again is None else kept.again
        if lasts(kept) == [2]:
            break
        assert now < until
        served = min(rr.ttl for rr in kept.rrsets[A])
        last_moment = min(until, end) - 1e-9
        assert last_moment + served <= end or (served <= 1 and end - now <= 1)
        assert kept.rrsets[TXT] == rrsets[TXT]
        now, asked = until, asked + 1
    assert now == end
    assert asked <= 12
    assert windows(rrsets, at(now)).rrsets[A] == [a(2, 2 * ttl)]


# ---------------------------------------------------------------- health


def checked(last: int) -> RR:
    check = targets.parse("tcp://{address}:80").at(f"192.0.2.{last}")
    return a(last, attributes=Attributes(check=check))


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=6), st.booleans())
def test_who_is_down_is_not_answered_unless_all_are(states: list[bool | None], with_plain: bool) -> None:
    rrs = [checked(number) for number in range(len(states))] + ([a(99)] if with_plain else [])
    known = {f"tcp://192.0.2.{number}:80": up for number, up in enumerate(states) if up is not None}
    left = lasts(health({A: rrs}, at(0.0, known=known)))
    up = [number for number, state in enumerate(states) if state is not False] + ([99] if with_plain else [])
    assert left == (up or list(range(len(states))))


def test_each_rrset_is_looked_at_by_itself() -> None:
    text = RR(TXT, 60, b"\x01x", "k", Attributes(check=targets.parse("tcp://192.0.2.1:80")))
    left = health({A: [checked(1), checked(2)], TXT: [text]}, at(0.0, known={"tcp://192.0.2.1:80": False}))
    assert lasts(left) == [2]
    assert left[TXT] == [text]


# ---------------------------------------------------------------- weights


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20), st.integers(1, 25), st.floats(0, 1, exclude_max=True))
def test_a_sample_is_as_large_as_wished_and_leaves_zeros_out(shares: list[int], count: int, draw: float) -> None:
    found = sample(shares, count, draw)
    assert len(found) == min(count, sum(1 for share in shares if share))
    assert found == sorted(set(found))
    assert all(shares[i] for i in found)


@pytest.mark.parametrize(
    ("shares", "count"), [([9, 1], 1), ([1, 2, 3, 4], 2), ([100, 1, 1, 1], 2), ([0, 5, 5], 1), ([10, 10, 10], 2)]
)
def test_each_is_in_the_sample_as_often_as_its_share_says(shares: list[int], count: int) -> None:
    draws = 4000
    times = Counter(i for n in range(draws) for i in sample(shares, count, (n + 0.5) / draws))
    always = {i for i, share in enumerate(shares) if share * count >= sum(shares)}
    rest = sum(share for i, share in enumerate(shares) if i not in always)
    for i, share in enumerate(shares):
        wanted = 1.0 if i in always else share * (count - len(always)) / rest
        assert times[i] / draws == pytest.approx(wanted, abs=0.002)


def weighted(*shares: int, pick: int = -1, ttl: int = 60, period: int = -1) -> RRsets:
    return {A: [a(i, ttl, Attributes(weight=share, pick=pick, period=period)) for i, share in enumerate(shares)]}


def periods(rrsets: RRsets, count: int, context: Context) -> list[tuple[float, list[int]]]:
    """(length, what was chosen) of whole periods that follow each other."""
    found: list[tuple[float, list[int]]] = []
    now = weights(rrsets, context).again
    while len(found) < count:
        assert now is not None
        kept = weights(rrsets, at(now, context.seed, owner=context.owner))
        assert kept.again is not None
        found.append((kept.again - now, lasts(kept)))
        now = kept.again
    return found


def test_over_many_periods_the_weights_are_kept() -> None:
    times = Counter(chosen[0] for _, chosen in periods(weighted(70, 20, 10, 0), 20000, at(1.7e9)))
    # Three standard deviations of a share of 0.2 in 20000 draws are 0.0085.
    for last, share in ((0, 0.7), (1, 0.2), (2, 0.1)):
        assert times[last] / 20000 == pytest.approx(share, abs=0.012)
    assert 3 not in times


@pytest.mark.parametrize(
    ("ttl", "period", "wanted"), [(60, -1, 60), (1, -1, 5), (0, -1, 5), (60, 10, 10), (5, 3600, 3600)]
)
def test_a_period_is_the_ttl_but_five_seconds_at_least(ttl: int, period: int, wanted: int) -> None:
    lengths = [length for length, _ in periods(weighted(1, 1, ttl=ttl, period=period), 10, at(1.7e9))]
    assert lengths == pytest.approx([wanted] * 10)


def test_within_a_period_nothing_changes() -> None:
    rrsets = weighted(1, 1, 1, 1)
    begin = weights(rrsets, at(1.7e9)).again
    assert begin is not None
    assert len({tuple(lasts(weights(rrsets, at(begin + i)))) for i in range(60)}) == 1
    assert {weights(rrsets, at(begin + i)).again for i in range(60)} == {begin + 60}


def test_several_at_a_time() -> None:
    chosen = [lasts(weights(weighted(1, 1, 1, 1, pick=3), at(t * 60.0))) for t in range(200)]
    assert {len(one) for one in chosen} == {3}
    assert len({tuple(one) for one in chosen}) == 4


def test_drained_ones_stay_away_unless_all_are() -> None:
    assert lasts(weights(weighted(0, 5), at(0))) == [1]
    assert lasts(weights(weighted(0, 0), at(0))) == [0, 1]
    assert weights(weighted(0, 0), at(0)).again is None
    assert lasts(weights(weighted(0, 5, 5, pick=7), at(0))) == [1, 2]


def test_machines_and_names_choose_for_themselves_and_a_restart_changes_nothing() -> None:
    def of(seed: bytes, owner: bytes) -> list[list[int]]:
        return [lasts(weights(weighted(1, 1), at(t * 60.0, seed, owner=owner))) for t in range(64)]

    assert of(b"a", OWNER) == of(b"a", OWNER)
    assert of(b"a", OWNER) != of(b"b", OWNER)
    assert of(b"a", OWNER) != of(b"a", ZONE)
    begins = {weights(weighted(1, 1), at(0, owner=names.from_text(f"w{i}.test"))).again for i in range(50)}
    assert len(begins) > 40


def test_records_without_attributes_are_left_alone() -> None:
    rrsets = {A: [a(1), a(2)], TXT: [RR(TXT, 9, b"\0")]}
    assert windows(rrsets, at(0)) == weights(rrsets, at(0)) == Kept(rrsets, None)
    assert health(rrsets, at(0)) == rrsets


def test_a_record_without_a_weight_beside_weighted_ones_counts_one() -> None:
    rrsets = {A: [a(0), a(1, attributes=Attributes(weight=9))]}
    times = Counter(chosen[0] for _, chosen in periods(rrsets, 5000, at(0)))
    assert times[0] / 5000 == pytest.approx(0.1, abs=0.02)
