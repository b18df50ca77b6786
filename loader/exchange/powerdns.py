"""What `pdnsutil list-zone ZONE` prints, for one zone or many in a row: NAME TTL IN TYPE DATA, a line each.

PowerDNS writes names without a dot at their end and `$ORIGIN .` above them. A line of a single name, as `pdnsutil
list-all-zones` prints, says that it is a zone.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from loader import names, rdata
from loader.exchange.sets import Gathered, Remark, gather
from loader.model import DEFAULT_TTL, MAX_TTL, Record, Reject

_LINE = re.compile(r"(\S+)\s+(?:(\d+)\s+)?(?:IN\s+)?([A-Za-z][A-Za-z0-9-]*)(?:\s+(.*))?", re.IGNORECASE)
#: A quoted string.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
#: What the tool says of itself.
_CHATTER = re.compile(r"\[(info|warning|error)\]|all zonecount", re.IGNORECASE)

#: TXT and SPF.
_TEXTS = frozenset((rdata.TXT, 99))

#: What PowerDNS makes answers of when it is asked; we hold answers only.
DYNAMIC = {
    "ALIAS": "PowerDNS looks the target up at each query; write its addresses, or a CNAME below the apex",
    "LUA": "PowerDNS computes the answer at each query; write its result",
    "URL": "a web redirect, no DNS record",
    "MBOXFW": "a mail forward, no DNS record",
}


def read(text: str, zones: Collection[bytes] = ()) -> Gathered:
    """Everything in the dump. `zones` are known apart from it; those with a SOA are known by that."""
    found: list[Record] = []
    problems: list[Remark] = []
    known = set(zones)
    origin, ttl = names.ROOT, DEFAULT_TTL
    for number, raw in enumerate(text.split("\n"), 1):  # splitlines() takes characters of texts for ends of lines
        line = raw.strip()
        if not line or line.startswith(";") or _CHATTER.match(line):
            continue
        try:
            word, _, rest = line.partition(" ")
            if word.upper() == "$ORIGIN":
                origin = names.from_text(rest.strip(), names.ROOT)
            elif word.upper() == "$TTL":
                ttl = _ttl(rest.strip())
            elif not re.search(r"\s", line):
                known.add(names.from_text(line))
            else:
                found.append(_record(line, origin, ttl))
        except (Reject, names.BadName) as error:
            problems.append(Remark(f"line {number}", str(error)))
        except _Refused as refused:
            problems.append(Remark(f"{refused.where} (line {number})", refused.reason, refused.owner))
    return gather(found, known, problems)


class _Refused(Exception):
    """A record that is not taken over, by name."""

    def __init__(self, where: str, reason: str, owner: bytes) -> None:
        super().__init__(where, reason, owner)
        self.where, self.reason, self.owner = where, reason, owner


def _record(line: str, origin: bytes, default: int) -> Record:
    match = _LINE.fullmatch(line)
    if match is None:
        raise Reject(f"{names.shown(line)} is not NAME TTL IN TYPE DATA")
    name, ttl, type_text, content = match.groups()
    owner = names.from_text(name, origin)
    where = f"{name} {type_text.upper()}"
    if type_text.upper() in DYNAMIC:
        raise _Refused(where, DYNAMIC[type_text.upper()], owner)
    try:
        type_ = rdata.type_number(type_text)
        data = rdata.from_text(type_, _cut(content or "") if type_ in _TEXTS else content or "", origin)
        return Record(None, owner, type_, _ttl(ttl) if ttl else default, data)
    except Reject as reject:
        if ttl is None:  # prose, most likely
            raise
        raise _Refused(where, str(reject), owner) from None


def _cut(content: str) -> str:
    """TXT data with strings of 255 octets at most: PowerDNS takes longer ones, and cuts them when it answers."""
    if not content.startswith('"'):
        return content
    return _QUOTED.sub(lambda match: " ".join(f'"{piece}"' for piece in rdata.cut(match[1])), content)


def _ttl(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > MAX_TTL:
        raise Reject(f"TTL {names.shown(text)} is not 0 to {MAX_TTL} seconds")
    return int(text)
