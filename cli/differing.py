"""What differs between two node blocks of a name, as records: for diffs of the history and of what is held back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from cli import output
from cli.presentation import name_text, type_text
from loader.exchange.sets import order, unwire
from loader.exchange.text import zone_text
from loader.history_format import serial_only
from shm.layout import NEGATIVE_SOA
from shm.node import unpack

SOA = 6


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """A record of a name, as zone files have it."""

    number: int
    data: str
    ttl: int

    def line(self, owner: str) -> str:
        return f"{owner} {self.ttl} IN {type_text(self.number)} {self.data}"

    def told(self) -> dict[str, Any]:
        return {"type": type_text(self.number), "ttl": self.ttl, "data": self.data}


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one name: what went and what came. sign: + the name is new, - it is gone, ~ else."""

    name: bytes
    sign: str
    removed: list[Record]
    added: list[Record]

    def lines(self) -> Iterator[str]:
        """As in a unified diff."""
        owner = name_text(self.name)
        yield from (f"-{record.line(owner)}" for record in self.removed)
        yield from (f"+{record.line(owner)}" for record in self.added)

    def told(self) -> dict[str, Any]:
        """For JSON."""
        removed, added = ([record.told() for record in records] for records in (self.removed, self.added))
        return {"name": name_text(self.name), "sign": self.sign, "removed": removed, "added": added}


def compare(name: bytes, before: bytes | None, since: bytes | None, everything: bool = False) -> Difference | None:
    """None if no record differs: empty non-terminals have none. everything: the SOA also if only its serial moved."""
    old, new = _records(before), _records(since)
    if not everything and before is not None and since is not None and _soa_moved(before, since):
        old, new = ({one for one in records if one.number != SOA} for records in (old, new))
    if old == new:
        return None
    sign = "~" if old and new else "+" if new else "-"
    return Difference(name, sign, sorted(old - new), sorted(new - old))


def differences(
    blocks: Mapping[bytes, tuple[bytes | None, bytes | None]], everything: bool = False
) -> Iterator[Difference]:
    """Of names -> (before, since), in the order of a zone file: names beneath a name follow it."""
    for name in sorted(blocks, key=order):
        found = compare(name, *blocks[name], everything)
        if found is not None:
            yield found


class Tally:
    """Counts what passes through."""

    def __init__(self) -> None:
        self.counts = {"+": 0, "-": 0, "~": 0}

    def __call__(self, differences: Iterable[Difference]) -> Iterator[Difference]:
        for one in differences:
            self.counts[one.sign] += 1
            yield one

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        added, removed, changed = self.counts.values()
        names = "1 name differs" if self.total == 1 else f"{self.total} names differ"
        return f"{names}: {added} new, {removed} gone, {changed} changed"


def show(differences: Iterable[Difference], most: int | None = None) -> None:
    """For people, `most` lines at most; of those beyond, only how many. Colours only on a terminal."""
    shown = 0
    for one in differences:
        for line in one.lines():
            shown += 1
            if most is None or shown <= most:
                output.data(click.style(line, fg="red" if line[0] == "-" else "green"))
    if most is not None and shown > most:
        output.data(f"... and {shown - most} lines more")


def _records(block: bytes | None) -> set[Record]:
    if block is None:
        return set()
    found: set[Record] = set()
    for number, rrset in unpack(block).rrsets.items():
        if number != NEGATIVE_SOA:
            ttl, data = unwire(rrset)
            found.update(Record(number, zone_text(number, one), ttl) for one in data)
    return found


def _soa_moved(before: bytes, since: bytes) -> bool:
    """Whether the SOAs are the same but for the serial, whatever else differs."""
    return serial_only(before, since) or _bare_soa(before) == _bare_soa(since)


def _bare_soa(block: bytes) -> bytes | None:
    soa = unpack(block).rrsets.get(SOA)
    return None if soa is None else soa.wire[:-20] + soa.wire[-16:]
