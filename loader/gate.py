"""Between the model and the tables: lets changes through, or keeps them aside until somebody decides. No I/O.

The model always follows the source; the tables may differ from it in what is held here, and in nothing else, beside the
serials of zones in which nothing was published since. A burst that the guard speaks against is held whole. Later
changes go on to flow if they are about other names (loader/held.py tells which have to wait all the same), or are held,
too: with guard_order = strict, and while the table is pinned.

    held ──approve──▶ published          held ──the source takes it back──▶ published as far as it is harmless
    held ──reject───▶ rejected: readers keep the old blocks until the source changes a name again, or `approve`
    pin ─▶ what a person wants is published, all else is held ──resume──▶ published

Every serial that readers see grows with every change that they see, and goes back never (RFC 1982).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from loader import guard
from loader.apex import is_apex, same_but_serial, serial, with_serial
from loader.guard import Before, Find, Limits, Recent
from loader.held import Held, Holdings, Pair, State, digest
from loader.names import counted
from loader.reserve import Reserve

log = logging.getLogger(__name__)

#: A held change that shrinks is judged anew when so much of it is left since the last time, or so few names.
_JUDGE_SHARE = 0.9
_JUDGE_NAMES = 1000
#: Pending changes at a time, and rejected ones; more join the last.
_MOST = 8
#: Of one change, for people.
_MOST_REASONS = 10
#: Zones that are gone and remembered.
_MOST_ENDED = 10_000

Flow = dict[bytes, bytes | None]
#: Held changes that have become smaller -> the names that have left, but for those that are as readers have them.
Shrunk = dict[Held, list[bytes]]


class Model(Protocol):
    """What the gate asks of the zone model (loader/zone.py)."""

    def block(self, name: bytes) -> bytes | None: ...
    def has(self, name: bytes) -> bool: ...
    def zone_of(self, name: bytes) -> bytes | None: ...
    def populated(self, apex: bytes) -> bool: ...
    def grow(self, names: Iterable[bytes]) -> set[bytes]: ...
    def continue_serials(self, floors: Mapping[bytes, int]) -> None: ...


class Undecided(ValueError):
    """There is no such change, or it cannot be decided so now. The message is for people."""


class Gate:
    """Knows what readers have, as far as it differs from the model."""

    def __init__(self, limits: Limits, model: Model, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        """clock, wall: seconds of CLOCK_MONOTONIC and CLOCK_REALTIME."""
        self.limits = limits
        self.holdings = Holdings()
        #: Apexes that are published.
        self.zones: set[bytes] = set()
        #: Apexes that are not any more -> the last serial that readers have seen, which secondaries may still have.
        self.ended: dict[bytes, int] = {}
        #: Serials that a start without the memory could not know.
        self.reserve = Reserve()
        #: The number of the next held change.
        self.next = 1
        #: Whether the last burst was held, and all that came with it: readers have not got this far.
        self.stands = False
        #: Why the last burst was published, for the history: "change", or the decision that it carried out.
        self.deed = "change"
        self._decided = ""
        self.model = model
        self._clock = clock
        self._wall = wall
        self._recent = Recent()
        self._names = 0  # published ones with records
        self._freed: set[bytes] = set()  # to be published with the next burst, without being judged
        self._forced: Flow = {}  # to be published with the next burst, whatever the model says
        self._lagging: dict[bytes, int] = {}  # apex -> its serial, which readers may not have seen
        self._floor = 0  # for the serial of a zone that a rollback brings back: the source's revision

    # ------------------------------------------------------------ what is held

    @property
    def version(self) -> int:
        """Grows whenever what is to be on disk changes."""
        return self.holdings.version

    @property
    def pending(self) -> list[Held]:
        return [held for held in self.holdings.all if held.state is State.PENDING]

    @property
    def rejected(self) -> list[Held]:
        return [held for held in self.holdings.all if held.state is State.REJECTED]

    @property
    def pinned(self) -> Held | None:
        return next((held for held in self.holdings.all if held.state is State.PINNED), None)

    @property
    def note(self) -> str:
        """More about the deed, for the history."""
        return self.pinned.reasons[0] if self.deed == "rollback" and self.pinned is not None else ""

    @property
    def due(self) -> bool:
        """Whether a decision waits for the next burst to be published with; an empty one will do."""
        return bool(self._freed or self._forced)

    def find(self, number: int) -> Held:
        """The pending or rejected change of this number. Raises Undecided."""
        for held in self.holdings.all:
            if held.number == number and held.state is not State.PINNED:
                return held
        if self.pinned is not None and self.pinned.number == number:
            raise Undecided(f"change {number} is the pin of a rollback: `standoff resume` ends it")
        raise Undecided(f"there is no held change {number}; `standoff pending` lists them")

    def begin(self, names: int, zones: Iterable[bytes]) -> None:
        """What is published at first: how many names with records, and which apexes."""
        self._names, self.zones = names, set(zones)
        self._lagging.clear()
        self._forced.clear()

    def insist(self, find: Find) -> None:
        """Publish, with the next burst, what readers should have of held names and have not: a swap has failed."""
        for held in self.holdings.all:
            self._forced.update((name, old) for name, old in held.kept.items() if find(name) != old)

    def free(self, names: Iterable[bytes]) -> None:
        """They have been let through before: what comes of them next is not judged."""
        self._freed.update(names)

    def since_s(self, since: float) -> float:
        """CLOCK_MONOTONIC at a time of CLOCK_REALTIME that is past."""
        return self._clock() - max(0.0, self._wall() - since)

    # ------------------------------------------------------------ decisions

    def approve(self, held: Held) -> int:
        """Publish it with the next burst. How many names. Raises Undecided while the table is pinned."""
        self._check_unpinned()
        found = self._release(held)
        self._decided = "approve"
        self._recent.clear()
        log.warning("change %d approved: %s (%s)", held.number, counted(found), "; ".join(held.reasons))
        return found

    def reject(self, held: Held) -> int:
        """Keep what readers have until the source changes a name again. How many names. Raises Undecided."""
        self._check_unpinned()
        if held.state is not State.PENDING:
            raise Undecided(f"change {held.number} has been rejected before")
        held.refused = {name: digest(self.model.block(name)) for name in held.kept}
        held.state = State.REJECTED
        self._recent.clear()
        self.holdings.version += 1
        found = len(held.kept)
        if len(self.rejected) > _MOST:
            self._merge(held, self.rejected[0])
        reasons = "; ".join(held.reasons)
        log.warning("change %d rejected: readers keep what they have of %s (%s)", held.number, counted(found), reasons)
        return found

    def pin(self, target: Mapping[bytes, bytes | None], reason: str, revision: int) -> int:
        """Publish these blocks with the next burst, and hold all that the source changes until `resume`.

        target: name -> its block, None: readers shall have no such name; of names that are not in here readers keep
        what they have. Pinned already: it goes on from there. How many names will differ from the model.
        """
        pin = self.pinned or self._new(State.PINNED, [reason], revision)
        pin.reasons, pin.revision, pin.since = [reason], revision, self._wall()
        for name, block in target.items():
            self._pin_one(pin, name, block)
        self.grow(target)
        self._decided = "rollback"
        self.holdings.version += 1
        log.warning("%s: held there until `standoff resume`: %s", reason, counted(len(pin.kept)))
        return len(pin.kept)

    def _pin_one(self, pin: Held, name: bytes, block: bytes | None) -> None:
        wanted = self.model.block(name)
        held = self.holdings.holder(name)
        if block != wanted and not (is_apex(block) and is_apex(wanted) and same_but_serial(block, wanted)):
            self.holdings.join(held or pin, name, block, wanted)
            self._forced[name] = block
        elif held is not None:
            self.holdings.leave(held, name)
            self._forced[name] = wanted

    def unsent(self, names: Iterable[bytes], find: Find) -> None:
        """These were let through, and could not be published. After a rollback since then they are not to be."""
        pin = self.pinned
        if pin is not None and self._decided == "rollback":
            for name in names:
                if name not in self._forced:
                    self._pin_one(pin, name, find(name))

    def resume(self) -> int:
        """Publish what the source says with the next burst. How many names. Raises Undecided if it is not pinned."""
        pin = self.pinned
        if pin is None:
            raise Undecided("the table is not pinned")
        found = self._release(pin)
        self._decided = "resume"
        self._forced = {name: block for name, block in self._forced.items() if name not in self._freed}
        log.warning("resumed: the source is followed again, which changes %s", counted(found))
        return found

    def _check_unpinned(self) -> None:
        if self.pinned is not None:
            raise Undecided("the table is pinned: `standoff resume` first")

    def _release(self, held: Held) -> int:
        kept = self.holdings.drop(held)
        self._freed.update(kept)
        self.grow(kept)
        return len(kept)

    def grow(self, names: Iterable[bytes]) -> None:
        """Their zones are about to change for readers, though not in the model."""
        for name in self.model.grow(names):
            block = self.model.block(name)
            if is_apex(block):
                self._lagging[name] = serial(block)
                self._reserve(name, serial(block))

    def _reserve(self, apex: bytes, number: int) -> None:
        self.holdings.version += self.reserve.note(apex, number, self._floor)

    def _merge(self, held: Held, into: Held) -> None:
        for name, refused in list(held.refused.items()):
            self.holdings.join(into, name, self.holdings.leave(held, name), self.model.block(name))
            into.refused[name] = refused
        self.holdings.drop(held)

    def _new(self, state: State, reasons: list[str], revision: int) -> Held:
        held = Held(self.next, state, reasons, self._wall(), revision, since_s=self._clock())
        self.next += 1
        self.holdings.all.append(held)
        return held

    # ------------------------------------------------------------ bursts

    def sift(self, changes: Mapping[bytes, bytes | None], find: Find, revision: int, why: str = "") -> Flow:
        """What of a burst is to be published now; the rest is held. `find` tells what is published at present.

        revision: the source's. why: the burst follows a break in the source's history; then no difference may pass.
        """

        def seen(name: bytes) -> bytes | None:
            return self._forced[name] if name in self._forced else find(name)

        self._floor = revision % 2**32
        if not any(held.drip for held in self.pending):
            self._recent.expire(self._clock() - self.limits.window_s)
        burst, shrunk = self._sort(changes, seen)
        judged = {name: pair for name, pair in burst.items() if name not in self._freed} if self._freed else burst
        lost = self._judge(judged, seen, revision, why) if judged else []
        passed = {name: burst[name] for name in burst.keys() - judged.keys()} if lost is None else dict(burst)
        passed.update(self._resolve(shrunk, seen))
        self.holdings.arrange(passed)
        self._tell_ended(shrunk)
        flow = {name: new for name, (_, new) in passed.items()}
        for name, block in self._forced.items():
            flow.setdefault(name, block)
        if flow or not (judged or self.pinned):
            self._catch_up(flow, find)
        self._note_published(flow, passed, [name for name in lost or () if name in flow], find)
        self.stands = not flow and ((bool(judged) and lost is None) or self.pinned is not None)
        self.deed, self._decided = self._decided or "change", ""
        self._freed.clear()
        self._forced.clear()
        return flow

    def _sort(self, changes: Mapping[bytes, bytes | None], seen: Find) -> tuple[dict[bytes, Pair], Shrunk]:
        """The changes that are some and concern nothing held, and the held changes that have become smaller."""
        burst: dict[bytes, Pair] = {}
        shrunk: Shrunk = {}
        for name in self._freed - changes.keys():
            self._sort_one(name, seen(name), self.model.block(name), burst, shrunk)
        for name, new in changes.items():
            self._sort_one(name, seen(name), new, burst, shrunk)
        return burst, shrunk

    def _sort_one(
        self, name: bytes, old: bytes | None, new: bytes | None, burst: dict[bytes, Pair], shrunk: Shrunk
    ) -> None:
        holdings = self.holdings
        held = holdings.holder(name) if holdings.all else None
        same = old == new
        if is_apex(new):
            same = same or (is_apex(old) and same_but_serial(old, new))
            self._lagging[name] = serial(new)
        else:
            self._lagging.pop(name, None)
        if same:
            if held is not None:
                holdings.leave(held, name)
                shrunk.setdefault(held, [])
        elif held is None:
            burst[name] = (old, new)
        elif held.state is State.REJECTED and held.refused.get(name) != digest(new):
            holdings.leave(held, name)
            shrunk.setdefault(held, []).append(name)
            burst[name] = (old, new)
        else:
            holdings.revise(held, name, new)

    def _judge(self, burst: dict[bytes, Pair], seen: Find, revision: int, why: str) -> list[bytes] | None:
        """The names that a burst loses; None if it is held."""
        held, reasons = self.pinned, []
        if held is None:
            verdict = guard.judge(burst, self.limits, self._before(seen))
            reasons = verdict.reasons
            if why and self.limits.on:
                reasons = [f"{why}; {counted(len(burst))} would change", *reasons]
            if reasons:
                held = self._against(reasons, verdict.drip, bool(why), revision)
            elif self.limits.strict and self.pending:
                held = self.pending[-1]
            else:
                return verdict.lost
        elif why and why not in held.reasons:  # nothing is judged, but who resumes should know
            held.reasons = [*held.reasons, why]
        self.holdings.join_all(held, burst)
        if reasons:
            held.judged = len(held.kept)
            if held.growth == 1 or not held.drip:
                self._say(held, reasons)
        return None

    def _against(self, reasons: list[str], drip: bool, lasting: bool, revision: int) -> Held:
        """The held change for a burst that the guard speaks against: an earlier one if it belongs to that."""
        pending = self.pending
        held = next((one for one in pending if one.drip), None) if drip else None
        if held is None and len(pending) >= _MOST:
            held = pending[-1]
        if held is None:
            held = self._new(State.PENDING, reasons, revision)
        held.reasons = reasons if drip else list(dict.fromkeys([*held.reasons, *reasons]))[:_MOST_REASONS]
        held.drip, held.lasting = held.drip or drip, held.lasting or lasting
        held.growth += 1
        held.since_s = self._clock()
        return held

    def _say(self, held: Held, reasons: list[str]) -> None:
        log.error(
            "held back: %s. Of %s readers keep what they have. `standoff pending` shows the change, "
            "`standoff approve %d` publishes it, `standoff reject %d` refuses it",
            "; ".join(reasons), counted(len(held.kept)), held.number, held.number,
        )  # fmt: skip

    def _before(self, seen: Find) -> Before:
        dripped = sum(len(held.kept) for held in self.pending if held.drip)
        return Before(self._names, self._recent, dripped, self.zones, seen, self.model.populated)

    def _resolve(self, shrunk: Shrunk, seen: Find) -> dict[bytes, Pair]:
        """Of held changes that the source has taken back in part: what is harmless now, and no longer held."""
        resolved: dict[bytes, Pair] = {}
        for held, left in shrunk.items():
            pairs: dict[bytes, Pair] = {}
            if held.kept:
                if held.state is not State.PENDING or held.lasting or held.drip or self.pinned:
                    continue
                if len(held.kept) > max(_JUDGE_NAMES, _JUDGE_SHARE * held.judged):
                    continue
                held.judged = len(held.kept)
                pairs = {name: (old, self.model.block(name)) for name, old in held.kept.items()}
                if guard.judge(pairs, self.limits, self._before(seen)).reasons:
                    continue
            elif held.state is State.PINNED:
                continue
            self.holdings.drop(held)
            self.grow(pairs)
            resolved.update(pairs)
            left += pairs
        return resolved

    def _tell_ended(self, shrunk: Shrunk) -> None:
        for held, left in shrunk.items():
            if held in self.holdings.all:
                continue
            into = next(filter(None, map(self.holdings.holder, left)), None) if self.holdings.all else None
            if into is not None:
                log.warning("change %d is part of change %d now", held.number, into.number)
            elif held.state is State.REJECTED and left:
                log.warning("change %d has ended: the source has changed its names again", held.number)
            else:
                log.warning("change %d has resolved itself: the source has taken it back", held.number)

    # ------------------------------------------------------------ what is published

    def _catch_up(self, flow: Flow, find: Find) -> None:
        """Let readers see the serials of the model, also where the rest of an apex is held."""
        for name in self._lagging.keys() | {name for name, block in self._forced.items() if is_apex(block)}:
            held = self.holdings.holder(name)
            base = flow[name] if name in flow else held.kept[name] if held is not None else find(name)
            if not is_apex(base):
                continue
            number = self._serial_after(name, find(name), base)
            if serial(base) == number:
                continue
            flow[name] = block = with_serial(base, number)
            if held is not None:
                self.holdings.join(held, name, block, self.model.block(name))
        self._lagging.clear()

    def _serial_after(self, name: bytes, old: bytes | None, base: bytes) -> int:
        """The serial for an apex that readers have as `old`: the model's, unless it has another beginning."""
        number = self._lagging.get(name)
        if is_apex(old):
            last, least = serial(old), serial(old)
        elif name in self.ended or name in self._forced:  # secondaries may have more of it than it begins with
            last = self.ended.get(name, max(serial(base), self._floor))
            least = last + 1
        else:
            return serial(base) if number is None else number
        if number is not None and number >= least:
            return number
        self.model.continue_serials({name: last + 1})
        wanted = self.model.block(name)
        return serial(wanted) if is_apex(wanted) else (last + 1) % 2**32

    def _note_published(self, flow: Flow, passed: dict[bytes, Pair], lost: list[bytes], find: Find) -> None:
        for name, new in flow.items():
            old = passed[name][0] if name in passed else find(name)
            self._names += bool(new and new[5]) - bool(old and old[5])
            if new is not None and new[5]:
                self._recent.forget(name)
        self._recent.add(lost, self.zones, self._clock())
        for name, new in flow.items():
            if is_apex(new):
                self.zones.add(name)
                self.ended.pop(name, None)
                self._reserve(name, serial(new))
            elif name in self.zones:
                self.zones.discard(name)
                old = find(name)
                self.ended[name] = max(serial(old) if is_apex(old) else self._floor, self.reserve.end(name))
                self.holdings.version += 1
        while len(self.ended) > _MOST_ENDED:
            del self.ended[next(iter(self.ended))]
