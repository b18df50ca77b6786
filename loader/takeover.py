"""A loader's first table: what the sources say, compared with what readers have. Pure.

Readers may have a table that another loader left, or the image of one (loader/image.py). The differences are a burst
like any other: the guard judges them, and what was held before the loader ended is held on. One pass through the model
compares and makes the new table at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol
from zlib import crc32

import msgspec

from loader.apex import is_apex, same_but_serial, serial, with_serial
from loader.gate import Flow, Gate
from loader.guard import Find
from loader.held import Held, Holdings, State, digest
from loader.names import counted
from shm.node import name_of

log = logging.getLogger(__name__)

#: Told of a pin whose loader died before readers had that state, or whose image is older than it.
MISSED = "but readers have another state: it was not published before the loader ended; roll back once more, or resume"


class Table(Protocol):
    """What readers have (shm._table.Table)."""

    @property
    def names(self) -> int: ...
    @property
    def meta(self) -> dict[str, Sequence[bytes]]: ...
    def find(self, name: bytes) -> bytes | None: ...
    def same(self, block: bytes) -> bool: ...
    def blocks(self) -> Iterator[bytes]: ...


class SavedChange(msgspec.Struct):
    """A held change as it is kept on disk: loader/held.py says what is what. names: those that it has. seal: of a pin,
    what readers have of them."""

    number: int
    state: State
    reasons: list[str]
    since: float
    revision: int
    lasting: bool
    drip: bool
    growth: int
    names: list[bytes]
    refused: dict[bytes, bytes]
    seal: int = 0


class Saved(msgspec.Struct):
    """All that is held. next: the number of the next change. ended: see Gate. reserved: see Reserve.bounds."""

    next: int
    changes: list[SavedChange]
    ended: dict[bytes, int] = {}
    reserved: dict[bytes, int] = {}


def saved(gate: Gate) -> Saved:
    """What is held now, to be kept."""
    changes = [
        SavedChange(
            held.number, held.state, held.reasons, held.since, held.revision, held.lasting, held.drip, held.growth,
            list(held.kept), dict(held.refused), _seal(held.kept.values()) if held.state is State.PINNED else 0,
        )
        for held in gate.holdings.all
    ]  # fmt: skip
    return Saved(gate.next, changes, dict(gate.ended), dict(gate.reserve.bounds))


def _seal(blocks: Iterable[bytes | None]) -> int:
    """A checksum, whatever the serials; of a million blocks in a quarter of a second."""
    seal = 0
    for block in blocks:
        if is_apex(block):
            block = with_serial(block, 0)
        seal = crc32(block or b"-", seal)
    return seal


def first(
    gate: Gate,
    nodes: Iterable[bytes],
    table: Table | None,
    revision: int,
    why: str = "",
    kept: Saved | None = None,
    tell: Callable[[Flow, Find], None] = lambda flow, find: None,
) -> Iterator[bytes]:
    """The blocks of the first table. A name may come more than once: the last block counts.

    nodes: all of the model's; it must not change meanwhile. table: what readers have, None: nothing. kept: what was
    held. revision, why: see Gate.sift. tell: is told what changes for readers, and finds what they have. Raises
    TableDamaged.
    """
    if kept is not None:
        gate.ended |= kept.ended
        kept.ended = {}
    if table is None:
        if kept is not None and kept.changes:
            log.error(
                "%d changes were held, and there is no table to tell what readers had: all is published",
                len(kept.changes),
            )
            _forget(gate, kept)
        yield from again(gate, nodes)
        return
    names = seen = 0
    differ: Flow = {}
    find, same = table.find, table.same
    held = gate.holdings.holder if gate.holdings.all else None  # this loader has published before
    for block in nodes:
        if same(block) and (held is None or held(name_of(block)) is None):  # as nearly all are
            seen += 1
            names += bool(block[5])
            yield block
            continue
        name = name_of(block)
        old = find(name)
        if old is not None:
            seen += 1
            names += bool(old[5])
        differ[name] = block
    if seen < table.names:
        for old in table.blocks():
            name = name_of(old)
            if name not in differ and not gate.model.has(name):
                differ[name] = None
                names += bool(old[5])
    gate.begin(names, table.meta.get("zones", ()))
    _adopt(gate, kept, differ, find)
    gate.insist(find)
    for apex in gate.model.grow(_unmoved(gate, differ, find)):
        differ[apex] = gate.model.block(apex)
    flow = gate.sift(differ, find, revision, why)
    tell(flow, find)
    for name in differ.keys() | flow.keys():
        made = flow[name] if name in flow else find(name)
        if made is not None:
            yield made


def again(gate: Gate, nodes: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks of a table in the place of one that cannot be read: the model's, and what is held as it was."""
    names, zones = 0, set()
    for block in _with_held(gate.holdings, nodes):
        if block[5]:
            names += 1
        if is_apex(block):
            zones.add(name_of(block))
        yield block
    gate.begin(names, zones)


def _with_held(holdings: Holdings, nodes: Iterable[bytes]) -> Iterator[bytes]:
    if not holdings.all:
        yield from nodes
        return
    for block in nodes:
        name = name_of(block)
        held = holdings.holder(name)
        if held is None:
            yield block
            continue
        old = held.kept[name]
        if is_apex(old) and is_apex(block):
            holdings.join(held, name, with_serial(old, serial(block)), block)
    for held in holdings.all:
        yield from filter(None, held.kept.values())


def _unmoved(gate: Gate, differ: Flow, find: Find) -> set[bytes]:
    """Apexes of zones that differ, but not in the serial: a loader that was away knows nothing of what was deleted."""
    zones = set()
    for name, block in differ.items():
        old = find(name)
        if not (is_apex(block) and is_apex(old) and same_but_serial(block, old)):
            zone = gate.model.zone_of(name)
            if zone is not None:
                zones.add(zone)
    unmoved = set()
    for zone in zones:
        block, old = gate.model.block(zone), find(zone)
        if is_apex(block) and is_apex(old) and serial(block) == serial(old):
            unmoved.add(zone)
    return unmoved


def _adopt(gate: Gate, kept: Saved | None, differ: Flow, find: Find) -> None:
    """Hold on to what was held, as far as it still differs."""
    if kept is None:
        return
    gate.next = max(gate.next, kept.next)
    for one in kept.changes:
        if one.state is State.PENDING and not gate.limits.on:
            continue
        held = Held(
            one.number, one.state, one.reasons, one.since, one.revision,
            lasting=one.lasting, drip=one.drip, growth=one.growth, since_s=gate.since_s(one.since),
        )  # fmt: skip
        gate.holdings.all.append(held)
        if one.seal and one.seal != _seal(map(find, one.names)):
            held.reasons = [*held.reasons, MISSED]
            log.error("%s; %s", one.reasons[0], MISSED)
        for name in one.names:
            if name not in differ or gate.holdings.holder(name) is not None:
                continue
            old, new = find(name), differ[name]
            if is_apex(old) and is_apex(new) and same_but_serial(old, new):
                continue
            refused = one.refused.get(name)
            if held.state is State.REJECTED and refused != digest(new):
                continue
            gate.holdings.join(held, name, old, new)
            if refused is not None:
                held.refused[name] = refused
        held.judged = len(held.kept)
        if held.kept or held.state is State.PINNED:
            log.warning("change %d is still %s: %s", held.number, held.state.value, counted(len(held.kept)))
        else:
            gate.holdings.drop(held)
    _forget(gate, kept)


def _forget(gate: Gate, kept: Saved) -> None:
    """What was held is the gate's now: a later table made anew must not find it again, nor a later loader."""
    kept.changes.clear()
    gate.holdings.version += 1
