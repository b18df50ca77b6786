"""What a loader makes of keys of the records schema: which of them it refuses, what it changes or hides.

So that an import tells before it writes, and not `standoff rejects` afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loader import names, rdata, records
from loader.exchange.keys import Change, owner_of
from loader.exchange.sets import RecordSet, Remark, gather, set_order
from loader.model import DEFAULT_TTL, Put, Record, Reject
from loader.zone import Zones


@dataclass(frozen=True, slots=True)
class Said:
    """refused: key -> why it gives nothing; changed: key -> what becomes of its records."""

    refused: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)


def alone(prefix: str, wanted: Mapping[str, bytes]) -> Said:
    """Of keys that parse, by themselves. Of a CNAME and other data beside it the CNAME stays: servers that hold both
    answer with that."""
    return _said((key, found, 1 if found[0].type == rdata.CNAME else 2) for key, found in _parsed(prefix, wanted))


def afterwards(prefix: str, present: Iterable[Put], changes: Iterable[Change]) -> Said:
    """Of all keys, once these changes are made: what is said then and was not before. What is new is newer, and gives
    way."""
    puts = list(present)
    ages = {put.key: put.mod_revision for put in puts}
    made = {change.key: change.new for change in changes if change.new is not None}
    gone = {change.key for change in changes if change.new is None}
    before = {put.key: put.value for put in puts}
    kept = {key: value for key, value in before.items() if key not in made and key not in gone}
    if not made or not kept:
        return Said()
    newest = max(ages.values()) + 1
    parsed = _parsed(prefix, {**kept, **made})
    then = _said((key, found, newest if key in made else ages[key]) for key, found in parsed)
    if then.refused.keys() | then.changed.keys() <= made.keys():
        return then
    now = _said((key, found, ages[key]) for key, found in _parsed(prefix, before))
    return Said(
        {key: why for key, why in then.refused.items() if key in made or key not in now.refused},
        {key: why for key, why in then.changed.items() if key in made or key not in now.changed},
    )


def with_hidden(
    sets: list[RecordSet], model: Zones, records: Mapping[str, Sequence[Record] | None], only: Collection[bytes] = ()
) -> tuple[list[RecordSet], dict[str, str]]:
    """The sets of a model's table, and those that it has none of because a DNAME hides them. And key -> why nobody can
    tell what it gives, because another zone has taken over its name.

    records: of each key in the model. only: sets of these zones.
    """
    hidden: list[Record] = []
    lost: dict[str, str] = {}
    for key, why in model.warnings.items():
        for one in records[key] or ():
            zone = model.zone_of(one.owner)
            if one.zone is not None and zone != one.zone and "hidden" in why:
                lost[key] = why
            elif zone is not None and (not only or zone in only):
                ttl = model.default_ttl if one.ttl == DEFAULT_TTL else one.ttl
                hidden.append(Record(zone, one.owner, one.type, ttl, one.rdata))
    present = {(one.owner, one.type) for one in sets}
    made = [one for one in gather(hidden, ()).sets if (one.owner, one.type) not in present]
    return sorted([*sets, *made], key=set_order), lost


def remarks(prefix: str, said: Mapping[str, str]) -> list[Remark]:
    """For people."""
    made: list[Remark] = []
    for key, reason in said.items():
        owner = owner_of(prefix, key)
        where = key if owner is None else f"{names.to_text(owner)} {key.rpartition('/')[2]}"
        made.append(Remark(where, reason.replace("the older key", "the key"), owner))
    return made


def _parsed(prefix: str, values: Mapping[str, bytes]) -> Iterable[tuple[str, list[Record]]]:
    for key, value in values.items():
        try:
            yield key, records.parse(prefix, Put(key, value, 0))
        except Reject:
            continue


def _said(given: Iterable[tuple[str, list[Record], int]]) -> Said:
    model = Zones([])
    for key, found, revision in given:
        model.apply(key, found, revision)
    return Said(dict(model.problems), dict(model.warnings))
