"""Why a record is not answered, or is although its target is down: what people are told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from loader import names, targets
from loader.attributes import NONE, Attributes
from loader.filters import RR, Context
from loader.filters.chain import BUILT_IN, Passage
from loader.filters.reasons import Reasons
from loader.filters.weights import weights
from loader.rdata import TXT, A

OWNER, ZONE = names.from_text("www.example.test"), names.from_text("example.test")
NOW = 1_000_000_000.0  # 2001-09-09T01:46:40Z


def a(last: int, **said: object) -> RR:
    return RR(A, 60, bytes((192, 0, 2, last)), "k", Attributes(**said))  # type: ignore[arg-type]


def checked(last: int, **said: object) -> RR:
    return a(last, check=targets.parse("tcp://{address}:80").at(f"192.0.2.{last}"), **said)


def reasons(rrs: list[RR], down: tuple[int, ...] = (), filters: tuple[str, ...] = tuple(BUILT_IN)) -> Reasons:
    text = RR(TXT, 60, b"\1x", "k", NONE)
    health = {f"tcp://192.0.2.{last}:80": False for last in down}
    passage = Passage(Context(NOW, OWNER, ZONE, b"", health), {A: rrs, TXT: [text]})
    return Reasons(passage, filters, lambda target: f"error of {target}")


def why(filter: str, last: int, made: Reasons) -> str:
    return made.why((filter, "k", A, bytes((192, 0, 2, last))))


def test_windows_say_when() -> None:
    made = reasons([a(1, not_before=NOW + 60), a(2, not_before=5.0, not_after=NOW), a(3)])
    assert why("windows", 1, made) == "not before 2001-09-09T01:47:40Z"
    assert why("windows", 2, made) == "not after 2001-09-09T01:46:40Z"
    assert why("windows", 3, made) == ""  # it is open by now
    assert why("windows", 4, made) == ""  # it is gone by now


def test_health_names_target_and_error() -> None:
    made = reasons([checked(1), checked(2)], down=(1,))
    assert why("health", 1, made) == "tcp://192.0.2.1:80 is down: error of tcp://192.0.2.1:80"
    assert why("health", 2, made) == ""
    assert made.all_down() == []


def test_weights_say_when_the_next_draw_is() -> None:
    rrs = [a(1, weight=1), a(2, weight=1), a(3, weight=0), a(4, weight=9, not_after=NOW - 1)]
    made = reasons(rrs)
    drawn = weights({A: rrs[:3]}, Context(NOW, OWNER, ZONE)).again
    assert drawn is not None
    assert NOW < drawn <= NOW + 60
    told = why("weights", 1, made)
    assert told == f"not drawn; the next draw is at {datetime.fromtimestamp(int(drawn), UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert why("weights", 3, made) == "weight 0"


@pytest.mark.parametrize(
    ("rrs", "down", "filters", "wanted"),
    [
        ([checked(1), checked(2)], (1, 2), ("windows", "health"), [A]),
        ([checked(1), checked(2)], (1,), ("windows", "health"), []),
        ([checked(1), a(2)], (1,), ("windows", "health"), []),  # what has no check is up
        ([checked(1), checked(2, not_before=NOW + 9)], (1,), ("windows", "health"), [A]),  # its time has not come
        ([checked(1), checked(2, not_before=NOW + 9)], (1,), ("health",), []),
        ([checked(1)], (1,), ("windows", "weights"), []),  # nobody looks at health
    ],
)
def test_all_down(rrs: list[RR], down: tuple[int, ...], filters: tuple[str, ...], wanted: list[int]) -> None:
    assert reasons(rrs, down, filters).all_down() == wanted


def test_a_filter_of_others_is_not_explained() -> None:
    assert why("nearest", 1, reasons([a(1)])) == ""
