"""Health checks: addresses that are down are not answered, unless all are: then it is the check that is wrong, or no
answer would help anyway."""

from __future__ import annotations

from loader.filters import RR, Context, RRsets


def health(rrsets: RRsets, context: Context) -> RRsets:
    """Of each RRset the records whose target is up, or not known, or that have none; all if there is no such record."""
    found: RRsets = {}
    for type_, rrs in rrsets.items():
        found[type_] = [rr for rr in rrs if _is_up(rr, context)] or rrs
    return found


def _is_up(rr: RR, context: Context) -> bool:
    check = rr.attributes.check
    return check is None or context.health.get(check.text, True)
