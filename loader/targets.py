"""What is checked, and how: a `check` in a value -> Target. Pure, and light: the checker's process reads this, too.

    tcp://ADDR:PORT                        a connection is enough
    http://ADDR[:PORT][/PATH]              GET, and one of the expected statuses
    https://ADDR[:PORT][/PATH]

ADDR is an address (IPv6 in brackets), or `{address}`: that of the record that the check stands at. Names are refused:
a name server must not look up names. An object says more:

    {"url":"https://{address}/health","interval":5,"timeout":1,"rise":2,"fall":3,"status":[200,204],
     "host":"www.example.test","sni":"www.example.test","verify":true}
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import msgspec

#: The address of the record, in a URL.
PLACEHOLDER = "{address}"

#: Seconds. Below the least, checks are load; a target that is looked at once an hour is hardly looked at.
INTERVAL_S, LEAST_INTERVAL_S, MOST_INTERVAL_S = 10.0, 0.2, 3600.0
TIMEOUT_S, LEAST_TIMEOUT_S, MOST_TIMEOUT_S = 2.0, 0.01, 60.0
#: Answers in a row that turn a target's state.
RISE, FALL, MOST_IN_A_ROW = 2, 3, 100

_URL = re.compile(r"(tcp|http|https)://(\[[0-9A-Fa-f:.]+\]|\{address\}|[0-9.]+)(?::([0-9]{1,5}))?(/[!-~]*)?")
#: What goes into a request's head: nothing that could begin another line.
_HOST = re.compile(r"[A-Za-z0-9._\-\[\]:]{1,255}")
#: Labels that a TLS handshake can name: neither empty nor too long.
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PORTS = {"http": 80, "https": 443}
_MOST_PATH = 1024


class BadTarget(ValueError):
    """Why a check cannot be one. The message is one line."""


class Options(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A check as a value has it. Times in seconds."""

    url: str
    interval: float = INTERVAL_S
    timeout: float | None = None
    rise: int = RISE
    fall: int = FALL
    status: int | list[int] | None = None
    host: str = ""
    sni: str = ""
    verify: bool = False


class Target(msgspec.Struct, frozen=True):
    """What the checker looks at. `text` names it: the URL, and each option that is not the default; two targets with
    the same text are one.

    address   without brackets, or empty: that of the record has yet to be put in (see `at`)
    interval  seconds from the beginning of a check to that of the next; timeout: of all of one check
    rise, fall  checks in a row that make it up or down
    statuses  of HTTP that count as well; none: 200 to 399
    host      of the request, sni of the handshake; empty: the address, and none
    verify    whether the certificate must be one for `sni`, or the address, that the system's authorities have signed
    """

    text: str
    scheme: str
    address: str
    port: int
    path: str = ""
    interval: float = INTERVAL_S
    timeout: float = TIMEOUT_S
    rise: int = RISE
    fall: int = FALL
    statuses: tuple[int, ...] = ()
    host: str = ""
    sni: str = ""
    verify: bool = False

    def at(self, address: str) -> Target:
        """The target with an address put in, if it has none."""
        if self.address:
            return self
        shown = f"[{address}]" if ":" in address else address
        return msgspec.structs.replace(self, address=address, text=self.text.replace(PLACEHOLDER, shown, 1))


def parse(check: str | Options) -> Target:
    """The target that a value asks for. Raises BadTarget."""
    return _parse_url(check) if isinstance(check, str) else _parse(check)


@lru_cache(maxsize=1024)
def _parse_url(url: str) -> Target:
    return _parse(Options(url))


def _parse(options: Options) -> Target:
    scheme, address, port, path = _url(options.url)
    timeout = min(TIMEOUT_S, options.interval) if options.timeout is None else options.timeout
    _within("interval", options.interval, LEAST_INTERVAL_S, MOST_INTERVAL_S)
    _within("timeout", timeout, LEAST_TIMEOUT_S, MOST_TIMEOUT_S)
    if timeout > options.interval:
        raise BadTarget(f"timeout {timeout:g} is longer than interval {options.interval:g}")
    _within("rise", options.rise, 1, MOST_IN_A_ROW)
    _within("fall", options.fall, 1, MOST_IN_A_ROW)
    statuses = _statuses(options.status)
    if scheme == "tcp" and (options.status is not None or options.host):
        raise BadTarget("status and host are for http and https")
    if scheme != "https" and (options.sni or options.verify):
        raise BadTarget("sni and verify are for https")
    if options.host and not _HOST.fullmatch(options.host):
        raise BadTarget(f"host {options.host[:60]!r} is none")
    if options.sni and not _NAME.fullmatch(options.sni):
        raise BadTarget(f"sni {options.sni[:60]!r} is not a host's name")
    return Target(
        " ".join([options.url, *_shown(options)]), scheme, address, port, path, options.interval, timeout,
        options.rise, options.fall, statuses, options.host, options.sni or _name_of(options.host), options.verify,
    )  # fmt: skip


def _url(url: str) -> tuple[str, str, int, str]:
    """(scheme, address or nothing, port, path)."""
    match = _URL.fullmatch(url)
    if match is None:
        raise BadTarget(f"check {url[:80]!r} is not tcp://ADDR:PORT or http(s)://ADDR:PORT/PATH, ADDR being an address")
    scheme, host, port_text, path = match.groups()
    if scheme == "tcp" and (not port_text or path):
        raise BadTarget(f"check {url[:80]!r}: tcp has a port and no path")
    port = int(port_text) if port_text else _PORTS[scheme]
    if not 1 <= port <= 0xFFFF:
        raise BadTarget(f"check {url[:80]!r}: a port is 1 to 65535")
    if len(path or "") > _MOST_PATH:
        raise BadTarget(f"the path of a check has at most {_MOST_PATH} characters")
    if host == PLACEHOLDER:
        return scheme, "", port, path or "/"
    bare = host.strip("[]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise BadTarget(f"check {url[:80]!r}: {bare} is not an address") from None
    if (address.version == 6) != host.startswith("["):
        raise BadTarget(f"check {url[:80]!r}: brackets are for IPv6 addresses")
    return scheme, str(address), port, path or "/"


def _within(what: str, number: float, least: float, most: float) -> None:
    if not least <= number <= most:
        raise BadTarget(f"{what} of a check is {least:g} to {most:g}, not {number:g}")


def _statuses(given: int | list[int] | None) -> tuple[int, ...]:
    if given is None:
        return ()
    made = tuple(given) if isinstance(given, list) else (given,)
    if not made or not all(100 <= one <= 599 for one in made):
        raise BadTarget("status of a check is one of HTTP, 100 to 599, or a list of such")
    return made


def _shown(options: Options) -> list[str]:
    """The options that are not the defaults, as text."""
    given = msgspec.to_builtins(options)
    del given["url"]
    return [f"{name}={_plain(value)}" for name, value in given.items()]


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name_of(host: str) -> str:
    """The name in a host header, for SNI; empty if it is an address."""
    bare = host.partition(":")[0]
    return bare if _NAME.fullmatch(bare) and not bare.replace(".", "").isdigit() else ""
