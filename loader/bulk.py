"""The first list of a source, and the first table: most keys are new and give one RR to a name of their own. A part of
loader/zone.py, for speed.

A million keys the long way, one by one, take 6 s: here the same is done to the model's books for many keys in one loop,
with what the name before has shown. What is unusual in any way is left to the long way.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from loader._books import Books
from loader._nodes import block, blocks
from loader._short import Plain
from loader.compiler import FIRST_RR, Gift
from loader.model import Record
from loader.names import STAR
from loader.rdata import DNAME, NS, SOA
from shm.layout import NodeFlag

if TYPE_CHECKING:
    from loader.feed import ByName
    from loader.zone import Zones

_WILDCARD, _AGGREGATE = int(NodeFlag.WILDCARD_CHILD), int(NodeFlag.AGGREGATE)


def give_all(
    model: Zones, made: Iterable[tuple[bytes, Gift] | None], apart: Container[bytes] = frozenset()
) -> list[int]:
    """Takes (name, gift) of each key, and returns the numbers of those that it left alone, for Zones.apply: None, keys
    and names that are not new, names in `apart`, an apex, and what lies outside the zone that the gift names.

    A gift has no NS, SOA or DNAME, its TTLs are as they are to be, and its name does not begin with `*`.
    """
    gifts_to, names_of, zones = model._gifts.by_name, model._gifts.by_key, model._zones
    children, link, touch = model._tree._children, model._tree.link, model._touch
    above = zone = siblings = None  # of the name before; names that come together share them
    left: list[int] = []
    model._unlisted = True
    for number, one in enumerate(made):
        if one is None:
            left.append(number)
            continue
        name, gift = one
        if name in gifts_to or gift[0] in names_of or name in zones or name in apart:
            left.append(number)
            continue
        behind = name[name[0] + 1 :]
        if behind != above:
            above, zone, siblings = behind, model._zone_of(behind), None
        if zone is None or zone.apex != gift[2]:
            above = None
            if gift[2] is None or gift[2] in zones:
                left.append(number)
                continue
            model.hold(gift[2], gift[1])
            zone = model._zone_of(behind)
            if zone is None or zone.apex != gift[2]:
                model.let_go(gift[2], gift[1])
                left.append(number)
                continue
        else:
            zone.references += 1
        gifts_to[name] = gift
        names_of[gift[0]] = name
        if siblings is None:
            link(name)
            found = children.get(behind)
            siblings = found if isinstance(found, set) else None
        else:
            siblings.add(name)
        if gift[1] > zone.touched:
            touch(zone, gift[1])
    return left


def books_of(model: Zones) -> Books:
    """Of the model: what compiled code goes through."""
    gifts, children = model._gifts, model._tree._children
    return Books(model._zones, model._touch, gifts.by_name, gifts.by_key, children, model._void, model._aggregates)


def fill(model: Zones, by_name: ByName, step: int) -> Iterator[None]:
    """Takes names with all that a source gives to them, which has given nothing before (loader/feed.py: ByName). As if
    its keys were applied, and its aggregates marked. Yields every `step` names."""
    gifts, aggregates, books = model._gifts, model._aggregates, books_of(model)
    for _ in by_name.place(books, step):
        model._unlisted = True
        books.tell()
        yield
    for number, (name, several, aggregate) in enumerate(by_name, 1):
        model._unlisted = True
        if len(several) != 1 or not books.place(name, several[0]):
            for gift in several:
                gifts.put(name, gift)
                model._pend(name, gift[1])
                model._tree.link(name)
        if aggregate:
            aggregates.add(name)
        if number % step == 0:
            books.tell()
            yield
    books.tell()


#: Types that change what other names are; an RR of another type that is alone at its name may take the short way.
_STRUCTURAL = frozenset((NS, SOA, DNAME))
#: Octets of data, so that nobody has to ask whether the RRset outgrows its bounds.
_SHORT_DATA = 4096


def give_again(model: Zones, key: str, record: Record, revision: int, cause: int) -> bool:
    """The short way of the most frequent change: a key gives one RR instead of one of the same type to the same name,
    where nobody else gives anything, and nothing was to be said. False: the long way, Zones.apply."""
    owner, type_ = record.owner, record.type
    gifts_to, zones = model._gifts.by_name, model._zones
    old = gifts_to.get(owner)
    if type(old) is not tuple or len(old) != FIRST_RR + 3 or old[0] != key or old[3] != type_ or old[2] != record.zone:
        return False
    if model._gifts.by_key[key] != owner or type_ in _STRUCTURAL or len(record.rdata) > _SHORT_DATA or owner in zones:
        return False
    if owner in model._pending or owner in model._void or owner in model._problems or owner in model._warnings:
        return False
    zone = model._zone_of(owner)
    if zone is None or (old[2] is not None and old[2] != zone.apex):
        return False
    new = (key, revision, old[2], old[3], model._ttl(record.ttl), record.rdata)
    if new != old:
        gifts_to[owner] = new
        model._changed.add(owner)
        model._touch(zone, max(revision, cause))
    return True


def give_plain(model: Zones, plain: Plain, names: Sequence[bytes]) -> bool:
    """The same of a key of SkyDNS that gives to these names, and gave to them before. False: the long way."""
    gifts, book = model._gifts, model._gifts.by_name
    given = gifts.names_of(plain.key)
    if len(given) != len(names) or set(given) != set(names):
        return False
    for name in names:
        old = book.get(name)
        if not isinstance(old, Plain) and (type(old) is not tuple or old[2] is not None):
            return False
        if name in model._zones or name in model._outside or name in model._pending or name in model._void:
            return False
        if name in model._problems or name in model._warnings:
            return False
    for name in names:
        book[name] = plain
        model._changed.add(name)
        zone = model._zone_of(name)
        if zone is not None:
            model._touch(zone, plain.revision)
    return True


def nodes(model: Zones) -> Iterator[bytes]:
    """The node blocks of all names that are given to. The model is settled, and nothing is applied meanwhile."""
    if model._cuts:
        yield from _nodes_among_cuts(model)
        return
    left: list[bytes] = []
    yield from blocks(books_of(model), model._outside, _WILDCARD, _AGGREGATE, left)
    yield from filter(None, map(model._compile, left))


def _nodes_among_cuts(model: Zones) -> Iterator[bytes]:
    zones, void, aggregates, cuts = model._zones, model._void, model._aggregates, model._cuts
    has_child, compile_ = model._tree.has_child, model._compile
    above, plain = None, False  # of the name before; plain: what is beneath `above` is in a zone, and under no cut
    for name, held in model._gifts.by_name.items():
        if name not in zones and name not in void:
            if (behind := name[name[0] + 1 :]) != above:
                above, plain = behind, model.is_plain(name)
            if plain and name not in cuts:
                flags = _WILDCARD if has_child(name, STAR + name) else 0
                made = block(name, flags | _AGGREGATE if name in aggregates else flags, held)
                if made is not None:
                    yield made
                    continue
        made = compile_(name)
        if made is not None:
            yield made
