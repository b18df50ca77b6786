"""How a prefix of etcd is mirrored: what to do next, and what the store held at which revision. Pure.

No clock, no sockets, no randomness: `Mirror.step(event, now, chance)` takes what happened and returns what to do.
`etcd_source.py` does it.

    WAITING ──time──▶ CONNECTING ──Connected──▶ LISTING ──last page──▶ WATCHING ──Failed──▶ WAITING (next endpoint)
                          │  content, and no gap: straight on              │ ▲
                          └───────────────────────────────────────────────▶│ │ every relist_interval: a list beside the
                                                                           └─┘ watch, compared (Comparison)

Invariants (tests/etcd/test_mirror.py checks them against a simulated store)
  1. `revision` is that of the last event applied, or of the last list that was compared in full. A watch always starts
     at revision + 1, so an event is applied once or dropped as known, and none is left out.
  2. What was emitted, applied in order, gives exactly the store's content at `revision`.
  3. A list beside a watch is compared with what was held at the list's revision: later events are undone for the
     comparison, missing ones waited for. What then differs is drift: counted, and repaired by Changes.
  4. Only a list replaces a history: another cluster id, or a revision that went back, gives a Listing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from loader.mirror_content import Comparison, Content, Result
from loader.model import Changes, Delete, Listing, Put


class Kind(Enum):
    """Why something failed, as far as the next step depends on it."""

    LOST = "lost"  # the connection, or an answer in time
    COMPACTED = "compacted"
    TOO_LARGE = "too large"
    DENIED = "denied"


class Phase(Enum):
    """What the mirror is doing."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    LISTING = "listing"  # and nothing else: there is a gap to close
    WATCHING = "watching"


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The endpoint of the last Connect is ready."""


@dataclass(frozen=True, slots=True)
class PageRead:
    """A part of the list that runs."""

    entries: Sequence[Put]
    revision: int
    cluster_id: int
    last: bool


@dataclass(frozen=True, slots=True)
class WatchMade:
    """The watch runs. revision: the store's, on this member."""

    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class WatchRead:
    """The watch's next events, complete up to the last one's mod_revision; none: a sign of life."""

    events: Sequence[Put | Delete]


@dataclass(frozen=True, slots=True)
class Failed:
    """Connecting, the list or the watch has failed and is over. reason is for people."""

    what: str
    kind: Kind
    reason: str


Event = Tick | Connected | PageRead | WatchMade | WatchRead | Failed

# ---------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Connect:
    """Drop everything, then connect to this endpoint (an index)."""

    endpoint: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Drop everything."""


@dataclass(frozen=True, slots=True)
class StartList:
    """List all keys; an earlier list is over. beside: a watch goes on, do not hold it up; else it is over, too."""

    beside: bool


@dataclass(frozen=True, slots=True)
class StartWatch:
    """Watch from this revision on, inclusive; an earlier watch is over."""

    revision: int


@dataclass(frozen=True, slots=True)
class StopWatch:
    """Drop the watch."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask the watch for a sign of life."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand this to the consumer."""

    item: Listing | Changes


@dataclass(frozen=True, slots=True)
class Note:
    """Tell people. urgent: something is wrong now."""

    text: str
    urgent: bool = False


Action = Connect | Disconnect | StartList | StartWatch | StopWatch | Ping | Emit | Note

# ---------------------------------------------------------------- policy

#: Seconds after wake_at above which a step counts as late. Less than any time-out, more than a busy machine needs.
_LATE = 1.0
#: Lists in a row that a compaction may overtake before this counts as a failure of the endpoint.
_COMPACTED_LISTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Times in seconds.

    relist_interval  between a list's end and the next one's start, spread by a tenth: loaders do not beat in time
    behind_limit     revisions to catch up with above which listing is cheaper: etcd replays about 50,000 a second
    backoff_first, backoff_limit  waits after every endpoint has failed: doubled each round, then spread by half
    ping_after       silence of a watch before a sign of life is asked for
    ping_timeout     for the answer. Together below ten seconds, and independent of gRPC's keepalive, which only tells
                     that the process answers, not that the watch does
    patience         for the first sign of life: a watch that catches up does not answer, and may take long
    settle           silence of a watch after which events that a list knows of will not come any more
    """

    endpoints: int = 1
    relist_interval: float = 300.0
    behind_limit: int = 100_000
    backoff_first: float = 0.1
    backoff_limit: float = 10.0
    ping_after: float = 3.0
    ping_timeout: float = 3.0
    patience: float = 30.0
    settle: float = 2.0


@dataclass(slots=True)
class Mirror:
    """The state, and step() that changes it."""

    policy: Policy
    phase: Phase = Phase.WAITING
    content: Content = field(default_factory=Content)
    listed: bool = False  # a Listing was emitted
    gap: bool = True  # events were missed: only a list can tell what the store holds
    endpoint: int = 0
    failures: int = 0  # in a row
    retry_at: float = 0.0
    comparison: Comparison | None = None
    relist_at: float = 0.0
    relists: int = 0
    listed_at: float | None = None  # when a list was last compared in full
    drift: int = 0
    watching: bool = False  # the server has confirmed the watch
    store_revision: int = 0  # the store's, when it did
    answered: bool = False  # it has answered a ping, so it is not catching up
    heard_at: float = 0.0  # last sign of life of the list or the watch
    ping_at: float | None = None  # unanswered
    settle_at: float | None = None  # when a comparison stops waiting for events
    wake_at: float = 0.0  # step(Tick) is wanted then, at the latest

    @property
    def revision(self) -> int:
        """Of the content."""
        return self.content.revision

    def prime(self, listing: Listing, cluster_id: int) -> None:
        """Go on from a listing that was kept: watch from its revision, and list only if etcd no longer has that."""
        self.content.prime(listing, cluster_id)
        self.listed, self.gap = True, False

    def set_endpoints(self, count: int, current: int) -> None:
        """There are so many endpoints now, at least 1, and the one in use has this number."""
        self.policy = replace(self.policy, endpoints=count)
        self.endpoint = current

    def step(self, event: Event, now: float, chance: float = 0.5) -> list[Action]:
        """Take one event at monotonic time now (seconds); chance is a random number in [0, 1) for this step."""
        self._forgive(now)
        match event:
            case Tick():
                actions = self._tick(now, chance)
            case Connected():
                actions = self._connected(now)
            case PageRead():
                actions = self._page(event, now, chance)
            case WatchMade():
                actions = self._watch_made(event, now)
            case WatchRead():
                actions = self._watch_read(event, now, chance)
            case Failed():
                actions = self._failed(event, now, chance)
        self.wake_at = self._wake(now)
        return actions

    def _forgive(self, now: float) -> None:
        """After a step that comes late the time-outs start anew: we were held up, and answers may lie unread."""
        if self.phase is Phase.WATCHING and now - self.wake_at > _LATE:
            self.heard_at = now
            self.ping_at = None if self.ping_at is None else now
            self.settle_at = None if self.settle_at is None else now + self.policy.settle

    def _wake(self, now: float) -> float:
        if self.phase is Phase.WAITING:
            return self.retry_at
        if self.phase is not Phase.WATCHING or not self.watching:
            return now + self.policy.patience  # calls that run have deadlines of their own
        times = [self._ask_at(), self._give_up_at()]
        if self.comparison is None:
            times.append(self.relist_at)
        if self.settle_at is not None:
            times.append(self.settle_at)
        return min(times)

    def _ask_at(self) -> float:
        """When to ask a silent watch for a sign of life; again and again until it has answered once."""
        if self.ping_at is None:
            return self.heard_at + self.policy.ping_after
        return self._give_up_at() if self.answered else self.ping_at + self.policy.ping_after

    def _give_up_at(self) -> float:
        if self.answered and self.ping_at is not None:
            return self.ping_at + self.policy.ping_timeout
        return self.heard_at + self.policy.patience

    def _tick(self, now: float, chance: float) -> list[Action]:
        if self.phase is Phase.WAITING and now >= self.retry_at:
            self.phase = Phase.CONNECTING
            return [Connect(self.endpoint)]
        if self.phase is not Phase.WATCHING or not self.watching:
            return []
        if now >= self._give_up_at():
            return self._failed(Failed("watch", Kind.LOST, "the watch gives no sign of life"), now, chance)
        if now >= self._ask_at():
            self.ping_at = now
            return [Ping()]
        if self.settle_at is not None and now >= self.settle_at:
            return self._compare(now, chance, final=True)
        if self.comparison is None and now >= self.relist_at:
            self.comparison = self.content.compare()
            return [StartList(beside=True)]
        return []

    def _connected(self, now: float) -> list[Action]:
        self.heard_at = now
        return self._list() if self.gap else self._watch()

    def _list(self) -> list[Action]:
        """Nothing runs: list to close the gap."""
        self.phase, self.gap, self.watching = Phase.LISTING, True, False
        self.ping_at = self.settle_at = None
        self.comparison = self.content.compare()
        return [StartList(beside=False)]

    def _watch(self) -> list[Action]:
        self.phase, self.watching, self.answered, self.ping_at = Phase.WATCHING, False, False, None
        return [StartWatch(self.revision + 1)]

    def _page(self, event: PageRead, now: float, chance: float) -> list[Action]:
        if self.phase is Phase.LISTING:
            self.heard_at = now
        if self.comparison is None:
            return []
        actions: list[Action] = []
        other = self.comparison.begin(event.revision, event.cluster_id)
        if other and self.phase is Phase.WATCHING:
            # The watch follows a history that is no more.
            actions += [Note(other, urgent=True), StopWatch()]
            self.phase, self.gap, self.watching, self.ping_at = Phase.LISTING, True, False, None
        elif other and self.listed:
            actions.append(Note(other, urgent=True))
        self.comparison.add(event.entries)
        if event.last:
            actions += self._compare(now, chance, final=self.phase is Phase.LISTING)
        return actions

    def _compare(self, now: float, chance: float, final: bool) -> list[Action]:
        """All pages are in: finish the comparison, unless events are missing that may still come."""
        assert self.comparison is not None
        result = self.comparison.result(final)
        if result is None:
            self.settle_at = now + self.policy.settle
            return []
        self.comparison = self.settle_at = None
        self.listed_at = now
        self.relist_at = now + self.policy.relist_interval * (0.95 + chance / 10)
        actions = self._emit(result)
        if self.phase is Phase.LISTING:
            self.gap = False
            actions += self._watch()
        return actions

    def _emit(self, result: Result) -> list[Action]:
        self.relists += self.listed
        if result.listing is not None:
            self.listed = True
            return [Emit(result.listing)]
        actions: list[Action] = []
        if result.differences and self.phase is Phase.WATCHING:
            self.drift += result.differences
            actions.append(Note(f"re-list found {result.differences} differences: {result.sample}", urgent=True))
        if result.repairs:
            actions.append(Emit(Changes(result.repairs, self.revision)))
        return actions

    def _watch_made(self, event: WatchMade, now: float) -> list[Action]:
        self.watching = True
        self.store_revision = event.revision
        self.heard_at = self.ping_at = now
        behind = event.revision - self.revision
        if event.cluster_id != self.content.cluster_id:
            note = Note("the endpoint belongs to another cluster than before: listing anew", urgent=True)
            return [note, *self._list()]
        if behind > self.policy.behind_limit:
            return [Note(f"{behind} revisions behind: listing is faster"), *self._list()]
        if behind < 0:
            # Either a member that lags, or a store restored from a backup. A linearizable list tells.
            self.relist_at = now
        return [Ping()]

    def _watch_read(self, event: WatchRead, now: float, chance: float) -> list[Action]:
        self.heard_at, self.ping_at, self.failures = now, None, 0
        self.answered = self.answered or not event.events
        news = self.content.apply(event.events)
        if not news:
            return []
        actions: list[Action] = [Emit(Changes(news, self.revision))]
        if self.settle_at is not None and self.comparison is not None:
            self.settle_at = now + self.policy.settle
            if self.revision >= self.comparison.revision:
                actions += self._compare(now, chance, final=False)
        return actions

    def _failed(self, event: Failed, now: float, chance: float) -> list[Action]:
        if event.what == "list" and self.phase is Phase.WATCHING:
            # The watch runs, and will tell by itself if the connection is gone. etcd goes on to serve it, too, when the
            # user has lost what made it possible.
            self._drop_comparison()
            self.relist_at = now + self._spread(self.policy.backoff_limit, chance)
            return [Note(f"re-list given up for now: {event.reason}", urgent=event.kind is Kind.DENIED)]
        if event.kind is Kind.DENIED:
            return self._retreat(event, now, chance)
        if event.kind is Kind.COMPACTED and event.what == "list":
            self.failures += 1
            if self.failures <= _COMPACTED_LISTS:
                return [Note(f"{event.reason}: listing anew"), *self._list()]
        elif event.what == "watch" and event.kind in (Kind.COMPACTED, Kind.TOO_LARGE):
            return [Note(f"{event.reason}: listing instead"), *self._list()]
        return self._retreat(event, now, chance)

    def _retreat(self, event: Failed, now: float, chance: float) -> list[Action]:
        """Give the connection up and try the next endpoint: at once, or after a wait if all have failed."""
        self.failures += 1
        self.endpoint = (self.endpoint + 1) % self.policy.endpoints
        rounds, rest = divmod(self.failures, self.policy.endpoints)
        wait = 0.0 if rest else self.policy.backoff_first * 2.0 ** min(rounds - 1, 30)
        if event.kind is Kind.DENIED:
            wait = self.policy.backoff_limit
        self.retry_at = now + self._spread(min(wait, self.policy.backoff_limit), chance)
        self.phase, self.watching, self.ping_at = Phase.WAITING, False, None
        self._drop_comparison()
        return [Note(event.reason, urgent=True), Disconnect()]

    def _drop_comparison(self) -> None:
        self.comparison = self.settle_at = None
        self.content.abandon()

    @staticmethod
    def _spread(wait: float, chance: float) -> float:
        """Between a half and the whole of wait."""
        return wait * (0.5 + chance / 2)
