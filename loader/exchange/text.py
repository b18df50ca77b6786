"""Record data as text that reads back as the same octets: each is tried, and if need be written as RFC 3597 has it."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop  # two formatters; no sockets here

import dns.rdata
import dns.rdataclass
import dns.rdatatype

from loader import names, rdata
from loader.model import Reject

_NAME_ONLY = frozenset((rdata.NS, rdata.CNAME, rdata.PTR, rdata.DNAME))


def zone_text(type_: int, data: bytes) -> str:
    """As in a zone file, names absolute. Raises Reject for octets that are no data of this type."""
    try:
        text = _friendly(type_, data)
        if rdata.from_text(type_, text, names.ROOT) == data:
            return text
    except Exception:
        pass  # whatever dnspython's formatters raise: the other syntax says it
    text = f"\\# {len(data)} {data.hex()}".strip()
    if rdata.from_text(type_, text, names.ROOT) != data:
        raise Reject(f"{rdata.type_name(type_)} data {data.hex()} cannot be written so that it reads back the same")
    return text


def _friendly(type_: int, data: bytes) -> str:
    if type_ == rdata.A:
        return inet_ntop(AF_INET, data)
    if type_ == rdata.AAAA:
        return inet_ntop(AF_INET6, data)
    if type_ in _NAME_ONLY and len(data) < names.MAX_NAME + 1:
        return names.to_text(data)
    kind = dns.rdatatype.RdataType.make(type_)
    return dns.rdata.from_wire(dns.rdataclass.IN, kind, data, 0, len(data)).to_text()


def item(type_: int, data: bytes) -> str | list[str]:
    """As an item of the records schema and of JSON lines (loader/records.py). Raises Reject."""
    if type_ == rdata.TXT and (strings := _strings(data)):
        if len(strings) == 1 and not strings[0].startswith(('"', "\\#")):
            return strings[0]
        return strings
    return zone_text(type_, data)


def _strings(data: bytes) -> list[str]:
    """The strings of TXT data; none if they are not text, or would not come back cut in the same places."""
    strings: list[str] = []
    at = 0
    try:
        while at < len(data):
            end = at + 1 + data[at]
            strings.append(data[at + 1 : end].decode())
            at = end
        return strings if strings and rdata.txt(strings) == data else []
    except UnicodeDecodeError:
        return []
