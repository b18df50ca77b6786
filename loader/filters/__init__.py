"""Filters: which of a name's records are answered at this moment. docs/filters.md is the manual.

    def quiet(rrsets: RRsets, context: Context) -> RRsets | Kept: ...

A filter is a pure function. It gets all RRsets of one name (but a SOA) and says which records stay, and may lower TTLs;
it invents none, so that every answer can be traced to a key. It is asked again when a key of the name changes, when one
of the name's health checks turns, and at the time that it wishes. Only names with at least one record that has
attributes are filtered.

One name at a time, not a zone: what a change costs must not grow with the zone.

A filter of your own is an entry point in the group `standoff.filters`, and is named in the setting `filters`. It runs
in a process of its own (loader/filters/host.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from loader.attributes import NONE, Attributes, address_text
from loader.rdata import AAAA, A

#: The group of entry points.
GROUP = "standoff.filters"


class RR(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record. type: a number; ttl in seconds; data in wire form; key: of the source that gives it."""

    type: int
    ttl: int
    data: bytes
    key: str = ""
    attributes: Attributes = NONE

    @property
    def address(self) -> str:
        """Of an A or AAAA, as text; else empty."""
        return address_text(self.data) if self.type in (A, AAAA) else ""


#: Type -> its records, in the order in which they are answered.
RRsets = dict[int, list[RR]]


class Context(msgspec.Struct, frozen=True):
    """What a filter may know besides.

    now     seconds since the epoch
    owner   the name, zone: the apex of its zone; wire form, lower case
    seed    of this machine: the same after a restart, another one elsewhere
    health  what is known of the name's targets: Target.text -> whether it is up. Unknown ones are not in it
    """

    now: float
    owner: bytes
    zone: bytes
    seed: bytes = b""
    health: Mapping[str, bool] = {}


class Kept(msgspec.Struct, frozen=True):
    """What stays, and when to ask again: seconds since the epoch, None: not before something happens."""

    rrsets: RRsets
    again: float | None = None


Filter = Callable[[RRsets, Context], RRsets | Kept]
