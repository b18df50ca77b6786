"""What a mirror holds, at 64 bits a key, and how a list is compared with it while a watch goes on. Pure.

For each key one stamp is kept: 44 bits of a hash over mod_revision and value, and 16 bits that say in which comparison
a list last named the key. A hash over mod_revision alone would do within one history, but a store restored from a
backup may give a mod_revision away twice under the same cluster id.

Things that don't work
* Remembering the keys that a list has named in a set: 100 MB more at a million keys, every five minutes.
* Comparing with what is held when a page arrives: keys changed since the list's revision look like drift, and an event
  that the watch has yet to deliver does, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from loader.model import Delete, Listing, Put

_EPOCH_BITS = 16
_EPOCHS = (1 << _EPOCH_BITS) - 1
#: With the epoch 60 bits: a small int object of 32 bytes in CPython.
_HASH_MASK = (1 << 44) - 1
_SAMPLE = 5


def _stamp(put: Put) -> int:
    """Stamp in epoch 0: not named by any list."""
    return (hash((put.mod_revision, put.value)) & _HASH_MASK) << _EPOCH_BITS


def _stamps(puts: Iterable[Put]) -> dict[str, int]:
    """Key -> _stamp; its body is here once more, for a quarter less time."""
    return {put.key: (hash((put.mod_revision, put.value)) & _HASH_MASK) << _EPOCH_BITS for put in puts}


@dataclass(frozen=True, slots=True)
class Result:
    """What a list has shown.

    listing      the whole content, if it replaces another history or none; then the rest is empty
    repairs      events that turn what was held into what is right, in the order of their revisions
    differences  keys that were held wrongly, including those that later events have put right
    sample       a few of their names
    """

    listing: Listing | None = None
    repairs: list[Put | Delete] = field(default_factory=list)
    differences: int = 0
    sample: str = ""


@dataclass(slots=True)
class Content:
    """Keys with their stamps, as of revision. cluster_id is 0 before the first list."""

    held: dict[str, int] = field(default_factory=dict)
    revision: int = 0
    cluster_id: int = 0
    epoch: int = 0  # of the last comparison begun
    #: While a comparison runs: (mod_revision, key, stamp before or None) of each event, to undo it.
    log: list[tuple[int, str, int | None]] | None = None

    def prime(self, listing: Listing, cluster_id: int) -> None:
        """Hold what was held before a restart."""
        self.held = _stamps(listing.entries)
        self.revision, self.cluster_id = listing.revision, cluster_id

    def apply(self, events: Sequence[Put | Delete]) -> list[Put | Delete]:
        """Apply a watch's events, whole revisions in order; returns those that were news."""
        news = [event for event in events if event.mod_revision > self.revision]
        held, log = self.held, self.log
        for event in news:
            if log is not None:
                log.append((event.mod_revision, event.key, held.get(event.key)))
            if isinstance(event, Put):
                held[event.key] = _stamp(event)
            else:
                held.pop(event.key, None)
        if news:
            self.revision = news[-1].mod_revision
        return news

    def compare(self) -> Comparison:
        """Begin a comparison; an earlier one is void. Call it before the list is asked for."""
        self.epoch = self.epoch % _EPOCHS + 1
        self.log = []
        return Comparison(self, self.revision, self.epoch)

    def abandon(self) -> None:
        """Drop the comparison."""
        self.log = None


@dataclass(slots=True)
class Comparison:
    """One list against a Content that goes on changing."""

    content: Content
    start_revision: int  # of the content, before the list was asked for
    epoch: int
    revision: int = 0  # of the list; 0 until its first page
    cluster_id: int = 0
    equal: int = 0  # keys named by the list and held as it says
    suspects: dict[str, Put] = field(default_factory=dict)  # named by the list, not held so when they were read
    collected: list[Put] | None = None  # everything, when the list begins another history
    why: str = ""  # it does, unless there was none before

    def begin(self, revision: int, cluster_id: int) -> str:
        """To be called with each page. If the list turns out to be of another history, says why, once."""
        if self.revision:
            return ""
        self.revision, self.cluster_id = revision, cluster_id
        known = self.content.cluster_id
        if known and cluster_id != known:
            self.why = f"another cluster than before ({cluster_id:x} instead of {known:x})"
        elif known and revision < self.start_revision:
            self.why = f"the store went back from revision {self.start_revision} to {revision}, as after a restore"
        if self.why or not known:
            self.collected = []
        return f"{self.why}: taking over its whole content" if self.why else ""

    def add(self, entries: Sequence[Put]) -> None:
        """Compare a part of the list."""
        if self.collected is not None:
            self.collected.extend(entries)
            return
        held, suspects, epoch = self.content.held, self.suspects, self.epoch
        equal = 0
        for put in entries:
            stamp = _stamp(put)
            if held.get(put.key, -1) & ~_EPOCHS == stamp:
                # Even if events are still to come: they cannot be for this key and at or before the list's revision.
                held[put.key] = stamp | epoch
                equal += 1
            else:
                suspects[put.key] = put
        self.equal += equal

    def result(self, final: bool) -> Result | None:
        """After the last page: settle and end the comparison.

        None: there are differences, but also events missing up to the list's revision that may explain them. Wait for
        more events, and ask again; final: none will come, what differs is wrong.
        """
        if self.collected is not None:
            return self._replace(self.collected)
        held, before = self.content.held, self._undo()

        def at_revision(key: str) -> int | None:
            return before[key] if key in before else held.get(key)

        wrong, present = [], 0
        for put in self.suspects.values():
            stamp = at_revision(put.key)
            present += stamp is not None
            if stamp is None or stamp & ~_EPOCHS != _stamp(put):
                wrong.append(put)
        count = len(held) + sum((old is not None) - (key in held) for key, old in before.items())
        extra = self._extra(before) if self.equal + present != count else []
        if (wrong or extra) and not final and self.content.revision < self.revision:
            return None
        wrong.sort(key=lambda put: put.mod_revision)
        repairs: list[Put | Delete] = [put for put in wrong if put.key not in before]
        repairs += [Delete(key, self.revision) for key in extra if key not in before]
        for event in repairs:
            if isinstance(event, Put):
                held[event.key] = _stamp(event)
            else:
                del held[event.key]
        self.content.revision = max(self.content.revision, self.revision)
        self.content.log = None
        keys = [put.key for put in wrong] + extra
        more = f" and {len(keys) - _SAMPLE} more" if len(keys) > _SAMPLE else ""
        return Result(None, repairs, len(keys), ", ".join(keys[:_SAMPLE]) + more)

    def _undo(self) -> dict[str, int | None]:
        """Keys changed after the list's revision -> their stamps at that revision, None: not there."""
        before: dict[str, int | None] = {}
        for revision, key, old in reversed(self.content.log or ()):
            if revision > self.revision:
                before[key] = old
        return before

    def _extra(self, before: dict[str, int | None]) -> list[str]:
        """Keys held at the list's revision that it does not name."""

        def unnamed(key: str, stamp: int | None) -> bool:
            return stamp is not None and stamp & _EPOCHS != self.epoch and key not in self.suspects

        extra = [key for key, stamp in self.content.held.items() if key not in before and unnamed(key, stamp)]
        return extra + [key for key, stamp in before.items() if unnamed(key, stamp)]

    def _replace(self, entries: list[Put]) -> Result:
        self.content.held = _stamps(entries)
        self.content.revision, self.content.cluster_id = self.revision, self.cluster_id
        self.content.log = None
        return Result(Listing(entries, self.revision, self.why))
