"""The SkyDNS schema, one key at a time: what CoreDNS's etcd plugin reads and ExternalDNS writes -> a Service.

    PREFIX/<labels of the name, reversed>       /skydns/test/example/www       {"host":"192.0.2.1","ttl":60}

What a name answers depends on all keys at and beneath it: loader/skydns_tree.py. docs/skydns.md is the manual.

Names are folded to lower case; in the hosts' names the case is kept. CoreDNS's fields are known in any case, as Go
knows them (`"TTL"`); unknown ones are ignored, as there: ExternalDNS writes `owner`. `not_before`, `not_after`, `check`
and `labels` are ours (loader/attributes.py). Numbers that do not fit their record reject the key (CoreDNS cuts them to
16 bits).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from loader import attributes, names, rdata, targets, wording
from loader._short import Plain, fold
from loader.attributes import Attributes
from loader.compiler import Gift
from loader.model import DEFAULT_TTL, MAX_TTL, Put, Reject

Semantics = Literal["coredns", "strict"]

_ADDRESSES = (rdata.A, rdata.AAAA)
_MAPPED = bytes(10) + b"\xff\xff"
_REVERSE = (b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0")
_DEFAULT_PRIORITY, _DEFAULT_WEIGHT = 10, 100
#: Before the target, in the SRV of a service that has no priority, no weight, no port, and no others beside it.
#: CoreDNS's min-lease-ttl and max-lease-ttl, in seconds.
_SHORTEST_LEASE, _LONGEST_LEASE = 30, 86400

#: What a key gives: records of its host; a text, which has no host; a PTR, which is its own name's alone; nothing.
HOST, TEXT, POINTER, NOTHING = range(4)


class _Value(msgspec.Struct):
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
    not_before: attributes.Moment | None = None
    not_after: attributes.Moment | None = None
    check: str | targets.Options | None = None
    labels: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_Value).decode

#: CoreDNS's fields. Go takes them in any case, the last one of several that are the same so.
_FIELDS = ("host", "port", "priority", "weight", "text", "mail", "ttl", "targetstrip", "group")
_CAPITAL_FIELD = re.compile(rb'"(?![a-z]*")(?i:%b)"\s*:' % "|".join(_FIELDS).encode())


class Service:
    """One key, decoded. Many are kept: slots, and what is the same in most is one object.

    name      that the key stands for; target: the name in its SRV, MX and NS records (of a host's name: that)
    kind      HOST, TEXT, POINTER or NOTHING
    type      A, AAAA or CNAME of the host, 0 without one; data: the address, or the host's name in wire form
    explicit  the value has a port, priority, weight or mail: a host's name is more than an alias
    port      -1: no SRV; priority 0..65535; weight 1..
    ttl       seconds, with the lease in it, or the default; own_ttl: the value's, without
    """

    __slots__ = (
        "data", "explicit", "group", "key", "kind", "lease", "mail", "name", "own_ttl", "port", "priority", "revision",
        "strip", "target", "text", "ttl", "type", "weight",
    )  # fmt: skip

    key: str
    revision: int
    lease: int
    name: bytes
    target: bytes
    kind: int
    type: int
    data: bytes
    text: bytes
    explicit: bool
    port: int
    priority: int
    weight: int
    mail: bool
    ttl: int
    own_ttl: int
    strip: int
    group: str


class ConditionalService(Service):
    """A service with attributes, which all its records have. Most have none."""

    __slots__ = ("attributes",)
    attributes: Attributes


def decode(prefix: str, put: Put, lease_ttl: Callable[[int], int], default_ttl: int = DEFAULT_TTL) -> Service | None:
    """The service of a key; None for SkyDNS's own settings. lease_ttl: lease -> seconds. Raises Reject."""
    name = name_of(prefix, put.key)
    if name is None:
        return None
    value = _value(put.value)
    type_, data = _host(value.host) if value.host else (0, b"")
    made = _begun(value, type_, data)
    made.key, made.revision, made.lease, made.name = put.key, put.mod_revision, put.lease, name
    made.type, made.data = type_, data
    made.text = rdata.txt([value.text]) if value.text else b""
    if made.type == rdata.CNAME and any(names.is_under(name, zone) for zone in _REVERSE):
        made.kind = POINTER
    else:
        made.kind = HOST if made.type else TEXT if made.text else NOTHING
    made.explicit = bool(value.port or value.priority or value.weight or value.mail)
    made.port = _number("port", value.port, -1, 0xFFFF) or 0
    made.priority = _number("priority", value.priority, 0, 0xFFFF) or _DEFAULT_PRIORITY
    made.weight = _number("weight", value.weight, 0, 2**31) or _DEFAULT_WEIGHT
    made.strip = _number("targetstrip", value.targetstrip, 0, 128) or 0
    made.mail = bool(value.mail)
    made.group = value.group or ""
    made.target = made.data if made.type == rdata.CNAME else stripped(name, made.strip)
    made.own_ttl = min(_number("ttl", value.ttl, 0, 2**32 - 1) or 0, MAX_TTL)
    set_ttl(made, lease_ttl, default_ttl)
    return made


def _begun(value: _Value, type_: int, data: bytes) -> Service:
    """A service with nothing in it but its attributes, if there are any."""
    given = (value.not_before, value.not_after, value.check, value.labels)
    if given == (None, None, None, None):
        return Service()
    fields = attributes.Fields(not_before=given[0], not_after=given[1], check=given[2], labels=given[3])
    made = ConditionalService()
    made.attributes = attributes.placed(attributes.read(fields), type_, data)
    return made


def set_ttl(service: Service, lease_ttl: Callable[[int], int], default_ttl: int = DEFAULT_TTL) -> None:
    """The smaller one of lease and value, whichever there are, or else the default."""
    ttls = [service.own_ttl] if service.own_ttl else []
    if service.lease:
        ttls.append(min(max(lease_ttl(service.lease), _SHORTEST_LEASE), _LONGEST_LEASE))
    service.ttl = min(ttls, default=default_ttl)


def folded(service: Service, base: str, semantics: Semantics = "coredns") -> Plain | Gift | None:
    """What is kept of a plain service, whose key is `base` and what its name is spelled as: an address and what goes
    with it, or a text, as a name gets it that has no other service. None for others."""
    if service.explicit or service.group or service.lease or service.ttl < 0 or type(service) is not Service:
        return None
    strict = semantics == "strict"
    if service.kind == TEXT:
        if strict and service.strip:
            return None
        return service.key, service.revision, None, rdata.TXT, service.ttl, service.text
    if service.type not in _ADDRESSES:
        return None
    skipped = len(service.name) - len(service.target)
    text = service.text if strict else None
    return fold(base, service.key, service.revision, service.ttl, service.data, skipped, text)


def unfolded(name: bytes, kept: Plain | Gift) -> Service:
    """The service of a plain key, as far as the semantics that it was folded for ask for it."""
    made = Service()
    made.name, made.strip = name, 0
    if isinstance(kept, Plain):
        made.key, made.revision, made.ttl = kept.key, kept.revision, kept.ttl
        made.kind, made.type, made.data, made.text = HOST, kept.type, kept.address, kept.text or b""
        made.target = name[kept.skipped :]
        if kept.text is not None:
            made.strip = sum(1 for _ in names.labels(name)) - sum(1 for _ in names.labels(made.target))
    else:
        made.key, made.revision, _, _, made.ttl, made.text = kept
        made.kind, made.type, made.data, made.target = TEXT, 0, b"", name
    made.lease, made.group = 0, ""
    made.port, made.priority, made.weight = 0, _DEFAULT_PRIORITY, _DEFAULT_WEIGHT
    made.explicit = made.mail = False
    made.own_ttl = made.ttl
    return made


def stripped(name: bytes, count: int) -> bytes:
    """`name` without its `count` leftmost labels; the name itself if it has no more than that."""
    rest = name
    for _ in range(count):
        rest = names.parent(rest)
    return name if rest == names.ROOT else rest


def name_of(prefix: str, key: str) -> bytes | None:
    """The name that a key stands for; None for SkyDNS's own settings. Raises Reject."""
    base = prefix.rstrip("/") + "/"
    if not key.startswith(base):
        raise Reject(f"the key does not begin with {names.shown(base)}")
    path = key[len(base) :].removesuffix("/")  # CoreDNS finds NAME/ at NAME
    if path == "config":
        return None
    if not path.isascii():
        raise Reject("in the key: a label is not ASCII; write it in its xn-- form")
    try:
        return names.from_labels([part.lower().encode() for part in reversed(path.split("/"))])
    except names.BadName as error:
        raise Reject(f"in the key: {error}") from None


def _value(raw: bytes) -> _Value:
    try:
        return _folded_value(raw) if _CAPITAL_FIELD.search(raw) else _decode(raw)
    except UnicodeDecodeError as error:
        raise Reject(f"the value is not UTF-8: {error.reason}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        why = wording.why(error) if raw.lstrip().startswith(b"{") else 'it is to be an object, {"host":"192.0.2.1"}'
        raise Reject(f"the value is not understood: {why}") from None


def _folded_value(raw: bytes) -> _Value:
    """A value whose fields are not all in lower case."""
    made: dict[str, object] = {}
    for name, given in msgspec.json.decode(raw, type=dict[str, object]).items():
        known = name.lower() in _FIELDS
        if not (known and given is None):  # null changes nothing
            made[name.lower() if known else name] = given
    return msgspec.convert(made, _Value)


def _number(what: str, number: int | None, least: int, most: int) -> int | None:
    if number is not None and not least <= number <= most:
        raise Reject(f"{what} is {least} to {most}, not {number}")
    return number


def _host(host: str) -> tuple[int, bytes]:
    """(type, data) of a host."""
    try:
        type_, wire = rdata.address(host)
    except Reject:
        if _is_no_name(host):
            raise Reject(f"host is neither an address nor a name: {names.shown(host)}") from None
        try:
            return rdata.CNAME, names.from_text(host, fold=False)
        except names.BadName as error:
            raise Reject(f"host is neither an address nor a name: {error}") from None
    # Go takes an IPv4 address in IPv6 form for an IPv4 address.
    return (rdata.A, wire[12:]) if wire.startswith(_MAPPED) else (type_, wire)


def _is_no_name(host: str) -> bool:
    """Whether a host that is no address was meant to be one, or has a port, a scheme or a mask: an alias of that leads
    nowhere, and nobody is told. No top-level domain is a number (RFC 3696 section 2)."""
    top = host.removesuffix(".").rpartition(".")[2]
    return ":" in host or (top.isascii() and top.isdecimal()) or not frozenset("/%[]").isdisjoint(top)
