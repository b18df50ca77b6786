"""The SkyDNS services of one source, by key, and the names that each of them belongs to.

Most keys are plain (skydns.folded): an address, a SRV with port 0, nothing else; or a text. Of these no Service is kept
but a smaller object, the very one that the zone model keeps; the Service is made of it when it is wanted.
"""

from __future__ import annotations

from collections.abc import Collection

from loader import names, skydns
from loader._short import Plain, name_of, spelled
from loader.compiler import Gift
from loader.skydns import HOST, TEXT, Semantics, Service

#: Beneath an apex: what its addresses and its name servers are.
APEX, NS = b"\x04apex\x03dns", b"\x02ns\x03dns"
#: In every name beneath these two.
_SPECIAL = b"\x03dns"


class Services:
    """`by_key` may be read. Names are wire form, in lower case."""

    __slots__ = ("_of_lease", "base", "by_key", "default_ttl", "odd", "semantics", "zones")

    def __init__(self, prefix: str, zones: Collection[bytes], semantics: Semantics, default_ttl: int) -> None:
        self.base = prefix.rstrip("/") + "/"
        self.zones, self.semantics, self.default_ttl = frozenset(zones), semantics, default_ttl
        self.by_key: dict[str, Service | Plain | Gift] = {}
        # Name -> those of its own keys that are not spelled as it is, one as itself.
        self.odd: dict[bytes, str | list[str]] = {}
        self._of_lease: dict[int, set[str]] = {}

    def get(self, key: str) -> Service | None:
        held = self.by_key.get(key)
        if held is None or isinstance(held, Service):
            return held
        return skydns.unfolded(name_of(self.base, key), held)

    def of(self, key: str) -> Service:
        """Of a key that is there."""
        service = self.get(key)
        assert service is not None
        return service

    def group_of(self, key: str) -> str:
        held = self.by_key[key]
        return held.group if isinstance(held, Service) else ""

    def revision_of(self, key: str) -> int | None:
        held = self.by_key.get(key)
        return held[1] if isinstance(held, tuple) else None if held is None else held.revision

    def lease_of(self, key: str) -> int:
        """0: none."""
        held = self.by_key.get(key)
        return held.lease if isinstance(held, Service) else 0

    def keys_of(self, lease: int) -> Collection[str]:
        return self._of_lease.get(lease, ())

    def own(self, name: bytes) -> list[Service]:
        """Those whose own records are at the name."""
        odd = self.odd.get(name, ())
        found = [self.of(key) for key in ((odd,) if isinstance(odd, str) else odd)]
        service = self.get(spelled(self.base, name))
        if service is not None and self.owner(service) == name:
            found.append(service)
        return found

    def has_own(self, name: bytes) -> bool:
        """Whether `own` may find something."""
        return name in self.odd or spelled(self.base, name) in self.by_key

    # ------------------------------------------------------------ come and go

    def add(self, service: Service) -> None:
        """A key that is not there."""
        self.by_key[service.key] = self._folded(service) or service
        if service.lease:
            self._of_lease.setdefault(service.lease, set()).add(service.key)
        owner = self.owner(service)
        if spelled(self.base, owner) == service.key:
            return
        odd = self.odd.get(owner)
        if isinstance(odd, list):
            odd.append(service.key)
        else:
            self.odd[owner] = service.key if odd is None else [odd, service.key]

    def remove(self, service: Service) -> None:
        """What `add` did."""
        del self.by_key[service.key]
        self._release(service)
        owner = self.owner(service)
        odd = self.odd.get(owner)
        if odd == service.key:
            del self.odd[owner]
        elif isinstance(odd, list) and service.key in odd:
            odd.remove(service.key)
            if len(odd) == 1:
                self.odd[owner] = odd[0]

    def _folded(self, service: Service) -> Plain | Gift | None:
        """A smaller object that tells the same; None: there is none. loader/_books.pyx decides so, too."""
        if spelled(self.base, service.name) != service.key:
            return None
        if self.semantics == "strict":
            apex = self.apex_of(service.name)
            if apex is None or self.is_special(service.name) or len(self.owner(service)) <= len(apex):
                return None
        return skydns.folded(service, self.base, self.semantics)

    def lease_anew(self, service: Service, lease: int) -> None:
        """The key has another lease, and is the same else."""
        if not isinstance(self.by_key[service.key], Service):
            self.by_key[service.key] = service
        self._release(service)
        service.lease = lease
        if lease:
            self._of_lease.setdefault(lease, set()).add(service.key)

    def _release(self, service: Service) -> None:
        if service.lease:
            self._of_lease[service.lease].remove(service.key)
            if not self._of_lease[service.lease]:
                del self._of_lease[service.lease]

    # ------------------------------------------------------------ where a service belongs

    def apex_of(self, name: bytes) -> bytes | None:
        zones = self.zones
        while name not in zones:
            length = name[0]
            if not length:
                return None
            name = name[length + 1 :]
        return name

    def over(self, name: bytes) -> list[bytes]:
        """The names above it, up to its apex; none if it is outside all zones."""
        zones = self.zones
        found: list[bytes] = []
        while name not in zones:
            length = name[0]
            if not length:
                return []
            name = name[length + 1 :]
            found.append(name)
        return found

    def owner(self, service: Service) -> bytes:
        """The name that the key's own records are at."""
        if self.semantics == "coredns":
            return service.name
        name = skydns.stripped(service.name, service.strip)
        apex = self.apex_of(service.name)
        return name if apex is None or names.is_under(name, apex) else apex

    def above(self, service: Service) -> list[bytes]:
        """The names that answer with the service because it lies beneath them. None of a PTR."""
        if service.kind not in (HOST, TEXT):
            return []
        found = self.over(service.name)
        if self.semantics == "coredns" or not found:
            return found
        apex = found[-1]
        return [name for name in found if name in (APEX + apex, NS + apex)]

    def names_of(self, service: Service) -> list[bytes]:
        """All names that the service can have records at."""
        found = [self.owner(service)]
        found += [name for name in self.above(service) if name != found[0]]
        if self.semantics == "strict" and _SPECIAL in service.name:
            apex = self.apex_of(service.name)
            if apex is not None and apex not in found and {APEX + apex, NS + apex} & {service.name, *found}:
                found.append(apex)
        return found

    def is_special(self, name: bytes) -> bool:
        """Whether what is there may count for an apex as more than one of those beneath it."""
        return _SPECIAL in name
