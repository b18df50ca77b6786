"""Signed zones on their way in: what the keys of another server have signed does not hold here."""

from __future__ import annotations

from collections import Counter

from loader import names
from loader.exchange.sets import Gathered, Remark

#: Made from a zone's content: a change makes them wrong, and here nothing makes them anew (RFC 4034, 5155, 8976).
MADE = {46: "RRSIG", 47: "NSEC", 50: "NSEC3", 51: "NSEC3PARAM", 63: "ZONEMD"}
_DNSKEY = 48


def unsign(found: Gathered) -> Gathered:
    """The same, without such records; a note for each zone says what is left out, and what to do."""
    kept = [one for one in found.sets if one.type not in MADE]
    left_out: dict[bytes, Counter[str]] = {}
    for one in found.sets:
        if one.type in MADE:
            left_out.setdefault(one.zone, Counter())[MADE[one.type]] += len(one.data)
        elif one.type == _DNSKEY and one.owner == one.zone:
            left_out.setdefault(one.zone, Counter())
    for zone, counts in left_out.items():
        said = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
        advice = "signatures are not made here: take the zone's DS out of its parent, and wait for the DS's TTL, first"
        found.notes.append(Remark(names.to_text(zone), advice + (f"; left out: {said}" if said else "")))
    found.sets = kept
    return found
