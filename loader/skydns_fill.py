"""All that a SkyDNS source gives, name by name instead of key by key: for a zone model that has nothing of it yet.

Key by key, each key asks all names above it what they answer, and each of these is settled once for each of its keys.
Name by name, a name is looked at once, and most have one plain key, of which all is known (loader/_books.pyx).
"""

from __future__ import annotations

from collections.abc import Iterator

from loader._books import Books, Fill
from loader.compiler import Gift, Given
from loader.skydns import Service
from loader.skydns_tree import ServiceTree


class ByName:
    """loader/feed.py's ByName. The tree may move on while this is read: the update that tells is on its way. A name may
    be given twice then."""

    def __init__(self, tree: ServiceTree) -> None:
        self._tree = tree
        self._names: list[bytes] = []  # that were not placed
        self._keys: list[str] = []  # whose names were not
        self.left: set[str] = set()

    def place(self, books: Books, step: int) -> Iterator[None]:
        """Those with one plain key, which most are."""
        services, (hosts, texts) = self._tree.services, self._tree.beneath
        fill = Fill(books, services.base, services.zones, services.semantics == "strict")
        fill.books(services.by_key, hosts.keys, texts.keys, services.odd)
        beneath = [*hosts, *(name for name in texts if name not in hosts)]
        for start in range(0, len(beneath), step):
            self._names += fill.beneath(beneath[start : start + step])
            yield
        keys = list(services.by_key)
        for start in range(0, len(keys), step):
            self._keys += fill.own(keys[start : start + step])
            yield

    def __iter__(self) -> Iterator[Given]:
        """All others."""
        services, done = self._tree.services, {*self._names, *self._tree.services.zones}
        for name in done:
            yield self._given(name)
        for key in self._keys:
            service = services.get(key)
            if service is not None and (name := services.owner(service)) not in done:
                done.add(name)
                yield self._given(name)

    def _given(self, name: bytes) -> Given:
        """Of any name."""
        services = self._tree.services
        gifts: list[Gift] = []
        for key, records in self._tree.view(name).items():
            held = services.by_key[key]
            if isinstance(held, Service) and type(held) is not Service:
                self.left.add(key)
                continue
            gifts.append((key, services.revision_of(key), None, *(part for record in records for part in record)))
        return name, gifts, self._tree.is_aggregate(name)
