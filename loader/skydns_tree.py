"""The SkyDNS schema, all keys together: what each key gives to its own name and to the names above it.

*coredns*: a name answers with all that lies beneath it, and with its own key only if nothing does. *strict*: a name
answers with its own keys alone; `targetstrip` tells which labels of a key do not belong to its name.

A change costs the names above it whose samples it can be in (skydns_beneath.py), and as many services as these answer
with. What comes out is the same from scratch and step by step.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator

from loader import names, skydns
from loader import skydns_views as views
from loader._books import Load
from loader._short import Plain, plain
from loader.attributes import Conditional
from loader.model import Put, Record, Reject
from loader.skydns import HOST, POINTER, TEXT, ConditionalService, Semantics, Service
from loader.skydns_beneath import Beneath
from loader.skydns_services import APEX, NS, Services
from loader.skydns_views import View

log = logging.getLogger(__name__)

#: Services that a name answers with at most. 256 addresses are 4 kB, 256 SRV up to 64 kB, all that an RRset may have.
MOST = 256
#: Labels that are questions for everything, never names (CoreDNS); see NodeFlag.AGGREGATE.
ALL_LABELS = (b"*", b"any")

#: Keys of a list that are decoded in one go.
_STEP = 5000

#: Views of names with more services than that are worth remembering.
_SMALL = 8
_REMEMBERED = 256

#: In place of a text that is not served, and that most of ExternalDNS's keys have.
_SOME_TEXT = b"\0"


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
        default_ttl: int = 300,
        keep: bool = False,
    ) -> None:
        """zones: the apexes, where aggregation ends. lease_ttl: lease -> seconds, as far as known. default_ttl, in
        seconds: of services that have no other. keep: see loader/last_good.py."""
        self._prefix, self._zones, self._semantics = prefix, zones, semantics
        self._lease_ttl, self._most, self._default_ttl = lease_ttl, most, default_ttl
        self._keep = keep
        self._clear()

    def _clear(self) -> None:
        self.problems: dict[str, str] = {}
        self.refused: dict[str, int] = {}  # key with a problem -> revision of the value refused
        self.kept: dict[str, int] = {}  # key with a problem that keeps its last good service -> revision refused
        self.services = Services(self._prefix, self._zones, self._semantics, self._default_ttl)
        self.beneath = tuple(Beneath(self._most, self.services.group_of) for _ in (HOST, TEXT))
        self._views: OrderedDict[bytes, View] = OrderedDict()
        self._told: set[bytes] = set()

    # ------------------------------------------------------------ in

    def replace(self, puts: Iterable[Put]) -> None:
        """Forget everything; these are all keys."""
        for _ in self.replacing(list(puts)):
            pass

    def replacing(self, puts: list[Put], before: ServiceTree | None = None) -> Iterator[None]:
        """replace() in steps of some 50 ms: nothing else may be asked for until it is through. puts: empty at the end,
        for what has been taken may be large. before: the tree that this one is to replace, for what it is to keep."""
        self._clear()
        services, (hosts, texts) = self.services, self.beneath
        strict = self._semantics == "strict"
        short = Load(services.base, self._default_ttl, services.zones, strict)
        short.books(services.by_key, hosts.keys, texts.keys, services.odd)
        puts.reverse()
        while puts:
            some = puts[: -_STEP - 1 : -1]
            del puts[-_STEP:]
            for number in short.load(some):
                self._load(some[number], before)
            yield
        for beneath in self.beneath:
            yield from beneath.sort()

    def _load(self, put: Put, before: ServiceTree | None) -> None:
        service = self._decode(put)
        if service is None and before is not None and self._keeps(put, before):
            service = before.services.of(put.key)
            service.lease = put.lease
            skydns.set_ttl(service, self._lease_ttl, self._default_ttl)
        if service is not None:
            self.services.add(service)
            if service.kind in (HOST, TEXT):
                self.beneath[service.kind].load(self.services.above(service), service.key, service.group)

    def swap(self, put: Put) -> tuple[Plain, list[bytes]] | None:
        """The short way of the most frequent change: a plain key gets another address, and is alone at all names that
        it gives to. What is kept of it now, and these names; None: the long way, and nothing has happened."""
        services, key = self.services, put.key
        held = services.by_key.get(key)
        if not isinstance(held, Plain) or put.lease or key in self.problems:
            return None
        strict = self._semantics == "strict"
        found = plain(services.base, key, put.value, put.mod_revision, self._default_ttl, strict)
        if found is None or not isinstance(new := found[1], Plain) or new.skipped != held.skipped:
            return None
        given = self._alone_strict(new) if strict else self._alone(key, found[0])
        if not given:
            return None
        services.by_key[key] = new
        return new, given

    def _alone_strict(self, kept: Plain) -> list[bytes]:
        """The name that a key gives to; none if others do, too."""
        name = kept.name
        return [name] if [one.key for one in self.services.own(name)] == [kept.key] else []

    def _alone(self, key: str, name: bytes) -> list[bytes]:
        """The names that a key gives to, its own first; none if something else counts at one of them, or may."""
        services, (hosts, texts) = self.services, self.beneath
        above = services.over(name)
        if not above or services.is_special(name) or not is_name(name):
            return []
        if name in hosts or name in texts or name in services.odd:
            return []
        given = [name]
        for one in above:
            if hosts.keys.get(one) != key:
                if not hosts.beyond(one, key):
                    return []
            elif one in texts or one in services.zones or services.has_own(one) or not is_name(one):
                return []
            else:
                given.append(one)
        return given

    def change(self, news: dict[str, Put | None]) -> tuple[set[str], dict[bytes, bool]]:
        """Key -> what it is now, None for gone. Returns the keys that give something else than before, and these; and
        the names that are aggregates now, or are none any more."""
        fresh = self._fresh(news)
        touched: set[bytes] = set()
        olds = {key: self.services.get(key) for key in fresh}
        for key, service in fresh.items():
            for one in (olds[key], service):
                if one is not None:
                    touched.update(self._answering(one))
        before = {name: (self.view(name), self.is_aggregate(name)) for name in touched}
        for key, service in fresh.items():
            self._replace(olds[key], service)
        for name in touched:
            self._views.pop(name, None)
        affected = set(news)
        marks: dict[bytes, bool] = {}
        for name, (old, was) in before.items():
            new, on = self.view(name), self.is_aggregate(name)
            affected.update(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            if on != was:
                marks[name] = on
        return affected, marks

    def _fresh(self, news: dict[str, Put | None]) -> dict[str, Service | None]:
        """The services of those keys that do not go on with what they are."""
        fresh: dict[str, Service | None] = {}
        for key, put in news.items():
            service = None if put is None else self._decode(put)
            if put is not None and service is None and self._keeps(put, self):
                self._lease_anew(self.services.of(key), put.lease)
                continue
            fresh[key] = service
            if put is None:
                self._well(key)
        return fresh

    def _answering(self, service: Service) -> list[bytes]:
        """The names whose answers may be others because the service comes, goes or is another one."""
        found = self.services.names_of(service)
        if service.kind not in (HOST, TEXT) or service.group or self.services.is_special(service.name):
            return found
        beyond, owner = self.beneath[service.kind].beyond, self.services.owner(service)
        return [name for name in found if name == owner or not beyond(name, service.key)]

    def _replace(self, old: Service | None, new: Service | None) -> None:
        """Books only. Of the same key, or None: none."""
        old_place = new_place = None
        if old is not None:
            old_place = old.kind, old.group, self.services.above(old) if old.kind in (HOST, TEXT) else []
        if new is not None:
            new_place = new.kind, new.group, self.services.above(new) if new.kind in (HOST, TEXT) else []
        if old is not None and old_place is not None:
            if old_place != new_place:
                for name in old_place[2]:
                    self.beneath[old.kind].remove(name, old.key)
            self.services.remove(old)
        if new is not None and new_place is not None:
            self.services.add(new)
            if old_place != new_place:
                for name in new_place[2]:
                    self.beneath[new.kind].add(name, new.key, new.group)

    def renew(self, leases: Iterable[int]) -> set[str]:
        """These leases' TTLs are other ones now: the keys that give something else than before."""
        keys = {key for lease in leases for key in self.services.keys_of(lease)}
        for key in keys:
            self._set_ttl(self.services.of(key))
        return keys

    def _set_ttl(self, service: Service) -> None:
        for name in self.services.names_of(service):
            self._views.pop(name, None)
        skydns.set_ttl(service, self._lease_ttl, self._default_ttl)

    # ------------------------------------------------------------ out

    def records_of(self, key: str) -> list[Record]:
        """What a key gives, to each of its names."""
        service = self.services.get(key)
        if service is None:
            return []
        given = [(name, *rr) for name in self.services.names_of(service) for rr in self.view(name).get(key, ())]
        if isinstance(service, ConditionalService):
            return [Conditional(None, *rr, service.attributes) for rr in given]
        return [Record(None, *rr) for rr in given]

    def revision_of(self, key: str) -> int | None:
        return self.services.revision_of(key)

    def lease_of(self, key: str) -> int:
        """0: none."""
        return self.services.lease_of(key)

    def keys_of(self, lease: int) -> Collection[str]:
        return self.services.keys_of(lease)

    def is_aggregate(self, name: bytes) -> bool:
        """Whether `*` and `any` beneath the name ask for what the name itself answers."""
        hosts, texts = self.beneath
        return self._semantics == "coredns" and (name in hosts or name in texts) and is_name(name)

    def aggregates(self) -> set[bytes]:
        """All names that are."""
        return {name for beneath in self.beneath for name in beneath if self.is_aggregate(name)}

    def crowded(self) -> dict[bytes, int]:
        """Names with more services beneath them than they can answer with -> how many."""
        return dict(one for beneath in self.beneath for one in beneath.crowded())

    def names_of(self, key: str) -> list[bytes]:
        """The names whose answers a key can have a part in."""
        service = self.services.get(key)
        return [] if service is None else self.services.names_of(service)

    # ------------------------------------------------------------ one key

    def _keeps(self, put: Put, before: ServiceTree) -> bool:
        """Whether the key, whose value was refused, goes on with what it is in the tree."""
        if not self._keep or put.key not in self.problems or put.key not in before.services.by_key:
            return False
        self.kept[put.key] = put.mod_revision
        return True

    def _lease_anew(self, service: Service, lease: int) -> None:
        """The key lives as long as the lease of its last value, refused or not."""
        self.services.lease_anew(service, lease)
        self._set_ttl(service)

    def _decode(self, put: Put) -> Service | None:
        self._well(put.key)
        try:
            service = skydns.decode(self._prefix, put, self._lease_ttl, self._default_ttl)
            if service is not None and service.kind == HOST and service.text and self._semantics == "coredns":
                service.text = _SOME_TEXT
            return service
        except Reject as reject:
            self.problems[put.key] = str(reject)
        except Exception as error:
            # A bug in here must cost this key, not the source.
            log.exception("key %s: unexpected error", put.key)
            self.problems[put.key] = f"unexpected error: {type(error).__name__}"
        self.refused[put.key] = put.mod_revision
        return None

    def _well(self, key: str) -> None:
        for book in (self.problems, self.refused, self.kept):
            book.pop(key, None)

    # ------------------------------------------------------------ what a name answers

    def view(self, name: bytes) -> View:
        """Key -> what it gives to the name."""
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
        if self._semantics == "coredns" and not is_name(name):
            return {}
        apex = name in self.services.zones
        hosts, texts = self._at(HOST, name), self._at(TEXT, name)
        if self._semantics == "strict":
            texts = texts + [one for one in hosts if one.text]
        parts = [views.hosts_view(hosts, name, self._semantics, apex=apex)]
        if apex:
            parts.append(self._apex_addresses(name, hosts))
            parts.append(views.servers_view(self._at(HOST, NS + name, subtree=True)))
        if texts:
            parts.append(views.texts_view(texts))
        pointers = [one for one in self.services.own(name) if one.kind == POINTER]
        if pointers:
            parts += [views.pointers_view(pointers), views.texts_view(pointers)]
        return parts[0] if len(parts) == 1 else views.joined(parts)

    def _apex_addresses(self, apex: bytes, hosts: list[Service]) -> View:
        """Those of the subtree `dns/apex`; if no host is in it, not even a name, all that CoreDNS falls back to."""
        there = self._at(HOST, APEX + apex, subtree=True)
        special = views.addresses_view(there)
        if self._semantics == "strict":
            return {**views.addresses_view(hosts), **special}
        return special if there else views.addresses_view(hosts)

    def _at(self, kind: int, name: bytes, *, subtree: bool = False) -> list[Service]:
        """The services of one kind that a name answers with: what lies beneath it, else its own."""
        beneath = self.beneath[kind]
        if not (subtree or self._semantics == "coredns") or name not in beneath:
            return [one for one in self.services.own(name) if one.kind == kind]
        keys, among = beneath.sample(name)
        if among > self._most and name not in self._told:
            self._told.add(name)
            log.warning(
                "%s answers with a sample of %d of the %d services beneath it", names.to_text(name), self._most, among
            )
        return [self.services.of(key) for key in keys]


def is_name(name: bytes) -> bool:
    """False if a label of it stands for all labels."""
    if b"*" not in name and b"any" not in name:
        return True
    return not any(label in ALL_LABELS for label in names.labels(name))
