"""The SkyDNS schema: what CoreDNS's etcd plugin reads and ExternalDNS writes. Depth so far: plain hosts.

    PREFIX/<labels of the name, reversed>       /skydns/test/example/www       {"host":"192.0.2.1","ttl":60}

host an address -> A or AAAA; host a name -> CNAME; text without a host -> TXT. A text beside an address is not served
(CoreDNS does not either: it is ExternalDNS's note of who owns the name), nor is one beside a name (a CNAME stands
alone). ttl 0 or absent is the zone's default. Unknown fields are ignored, as there.

A name also answers with the records of every key beneath it, the apex excepted: ExternalDNS writes one key for each
target, /skydns/test/example/www/1acbad7e, and means www. So a key gives its records to its own name and to each
ancestor below the apex. CoreDNS ignores the value of a name that has keys beneath it; one key alone cannot know that,
and here that value is served too (docs/skydns.md).

Names are folded to lower case, here and in the hosts' names the case is kept. Not yet: SRV, MX, groups, targetstrip,
the subtrees dns/ns and dns/apex, leases.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from loader import names, rdata
from loader.model import DEFAULT_TTL, MAX_TTL, Put, Record, Reject

_MAPPED = bytes(10) + b"\xff\xff"


class Service(msgspec.Struct):
    """A value as CoreDNS reads it (plugin/etcd/msg/service.go): every field may be absent or null."""

    host: str | None = None
    port: int | None = None
    priority: int | None = None
    weight: int | None = None
    text: str | None = None
    mail: bool | None = None
    ttl: int | None = None
    targetstrip: int | None = None
    group: str | None = None


_decode = msgspec.json.Decoder(Service).decode


def parse(prefix: str, put: Put, zones: Collection[bytes] = ()) -> list[Record]:
    """The records of one key; `zones` are the apexes that aggregation stops at. Raises Reject."""
    name = name_of(prefix, put.key)
    if name is None:
        return []
    service = _service(put.value)
    data = _data(service)
    if data is None:
        return []
    type_, wire = data
    ttl = _ttl(service)
    return [Record(None, owner, type_, ttl, wire) for owner in _owners(name, zones)]


def name_of(prefix: str, key: str) -> bytes | None:
    """The name that a key stands for; None for SkyDNS's own settings. Raises Reject."""
    base = prefix.rstrip("/") + "/"
    if not key.startswith(base):
        raise Reject(f"the key does not begin with {names.shown(base)}")
    path = key[len(base) :]
    if path == "config":
        return None
    if not path.isascii():
        raise Reject("in the key: a label is not ASCII; write it in its xn-- form")
    try:
        return names.from_labels([part.lower().encode() for part in reversed(path.split("/"))])
    except names.BadName as error:
        raise Reject(f"in the key: {error}") from None


def _service(value: bytes) -> Service:
    try:
        service = _decode(value)
    except UnicodeDecodeError as error:
        raise Reject(f"the value is not UTF-8: {error.reason}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Reject(f"the value is not understood: {error}") from None
    # Go decodes it into a uint32, and fails the value otherwise.
    if service.ttl is not None and not 0 <= service.ttl < 2**32:
        raise Reject(f"ttl is 0 to {2**32 - 1} seconds, not {service.ttl}")
    return service


def _ttl(service: Service) -> int:
    return min(service.ttl, MAX_TTL) if service.ttl else DEFAULT_TTL


def _data(service: Service) -> tuple[int, bytes] | None:
    """(type, data) of the plain record that a value gives, None if it gives none."""
    if service.host:
        return _host(service.host)
    return (rdata.TXT, rdata.txt([service.text])) if service.text else None


def _host(host: str) -> tuple[int, bytes]:
    try:
        type_, wire = rdata.address(host)
    except Reject:
        try:
            return rdata.CNAME, names.from_text(host, fold=False)
        except names.BadName as error:
            raise Reject(f"host is neither an address nor a name: {error}") from None
    # Go takes an IPv4 address in IPv6 form for an IPv4 address.
    return (rdata.A, wire[12:]) if wire.startswith(_MAPPED) else (type_, wire)


def _owners(name: bytes, zones: Collection[bytes]) -> list[bytes]:
    """The name and its ancestors below the apex of its zone; the name alone outside every zone and at an apex."""
    owners: list[bytes] = []
    for owner in names.ancestors(name):
        if owner in zones:
            return owners or [name]
        owners.append(owner)
    return [name]
