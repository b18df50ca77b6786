"""Forms of setting values that a type and a range cannot tell: addresses, zone names, sources, paths.

Each parser takes what the user wrote and returns its normal form, or raises ValueError with the reason.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
#: What host and service names are made of, and `/` for classless reverse zones (RFC 2317).
ZONE_LABEL = re.compile(r"[a-z0-9_/-]{1,63}")
SOURCE_SCHEMES = ("file", "etcd", "etcds", "etcd+srv", "etcds+srv")


@dataclass(frozen=True, slots=True)
class Form:
    """A form of value: what help calls it, what is allowed in words, and its parser."""

    metavar: str
    allowed: str
    parse: Callable[[str], str]


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "ADDR:PORT" or "[ADDR6]:PORT". Host names are refused: a name server must not look up names."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (text.count(":") > 1 and not bracketed):
        if text.count(":") > 1 and not text.endswith("]"):
            raise ValueError("an IPv6 address needs brackets")
        raise ValueError("the port is missing")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address") from None
    if bracketed != (address.version == 6):
        raise ValueError("brackets are for IPv6 addresses")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{port!r} is not a port from 1 to 65535")
    return str(address), int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(text: str) -> str:
    host, port = split_address(text)
    if port == 0:
        raise ValueError("port 0 is not one that clients can find")
    return join_address(host, port)


def _address_or_empty(text: str) -> str:
    return join_address(*split_address(text)) if text else ""


def _instance(text: str) -> str:
    if not INSTANCE.fullmatch(text):
        raise ValueError("")
    return text


def zone_name(text: str) -> str:
    """A zone's name in lower case without the final dot; "." is the root."""
    name = text.lower().removesuffix(".")
    if not name:
        if text == ".":
            return text
        raise ValueError("it is empty")
    if not name.isascii():
        raise ValueError("write international names in their xn-- form")
    for label in name.split("."):
        if not ZONE_LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is not a label of 1 to 63 letters, digits, '-', '_' or '/'")
    if len(name) > 253:
        raise ValueError(f"it has {len(name)} characters, at most 253 fit")
    return name


def source_url(text: str) -> str:
    """A source as written. Only the scheme and what every source needs is looked at; its parser does the rest."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SOURCE_SCHEMES:
        raise ValueError("it starts with none of " + ", ".join(f"{scheme}:" for scheme in SOURCE_SCHEMES))
    if scheme == "file":
        if not rest.lstrip("/") and not rest.startswith("/"):
            raise ValueError("the path is missing")
        return text
    parts = urlsplit(text)
    if not rest.startswith("//") or not parts.netloc:
        raise ValueError("the hosts are missing")
    if "@" in parts.netloc:
        raise ValueError("user and password have settings of their own: etcd_user, etcd_password_file")
    return text


def _file(text: str) -> str:
    """An empty text is no file. What is named must be there: a typing error would surface as a failed handshake."""
    if not text:
        return text
    if os.path.isdir(text) or not os.path.exists(text):  # /dev/null and pipes are files enough
        raise ValueError("it is a folder" if os.path.isdir(text) else "there is no such file")
    if not os.access(text, os.R_OK):
        raise ValueError("we may not read it")
    return str(Path(text))


def _folder(text: str) -> str:
    """It need not exist yet."""
    if not text or (os.path.exists(text) and not os.path.isdir(text)):
        raise ValueError("it is not a folder" if text else "it is empty")
    return str(Path(text))


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("it is not a network, or has bits beside its prefix") from None


def _cookie_secret(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise ValueError("it does not have 32 hexadecimal digits")
    return text.lower()


def _grant(text: str) -> str:
    from server.access import Grant

    Grant.parse(text)
    return text.lower()


def _notified(text: str) -> str:
    """With the port, always."""
    from server.notifier import Target

    place, separator, key = text.partition("#")
    if separator and not key:
        raise ValueError("the key's name is missing after '#'")
    if place.count(":") != 1 and not place.startswith("["):
        place = f"[{place}]" if ":" in place else place
    if place.endswith("]") or ":" not in place:
        place += ":53"
    whole = _listen(place) + separator + key.lower()
    Target.parse(whole)
    return whole


def _tsig_key(text: str) -> str:
    from server.tsig import parse_key

    parse_key(text)
    return text


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has control characters")
    return text


def _canary(text: str) -> str:
    from loader.guard import parse_canary

    parse_canary(text)
    return text


def _filter(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", text):
        raise ValueError("it is not a name of letters, digits and -_.")
    return text


LISTEN = Form("ADDR:PORT", "an IP address and a port from 1 to 65535, as in 127.0.0.1:53 or [::1]:53", _listen)
METRICS = Form("ADDR:PORT", "an IP address and a port (0 = any), as in 127.0.0.1:9153, or empty", _address_or_empty)
INSTANCE_NAME = Form("NAME", "1 to 32 of a-z, 0-9 and '-', the first not '-'", _instance)
ZONE = Form("ZONE", "a domain name, as in example.test", zone_name)
SOURCE = Form(
    "URL",
    "file:PATH, etcd://HOST:PORT[,HOST:PORT]/PREFIX?schema=skydns|records or etcd+srv://DOMAIN/PREFIX",
    source_url,
)
FILE = Form("FILE", "the path of a file", _file)
FOLDER = Form("FOLDER", "the path of a folder", _folder)
NETWORK = Form("NETWORK", "a network, as in 192.0.2.0/24 or 2001:db8::/32", _network)
COOKIE_SECRET = Form("HEX", "16 bytes in hexadecimal, as `openssl rand -hex 16` prints", _cookie_secret)
FOLDER_OR_NONE = Form("FOLDER", "the path of a folder, or empty", lambda text: _folder(text) if text else text)
GRANT = Form("CLIENT", "a network, a key's name or NETWORK#KEY, as in 192.0.2.0/24#transfer.example", _grant)
NOTIFIED = Form("ADDR[:PORT][#KEY]", "an IP address, as in 192.0.2.7, [2001:db8::7]:5353 or 192.0.2.7#key", _notified)
TSIG_KEY = Form("NAME:ALGORITHM:BASE64", "NAME:ALGORITHM:BASE64, as in transfer:hmac-sha256:c2VjcmV0", _tsig_key)
CANARY = Form("RECORD", "NAME TYPE, or NAME TYPE DATA, as in www.example.test A 192.0.2.1", _canary)
FILTER = Form("FILTER", "the name of a filter, or none", _filter)
TEXT = Form("TEXT", "a line of text", _text)
