"""What a value says about its records besides their data: when they count, how often, and who looks after them. Pure.

A value, or one of its items, may have these fields in any schema that has JSON objects (docs/filters.md):

    not_before, not_after   RFC 3339 with an offset, or seconds since the epoch
    weight                  0..65535
    pick, period            so many of an RRset at a time; seconds for which a choice stands
    check                   loader/targets.py
    labels                  words for filters of your own: an object of strings

Filters (loader/filters/) make something of them. Records without any are plain ones, and cost nothing more.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from datetime import datetime

import msgspec

from loader import rdata, targets
from loader.model import Record, Reject
from loader.targets import BadTarget, Target

#: Seconds since the epoch up to which every float is exact to a millisecond: the year 287396.
_LAST_TIME = 2.0**43
_MOST_WEIGHT = 0xFFFF
_MOST_LABELS, _MOST_LABEL = 16, 255
#: A choice stands for so long at least: each costs a swap, and resolvers take no notice of more.
LEAST_PERIOD_S, MOST_PERIOD_S = 5, 86400

#: The year 1, UTC: the first moment that can be written. With an offset one can name an earlier one.
_FIRST_TIME = -62135596800.0

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")

Moment = int | float | str


class Fields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields as they stand in a value."""

    not_before: Moment | None = None
    not_after: Moment | None = None
    weight: int | None = None
    pick: int | None = None
    period: int | None = None
    check: str | targets.Options | None = None
    labels: dict[str, str] | None = None


class Attributes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a record has of them. Times in seconds since the epoch; -1: weight, pick or period is not given."""

    not_before: float | None = None
    not_after: float | None = None
    weight: int = -1
    pick: int = -1
    period: int = -1
    check: Target | None = None
    labels: tuple[tuple[str, str], ...] = ()

    def label(self, name: str) -> str:
        """A label's word, empty if there is none."""
        return dict(self.labels).get(name, "")


#: Of a record that has none.
NONE = Attributes()


@dataclass(frozen=True, slots=True)
class Conditional(Record):
    """A record with attributes. A class of its own: most records have none, and pay for none."""

    attributes: Attributes


def read(fields: Fields, outer: Attributes = NONE) -> Attributes:
    """The attributes that fields stand for; what they do not say is as in `outer`. Raises Reject."""
    try:
        check = outer.check if fields.check is None else targets.parse(fields.check)
    except BadTarget as error:
        raise Reject(str(error)) from None
    made = Attributes(
        _moment("not_before", fields.not_before, outer.not_before),
        _moment("not_after", fields.not_after, outer.not_after),
        _number("weight", fields.weight, 0, _MOST_WEIGHT, outer.weight),
        _number("pick", fields.pick, 1, _MOST_WEIGHT, outer.pick),
        _number("period", fields.period, LEAST_PERIOD_S, MOST_PERIOD_S, outer.period),
        check,
        outer.labels if fields.labels is None else _labels(fields.labels),
    )
    if made.not_before is not None and made.not_after is not None and made.not_before >= made.not_after:
        raise Reject("not_before is not before not_after")
    return made


def conditional(record: Record, attributes: Attributes) -> Record:
    """The record with these attributes. Raises Reject."""
    if attributes == NONE:
        return record
    if record.type in (rdata.SOA, rdata.DNAME):
        raise Reject(f"a {rdata.type_name(record.type)} has no conditions: without it the zone would be another")
    return with_attributes(record, placed(attributes, record.type, record.rdata))


def with_attributes(record: Record, made: Attributes) -> Record:
    """The record with attributes that are right for it."""
    if made == NONE:
        return record
    return Conditional(record.zone, record.owner, record.type, record.ttl, record.rdata, made)


def placed(attributes: Attributes, type_: int, data: bytes) -> Attributes:
    """The attributes with the address that a check's `{address}` stands for: that of a record of this type. Raises
    Reject."""
    check = attributes.check
    if check is None or check.address:
        return attributes
    if type_ not in (rdata.A, rdata.AAAA):
        raise Reject(f"{targets.PLACEHOLDER} in a check stands for the address of an A or AAAA, and there is none")
    return msgspec.structs.replace(attributes, check=check.at(address_text(data)))


def address_text(address: bytes) -> str:
    """4 or 16 octets as text."""
    return str(ipaddress.ip_address(address))


def _moment(what: str, given: Moment | None, outer: float | None) -> float | None:
    if given is None:
        return outer
    if isinstance(given, str):
        try:
            if not _RFC3339.fullmatch(given):
                raise ValueError
            return max(datetime.fromisoformat(given.upper()).timestamp(), _FIRST_TIME)
        except (ValueError, OverflowError):
            raise Reject(
                f"{what} is a time like 2031-01-31T09:00:00Z, or seconds since the epoch, not {given[:40]!r}"
            ) from None
    if not (math.isfinite(given) and 0 <= given <= _LAST_TIME):
        raise Reject(f"{what} is seconds since the epoch, 0 to {_LAST_TIME:.0f}, not {given:g}")
    return float(given)


def _number(what: str, given: int | None, least: int, most: int, outer: int) -> int:
    if given is None:
        return outer
    if not least <= given <= most:
        raise Reject(f"{what} is {least} to {most}, not {given}")
    return given


def _labels(given: dict[str, str]) -> tuple[tuple[str, str], ...]:
    if len(given) > _MOST_LABELS or any(len(part) > _MOST_LABEL for pair in given.items() for part in pair):
        raise Reject(f"labels are at most {_MOST_LABELS}, of {_MOST_LABEL} characters each")
    return tuple(sorted(given.items()))
