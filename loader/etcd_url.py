"""Source URLs of the etcd kind: etcd://HOST:PORT[,HOST:PORT]/PREFIX?schema=skydns|records, and etcds:// for TLS."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

DEFAULT_PORT = 2379
SCHEMAS = ("skydns", "records")
SKYDNS_PREFIX = "/skydns"
_PARAMETERS = ("schema",)
_EXAMPLE = "expected etcd://HOST:PORT[,HOST:PORT]/PREFIX?schema=skydns|records (etcds:// for TLS)"


class EtcdUrlError(ValueError):
    """A source URL that cannot be used. The message is one line and quotes the URL."""


@dataclass(frozen=True, slots=True)
class EtcdUrl:
    """Where to find the records.

    endpoints  HOST:PORT each, IPv6 addresses in brackets; all of one cluster, tried in this order
    prefix     begins with a slash, has none at its end; the keys are those under prefix + "/"
    schema     how keys and values become records: one of SCHEMAS
    tls        etcds://
    """

    endpoints: tuple[str, ...]
    prefix: str
    schema: str
    tls: bool

    @property
    def key_prefix(self) -> str:
        """What every key begins with: the slash keeps /skydns-old out of /skydns."""
        return self.prefix + "/"


def is_etcd_url(text: str) -> bool:
    """Whether a --source is for etcd at all."""
    return text.startswith(("etcd://", "etcds://"))


def parse(text: str) -> EtcdUrl:
    """Parse a source URL; raises EtcdUrlError."""

    def fail(reason: str) -> EtcdUrlError:
        return EtcdUrlError(f"source {text!r}: {reason}; {_EXAMPLE}")

    if not is_etcd_url(text):
        raise fail("not an etcd URL")
    parts = urlsplit(text)
    if "@" in parts.netloc:  # not quoted: it may hold a password
        raise EtcdUrlError("a source URL takes no user and password: give them as settings (etcd user, password file)")
    if parts.fragment:
        raise fail(f"'#{parts.fragment}' has no meaning here (write %23 for a '#' in the prefix)")
    endpoints = []
    for endpoint in parts.netloc.split(","):
        try:
            endpoints.append(_endpoint(endpoint))
        except ValueError as error:
            raise fail(str(error)) from None
    if len(set(endpoints)) < len(endpoints):
        raise fail("the same endpoint is named twice")
    try:
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise fail(f"cannot read the parameters {parts.query!r}") from None
    unknown = sorted({name for name, _ in query} - set(_PARAMETERS))
    if unknown:
        raise fail(f"unknown parameter {', '.join(unknown)}, known: {', '.join(_PARAMETERS)}")
    if len(query) > 1:
        raise fail("schema is given twice")
    schema = dict(query).get("schema", SCHEMAS[0])
    if schema not in SCHEMAS:
        raise fail(f"unknown schema {schema!r}")
    prefix = unquote(parts.path).rstrip("/")
    if not prefix:
        if schema != "skydns":
            raise fail(f"schema={schema} needs a prefix, for example /dns")
        prefix = SKYDNS_PREFIX
    return EtcdUrl(tuple(endpoints), prefix, schema, parts.scheme == "etcds")


def _endpoint(text: str) -> str:
    """HOST, HOST:PORT, [IPv6] or [IPv6]:PORT -> the form with a port; raises ValueError with the reason."""
    if not text:
        raise ValueError("an endpoint is empty")
    parts = urlsplit("//" + text)
    host = parts.hostname
    if not host or any(c.isspace() for c in text):
        raise ValueError(f"endpoint {text!r} has no host")
    if ":" in host and "[" not in text:
        raise ValueError(f"endpoint {text!r}: IPv6 addresses are written in brackets")
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not 1 <= port <= 65535:
        raise ValueError(f"endpoint {text!r} has no valid port, 1 to 65535")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
