"""The difference between two node blocks of a name, as records: for people, hooks and tools. Pure.

What a serial does on its own is no difference, nor are flags: they follow from other names.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loader import names, rdata
from loader.apex import is_apex, same_but_serial
from loader.exchange.text import zone_text
from loader.model import Reject
from shm.layout import NEGATIVE_SOA
from shm.node import unpack

_RR_HEAD = 12


class Difference(msgspec.Struct, frozen=True):
    """removed, added: records as "TTL TYPE DATA"."""

    name: str
    removed: list[str]
    added: list[str]


def difference(name: bytes, old: bytes | None, new: bytes | None) -> Difference:
    """What readers lose and get if `new` takes the place of `old`."""
    if is_apex(old) and is_apex(new) and same_but_serial(old, new):
        return Difference(names.to_text(name), [], [])
    before, after = list(_records(old)), list(_records(new))
    kept = set(before) & set(after)
    return Difference(
        names.to_text(name),
        [_text(*record) for record in before if record not in kept],
        [_text(*record) for record in after if record not in kept],
    )


def _records(block: bytes | None) -> Iterator[tuple[int, int, bytes]]:
    """(type, ttl, data)."""
    if block is None:
        return
    for type_, rrset in unpack(block).rrsets.items():
        if type_ == NEGATIVE_SOA:
            continue
        at = 0
        while at < len(rrset.wire):
            length = int.from_bytes(rrset.wire[at + 10 : at + _RR_HEAD], "big")
            ttl = int.from_bytes(rrset.wire[at + 6 : at + 10], "big")
            yield type_, ttl, rrset.wire[at + _RR_HEAD : at + _RR_HEAD + length]
            at += _RR_HEAD + length


def _text(type_: int, ttl: int, data: bytes) -> str:
    try:
        text = zone_text(type_, data)
    except Reject:
        text = f"\\# {len(data)} {data.hex()}"
    return f"{ttl} {rdata.type_name(type_)} {text}"
