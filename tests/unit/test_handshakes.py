"""Which handshakes may begin, and which have to end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.handshakes import FAIR_S, LEAST, MOST, PATIENCE_S, Handshakes


def test_limits_follow_the_number_of_connections() -> None:
    assert [Handshakes(n, 10.0).most for n in (1, 100, 1000, 100_000)] == [LEAST, 50, 500, MOST]
    assert [Handshakes(n, 10.0).most_a_client for n in (1, 100, 1000, 100_000)] == [LEAST, 12, 125, MOST // 4]


def test_a_client_at_its_limit_has_to_wait_or_to_give_one_up() -> None:
    all_of_them = Handshakes(100, 10.0)
    for slot in range(all_of_them.most_a_client):
        assert all_of_them.room_for(b"a", 0.0) == (True, None)
        all_of_them.begin(slot, b"a", 0.0)
    assert all_of_them.room_for(b"a", FAIR_S / 2) == (False, None)
    assert all_of_them.room_for(b"b", FAIR_S / 2) == (True, None), "another one is not concerned"
    assert all_of_them.room_for(b"a", FAIR_S) == (True, 0)
    all_of_them.end(0)
    assert all_of_them.room_for(b"a", FAIR_S) == (True, None)


def test_in_a_crowd_the_greediest_makes_room() -> None:
    all_of_them = Handshakes(100, 10.0)
    all_of_them.begin(99, b"single", 0.0)
    for slot in range(all_of_them.most - 1):
        all_of_them.begin(slot, bytes([slot % 5]), 1.0)
    all_of_them.end(1)
    all_of_them.begin(98, b"\0", 1.0)
    assert all_of_them.room_for(b"new", 1.0) == (True, 0)


def test_those_that_take_too_long() -> None:
    all_of_them = Handshakes(100, 10.0)
    for slot in range(4):
        all_of_them.begin(slot, b"a", float(slot))
    all_of_them.end(1)
    assert all_of_them.overdue(PATIENCE_S - 0.1) == []
    assert all_of_them.overdue(PATIENCE_S + 2.0) == [0, 2]
    assert Handshakes(100, 1.0).overdue(9.0) == []
    hasty = Handshakes(100, 1.0)
    hasty.begin(7, b"a", 0.0)
    assert hasty.overdue(1.0) == [7]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"a", b"b", b"c"]), st.booleans()), max_size=300))
def test_the_limits_hold_whatever_happens(events: list[tuple[int, bytes, bool]]) -> None:
    all_of_them = Handshakes(40, 10.0)
    of: dict[int, bytes] = {}
    for now, (slot, network, ends) in enumerate(events):
        if ends:
            all_of_them.end(slot)
            of.pop(slot, None)
        elif slot not in of:
            may, victim = all_of_them.room_for(network, float(now))
            if victim is not None:
                all_of_them.end(victim)
                del of[victim]
            if may:
                all_of_them.begin(slot, network, float(now))
                of[slot] = network
        assert len(all_of_them) == len(of) <= all_of_them.most
        assert all(list(of.values()).count(one) <= all_of_them.most_a_client for one in (b"a", b"b", b"c"))
        assert all((slot in all_of_them) == (slot in of) for slot in range(41))
