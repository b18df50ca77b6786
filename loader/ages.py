"""What the board shows of the sources before this loader has heard of them itself: what an earlier loader left there,
or since when nobody has. So an age is a number that grows, and whoever watches it is told."""

from __future__ import annotations

from dataclasses import dataclass

from shm.board import WordView
from shm.layout import LoaderState

#: Seconds in which a start over a table that is there already may take its time before the table counts as stale; as
#: long as a watch may be away (loader/etcd_source.py).
STALE_AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class Earlier:
    """CLOCK_REALTIME each. seen_ns: a source's last sign of life, as far as anybody knows; progress_ns, relisted_ns:
    see shm/layout.py; started_ns: this loader's start."""

    seen_ns: int
    progress_ns: int
    relisted_ns: int
    started_ns: int

    def state(self, state: LoaderState, seen_ns: int, error: str, now_ns: int) -> LoaderState:
        """Of a loader over a table that an earlier one has published: what waits for its sources in vain is stale.

        seen_ns: the sources' last sign of life; error: what is wrong with them, empty if nothing is.
        """
        if state not in (LoaderState.STARTING, LoaderState.LISTING):
            return state
        patience = STALE_AFTER_S * 1e9
        waits = bool(error) or now_ns - seen_ns > patience
        return LoaderState.STALE if waits and now_ns - self.started_ns > patience else state


def earlier(words: WordView, started_ns: int, *, live: bool) -> Earlier:
    """What the board says before this loader has written to it. live: a table is published."""
    found = {name: words.get(name) for name in ("source_seen_ns", "watch_progress_ns", "relisted_ns")}
    seen_ns = found["source_seen_ns"] or (words.get("published_ns") if live else 0) or started_ns
    return Earlier(seen_ns, found["watch_progress_ns"] or started_ns, found["relisted_ns"] or started_ns, started_ns)
