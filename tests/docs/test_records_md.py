"""docs/records.md tells the truth: its keys are understood, and are answered as it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from cli.finding import Kind, resolve
from cli.presentation import name_text, parse_name, type_text
from loader import rdata, records
from loader.exchange.sets import unwire
from loader.exchange.text import zone_text
from loader.model import Put
from loader.zone import Zones

TEXT = (Path(__file__).parents[2] / "docs" / "records.md").read_text()


def block(language: str) -> list[str]:
    found = re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def told(zones: Zones, name: bytes, type: int) -> list[str]:
    finding = resolve(zones.block, name, type, name_text)
    lines = []
    for rrset in finding.rrsets:
        ttl, data = unwire(rrset)
        kind = type_text(rrset.type)
        lines += [f"{name_text(name)} {ttl} IN {kind} {zone_text(rrset.type, one)}" for one in data]
    return lines


def test_the_examples_are_answered_as_told() -> None:
    zones = Zones((), 300)
    puts = [shlex.split(line)[2:] for line in block("sh")]
    for revision, (key, value) in enumerate(puts, 1):
        zones.apply(key, records.parse("/names", Put(key, value.encode(), revision)), revision)
    assert not zones.problems
    assert not zones.warnings
    wanted: dict[tuple[bytes, int], list[str]] = {}
    for line in block("text"):
        name, _, _, type_, _ = line.split(None, 4)
        wanted.setdefault((parse_name(name), rdata.type_number(type_)), []).append(line)
    assert len(wanted) > 8
    for (owner, number), lines in wanted.items():
        assert sorted(told(zones, owner, number)) == sorted(lines)
    for name in ("sub.example.test", "x.y.sub.example.test"):
        assert resolve(zones.block, parse_name(name), rdata.A, name_text).kind is Kind.DELEGATION
