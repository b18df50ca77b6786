"""Why a name answers as it does: the way through the table, which keys gave what, and the answer itself.

Reads the live table and asks the loader. Without a loader the table still tells what is answered, not where from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from cli import asking
from cli.asking import Reject
from cli.finding import ANY, CNAME, DNAME, Find, Finding, Kind, resolve
from cli.presentation import name_text, type_text
from cli.settings import Settings
from loader import names
from loader.exchange.sets import unwire
from loader.exchange.text import zone_text
from server.answer import answer
from server.policy import Moment
from shm.board import Board
from shm.errors import NotRunning, StandoffError
from shm.node import RRset
from shm.reading import TableObserver

SOA, NS = 6, 2
#: Aliases that are followed; the server follows as many or fewer.
MOST_STEPS = 16
#: Rejected keys that are looked through for those that concern the name.
MOST_SEARCHED = 10_000
MOST_NEARBY = 20
#: Octets of data at which the loader cuts it off (loader/control.py: MAX_TEXT).
CUT = 2048


@dataclass(frozen=True, slots=True)
class Given:
    """What one key gives to a name: (type, TTL, data) each."""

    key: str
    source: int
    revision: int
    records: list[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class Taken:
    """A record that a filter has taken away: it is not answered at present. why: for people; empty: not known."""

    filter: str
    key: str
    type: int
    data: bytes
    why: str = ""

    @property
    def text(self) -> str:
        return f"{type_text(self.type)} {zone_text(self.type, self.data) if self.data else '(long)'}"


@dataclass(slots=True)
class Told:
    """What the loader knows of one name."""

    given: list[Given] = field(default_factory=list)
    total: int = 0
    problems: list[Reject] = field(default_factory=list)
    warnings: list[Reject] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    all_down: list[str] = field(default_factory=list)  # types that are answered though all their targets are down
    held: str = ""  # why the name does not follow the source; empty if it does


@dataclass(slots=True)
class Explanation:
    """steps: the name asked and those that it leads to. `told` is keyed by the names in the table. missing: why the
    loader was not heard; empty if it was."""

    name: bytes
    type: int
    generation: int
    revision: int
    steps: list[tuple[bytes, Finding]]
    reply: bytes
    told: dict[bytes, Told] = field(default_factory=dict)
    nearby: list[Reject] = field(default_factory=list)
    searched_all: bool = True
    missing: str = ""


def explain(settings: Settings, name: bytes, type: int) -> Explanation:
    """Everything about a name and type. Raises NotRunning if there is no table."""
    board = Board.attach(settings.instance)
    observer = TableObserver(board)
    try:
        query = _query(name, type)
        made: Explanation = observer.look(
            lambda table: Explanation(
                name, type, table.generation, table.revision, walk(table.find, name, type),
                answer(query, table, moment=Moment(generation=table.generation, revision=table.revision)) or b"",
            )
        )  # fmt: skip
    finally:
        observer.close()
        board.close()
    _ask_loader(settings, made)
    return made


def walk(find: Find, name: bytes, type: int) -> list[tuple[bytes, Finding]]:
    """The name and, where an alias or a redirection leads on, the next ones, as long as they are ours."""
    steps: list[tuple[bytes, Finding]] = []
    seen: set[bytes] = set()
    following: bytes | None = name
    while following is not None and following not in seen and len(steps) < MOST_STEPS:
        seen.add(following)
        finding = resolve(find, following, type, name_text)
        if steps and finding.kind is Kind.REFUSED:
            break  # another server's
        steps.append((following, finding))
        following = _leads_to(following, finding, type)
    return steps


def _leads_to(name: bytes, finding: Finding, type: int) -> bytes | None:
    if not finding.rrsets or type in (CNAME, ANY):
        return None
    _, data = unwire(finding.rrsets[0])
    if finding.kind is Kind.CNAME:
        return data[0].lower()
    if finding.kind is Kind.DNAME and type != DNAME and finding.owner is not None:
        target = name[: len(name) - len(finding.owner)] + data[0].lower()
        return target if len(target) <= names.MAX_NAME else None
    return None


def _query(name: bytes, type: int) -> bytes:
    query = dns.message.make_query(
        name_text(name), dns.rdatatype.RdataType.make(type), use_edns=0, payload=1232, flags=0, id=0
    )
    return query.to_wire()


# ---------------------------------------------------------------- the loader


def _ask_loader(settings: Settings, made: Explanation) -> None:
    wanted = {name for name, _ in made.steps} | {found.owner for _, found in made.steps if found.owner}
    wanted |= {found.zone for _, found in made.steps if found.zone and found.kind is Kind.REFUSED}
    try:
        for name in sorted(wanted):
            made.told[name] = _told(asking.request(settings, "explain", name=name, type=made.type))
        rejects = asking.rejects(settings, MOST_SEARCHED)
    except StandoffError as error:
        made.missing = str(error)
        if isinstance(error, NotRunning):
            made.missing = "no loader answers: which keys gave the records is not known"
        return
    known = {(one.source, one.key) for told in made.told.values() for one in told.problems}
    about = Concerning(_near(made.steps))
    near = [one for one in rejects.rejects if about(one.key) and (one.source, one.key) not in known]
    made.nearby, made.searched_all = near[:MOST_NEARBY], len(rejects.rejects) >= rejects.total


def _told(fields: dict[str, Any]) -> Told:
    given = [
        Given(
            one["key"], one["source"], one["revision"],
            [(record["number"], record["ttl"], record["data"]) for record in one["records"]],
        )
        for one in fields["gifts"]
    ]  # fmt: skip
    return Told(
        given,
        fields["total"],
        [Reject(**one) for one in fields["problems"]],
        [Reject(**one) for one in fields["warnings"]],
        [
            Taken(one["filter"], one["key"], one["number"], one["data"], one.get("why", ""))
            for one in fields.get("taken", ())
        ],
        fields.get("all_down", []),
        fields.get("held", ""),
    )


def _near(steps: Iterable[tuple[bytes, Finding]]) -> set[bytes]:
    """The names that would have changed the answer: those asked, those that gave it, and the wildcards that might."""
    near: set[bytes] = set()
    for name, found in steps:
        near.add(name)
        if found.owner is not None:
            missing = found.kind is Kind.NXDOMAIN and len(names.STAR + found.owner) <= names.MAX_NAME
            near.add(names.STAR + found.owner if missing else found.owner)
    return near


class Concerning:
    """Whether a key that was not understood looks as if it were about one of the names, in any schema."""

    def __init__(self, about: Iterable[bytes]) -> None:
        found = {form for name in about for form in forms(name)}
        self._pattern = re.compile("|".join(sorted(found)), re.IGNORECASE) if found else None

    def __call__(self, key: str) -> bool:
        return self._pattern is not None and self._pattern.search(key) is not None


def forms(name: bytes) -> set[str]:
    """Patterns of keys for a name: PREFIX/ZONE/OWNER/TYPE for each zone that it may be in; the labels from right to
    left, with one more for one of several services; and as file sources have it."""
    parts = [names.to_text(names.from_labels([label]))[:-1] for label in names.labels(name)]
    made = {re.escape(f":{names.to_text(name)}/")}
    for cut in range(len(parts)):
        zone, owner = ".".join(parts[cut:]), ".".join(parts[:cut]) or "@"
        made.add(f"/{re.escape(zone)}[.]?/{re.escape(owner)}/[^/]*$")
    if len(parts) > 1:
        made.add(re.escape("/" + "/".join(reversed(parts))) + "(/[^/]*)?$")
    return made


# ---------------------------------------------------------------- which key gave it


def origins(explanation: Explanation, owner: bytes | None, rrset: RRset) -> list[tuple[int, str, list[Given]]]:
    """(TTL, data as text, the keys that gave it) of each record. A SOA's serial is the loader's, the rest a key's."""
    told = explanation.told.get(owner or b"")
    ttl, data = unwire(rrset)
    found = []
    for one in data:
        givers = [] if told is None else [
            given for given in told.given
            if any(t == rrset.type and _same(t, d, one) for t, _, d in given.records)
        ]  # fmt: skip
        found.append((ttl, zone_text(rrset.type, one), givers))
    return found


def _same(type: int, told: bytes, data: bytes) -> bool:
    """Whether a key gave this data, as far as the loader tells it: it numbers SOAs, and cuts long data off."""
    return told == data or type == SOA or (len(told) >= CUT and data.startswith(told))


def made_note(type: int, told: Told | None = None) -> str:
    """Who gave a record that no key gives. told: what the loader has told of its name."""
    if told is not None and told.total > len(told.given):
        return f"from a key that is not among the {len(told.given)} of {told.total} that the loader tells of"
    if type in (SOA, NS):
        return "made by the loader: the zone brings none"
    return "from no key that the loader knows now: it has changed since, or follows from others"


# ---------------------------------------------------------------- the answer


def reply_told(reply: bytes) -> dict[str, Any]:
    """What the worker would send, in text."""
    if not reply:
        return {"rcode": "none", "flags": "", "size": 0, "answer": [], "authority": [], "additional": []}
    message = dns.message.from_wire(reply)
    sections = {
        name: [line for rrset in section for line in rrset.to_text().splitlines()]
        for name, section in (
            ("answer", message.answer), ("authority", message.authority), ("additional", message.additional),
        )
    }  # fmt: skip
    codes = [f"{option.otype}" for option in message.options]
    about = {"rcode": dns.rcode.to_text(message.rcode()), "flags": dns.flags.to_text(message.flags)}
    return about | {"size": len(reply), "options": codes} | sections


def title(explanation: Explanation) -> str:
    return f"{name_text(explanation.name)} {type_text(explanation.type)}"
