"""The bar of a first list: what a person sees while etcd hands out its keys."""

from __future__ import annotations

from types import SimpleNamespace

from loader.listing import FirstList
from shm.layout import LoaderState


class Bar:
    def __init__(self) -> None:
        self.said: list[tuple[str, int | None]] = []

    def start(self, total: int | None) -> None:
        self.said.append(("start", total))

    def advance(self, n: int = 1) -> None:
        self.said.append(("advance", n))

    def done(self) -> None:
        self.said.append(("done", None))


def etcd(listed: int, total: int, state: LoaderState = LoaderState.LISTING) -> SimpleNamespace:
    return SimpleNamespace(state=state, listed=listed, total=total)


FILE = SimpleNamespace(state=LoaderState.LISTING)


def test_a_list_from_its_first_page_to_its_last() -> None:
    bar = Bar()
    first = FirstList(bar)
    first.show([FILE, etcd(0, 0)])
    assert bar.said == []
    first.show([FILE, etcd(10, 100)])
    first.show([FILE, etcd(10, 100)])
    first.show([FILE, etcd(90, 100)])
    assert bar.said == [("start", 100), ("advance", 10), ("advance", 80)]
    first.show([FILE, etcd(100, 100, LoaderState.FRESH)])
    first.show([FILE, etcd(50, 100, LoaderState.FRESH)])  # a re-list
    assert bar.said[3:] == [("done", None)]


def test_a_list_that_begins_anew() -> None:
    bar = Bar()
    first = FirstList(bar)
    first.show([etcd(40, 100)])
    first.show([etcd(5, 120)])
    assert bar.said == [("start", 100), ("advance", 40), ("start", 120), ("advance", 5)]


def test_nobody_looks() -> None:
    FirstList(None).show([etcd(1, 2)])
