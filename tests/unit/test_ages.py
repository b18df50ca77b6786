"""loader/ages.py: how old everything is before a loader has heard of its sources itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loader import etcd_url
from loader.ages import Earlier, earlier
from loader.etcd_channel import ClientOptions
from loader.etcd_source import EtcdSource
from loader.files import FileSource
from loader.sources import show_watches
from shm.board import Board
from shm.layout import LoaderState
from shm.tables import TableWriter
from tests.support.mirroring import run_async

S = 1_000_000_000


@pytest.fixture
def writer(instance: str) -> Iterator[TableWriter]:
    board = Board.create_or_attach(instance)
    writer = TableWriter(board)
    yield writer
    writer.close()
    board.close()


def test_what_an_earlier_loader_left_counts(writer: TableWriter) -> None:
    words = writer.words
    assert earlier(words, 9 * S, live=False) == Earlier(9 * S, 9 * S, 9 * S, 9 * S)
    words.set("published_ns", 4 * S)
    assert earlier(words, 9 * S, live=True).seen_ns == 4 * S
    for name, second in (("source_seen_ns", 5), ("watch_progress_ns", 6), ("relisted_ns", 7)):
        words.set(name, second * S)
    assert earlier(words, 9 * S, live=True) == Earlier(5 * S, 6 * S, 7 * S, 9 * S)


def test_ages_are_numbers_before_etcd_has_said_anything(writer: TableWriter) -> None:
    async def body() -> None:
        source = EtcdSource(etcd_url.parse("etcd://127.0.0.1:1/names?schema=records"), ClientOptions())
        show_watches(writer.words, [source.status, FileSource("/nothing", []).status], Earlier(5, 6, 7, 9))

    run_async(body())
    assert [writer.words.get(f"{name}_ns") for name in ("watch_progress", "relisted", "watch_event")] == [6, 7, 0]
    show_watches(writer.words, [FileSource("/nothing", []).status], Earlier(5, 6, 7, 9))
    assert [writer.words.get(f"{name}_ns") for name in ("watch_progress", "relisted")] == [0, 0]  # no watch, no age


@pytest.mark.parametrize(
    ("state", "seen_s", "error", "now_s", "shown"),
    [
        (LoaderState.STARTING, 10, "", 102, LoaderState.STARTING),  # it has begun just now
        (LoaderState.STARTING, 10, "", 104, LoaderState.STALE),
        (LoaderState.LISTING, 10, "", 104, LoaderState.STALE),
        (LoaderState.LISTING, 103, "", 104, LoaderState.LISTING),  # page after page comes
        (LoaderState.LISTING, 103, "may not read", 104, LoaderState.STALE),  # it answers, and refuses
        (LoaderState.FRESH, 10, "", 104, LoaderState.FRESH),  # no matter of starts
    ],
)
def test_who_waits_in_vain_is_stale(
    state: LoaderState, seen_s: int, error: str, now_s: int, shown: LoaderState
) -> None:
    assert Earlier(0, 0, 0, 100 * S).state(state, seen_s * S, error, now_s * S) == shown
