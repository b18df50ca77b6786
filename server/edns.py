"""The OPT of a reply and the options in it. Pure. The hot path knows them all."""

from __future__ import annotations

from server.policy import Moment, Policy, nsid
from server.query import Edns, Option, Query
from server.siphash import siphash24

OPT_SIZE = 11
#: RFC 9018 section 4.3: a cookie older than an hour, or from more than five minutes ahead, is none; one older than half
#: an hour is replaced.
COOKIE_OLDEST_S = 3600
COOKIE_AHEAD_S = 300
COOKIE_RENEW_S = 1800
#: RFC 8467 section 4.1: replies are padded to a multiple of this.
PADDING_BLOCK = 468


def option(code: int, data: bytes) -> bytes:
    return code.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def cookie_for(received: bytes, address: bytes, secrets: tuple[bytes, ...], now_s: int) -> tuple[bytes, bool]:
    """The cookie to send (24 bytes) for the one received, and whether that was a valid server cookie of ours.

    Version 1, three reserved bytes, time, hash over client cookie, these, and the client's address (RFC 9018, 4). The
    reserved ones are zero in ours and may be anything in what comes. A cookie signed with an older secret is good, and
    is replaced.
    """
    client = received[:8]
    if len(received) == 24 and received[8] == 1:
        signed = received[:16]
        age = (now_s - int.from_bytes(received[12:16], "big") + 2**31) % 2**32 - 2**31  # serial arithmetic, RFC 1982
        signer = next((n for n, one in enumerate(secrets) if siphash24(one, signed + address) == received[16:]), None)
        if signer is not None and -COOKIE_AHEAD_S <= age <= COOKIE_OLDEST_S:
            if signer == 0 and age <= COOKIE_RENEW_S:
                return received, True
            return _new_cookie(client, address, secrets[0], now_s), True
    return _new_cookie(client, address, secrets[0], now_s), False


def _new_cookie(client: bytes, address: bytes, secret: bytes, now_s: int) -> bytes:
    signed = client + b"\1\0\0\0" + (now_s % 2**32).to_bytes(4, "big")
    return signed + siphash24(secret, signed + address)


def has_valid_cookie(query: Query, policy: Policy, moment: Moment) -> bool:
    """Whether the client has shown that it receives what we send to its address."""
    if query.edns is None or not policy.cookie_secrets:
        return False
    received = query.edns.options.get(Option.COOKIE)
    return received is not None and cookie_for(received, moment.address, policy.cookie_secrets, moment.now_s)[1]


def base_options(query: Query, policy: Policy, moment: Moment) -> bytes:
    """The options that do not depend on the answer: NSID, COOKIE, KEEPALIVE, in this order."""
    if query.edns is None:
        return b""
    asked = query.edns.options
    parts = []
    if Option.NSID in asked:
        parts.append(option(Option.NSID, nsid(policy, moment)))
    if Option.COOKIE in asked and policy.cookie_secrets:
        cookie, _ = cookie_for(asked[Option.COOKIE], moment.address, policy.cookie_secrets, moment.now_s)
        parts.append(option(Option.COOKIE, cookie))
    if Option.KEEPALIVE in asked and moment.stream:
        parts.append(option(Option.KEEPALIVE, min(0xFFFF, int(policy.keepalive_s * 10)).to_bytes(2, "big")))
    return b"".join(parts)


def zone_version(apex: bytes, serial: int) -> bytes:
    """RFC 9660 section 3.2: labels of the zone's name, type 0 (SOA-SERIAL), serial."""
    labels, at = 0, 0
    while apex[at]:
        labels += 1
        at += 1 + apex[at]
    return option(Option.ZONEVERSION, bytes([labels, 0]) + serial.to_bytes(4, "big"))


def extended_error(code: int, text: str = "") -> bytes:
    """RFC 8914."""
    return option(Option.EXTENDED_ERROR, code.to_bytes(2, "big") + text.encode())


def opt_record(query: Query, policy: Policy, rcode: int, options: bytes) -> bytes:
    """The OPT record (RFC 6891 section 7), empty if the query had none."""
    return opt_for(query.edns, policy, rcode, options)


def opt_for(asked: Edns | None, policy: Policy, rcode: int, options: bytes) -> bytes:
    """The OPT record in answer to this one."""
    if asked is None:
        return b""
    flags = (0x8000 if asked.dnssec_ok else 0).to_bytes(2, "big")
    size = policy.max_udp_size.to_bytes(2, "big")
    return b"\0\0\x29" + size + bytes([rcode >> 4, 0]) + flags + len(options).to_bytes(2, "big") + options


def padding(size: int) -> bytes:
    """The option that brings a reply of `size` bytes to a multiple of PADDING_BLOCK."""
    return option(Option.PADDING, bytes(-(size + 4) % PADDING_BLOCK))
