"""Queries in wire form, and replies as dnspython reads them."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rdatatype


def query(
    name: str,
    type_: str = "A",
    *,
    edns: int | None = None,
    dnssec_ok: bool = False,
    identifier: int = 0x1234,
    flags: int = dns.flags.RD,
) -> bytes:
    """`edns` is the client's UDP size, None for a query without an OPT."""
    message = dns.message.make_query(name, type_, use_edns=False)
    if edns is not None:
        message.use_edns(0, dns.flags.DO if dnssec_ok else 0, payload=edns)
    message.id = identifier
    message.flags = dns.flags.Flag(flags)
    return message.to_wire()


def parsed(reply: bytes) -> dns.message.Message:
    """Raises if dnspython cannot read it; what is truncated by TC counts as read."""
    return dns.message.from_wire(reply, raise_on_truncation=False)
