"""Signed messages (TSIG, RFC 8945): keys, checking what came, signing what goes. Pure; dnspython computes the MACs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.tsig
from dns.rdtypes.ANY.TSIG import TSIG

from server.query import HEADER, FormatError

BADSIG, BADKEY, BADTIME = 16, 17, 18
#: Seconds that the clocks of two hosts may differ (RFC 8945 section 10).
FUDGE_S = 300
#: The most that a signature adds to a message: an owner and an algorithm, 64 bytes of MAC, a time, what is fixed.
LARGEST = 255 + 10 + 32 + 16 + 64 + 6

ALGORITHMS = {
    name.to_text(omit_final_dot=True).lower(): name
    for name in (
        dns.tsig.HMAC_SHA1,
        dns.tsig.HMAC_SHA224,
        dns.tsig.HMAC_SHA256,
        dns.tsig.HMAC_SHA384,
        dns.tsig.HMAC_SHA512,
        dns.tsig.HMAC_MD5,
    )
}
ALGORITHMS["hmac-md5"] = dns.tsig.HMAC_MD5


def wire_name(text: str) -> bytes:
    """A name in lower-case wire form. Raises ValueError."""
    if not text:
        raise ValueError("the name is missing")
    try:
        return dns.name.from_text(text).to_digestable()
    except dns.exception.DNSException as error:
        raise ValueError(f"{text!r} is not a name: {error}") from None


def text_name(name: bytes) -> str:
    """For people."""
    return dns.name.from_wire(name, 0)[0].to_text()


def parse_key(text: str) -> dns.tsig.Key:
    """A key written NAME:ALGORITHM:BASE64. Raises ValueError, with a message that does not tell the secret."""
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError("it does not have three parts, NAME:ALGORITHM:BASE64")
    name, algorithm, secret = parts
    if algorithm.lower() not in ALGORITHMS:
        raise ValueError(f"{algorithm!r} is none of {', '.join(ALGORITHMS)}")
    owner = wire_name(name)
    try:
        raw = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the secret is not base64") from None
    if not raw:
        raise ValueError("the secret is empty")
    return dns.tsig.Key(dns.name.from_wire(owner, 0)[0], raw, ALGORITHMS[algorithm.lower()])


class Keys:
    """Keys by name (lower-case wire form)."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Each as `parse_key` wants it. Raises ValueError; for two keys of one name, too."""
        self._keys: dict[bytes, dns.tsig.Key] = {}
        for text in texts:
            key = parse_key(text)
            if self._keys.setdefault(key.name.to_digestable(), key) is not key:
                raise ValueError(f"there are two keys {key.name}")

    def get(self, name: bytes) -> dns.tsig.Key | None:
        return self._keys.get(name)

    def __contains__(self, name: bytes) -> bool:
        return name in self._keys


NO_KEYS = Keys()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a signature is worth. `error` 0: it is `key`'s, and `packet` is what was signed, as if it had never been."""

    owner: dns.name.Name
    record: TSIG
    key: dns.tsig.Key | None
    error: int
    packet: bytes


def check(packet: bytes, at: int, keys: Keys, now_s: int) -> Verdict:
    """Judge a request whose TSIG record begins at `at`, in the order of RFC 8945 section 5.2. Raises FormatError."""
    owner, record = _read(packet, at)
    key = keys.get(owner.to_digestable())
    error = 0
    if key is None or key.algorithm != record.algorithm:
        key, error = None, BADKEY
    else:
        try:
            dns.tsig.validate(packet, key, owner, record, now_s, b"", at)  # type: ignore[no-untyped-call]
        except dns.tsig.BadTime:
            error = BADTIME
        except dns.tsig.BadSignature:
            error = BADSIG
        except dns.exception.DNSException as problem:  # one that tells of an error, as a reply's may
            raise FormatError(f"a request's TSIG is not right: {problem!r}") from None
    *head, additionals = HEADER.unpack_from(packet)
    bare = HEADER.pack(*head, additionals - 1) + packet[HEADER.size : at]
    return Verdict(owner, record, key, error, bare)


def _read(packet: bytes, at: int) -> tuple[dns.name.Name, TSIG]:
    try:
        owner, used = dns.name.from_wire(packet, at)
        at += used
        class_, ttl = int.from_bytes(packet[at + 2 : at + 4], "big"), packet[at + 4 : at + 8]
        length = int.from_bytes(packet[at + 8 : at + 10], "big")
        record = dns.rdata.from_wire(dns.rdataclass.ANY, dns.rdatatype.TSIG, packet, at + 10, length)
    except (dns.exception.DNSException, ValueError) as problem:
        raise FormatError(f"a TSIG that cannot be read: {problem!r}") from None
    if class_ != dns.rdataclass.ANY or any(ttl) or not isinstance(record, TSIG):
        raise FormatError("a TSIG of another class, or with a TTL (RFC 8945 section 4.2)")
    return owner, record


class Signer:
    """Signs the messages of one reply, in their order: the first over the request's MAC, the next over the last one's.

    Every message is signed (RFC 8945 section 5.3.1 allows gaps; some secondaries do not).
    """

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._context: object = None

    def sign(self, message: bytes, now_s: int, *, more: bool = False) -> bytes:
        """The message with its TSIG. `more`: others follow, or came before, in this reply."""
        verdict = self._verdict
        key = verdict.key
        request = verdict.record
        time_s = request.time_signed if verdict.error == BADTIME else now_s
        other = now_s.to_bytes(6, "big") if verdict.error == BADTIME else b""
        record = _record(request.algorithm, time_s, b"", int.from_bytes(message[:2], "big"), verdict.error, other)
        if key is None or verdict.error == BADSIG:  # nothing to sign with (RFC 8945 section 5.3.2)
            return append(message, verdict.owner, record)
        signed, self._context = dns.tsig.sign(  # type: ignore[no-untyped-call]
            message, key, record, time_s, request.mac, self._context, more
        )
        return append(message, verdict.owner, signed)


def sign_request(message: bytes, key: dns.tsig.Key, now_s: int) -> tuple[bytes, bytes]:
    """A request of our own, signed, and its MAC: what the reply's depends on."""
    record = _record(key.algorithm, now_s, b"", int.from_bytes(message[:2], "big"), 0, b"")
    signed, _ = dns.tsig.sign(message, key, record, now_s)  # type: ignore[no-untyped-call]
    return append(message, key.name, signed), signed.mac


def _record(algorithm: dns.name.Name, time_s: int, mac: bytes, identifier: int, error: int, other: bytes) -> TSIG:
    return TSIG(  # type: ignore[no-untyped-call]
        dns.rdataclass.ANY, dns.rdatatype.TSIG, algorithm, time_s, FUDGE_S, mac, identifier, error, other
    )


def append(message: bytes, owner: dns.name.Name, record: TSIG) -> bytes:
    """A message with a TSIG as its last record."""
    data = record.to_wire()
    assert data is not None
    fixed = dns.rdatatype.TSIG.to_bytes(2, "big") + dns.rdataclass.ANY.to_bytes(2, "big") + bytes(4)
    additionals = int.from_bytes(message[10:12], "big") + 1
    tail = owner.to_digestable() + fixed + len(data).to_bytes(2, "big") + data
    return message[:10] + additionals.to_bytes(2, "big") + message[12:] + tail
