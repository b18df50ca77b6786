"""SkyDNS keys in, answers out: schema, zone model, table and both answerers, without etcd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import dns.flags
import dns.message
import dns.rcode

from loader import bulk, compiler, names
from loader._books import Books
from loader._short import Plain
from loader.compiler import Given
from loader.feed import ByName, Update
from loader.model import Changes, Delete, Listing, Put, Record
from loader.skydns import Semantics
from loader.skydns_feed import change_update, full_update
from loader.skydns_tree import MOST, ServiceTree
from loader.zone import Zones
from shm.node import RRset, unpack
from tests.support.answerers import hot_path, reference
from tests.support.tables import make_table

PREFIX = "/skydns"
SIZE = 1 << 22


class Told:
    """A ByName that fails if it gives a name twice."""

    def __init__(self, by_name: ByName, zones: Zones) -> None:
        self._by_name, self._zones = by_name, zones

    @property
    def left(self) -> set[str]:
        return self._by_name.left

    def place(self, books: Books, step: int) -> Iterator[None]:
        return self._by_name.place(books, step)

    def __iter__(self) -> Iterator[Given]:
        told = set(self._zones._gifts.by_name)
        for given in self._by_name:
            assert given[0] not in told
            told.add(given[0])
            yield given


def take_swap(zones: Zones, plain: Plain, owners: list[bytes]) -> bool:
    """As the publisher does it; whether it went the short way."""
    short = bulk.give_plain(zones, plain, owners)
    if not short:
        records = [Record(None, owner, *rr) for owner in owners for rr in compiler.rrs(plain.gift())]
        zones.apply(plain.key, records, plain.revision)
    return short


class World:
    """One source of SkyDNS keys, and what is answered from it. Revisions count up from 1."""

    def __init__(
        self,
        keys: Mapping[str, str] | None = None,
        semantics: Semantics = "coredns",
        zones: Iterable[str] = ("example.test",),
        lease_ttls: Mapping[int, int] | None = None,
        most: int = MOST,
        *,
        by_key: bool = False,
    ) -> None:
        """by_key: the first listing is applied key by key, too."""
        self._by_key = by_key
        apexes = [names.from_text(zone) for zone in zones]
        known = lease_ttls or {}
        self.tree = ServiceTree(PREFIX, apexes, semantics, lambda lease: known.get(lease, 0), most)
        self.zones = Zones(apexes)
        self.marked: set[bytes] = set()  # by the updates
        self.revision = 0
        self.swapped = 0  # changes that took the short way
        self._keys: set[str] = set()
        self.relist([self.put(key, value) for key, value in (keys or {}).items()])

    def put(self, key: str, value: str, lease: int = 0) -> Put:
        self.revision += 1
        return Put(f"{PREFIX}/{key}", value.encode(), self.revision, lease)

    def delete(self, key: str) -> Delete:
        self.revision += 1
        return Delete(f"{PREFIX}/{key}", self.revision)

    def relist(self, puts: list[Put]) -> None:
        self.apply(full_update(self.tree, Listing(puts, self.revision)))

    def change(self, *events: Put | Delete) -> Update:
        update = change_update(self.tree, Changes(list(events), self.revision))
        self.apply(update)
        return update

    def apply(self, update: Update) -> None:
        """As the publisher does it."""
        if update.by_name is not None and not self._keys and not self._by_key:
            self._fill(update.by_name, update)
            return
        for swap in update.swaps:
            self.swapped += take_swap(self.zones, *swap)
        gone = self._keys - update.records.keys() if update.full else set()
        for key, records in [*update.records.items(), *((key, None) for key in gone)]:
            revision = update.revisions.get(key, update.revision)
            self.zones.apply(key, records or (), revision, update.causes.get(key, 0))
            (self._keys.add if records or key in update.problems else self._keys.discard)(key)
        for name, on in update.marks.items():
            self.zones.mark(name, on)
            (self.marked.add if on else self.marked.discard)(name)

    def _fill(self, by_name: ByName, update: Update) -> None:
        for _ in bulk.fill(self.zones, Told(by_name, self.zones), 100):
            pass
        self._keys = {*self.zones.keys(), *update.problems}
        self.marked.update(self.zones._aggregates)
        for key in by_name.left:
            self.zones.apply(key, update.records[key] or (), update.revisions[key])

    def ask(self, name: str, type_: str) -> list[str]:
        """`TYPE DATA` of every answer, sorted, names other than the question's in front; or an rcode's name."""
        message = self.message(name, type_)
        if message.rcode():
            return [dns.rcode.to_text(message.rcode())]
        asked = dns.message.make_query(name, type_).question[0].name
        return sorted(
            (f"{rrset.name} " if rrset.name != asked else "")
            + f"{rrset.rdtype.name} {rrset.ttl if rrset.ttl != 300 else ''} {rdata}".replace("  ", " ")
            for rrset in message.answer
            for rdata in rrset
        )

    def additional(self, name: str, type_: str) -> list[str]:
        return sorted(
            f"{rrset.name} {rrset.rdtype.name} {rdata}"
            for rrset in self.message(name, type_).additional
            for rdata in rrset
        )

    def message(self, name: str, type_: str) -> dns.message.Message:
        """By TCP, from both answerers."""
        table = make_table(self.zones.all_nodes(), SIZE)
        query = dns.message.make_query(name, type_)
        packet = query.to_wire()
        reply = reference(packet, table, stream=True)
        assert hot_path(packet, table, stream=True) in (reply, None)
        assert reply
        message = dns.message.from_wire(reply)
        assert message.flags & dns.flags.TC == 0
        return message

    def content(self) -> dict[bytes, tuple[int, dict[int, RRset]]]:
        """Everything that would be published, but for the serials."""
        nodes = map(unpack, self.zones.all_nodes())
        return {
            node.name: (node.flags, {type_: rrset for type_, rrset in node.rrsets.items() if type_ not in (0, 6)})
            for node in nodes
        }
