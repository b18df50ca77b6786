"""Networks, the rate limiter by a model, fair shares of addresses, and the logger that a peer cannot flood."""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import ratelimit
from server._answer import Terms, answer_packet
from server._limits import Networks, RateLimiter
from server.answer import answer
from server.policy import Moment, Policy
from tests.support.packets import parsed, query
from tests.support.tables import compile_zone, make_table

SECOND = 1_000_000_000


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


# ---------------------------------------------------------------- networks


@given(
    st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 32)), max_size=5),
    st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 128)), max_size=5),
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.integers(0, 127),
)
def test_networks_by_ipaddress(
    four: list[tuple[bytes, int]], six: list[tuple[bytes, int]], address: bytes, flip: int
) -> None:
    networks = [ipaddress.ip_network((prefix, bits), strict=False) for prefix, bits in [*four, *six]]
    ours = Networks([str(network) for network in networks])
    assert len(ours) == len(networks)
    neighbours = [network.network_address.packed for network in networks]
    near = [(int.from_bytes(n) ^ 1 << flip % (8 * len(n))).to_bytes(len(n)) for n in neighbours]
    for one in (address, *neighbours, *near):
        assert (one in ours) == any(ipaddress.ip_address(one) in network for network in networks)


@pytest.mark.parametrize("text", ["", "192.0.2.0/33", "192.0.2.1/24", "example", "2001:db8::/129"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Networks([text])


# ---------------------------------------------------------------- the rate


class Model:
    """What the limiter is to do for one network: credit in nanoseconds, a reply costs 1 / rate."""

    def __init__(self, rate: float, slip: int) -> None:
        self.cost = int(1e9 / rate)
        self.most = max(SECOND, self.cost)
        self.credit, self.at, self.slip, self.over = self.most, 0, slip, 0

    def judge(self, now: int) -> str:
        self.credit = min(self.most, self.credit + now - self.at)
        self.at = now
        if self.credit >= self.cost:
            self.credit -= self.cost
            return "pass"
        self.over += 1
        return "slip" if self.slip and self.over % self.slip == 0 else "drop"


@settings(deadline=None)
@given(
    rate=st.floats(0.2, 5000),
    slip=st.integers(0, 4),
    network=st.sampled_from(["198.51.100.", "2001:db8:0:100::", "2001:db8:0:1ff:1::"]),
    steps=st.lists(st.tuples(st.integers(1, 250), st.integers(0, 3 * SECOND // 2)), min_size=1, max_size=200),
)
def test_rate_by_a_model(rate: float, slip: int, network: str, steps: list[tuple[int, int]]) -> None:
    """All addresses of a /24 or /56 share one credit."""
    limiter, model, now = RateLimiter(rate, slip), Model(rate, slip), 10_000 * SECOND
    model.at = now
    for host, pause in steps:
        now += pause
        assert limiter.judge(packed(f"{network}{host}"), now) == model.judge(now)


@pytest.mark.parametrize("rate", [1, 7, 200, 12345])
def test_a_second_has_so_many_replies_after_a_burst(rate: int) -> None:
    limiter, now = RateLimiter(rate, 0), 5 * SECOND
    flood = 4 * rate
    passed = [limiter.judge(packed("192.0.2.1"), now + i * SECOND // flood) for i in range(10 * flood)].count("pass")
    assert 0 <= 11 * rate - passed <= 2


def test_less_than_one_a_second_is_not_none() -> None:
    """A worker's share of a low rate."""
    limiter = RateLimiter(0.25, 0)
    verdicts = [limiter.judge(packed("192.0.2.1"), (100 + second) * SECOND) for second in range(40)]
    assert verdicts.count("pass") == 10


@pytest.mark.parametrize(("slip", "expected"), [(0, 0), (1, 300), (2, 150), (3, 100), (10, 30)])
def test_slip(slip: int, expected: int) -> None:
    limiter = RateLimiter(1, slip)
    verdicts = [limiter.judge(packed("192.0.2.1"), SECOND * 9) for _ in range(301)]
    assert Counter(verdicts) == Counter({"pass": 1, "slip": expected, "drop": 300 - expected})


@pytest.mark.parametrize(
    "form", ["192.0.{}.1", "198.{}.7.1", "2001:db8:0:{}00::1", "2001:db8:{}::1", "2001:{}::1", "{}::1"]
)
def test_networks_do_not_share(form: str) -> None:
    """But for the rare two that meet in one bucket: of eight neighbours at most one may suffer."""
    limiter = RateLimiter(5, 0)
    for _ in range(100):
        limiter.judge(packed(form.format(2)), 7 * SECOND)
    others = [limiter.judge(packed(form.format(one)), 7 * SECOND) for one in range(3, 11)]
    assert others.count("pass") >= 7


def test_buckets_are_used_evenly() -> None:
    """Of 2,000 neighbours, a /48 and its next ones, some 3 % meet another one among 32,768 buckets."""
    limiter = RateLimiter(1, 0)
    verdicts = Counter(
        limiter.judge(packed(f"2001:db8:{n >> 8:x}:{n & 255:02x}00::1"), 7 * SECOND) for n in range(2000)
    )
    assert verdicts["pass"] > 1800


def test_families_do_not_share() -> None:
    limiter = RateLimiter(1, 0)
    assert limiter.judge(packed("32.1.13.184"), SECOND * 9) == "pass"
    assert limiter.judge(packed("32.1.13.9"), SECOND * 9) == "drop"
    assert limiter.judge(packed("2001:db8::1"), SECOND * 9) == "pass"


def test_exempt_networks_and_no_rate() -> None:
    limiter = RateLimiter(1, 0, Networks(["192.0.2.0/24"]))
    assert {limiter.judge(packed("192.0.2.9"), SECOND) for _ in range(100)} == {"pass"}
    assert {RateLimiter().judge(packed("192.0.2.9"), SECOND) for _ in range(100)} == {"pass"}


def test_a_share_that_changes() -> None:
    limiter, now = RateLimiter(100, 0), 50 * SECOND
    assert [limiter.judge(packed("192.0.2.1"), now) for _ in range(200)].count("pass") == 100
    limiter.set_rate(50)
    assert [limiter.judge(packed("192.0.2.1"), now + SECOND) for _ in range(200)].count("pass") == 50


@pytest.mark.parametrize(("rate", "slip"), [(-1, 2), (1, -1)])
def test_no_negative_rates(rate: float, slip: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        RateLimiter(rate, slip)


# ---------------------------------------------------------------- some of the addresses


def addresses(count: int) -> object:
    lines = "".join(f"many 60 A 192.0.2.{i}\n" for i in range(count))
    return make_table(compile_zone("example.test.", f"@ 60 SOA a b 1 1 1 1 1\n@ 60 NS a\n{lines}"))


def answers(table: object, policy: Policy, turn: int) -> list[str]:
    """From the hot path, which has to agree with the reference."""
    packet, moment = query("many.example.test."), Moment(turn=turn)
    reply = answer_packet(packet, table, Terms(policy), moment)  # type: ignore[arg-type]
    assert reply
    assert reply == answer(packet, table, policy, moment)  # type: ignore[arg-type]
    return [str(rdata) for rdata in parsed(reply).answer[0]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("most", [0, 1, 2, 4, 20])
def test_rotation_gives_each_address_the_same_share(count: int, most: int) -> None:
    table, policy = addresses(count), Policy(rotate=True, max_answers=most)
    kept = min(most or count, count)
    seen: Counter[str] = Counter()
    firsts: Counter[str] = Counter()
    for turn in range(3 * count):
        some = answers(table, policy, turn)
        assert len(some) == len(set(some)) == kept
        order = [f"192.0.2.{(turn + i) % count}" for i in range(kept)]
        assert some == order
        seen.update(some)
        firsts[some[0]] += 1
    assert set(seen.values()) == {3 * kept}
    assert set(firsts.values()) == {3}


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8, 10, 100])
def test_random_turns_are_fair(count: int) -> None:
    """The batch's steps of the golden ratio: chi-square of where answers begin stays below what chance would give."""
    policy, table = Policy(rotate=True, max_answers=1), addresses(count)
    draws = 200 * count
    start = 987654321
    chosen = Counter(answers(table, policy, (start + i) * 2654435761 % 2**32)[0] for i in range(min(draws, 3000)))
    expected = min(draws, 3000) / count
    chi_square = sum((chosen[f"192.0.2.{i}"] - expected) ** 2 / expected for i in range(count))
    assert chi_square < count + 4 * (2 * count) ** 0.5


def test_without_rotation_the_first_ones() -> None:
    table = addresses(5)
    for turn in range(7):
        assert answers(table, Policy(max_answers=2), turn) == ["192.0.2.0", "192.0.2.1"]
        assert len(answers(table, Policy(), turn)) == 5


# ---------------------------------------------------------------- the log


def test_a_peer_cannot_flood_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(ratelimit.time, "monotonic", lambda: now)
    sparing = ratelimit.Sparing(logging.getLogger("sparing"), lines=3)
    for i in range(10):
        sparing.error("no %d", i)
    assert [record.getMessage() for record in caplog.records] == ["no 0", "no 1", "no 2"]
    now += 59.9
    sparing.error("not yet")
    assert len(caplog.records) == 3
    now += 0.1
    sparing.exception("again")
    assert [record.getMessage() for record in caplog.records[3:]] == [
        "8 more messages like the last ones within a minute",
        "again",
    ]
    now += 60
    sparing.error("quiet since")
    assert caplog.records[-1].getMessage() == "quiet since"
    assert len(caplog.records) == 6
