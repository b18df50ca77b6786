"""The certificate of DNS over TLS: loading, checking, and reloading it without dropping a connection."""

from __future__ import annotations

import logging
import os
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

from shm.errors import StandoffError

log = logging.getLogger(__name__)

#: RFC 7858 section 3.2 has none; registered with ALPN as RFC 7301 asks.
ALPN = ["dot"]
#: An operator should hear of it this long before a certificate ends.
WARN_DAYS = 14


class CertificateError(StandoffError):
    """The pair of files cannot be used; the message says why."""


class Certificate:
    """A certificate chain and its key, two PEM files. Raises CertificateError.

    `context` is for new connections: established ones keep what they began with.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._used = self._seen = self._signature()
        self._load()

    def look(self) -> bool:
        """Whether the files have changed, and are in use now. Call it every second or so: a change counts once it has
        been the same for two looks, so that files that are replaced one after the other come as a pair."""
        now = self._signature()
        settled, self._seen = now == self._seen, now
        return settled and now != self._used and self.reload()

    def reload(self) -> bool:
        """Take the files as they are. A pair that does not work is reported, and the old one stays in use."""
        self._used = self._signature()
        try:
            self._load()
        except CertificateError as error:
            log.error("%s; the certificate loaded before stays in use", error)
            return False
        log.info("the TLS certificate %s is loaded, valid until %s", self._chain, self._until())
        return True

    def _load(self) -> None:
        self.context = make_context(self._chain, self._key)
        #: Seconds since the epoch.
        self.expires_s = expiry(self._chain)
        left = (self.expires_s - time.time()) / 86400
        if left < WARN_DAYS:
            state = "has expired" if left < 0 else "expires soon"
            log.warning("the TLS certificate %s %s: %s", self._chain, state, self._until())

    def _until(self) -> str:
        return datetime.fromtimestamp(self.expires_s, UTC).strftime("%Y-%m-%d %H:%M UTC")

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Differs when a file has been replaced or written."""
        result: list[tuple[int, int, int] | None] = []
        for path in (self._chain, self._key):
            try:
                status = os.stat(path)
            except OSError:
                result.append(None)
            else:
                result.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(result)


def make_context(chain: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and later, as a server. Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(ALPN)
    for path in (chain, key):
        if not os.access(path, os.R_OK):
            raise CertificateError(f"{path} {'cannot be read' if path.exists() else 'does not exist'}")
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except ssl.SSLError as error:
        raise CertificateError(_why_not(error, chain, key)) from error
    except OSError as error:
        raise CertificateError(f"{chain} and {key} cannot be read: {error.strerror}") from error
    return context


def _no_password() -> str:
    raise CertificateError("the TLS key is protected by a password, which nobody is there to give: take it off")


def _why_not(error: ssl.SSLError, chain: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of the certificate {chain}"
    try:
        expiry(chain)
    except CertificateError as worse:
        return str(worse)
    return f"{chain} and {key} are not a certificate and its key in PEM form: {error.reason or error}"


def expiry(chain: Path) -> float:
    """When the first certificate of a PEM file ends, in seconds since the epoch. Raises CertificateError."""
    try:
        text = chain.read_text(encoding="ascii", errors="replace")
        begin, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER)
        return _not_after(ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)]))
    except (OSError, ValueError, IndexError) as error:
        raise CertificateError(f"{chain} has no certificate in PEM form") from error


def _not_after(der: bytes) -> float:
    """RFC 5280 section 4.1: Certificate > tbsCertificate > validity > notAfter. Raises ValueError, IndexError."""
    _, tbs, _ = _element(der)
    _, at, _ = _element(der, tbs)
    tag, _, end = _element(der, at)
    if tag == 0xA0:  # version, which may be missing
        at = end
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)
    _, _, at = _element(der, at)  # notBefore
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: two digits for the years 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int = 0) -> tuple[int, int, int]:
    """Tag of the DER element at an offset, where its content begins, and where it ends."""
    size, start = der[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(der[start : start + count], "big")
        start += count
    if start + size > len(der):
        raise ValueError("an element is longer than the certificate")
    return der[at], start, start + size
