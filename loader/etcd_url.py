"""Source URLs of the etcd kind: etcd://HOST:PORT[,HOST:PORT]/PREFIX?schema=skydns|records, and etcds:// for TLS.

Other forms and parameters:

    etcd+srv://DOMAIN/PREFIX      endpoints from the SRV records of _etcd-client._tcp.DOMAIN
    etcds+srv://DOMAIN/PREFIX     ... of _etcd-client-ssl._tcp.DOMAIN, with TLS
    ?namespace=/team-a/           what stands before every key in etcd, as `etcd grpc-proxy --namespace` has it
    ?resolver=ADDR:PORT           who is asked for SRV records, instead of /etc/resolv.conf
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote, urlsplit

DEFAULT_PORT = 2379
SCHEMAS = ("skydns", "records")
SKYDNS_PREFIX = "/skydns"
_PARAMETERS = ("schema", "namespace", "resolver")
_EXAMPLE = "expected etcd://HOST:PORT[,HOST:PORT]/PREFIX?schema=skydns|records (etcds:// for TLS)"
_SCHEMES = ("etcd", "etcds", "etcd+srv", "etcds+srv")


class EtcdUrlError(ValueError):
    """A source URL that cannot be used. The message is one line and quotes the URL."""


@dataclass(frozen=True, slots=True)
class EtcdUrl:
    """Where to find the records.

    endpoints  HOST:PORT each, IPv6 addresses in brackets; all of one cluster, tried in this order; none: see domain
    prefix     begins with a slash, has none at its end; the keys are those under prefix + "/"
    schema     how keys and values become records: one of SCHEMAS
    tls        etcds://
    namespace  stands before every key in etcd, and in none that is shown; usually begins and ends with a slash
    domain     whose SRV records name the endpoints (loader/etcd_discovery.py)
    resolver   ADDR:PORT of who is asked for them; empty: as the system has it
    """

    endpoints: tuple[str, ...]
    prefix: str
    schema: str
    tls: bool
    namespace: str = ""
    domain: str = ""
    resolver: str = ""

    @property
    def key_prefix(self) -> str:
        """What every key begins with: the slash keeps /skydns-old out of /skydns."""
        return self.prefix + "/"


def is_etcd_url(text: str) -> bool:
    """Whether a --source is for etcd at all."""
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


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
    by_name = parts.scheme.endswith("+srv")
    try:
        endpoints = () if by_name else _endpoints(parts.netloc)
        domain = _domain(parts.netloc) if by_name else ""
    except ValueError as error:
        raise fail(str(error)) from None
    try:
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise fail(f"cannot read the parameters {parts.query!r}") from None
    unknown = sorted({name for name, _ in query} - set(_PARAMETERS))
    if unknown:
        raise fail(f"unknown parameter {', '.join(unknown)}, known: {', '.join(_PARAMETERS)}")
    given = dict(query)
    if len(query) > len(given):
        raise fail(f"{next(name for name, _ in query if [one for one, _ in query].count(name) > 1)} is given twice")
    resolver = given.get("resolver", "")
    if resolver and not by_name:
        raise fail("a resolver is for etcd+srv://, which has SRV records to ask for")
    try:
        resolver = _resolver(resolver) if resolver else ""
    except ValueError as error:
        raise fail(str(error)) from None
    schema = given.get("schema", SCHEMAS[0])
    if schema not in SCHEMAS:
        raise fail(f"unknown schema {schema!r}")
    prefix = unquote(parts.path).rstrip("/")
    if not prefix:
        if schema != "skydns":
            raise fail(f"schema={schema} needs a prefix, for example /dns")
        prefix = SKYDNS_PREFIX
    tls = parts.scheme.startswith("etcds")
    return EtcdUrl(endpoints, prefix, schema, tls, given.get("namespace", ""), domain, resolver)


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(map(_endpoint, text.split(",")))
    if len(set(endpoints)) < len(endpoints):
        raise ValueError("the same endpoint is named twice")
    return endpoints


def _domain(text: str) -> str:
    if not text or any(c in ",:[]" or c.isspace() for c in text):
        raise ValueError(f"{text!r} is not one domain, whose SRV records name hosts and ports")
    return text.rstrip(".")


def _resolver(text: str) -> str:
    endpoint = _endpoint(text if "[" in text or ":" in text else f"{text}:53")
    try:
        ip_address(endpoint.rpartition(":")[0].strip("[]"))
    except ValueError:
        raise ValueError(f"the resolver is ADDR:PORT, not {text!r}") from None
    return endpoint


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
