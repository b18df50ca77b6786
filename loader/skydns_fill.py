"""All that a SkyDNS source gives, name by name instead of key by key: for a zone model that has nothing of it yet.

Key by key, each key asks all names above it what they answer, and each of these is settled once for each of its keys.
Name by name, a name is looked at once, and most have one plain key, whose gift is there already.
"""

from __future__ import annotations

from collections.abc import Iterator

from loader._short import name_of
from loader.compiler import Gift, Given
from loader.skydns import Service
from loader.skydns_tree import ServiceTree, is_name


class ByName:
    """loader/feed.py's ByName. The tree may move on while this is read: the update that tells is on its way. A name may
    be given twice then."""

    def __init__(self, tree: ServiceTree) -> None:
        self._tree = tree
        self.left: set[str] = set()

    def __iter__(self) -> Iterator[Given]:
        yield from self._own()
        yield from self._beneath()
        services = self._tree.services
        for name in services.odd_names():
            if name not in services.zones and not any(name in beneath for beneath in self._tree.beneath):
                yield self._given(name)
        for name in services.zones:
            yield self._given(name)

    def _own(self) -> Iterator[Given]:
        """Names with one key of their own, and nothing beneath them."""
        services = self._tree.services
        base, by_key, has_odd, zones = services.base, services.by_key, services.has_odd, services.zones
        hosts, texts = (beneath.names for beneath in self._tree.beneath)
        some_odd = bool(services.odd_names())
        for key in list(by_key):
            held = by_key.get(key)
            if held is None:
                continue
            name = name_of(base, key) if isinstance(held, tuple) else services.owner(held)
            if name in hosts or name in texts or name in zones or (some_odd and has_odd(name)):
                continue
            if not isinstance(held, tuple):
                yield self._given(name)
            elif is_name(name):
                yield name, (held,), False

    def _beneath(self) -> Iterator[Given]:
        """Names with keys beneath them, but for the apexes."""
        services = self._tree.services
        by_key, zones, has_own = services.by_key, services.zones, services.has_own
        hosts, texts = self._tree.beneath
        only, with_texts = hosts.only, texts.names
        for name in list(hosts):
            if name in zones:
                continue
            key = only(name)
            held = by_key.get(key) if key is not None else None
            if isinstance(held, tuple) and name not in with_texts and not has_own(name) and is_name(name):
                yield name, (held,), True
            else:
                yield self._given(name)
        only, with_hosts = texts.only, hosts.names
        for name in list(texts):
            if name in with_hosts or name in zones:
                continue
            key = only(name)
            held = by_key.get(key) if key is not None else None
            if isinstance(held, tuple) and not has_own(name) and is_name(name):
                yield name, (held,), True
            else:
                yield self._given(name)

    def _given(self, name: bytes) -> Given:
        """Of any name."""
        by_key = self._tree.services.by_key
        gifts: list[Gift] = []
        for key, records in self._tree.view(name).items():
            held = by_key[key]
            if not isinstance(held, tuple) and type(held) is not Service:
                self.left.add(key)
                continue
            revision = held[1] if isinstance(held, tuple) else held.revision
            gifts.append((key, revision, None, *(part for record in records for part in record)))
        return name, gifts, self._tree.is_aggregate(name)
