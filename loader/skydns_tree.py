"""The SkyDNS schema, all keys together: what each key gives to its own name and to the names above it.

*coredns*: a name answers with all that lies beneath it, and with its own key only if nothing does. *strict*: a name
answers with its own keys alone; `targetstrip` tells which labels of a key do not belong to its name.

For every name with something beneath it the services are kept in the order of their rank. The first `most` of them are
what it answers with: a fair sample, of which one change alters one at most. So a change costs the names above it,
`most` services at each of them, and an insertion into a list. What comes out is the same from scratch and step by step.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from operator import attrgetter

from loader import names, skydns
from loader import skydns_views as views
from loader.attributes import Conditional
from loader.model import Put, Record, Reject
from loader.skydns import HOST, POINTER, TEXT, ConditionalService, Semantics, Service
from loader.skydns_views import View

log = logging.getLogger(__name__)

#: Services that a name answers with at most. 256 addresses are 4 kB, 256 SRV up to 64 kB, all that an RRset may have.
MOST = 256
#: Labels that are questions for everything, never names (CoreDNS); see NodeFlag.AGGREGATE.
ALL_LABELS = (b"*", b"any")
#: Beneath an apex: what its addresses and its name servers are.
_APEX, _NS = b"\x04apex\x03dns", b"\x02ns\x03dns"

#: Keys of a list that are decoded in one go.
_STEP = 2000

#: Views of names with more services than that are worth remembering.
_SMALL = 8
_REMEMBERED = 256

#: In place of a text that is not served, and that most of ExternalDNS's keys have.
_SOME_TEXT = b"\0"

_rank = attrgetter("rank")


class ServiceTree:
    """All services of one source. `problems` tells what is wrong with which key."""

    def __init__(
        self,
        prefix: str,
        zones: Collection[bytes],
        semantics: Semantics = "coredns",
        lease_ttl: Callable[[int], int] = lambda lease: 0,
        most: int = MOST,
        *,
        keep: bool = False,
    ) -> None:
        """zones: the apexes, where aggregation ends. lease_ttl: lease -> seconds, as far as known. keep: see
        loader/last_good.py."""
        self._prefix, self._zones, self._semantics = prefix, frozenset(zones), semantics
        self._lease_ttl, self._most = lease_ttl, most
        self._keep = keep
        self.problems: dict[str, str] = {}
        self.kept: dict[str, int] = {}  # key with a problem that keeps its last good service -> revision refused
        self._services: dict[str, Service] = {}
        self._own: dict[bytes, Service | list[Service]] = {}
        self._below: tuple[dict[bytes, list[Service]], dict[bytes, list[Service]]] = ({}, {})  # by HOST, TEXT
        self._levels: dict[tuple[int, bytes], Counter[tuple[int, str]]] = {}  # of names with groups beneath them
        self._of_lease: dict[int, set[str]] = {}
        self._views: OrderedDict[bytes, View] = OrderedDict()
        self._told: set[bytes] = set()

    # ------------------------------------------------------------ in

    def replace(self, puts: Iterable[Put]) -> None:
        """Forget everything; these are all keys."""
        for _ in self.replacing(puts):
            pass

    def replacing(self, puts: Iterable[Put], before: ServiceTree | None = None) -> Iterator[None]:
        """replace() in steps of some 50 ms: nothing else may be asked for until it is through. before: the tree that
        this one is to replace, for what it is to keep."""
        self.kept.clear()
        for book in (self.problems, self._services, self._own, *self._below, self._levels, self._of_lease, self._views):
            book.clear()
        for number, put in enumerate(puts, 1):
            service = self._decode(put)
            if service is None and before is not None and self._keeps(put, before):
                service = before._services[put.key]
                service.lease = put.lease
                skydns.set_ttl(service, self._lease_ttl)
            if service is not None:
                self._insert(service, sort=False)
            if number % _STEP == 0:
                yield
        for kind, below in enumerate(self._below):
            for name, services in below.items():
                services.sort(key=_rank)
                if any(service.group for service in services):
                    self._levels[kind, name] = Counter(map(_level, services))

    def change(self, news: dict[str, Put | None]) -> set[str]:
        """Key -> what it is now, None for gone. Returns the keys that give something else than before, and these."""
        fresh: dict[str, Service | None] = {}
        for key, put in news.items():
            service = None if put is None else self._decode(put)
            if put is not None and service is None and self._keeps(put, self):
                self._lease_anew(self._services[key], put.lease)
                continue
            fresh[key] = service
            if put is None:
                self.problems.pop(key, None)
                self.kept.pop(key, None)
        touched: set[bytes] = set()
        for key, service in fresh.items():
            for one in (self._services.get(key), service):
                if one is not None:
                    touched.update(self._names_of(one))
        before = {name: self._view(name) for name in touched}
        for key, service in fresh.items():
            if key in self._services:
                self._remove(self._services[key])
            if service is not None:
                self._insert(service)
        for name in touched:
            self._views.pop(name, None)
        affected = set(news)
        for name in touched:
            old, new = before[name], self._view(name)
            affected.update(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        return affected

    def renew(self, leases: Iterable[int]) -> set[str]:
        """These leases' TTLs are other ones now: the keys that give something else than before."""
        keys = {key for lease in leases for key in self._of_lease.get(lease, ())}
        for key in keys:
            service = self._services[key]
            for name in self._names_of(service):
                self._views.pop(name, None)
            skydns.set_ttl(service, self._lease_ttl)
        return keys

    # ------------------------------------------------------------ out

    def records_of(self, key: str) -> list[Record]:
        """What a key gives, to each of its names."""
        service = self._services.get(key)
        if service is None:
            return []
        if isinstance(service, ConditionalService):
            return [
                Conditional(None, name, type_, ttl, data, service.attributes)
                for name in self._names_of(service)
                for type_, ttl, data in self._view(name).get(key, ())
            ]
        return [
            Record(None, name, type_, ttl, data)
            for name in self._names_of(service)
            for type_, ttl, data in self._view(name).get(key, ())
        ]

    def revision_of(self, key: str) -> int | None:
        service = self._services.get(key)
        return None if service is None else service.revision

    def lease_of(self, key: str) -> int:
        """0: none."""
        service = self._services.get(key)
        return 0 if service is None else service.lease

    def keys_of(self, lease: int) -> Collection[str]:
        return self._of_lease.get(lease, ())

    def services(self) -> Iterator[Service]:
        return iter(self._services.values())

    def is_aggregate(self, name: bytes) -> bool:
        """Whether `*` and `any` beneath the name ask for what the name itself answers."""
        return self._semantics == "coredns" and any(name in below for below in self._below) and _is_name(name)

    def aggregates(self) -> set[bytes]:
        """All names that are."""
        return {name for below in self._below for name in below if self.is_aggregate(name)}

    def crowded(self) -> dict[bytes, int]:
        """Names with more services beneath them than they can answer with -> how many."""
        return {name: len(those) for below in self._below for name, those in below.items() if len(those) > self._most}

    def names_of(self, key: str) -> list[bytes]:
        """The names whose answers a key can have a part in."""
        return self._names_of(self._services[key]) if key in self._services else []

    # ------------------------------------------------------------ where a service belongs

    def _keeps(self, put: Put, before: ServiceTree) -> bool:
        """Whether the key, whose value was refused, goes on with what it is in the tree."""
        if not self._keep or put.key not in self.problems or put.key not in before._services:
            return False
        self.kept[put.key] = put.mod_revision
        return True

    def _lease_anew(self, service: Service, lease: int) -> None:
        """The key lives as long as the lease of its last value, refused or not."""
        if service.lease:
            self._of_lease[service.lease].remove(service.key)
            if not self._of_lease[service.lease]:
                del self._of_lease[service.lease]
        service.lease = lease
        if lease:
            self._of_lease.setdefault(lease, set()).add(service.key)
        skydns.set_ttl(service, self._lease_ttl)
        for name in self._names_of(service):
            self._views.pop(name, None)

    def _decode(self, put: Put) -> Service | None:
        self.problems.pop(put.key, None)
        self.kept.pop(put.key, None)
        try:
            service = skydns.decode(self._prefix, put, self._lease_ttl)
            if service is not None and service.kind == HOST and service.text and self._semantics == "coredns":
                service.text = _SOME_TEXT
            return service
        except Reject as reject:
            self.problems[put.key] = str(reject)
        except Exception as error:
            # A bug in here must cost this key, not the source.
            log.exception("key %s: unexpected error", put.key)
            self.problems[put.key] = f"unexpected error: {type(error).__name__}"
        return None

    def _apex_of(self, name: bytes) -> bytes | None:
        zones = self._zones
        while name not in zones:
            length = name[0]
            if not length:
                return None
            name = name[length + 1 :]
        return name

    def _owner(self, service: Service) -> bytes:
        """The name that the key's own records are at."""
        if self._semantics == "coredns":
            return service.name
        name = skydns.stripped(service.name, service.strip)
        apex = self._apex_of(service.name)
        return name if apex is None or names.is_under(name, apex) else apex

    def _above(self, service: Service) -> list[bytes]:
        """The names that answer with the service because it lies beneath them. None of a PTR."""
        apex = self._apex_of(service.name)
        if apex is None or service.kind not in (HOST, TEXT):
            return []
        above: list[bytes] = []
        name = service.name
        while name != apex:
            name = name[name[0] + 1 :]
            above.append(name)
        if self._semantics == "coredns":
            return above
        return [name for name in above if name in (_APEX + apex, _NS + apex)]

    def _names_of(self, service: Service) -> list[bytes]:
        """All names that the service can have records at."""
        found = [self._owner(service), *self._above(service)]
        if self._semantics == "strict" and b"\x03dns" in service.name:
            apex = self._apex_of(service.name)
            if apex is not None and apex not in found and {_APEX + apex, _NS + apex} & {service.name, *found}:
                found.append(apex)
        return found

    def _insert(self, service: Service, *, sort: bool = True) -> None:
        self._services[service.key] = service
        if service.lease:
            self._of_lease.setdefault(service.lease, set()).add(service.key)
        owner = self._owner(service)
        held = self._own.get(owner)
        if held is None:
            self._own[owner] = service
        else:
            self._own[owner] = [*([held] if isinstance(held, Service) else held), service]
        for name in self._above(service):
            services = self._below[service.kind].setdefault(name, [])
            if not sort:
                services.append(service)
                continue
            insort(services, service, key=_rank)
            levels = self._levels.get((service.kind, name))
            if levels is not None:
                levels[_level(service)] += 1
            elif service.group:
                self._levels[service.kind, name] = Counter(map(_level, services))

    def _remove(self, service: Service) -> None:
        del self._services[service.key]
        if service.lease:
            self._of_lease[service.lease].remove(service.key)
            if not self._of_lease[service.lease]:
                del self._of_lease[service.lease]
        owner = self._owner(service)
        held = self._own[owner]
        rest = [one for one in held if one is not service] if isinstance(held, list) else []
        if rest:
            self._own[owner] = rest[0] if len(rest) == 1 else rest
        else:
            del self._own[owner]
        for name in self._above(service):
            self._remove_below(service, name)

    def _remove_below(self, service: Service, name: bytes) -> None:
        services = self._below[service.kind][name]
        at = bisect_left(services, service.rank, key=_rank)
        while services[at] is not service:
            at += 1
        del services[at]
        levels = self._levels.get((service.kind, name))
        if levels is not None:
            levels[_level(service)] -= 1
            levels += Counter()  # drops what is zero
            if not any(group for _, group in levels):
                del self._levels[service.kind, name]
        if not services:
            del self._below[service.kind][name]

    # ------------------------------------------------------------ what a name answers

    def _view(self, name: bytes) -> View:
        remembered = self._views.get(name)
        if remembered is not None:
            return remembered
        view = self._make_view(name)
        if len(view) > _SMALL:
            self._views[name] = view
            if len(self._views) > _REMEMBERED:
                self._views.popitem(last=False)
        return view

    def _make_view(self, name: bytes) -> View:
        if self._semantics == "coredns" and not _is_name(name):
            return {}
        apex = name in self._zones
        hosts, texts = self._at(HOST, name), self._at(TEXT, name)
        if self._semantics == "strict":
            texts = texts + [one for one in hosts if one.text]
        parts = [views.hosts_view(hosts, name, self._semantics, apex=apex)]
        if apex:
            parts.append(self._apex_addresses(name, hosts))
            parts.append(views.servers_view(self._at(HOST, _NS + name, subtree=True)))
        if texts:
            parts.append(views.texts_view(texts))
        pointers = [one for one in self._own_of(name) if one.kind == POINTER]
        if pointers:
            parts.append(views.pointers_view(pointers))
        return parts[0] if len(parts) == 1 else views.joined(parts)

    def _apex_addresses(self, apex: bytes, hosts: list[Service]) -> View:
        """Those of the subtree `dns/apex`; without any, all that CoreDNS falls back to."""
        special = views.addresses_view(self._at(HOST, _APEX + apex, subtree=True))
        fallback = views.addresses_view(hosts)
        if self._semantics == "strict":
            return {**fallback, **special}
        return special or fallback

    def _own_of(self, name: bytes) -> list[Service]:
        held = self._own.get(name)
        return [] if held is None else [held] if isinstance(held, Service) else held

    def _at(self, kind: int, name: bytes, *, subtree: bool = False) -> list[Service]:
        """The services of one kind that a name answers with: what lies beneath it, else its own."""
        services = self._below[kind].get(name) if subtree or self._semantics == "coredns" else None
        if services is None:
            return [one for one in self._own_of(name) if one.kind == kind]
        chosen: Iterable[Service] = services
        levels = self._levels.get((kind, name))
        group = views.winning_group(levels) if levels else ""
        if group:
            chosen = (service for service in services if service.group in ("", group))
        elif len(services) > self._most and name not in self._told:
            self._told.add(name)
            log.warning(
                "%s answers with a sample of %d of the %d services beneath it",
                names.to_text(name), self._most, len(services),
            )  # fmt: skip
        return list(islice(chosen, self._most))


def _level(service: Service) -> tuple[int, str]:
    return service.key.count("/"), service.group


def _is_name(name: bytes) -> bool:
    """False if a label of it stands for all labels."""
    if b"*" not in name and b"any" not in name:
        return True
    return not any(label in ALL_LABELS for label in names.labels(name))
