"""What `aws route53 list-resource-record-sets --hosted-zone-id ID` prints: JSON, one hosted zone or several in a row.

Names and texts have octets as three octal digits (`\\052` is `*`), where zone files have decimal ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from loader import names, rdata
from loader.exchange.sets import Gathered, Remark, gather
from loader.model import MAX_TTL, Record, Reject

_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
_SPACE = re.compile(r"\s*")
_ESCAPE = re.compile(r"\\([0-3][0-7]{2}|.)", re.DOTALL)

#: What makes the answer depend on who asks, or on chance, or on health checks.
_ROUTING = {
    "Weight": "weighted",
    "Region": "latency",
    "GeoLocation": "geolocation",
    "GeoProximityLocation": "geoproximity",
    "CidrRoutingConfig": "CIDR",
    "Failover": "failover",
    "MultiValueAnswer": "multivalue",
}


class _Set(msgspec.Struct):
    Name: str
    Type: str
    TTL: int | None = None
    ResourceRecords: list[dict[str, str]] = []
    AliasTarget: dict[str, Any] | None = None
    SetIdentifier: str | None = None
    TrafficPolicyInstanceId: str | None = None
    HealthCheckId: str | None = None
    Weight: Any = None
    Region: Any = None
    GeoLocation: Any = None
    GeoProximityLocation: Any = None
    CidrRoutingConfig: Any = None
    Failover: Any = None
    MultiValueAnswer: Any = None


class _Page(msgspec.Struct):
    ResourceRecordSets: list[_Set]
    IsTruncated: bool = False
    NextToken: str | None = None
    NextRecordName: str | None = None
    NextRecordType: str | None = None

    def goes_on_in(self, page: _Page) -> bool:
        """Whether `page` begins where this one was cut off."""
        first = page.ResourceRecordSets[:1]
        return [(one.Name, one.Type) for one in first] == [(self.NextRecordName, self.NextRecordType)]


def read(raw: bytes, zones: Collection[bytes] = ()) -> Gathered:
    """Everything in the listing. Raises Reject if it is none."""
    found: list[Record] = []
    problems: list[Remark] = []
    notes: list[Remark] = []
    pages = _pages(raw)
    for number, page in enumerate(pages, 1):
        follows = any(map(page.goes_on_in, pages[number : number + 1]))
        if page.NextToken or (page.IsTruncated and not follows):
            problems.append(Remark("the listing", "is not complete: list again without --max-items and --no-paginate"))
        for one in page.ResourceRecordSets:
            title = f"{_decimal(one.Name)} {one.Type}"
            try:
                found += _records(one)
            except (Reject, names.BadName) as error:
                problems.append(Remark(title, str(error), _owner(one)))
                continue
            if one.HealthCheckId is not None:
                notes.append(Remark(title, f"without its health check {one.HealthCheckId}: see docs/filters.md"))
    result = gather(found, zones, problems)
    result.notes += notes
    return result


def _pages(raw: bytes) -> list[_Page]:
    """One listing, several in a row, or a list of them."""
    try:
        values = list(_values(raw.decode(json.detect_encoding(raw))))
        pages = [page for value in values for page in (value if isinstance(value, list) else [value])]
        if not pages:
            raise Reject("this is no listing of Route 53: there is nothing in it")
        return msgspec.convert(pages, list[_Page])
    except Reject:
        raise
    except (ValueError, RecursionError) as error:
        raise Reject(f"this is no listing of Route 53: {error}") from None


def _values(text: str) -> Iterator[Any]:
    """The values of a text that holds several, with white space or nothing between them. Raises ValueError."""
    decode = json.JSONDecoder().raw_decode
    at = 0
    while (at := _SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        value, at = decode(text, at)
        yield value


def _records(one: _Set) -> list[Record]:
    if one.AliasTarget is not None:
        target = one.AliasTarget.get("DNSName", "?")
        raise Reject(f"an alias of {target}, which Route 53 looks up itself: write its addresses, or a CNAME")
    routing = [word for name, word in _ROUTING.items() if getattr(one, name) is not None]
    if routing or one.SetIdentifier is not None:
        kind = routing[0] if routing else "special"
        raise Reject(f"{kind} routing (set {one.SetIdentifier!r}): one answer for all is what a zone holds")
    if one.TrafficPolicyInstanceId is not None:
        raise Reject("made by a traffic policy")
    if one.TTL is None or not 0 <= one.TTL <= MAX_TTL:
        raise Reject(f"TTL {one.TTL} is not 0 to {MAX_TTL} seconds")
    type_ = rdata.TXT if one.Type == "SPF" else rdata.type_number(one.Type)  # RFC 7208 section 3.1: TXT has taken over
    owner = names.from_text(_decimal(one.Name))
    if not one.ResourceRecords:
        raise Reject("has no records")
    values = [_decimal(record.get("Value", "")) for record in one.ResourceRecords]
    return [Record(None, owner, type_, one.TTL, rdata.from_text(type_, value, names.ROOT)) for value in values]


def _owner(one: _Set) -> bytes | None:
    try:
        return names.from_text(_decimal(one.Name))
    except names.BadName:
        return None


def _decimal(text: str) -> str:
    """Octal escapes as decimal ones; an escaped character stays as it is."""
    return _ESCAPE.sub(lambda match: f"\\{int(match[1], 8):03d}" if _OCTAL.fullmatch(match[0]) else match[0], text)
