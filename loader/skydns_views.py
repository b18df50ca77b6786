"""What services come to at one name, pure: the rules of CoreDNS's plugin/backend_lookup.go, for one owner at a time.

A *view* is key -> the records that the key gives to the name: (type, ttl, data) each.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable

from loader import rdata
from loader.skydns import Semantics, Service

Given = list[tuple[int, int, bytes]]
View = dict[str, Given]

_SRV = struct.Struct(">HHH")
_MX = struct.Struct(">H")
_ADDRESSES = (rdata.A, rdata.AAAA)

#: SRV weights are shares of this, within one priority.
_WHOLE = 100


def is_alias(service: Service, semantics: Semantics) -> bool:
    """Whether the host is a name that the service's own name is an alias of, and nothing else."""
    if service.type != rdata.CNAME:
        return False
    if semantics == "coredns":
        return not service.explicit
    return not (service.port > 0 or service.mail)


def hosts_view(hosts: list[Service], name: bytes, semantics: Semantics, *, apex: bool) -> View:
    """SRV, MX, addresses and the alias of these services, at `name`.

    DNS lets no data stand beside a CNAME, and no second one. CoreDNS mixes them; here anything else wins, and of
    several aliases the oldest. At an apex there is none, and addresses are addresses_view's.
    """
    if not hosts:
        return {}
    aliases = [service for service in hosts if service.type == rdata.CNAME and is_alias(service, semantics)]
    others = [service for service in hosts if not is_alias(service, semantics)] if aliases else hosts
    if not others and not apex:
        return _alias_view([service for service in aliases if service.data.lower() != name])
    sums: dict[int, int] = {}
    for service in others:
        sums[service.priority] = sums.get(service.priority, 0) + service.weight
    view: View = {}
    for service in others:
        given: Given = []
        if service.type in _ADDRESSES and not apex:
            given.append((service.type, service.ttl, service.data))
        if service.port > 0 or (service.port == 0 and semantics == "coredns"):
            weight = min(max(_WHOLE * service.weight // sums[service.priority], 1), 0xFFFF)
            head = _SRV.pack(service.priority, weight, service.port)
            given.append((rdata.SRV, service.ttl, head + service.target))
        if service.mail:
            given.append((rdata.MX, service.ttl, _MX.pack(service.priority) + service.target))
        if given:
            view[service.key] = given
    return view


def _alias_view(aliases: list[Service]) -> View:
    if not aliases:
        return {}
    oldest = min(aliases, key=lambda service: (service.revision, service.key))
    return {
        service.key: [(rdata.CNAME, service.ttl, oldest.data)]
        for service in aliases
        if service.data.lower() == oldest.data.lower()
    }


def addresses_view(hosts: Iterable[Service]) -> View:
    """Only the addresses."""
    return {s.key: [(s.type, s.ttl, s.data)] for s in hosts if s.type in _ADDRESSES}


def servers_view(hosts: Iterable[Service]) -> View:
    """NS records: an address is served under the name of its key (CoreDNS fails the query for a host's name)."""
    return {service.key: [(rdata.NS, service.ttl, service.target)] for service in hosts}


def texts_view(texts: Iterable[Service]) -> View:
    """TXT records."""
    return {service.key: [(rdata.TXT, service.ttl, service.text)] for service in texts if service.text}


def pointers_view(pointers: Iterable[Service]) -> View:
    """PTR records."""
    return {service.key: [(rdata.PTR, service.ttl, service.data)] for service in pointers}


def joined(views: Iterable[View]) -> View:
    """All of them, with TXT left out if there is a CNAME."""
    result: View = {}
    for view in views:
        for key, given in view.items():
            result.setdefault(key, []).extend(given)
    if any(record[0] == rdata.CNAME for given in result.values() for record in given):
        kept = {key: [record for record in given if record[0] == rdata.CNAME] for key, given in result.items()}
        return {key: given for key, given in kept.items() if given}
    return result


def winning_group(levels: Counter[tuple[int, str]]) -> str:
    """The group that those with the shortest keys agree on; empty if there is none or they do not agree.

    levels: (slashes of the key, group) -> how many. Where CoreDNS's answer hangs on the order of equally short keys,
    some of them without a group, the group counts here.
    """
    if not levels:
        return ""
    shortest = min(depth for depth, _ in levels)
    groups = {group for depth, group in levels if depth == shortest and group}
    return groups.pop() if len(groups) == 1 else ""
