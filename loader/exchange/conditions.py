"""The attributes of records (loader/attributes.py) on their way in and out: fields of JSON that read back as the same.

A check is written with `{address}` where it is about the record's own address, so that one line stands for all records
of a set. What all items say is said once, beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from loader import attributes, rdata, targets
from loader.attributes import NONE, Attributes, Conditional
from loader.exchange.sets import RecordSet
from loader.exchange.text import item
from loader.model import Record
from loader.targets import Target

#: Fields of Attributes of which -1 means that there is none.
_NUMBERS = ("weight", "pick", "period")
#: Options of a check whose value is a field of Target, under the same name.
_OPTIONS = ("interval", "timeout", "rise", "fall", "host", "sni", "verify")


def fields(given: Attributes, type_: int, data: bytes) -> dict[str, Any]:
    """What a value says for a record of this type and data to have these attributes; nothing for none."""
    said: dict[str, Any] = {}
    for name in ("not_before", "not_after"):
        if (moment := getattr(given, name)) is not None:
            said[name] = _moment(moment)
    said |= {name: number for name in _NUMBERS if (number := getattr(given, name)) >= 0}
    if given.check is not None:
        own = attributes.address_text(data) if type_ in (rdata.A, rdata.AAAA) else ""
        said["check"] = _check(given.check, own)
    if given.labels:
        said["labels"] = dict(given.labels)
    return said


def read(said: Any, type_: int, data: bytes) -> Attributes:
    """The attributes that such fields stand for. Raises Reject, msgspec.ValidationError."""
    found = attributes.read(msgspec.convert(said, attributes.Fields))
    made = attributes.conditional(Record(None, b"", type_, 0, data), found)
    return made.attributes if isinstance(made, Conditional) else NONE


def content(one: RecordSet) -> dict[str, Any]:
    """`data` of a value or a line, and the attributes beside it. Raises Reject."""
    items = [item(one.type, data) for data in one.data]
    if not one.attributes:
        return {"data": items}
    said = [fields(given, one.type, data) for given, data in zip(one.attributes, one.data, strict=True)]
    common = {name: value for name, value in said[0].items() if all(each.get(name) == value for each in said)}
    own = [{name: value for name, value in each.items() if name not in common} for each in said]
    return {"data": [{"data": data} | each if each else data for data, each in zip(items, own, strict=True)]} | common


def attach(sets: list[RecordSet], conditional: Iterable[Conditional], records: Iterable[Record]) -> list[RecordSet]:
    """The sets of a table, whose records have no attributes, with those of the records that they were made of.

    conditional  those that have some
    records      all, with these; not looked at if there are none
    """
    found: dict[tuple[bytes, int, bytes], dict[Attributes, None]] = {}
    for one in conditional:
        found.setdefault((one.owner, one.type, one.rdata), {})
    if not found:
        return sets
    for record in records:
        those = found.get((record.owner, record.type, record.rdata))
        if those is not None:
            those[record.attributes if isinstance(record, Conditional) else NONE] = None
    return [_attached(one, found) for one in sets]


def _attached(one: RecordSet, found: dict[tuple[bytes, int, bytes], dict[Attributes, None]]) -> RecordSet:
    pairs = [(data, each) for data in one.data for each in found.get((one.owner, one.type, data), (NONE,))]
    if all(each == NONE for _, each in pairs):
        return one
    return replace(one, data=tuple(data for data, _ in pairs), attributes=tuple(each for _, each in pairs))


def count(sets: Iterable[RecordSet]) -> int:
    """Records that have attributes."""
    return sum(each != NONE for one in sets for each in one.attributes)


def _moment(moment: float) -> str | float:
    """As text if that says it exactly, or else in seconds."""
    try:
        text = datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
        exact = datetime.fromisoformat(text).timestamp() == moment
    except (ValueError, OverflowError, OSError):
        return moment
    return text if exact else moment


def _check(target: Target, own: str) -> str | dict[str, Any]:
    """own: the record's address, empty for a record that is none."""
    url, *options = target.text.split(" ")
    shown = f"[{own}]" if ":" in own else own
    scheme, _, rest = url.partition("://")
    if own and target.address == own and rest[len(shown) :][:1] in ("", ":", "/") and rest.startswith(shown):
        url = f"{scheme}://{targets.PLACEHOLDER}{rest[len(shown) :]}"
    if not options:
        return url
    said = {option.partition("=")[0] for option in options}
    made: dict[str, Any] = {"url": url}
    made |= {name: _plain(getattr(target, name)) for name in _OPTIONS if name in said}
    if "status" in said:
        made["status"] = list(target.statuses)
    return made


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
