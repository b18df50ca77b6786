"""Weights: a part of an RRset at a time, each record as often as its weight says.

Time is cut into periods. In each one `pick` records are answered (1 if no record says more), a sample in which each
record is with a probability proportional to its weight (systematic sampling; one that would be in more often than
always is always in). The sample hangs on the machine's seed, the name, the type and the number of the period: it is the
same after a restart. Periods of different names begin at different times: a million of them would be a burst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from loader.attributes import LEAST_PERIOD_S
from loader.filters import RR, Context, Kept, RRsets

#: Of a record without one, beside others that have one.
PLAIN_WEIGHT = 1


def weights(rrsets: RRsets, context: Context) -> Kept:
    """A sample of each RRset in which a record has a weight, or says how many to pick."""
    again = math.inf
    kept: RRsets = {}
    for type_, rrs in rrsets.items():
        if all(rr.attributes.weight < 0 and rr.attributes.pick < 0 for rr in rrs):
            kept[type_] = rrs
            continue
        kept[type_], end = _choice(rrs, type_, context)
        again = min(again, end)
    return Kept(kept, None if again == math.inf else again)


def _choice(rrs: list[RR], type_: int, context: Context) -> tuple[list[RR], float]:
    """(the sample, when the next one is due)."""
    shares = [PLAIN_WEIGHT if rr.attributes.weight < 0 else rr.attributes.weight for rr in rrs]
    count = max(1, *(rr.attributes.pick for rr in rrs))
    positive = sum(1 for share in shares if share)
    if not positive or positive <= count:
        return [rr for rr, share in zip(rrs, shares, strict=True) if share or not positive], math.inf
    given = [rr.attributes.period for rr in rrs if rr.attributes.period >= 0]
    # In whole milliseconds: at the time that we ask for, the next period must have begun.
    period = 1000 * max(LEAST_PERIOD_S, min(given) if given else min(rr.ttl for rr in rrs))
    place = context.seed + context.owner + type_.to_bytes(2, "big")
    phase = int(_fraction(place) * period)
    number = (round(context.now * 1000) - phase) // period
    chosen = sample(shares, count, _fraction(place + b"%d/%d" % (number, period)))
    return [rrs[i] for i in chosen], ((number + 1) * period + phase) / 1000


def sample(shares: Sequence[int], count: int, draw: float) -> list[int]:
    """The indexes of `count` of the shares, in order; fewer if fewer are above 0. draw: the chance in it, below 1.

    Over all draws, index i is in it with probability min(1, count * shares[i] / sum(shares)), where what is always in
    leaves the sum.
    """
    always: set[int] = set()
    rest = sum(shares)
    for i in sorted(range(len(shares)), key=lambda i: -shares[i]):  # the largest first: one that is not leaves none
        if count <= len(always) or not shares[i] or (count - len(always)) * shares[i] < rest:
            break
        always.add(i)
        rest -= shares[i]
    wanted = count - len(always)
    found = set(always)
    if wanted > 0 and rest > 0:
        step, passed = rest / wanted, 0
        mark = draw * step
        for i, share in enumerate(shares):
            if i in always:
                continue
            passed += share
            if mark < passed and len(found) < count:
                found.add(i)
                mark += step
    return sorted(found)


def _fraction(text: bytes) -> float:
    """0 <= fraction < 1, a hash."""
    return (int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 11) / (1 << 53)
