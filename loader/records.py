"""The `records` schema: one key for each RRset.

    PREFIX/ZONE/OWNER/TYPE      /standoff/example.test/www/A

ZONE is an absolute name with or without its last dot (`.` is the root), OWNER is relative to it, `@` is the apex. An
owner may contain slashes (`0/25` in RFC 2317 reverse zones): the zone is what stands before the first slash, the type
what stands behind the last. TYPE is a record type, `TYPE123`, or `IP`: addresses of both families, which become A and
AAAA.

The value is one of

    {"ttl":60,"data":["192.0.2.1","192.0.2.2"]}     ttl in seconds, 0..2**31-1, may be left out; data as below
    ["192.0.2.1","192.0.2.2"]                       a bare list
    "192.0.2.1"                                     one bare JSON string
    192.0.2.1                                       plain text: `etcdctl put KEY 192.0.2.1` does what it says

An object may have attributes as well, and so may an item, which is an object then (loader/attributes.py):

    {"data":[{"data":"192.0.2.1","weight":9},{"data":"192.0.2.2","weight":1}],"check":"tcp://{address}:443"}

Anything that starts with `{`, `[` or `"` is JSON and must be right to the end; everything else is plain text and one
item. White space around the value does not count (`echo ... | etcdctl put` ends it with a newline). An unknown field is
a mistake (`tll`) and rejects the key: a record with the wrong TTL would be found much later.

An item is data as in a zone file, names relative to ZONE unless they end in a dot. TXT is friendlier: an item is the
string itself, and is cut into pieces of 255 octets if it is longer; an item that starts with a quote is zone-file text
(`"\\"one\\" \\"two\\""` in JSON), a list of strings is one record of several strings.

A SOA's serial is set to 0, which lets the zone model number the zone by revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec

from loader import attributes, names, rdata, wording
from loader.attributes import Attributes
from loader.model import DEFAULT_TTL, MAX_TTL, Put, Record, Reject

Given = TypeVar("Given")
Item = str | list[str]
Data = str | list[Item]


class _Value(msgspec.Struct, forbid_unknown_fields=True):
    data: Data
    ttl: int | None = None


class ConditionalItem(attributes.Fields):
    """An item with attributes of its own."""

    data: Item


ConditionalData = str | list[Item | ConditionalItem]


class _ConditionalValue(attributes.Fields):
    data: ConditionalData
    ttl: int | None = None


_decode = msgspec.json.Decoder(_Value | Data).decode
#: For what the other one does not understand: few values have attributes.
_decode_conditional = msgspec.json.Decoder(_ConditionalValue | ConditionalData).decode

#: The first complaint about most values of the other schema.
_SKYDNS = ("there is no field host", "there is no field text")

_JSON_START = frozenset(b'{["')

_IP = "IP"
_ONE_ONLY = {rdata.CNAME: "CNAME", rdata.DNAME: "DNAME", rdata.SOA: "SOA"}

#: A SOA's data ends in serial, refresh, retry, expire, minimum, four octets each.
_SOA_NUMBERS = 20


def parse(prefix: str, put: Put) -> list[Record]:
    """The records of one key. Raises Reject with a reason of one line."""
    zone, owner, type_text = _split(prefix, put.key)
    items, ttl, conditions = _value(put.value)
    if type_text == "A" and len(items) == 1 and not conditions:  # the most frequent: a fifth less time
        return [Record(zone, owner, rdata.A, ttl, rdata.ipv4(_text(items[0], "A")))]
    records = [Record(zone, owner, type_, ttl, data) for type_, data in rrset(type_text, items, zone)]
    if conditions:
        records = list(map(attributes.conditional, records, conditions))
    if records[0].type in _ONE_ONLY:
        _check_place(records[0])
        if records[0].type == rdata.SOA:
            return [_unnumbered(records[0])]
    return records


def rrset(type_text: str, items: Sequence[Item], origin: bytes) -> list[tuple[int, bytes]]:
    """(type, data) of each item, as above; `origin` is that of relative names. Raises Reject."""
    if type_text == _IP or type_text.upper() == _IP:
        return [rdata.address(_text(item, _IP)) for item in items]
    type_ = rdata.type_number(type_text)
    if type_ == rdata.A and len(items) == 1:
        return [(type_, rdata.ipv4(_text(items[0], type_text)))]
    if type_ == rdata.TXT:
        return [(type_, _txt(item, origin)) for item in items]
    if type_ in _ONE_ONLY and len(items) > 1:
        raise Reject(f"a name has one {_ONE_ONLY[type_]}, not {len(items)}")
    return [(type_, rdata.from_text(type_, _text(item, type_text), origin)) for item in items]


def _split(prefix: str, key: str) -> tuple[bytes, bytes, str]:
    """(zone, owner, text of the type) of a key."""
    base = prefix.rstrip("/") + "/"
    zone_text, slash, rest = key[len(base) :].partition("/")
    owner_text, slash2, type_text = rest.rpartition("/")
    if not key.startswith(base) or not slash or not slash2:
        raise Reject("the key is not PREFIX/ZONE/OWNER/TYPE")
    try:
        zone = _zone(zone_text)
        owner = names.from_text(owner_text, zone)
    except names.BadName as error:
        raise Reject(f"in the key: {error}") from None
    if owner_text.endswith(".") and not names.is_under(owner, zone):
        raise Reject(f"in the key: {names.shown(owner_text)} is not in zone {names.to_text(zone)}")
    return zone, owner, type_text


@lru_cache(maxsize=4096)
def _zone(text: str) -> bytes:
    if text == "@":
        raise names.BadName("'@' is not a zone")
    return names.from_text(text)


def _value(raw: bytes) -> tuple[Sequence[Item], int, list[Attributes]]:
    """(items, TTL, the attributes of each item; none if no item has any) of a value."""
    raw = raw.strip()
    if not raw:
        raise Reject("the value is empty")
    if raw[0] not in _JSON_START:
        try:
            return [raw.decode()], DEFAULT_TTL, []
        except UnicodeDecodeError as error:
            raise Reject(f"the value is not UTF-8: octet {error.start + 1} is 0x{raw[error.start]:02x}") from None
    try:
        try:
            value = _decode(raw)
        except msgspec.ValidationError:
            return _conditional_value(_decode_conditional(raw))
    except UnicodeDecodeError as error:
        raise Reject(f"the value is not UTF-8: {error.reason}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        why = wording.why(error)
        hint = "; SkyDNS keys are read with schema=skydns" if why in _SKYDNS else ""
        raise Reject(f"the value is not understood: {why}{hint}") from None
    if isinstance(value, _Value):
        return as_items(value.data), checked_ttl(value.ttl), []
    return as_items(value), DEFAULT_TTL, []


def _conditional_value(value: _ConditionalValue | ConditionalData) -> tuple[Sequence[Item], int, list[Attributes]]:
    if isinstance(value, _ConditionalValue):
        items, conditions = conditional_items(value.data, attributes.read(value))
        return items, checked_ttl(value.ttl), conditions
    items, conditions = conditional_items(value, attributes.NONE)
    return items, DEFAULT_TTL, conditions


def conditional_items(data: ConditionalData, outer: Attributes) -> tuple[Sequence[Item], list[Attributes]]:
    """The items of a value's data, and the attributes of each: its own, and for the rest those of the value. Raises
    Reject."""
    items = as_items(data)
    return (
        [one.data if isinstance(one, ConditionalItem) else one for one in items],
        [attributes.read(one, outer) if isinstance(one, ConditionalItem) else outer for one in items],
    )


def checked_ttl(ttl: int | None) -> int:
    """Seconds as a source gave them, for Record.ttl. Raises Reject."""
    if ttl is None:
        return DEFAULT_TTL
    if not 0 <= ttl <= MAX_TTL:
        raise Reject(f"ttl is 0 to {MAX_TTL} seconds, not {ttl}")
    return ttl


def as_items(data: str | Sequence[Given]) -> Sequence[str | Given]:
    """The items of a value's data. Raises Reject if there are none."""
    if isinstance(data, str):
        return [data]
    if not data:
        raise Reject("data is an empty list; delete the key to have no records")
    return data


def _text(item: Item, type_text: str) -> str:
    """An item of a type whose data is one string."""
    if isinstance(item, str):
        return item
    raise Reject(f"{type_text} data is a string, not a list of strings")


def _txt(item: Item, zone: bytes) -> bytes:
    return rdata.from_text(rdata.TXT, item, zone) if isinstance(item, str) else rdata.txt(item)


def _check_place(record: Record) -> None:
    apex = record.owner == record.zone
    if record.type == rdata.CNAME and apex:
        raise Reject("a CNAME cannot stand at a zone's apex, beside SOA and NS")
    if record.type == rdata.SOA and not apex:
        raise Reject("a SOA stands at the zone's apex only (owner @)")


def _unnumbered(soa: Record) -> Record:
    """The SOA with serial 0. The operator's number would stand still while the zone moves."""
    head, numbers = soa.rdata[:-_SOA_NUMBERS], soa.rdata[-_SOA_NUMBERS:]
    return Record(soa.zone, soa.owner, soa.type, soa.ttl, head + bytes(4) + numbers[4:])
