"""Time windows: a record counts from `not_before` on and until `not_after`.

Resolvers keep what they have got: towards the end of a window the RRset's TTL falls, in halves, so that it is forgotten
in time.
"""

from __future__ import annotations

import math

import msgspec

from loader.filters import RR, Context, Kept, RRsets


def windows(rrsets: RRsets, context: Context) -> Kept:
    """The records whose window is open."""
    again = math.inf
    kept: RRsets = {}
    for type_, rrs in rrsets.items():
        open_, edge = _open(rrs, context.now)
        again = min(again, edge)
        if open_:
            kept[type_] = open_
            again = min(again, _hurry(kept, type_, context.now))
    return Kept(kept, None if again == math.inf else again)


def _open(rrs: list[RR], now: float) -> tuple[list[RR], float]:
    """(those that count now, when that changes)."""
    found: list[RR] = []
    again = math.inf
    for rr in rrs:
        begin, end = rr.attributes.not_before, rr.attributes.not_after
        if begin is not None and now < begin:
            again = min(again, begin)
        elif end is None or now < end:
            found.append(rr)
            again = again if end is None else min(again, end)
    return found, again


def _hurry(kept: RRsets, type_: int, now: float) -> float:
    """Lowers the TTL of an RRset that has less time left; when that has to be done (again). In the last second it is 1,
    for 0 is refused by some."""
    rrs = kept[type_]
    ends = [rr.attributes.not_after for rr in rrs if rr.attributes.not_after is not None]
    if not ends:
        return math.inf
    end, ttl = min(ends), min(rr.ttl for rr in rrs)
    if end - now > ttl:
        return end - ttl
    lowered = 1
    while lowered * 2 < end - now:
        lowered *= 2
    if lowered < ttl:
        kept[type_] = [msgspec.structs.replace(rr, ttl=min(rr.ttl, lowered)) for rr in rrs]
    return end if end - now <= lowered else end - lowered
