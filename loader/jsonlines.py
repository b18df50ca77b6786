"""Zone data as JSON lines: one RRset, or a part of one, a line.

    {"name":"www.example.test","type":"A","ttl":60,"data":["192.0.2.1","192.0.2.2"]}

Names are absolute, in data too, with or without a last dot. ttl may be left out; data is a string or a list, type may
be IP, and there may be attributes, all as in the records schema (records.py). Lines that name the same RRset add up. A
SOA makes its name a zone. Empty lines do not count. A line that is wrong costs that line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loader import attributes, names, rdata, records, wording
from loader.attributes import Attributes
from loader.model import Record, Reject

#: What a key gives: most give one record, and a million lists of one would be 90 MB.
Content = Record | list[Record]

#: The longest line that is looked at. A TXT of 65535 octets, each escaped to six characters, fits.
MAX_LINE = 1 << 20


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    type: str
    data: records.Data
    ttl: int | None = None


class _ConditionalLine(attributes.Fields):
    name: str
    type: str
    data: records.ConditionalData
    ttl: int | None = None


_decode = msgspec.json.Decoder(_Line).decode
#: For what the other one does not understand: few lines have attributes.
_decode_conditional = msgspec.json.Decoder(_ConditionalLine).decode


def read(lines: Iterable[bytes], prefix: str = "") -> tuple[dict[str, Content], dict[int, str]]:
    """(prefix + NAME/TYPE -> records, number of a wrong line -> reason)."""
    found: dict[str, Content] = {}
    wrong: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            key, made = _read_line(line, prefix)
        except Reject as reject:
            wrong[number] = str(reject)
            continue
        held = found.setdefault(key, made)
        if held is not made:
            found[key] = as_list(held) + as_list(made)
    return found, wrong


def as_list(content: Content) -> list[Record]:
    """The records of a key."""
    return content if isinstance(content, list) else [content]


def _read_line(raw: bytes, prefix: str) -> tuple[str, Content]:
    if len(raw) > MAX_LINE:
        raise Reject(f"the line is longer than {MAX_LINE} octets")
    line, items, conditions = _understood(raw)
    try:
        owner = names.from_text(line.name)
    except names.BadName as error:
        raise Reject(str(error)) from None
    name = line.name.lower()
    key = f"{prefix}{name}/{line.type.upper()}" if name.endswith(".") else f"{prefix}{name}./{line.type.upper()}"
    ttl = records.checked_ttl(line.ttl)
    pairs = records.rrset(line.type, items, names.ROOT)
    made = [Record(owner if type_ == rdata.SOA else None, owner, type_, ttl, data) for type_, data in pairs]
    if conditions:
        made = list(map(attributes.conditional, made, conditions))
    return key, made if len(made) > 1 else made[0]


def _understood(raw: bytes) -> tuple[_Line | _ConditionalLine, Sequence[records.Item], list[Attributes]]:
    """A line, its items, and the attributes of each; none if no item has any."""
    try:
        try:
            line = _decode(raw)
        except msgspec.ValidationError:
            found = _decode_conditional(raw)
            return (found, *records.conditional_items(found.data, attributes.read(found)))
    except UnicodeDecodeError as error:
        raise Reject(f"the line is not UTF-8: {error.reason}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Reject(f"the line is not understood: {wording.why(error)}") from None
    return line, records.as_items(line.data), []
