"""Packet by packet against BIND, NSD, Knot and PowerDNS, over the same zone files.

Where NSD and Knot agree on a part of a reply and Standoff differs, an explanation says why, or the test fails. What
BIND and PowerDNS do is told, and summed up in docs/protocol.md; they decide nothing.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.differential.exchange import ask_datagrams, ask_stream
from tests.differential.explained import EXPLANATIONS
from tests.differential.peers import PROGRAMS, ROOT, Server
from tests.differential.questions import Case, cases
from tests.differential.reading import FIELDS, Reading, read

MISSING = [program for program in PROGRAMS.values() if shutil.which(program) is None]
JUDGES = ("nsd", "knot")
#: What a failure shows.
SHOWN = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(MISSING), reason=f"NOT compared here: no {' '.join(MISSING)}; `make test` fetches them"),
]

Readings = dict[str, list[Reading]]


@pytest.fixture(scope="module")
def asked() -> list[Case]:
    return sorted(cases(), key=lambda case: case.stream)


@pytest.fixture(scope="module")
def readings(asked: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Readings:
    """Every server's readings, in the order of the cases."""
    folder = tmp_path_factory.mktemp("peers")
    datagrams = [case.packet for case in asked if not case.stream]
    streams = [case.packet for case in asked if case.stream]

    def ask(server: Server) -> list[bytes | None]:
        return ask_datagrams(server.port, datagrams) + ask_stream(server.port, streams)

    with ExitStack() as stack:
        servers = {}
        for name in ("standoff", *PROGRAMS):
            servers[name] = Server(name, folder / name)
            stack.callback(servers[name].stop)
        for server in servers.values():
            server.wait()
        with ThreadPoolExecutor(len(servers)) as pool:  # most of the time they wait for silence
            replies = dict(zip(servers, pool.map(ask, servers.values()), strict=True))
    known: dict[bytes | None, Reading] = {}
    return {name: [_read(reply, known) for reply in answers] for name, answers in replies.items()}


def _read(reply: bytes | None, known: dict[bytes | None, Reading]) -> Reading:
    if reply not in known:
        known[reply] = read(reply)
    return known[reply]


def differences(asked: list[Case], readings: Readings) -> Iterator[tuple[Case, str, Reading, Reading]]:
    """(case, field, ours, NSD's) for each field that NSD and Knot agree on and we differ in."""
    rows = zip(asked, readings["standoff"], *(readings[name] for name in JUDGES), strict=True)
    for case, ours, nsd, knot in rows:
        if ours == nsd == knot:
            continue
        for field in FIELDS:
            if getattr(nsd, field) == getattr(knot, field) != getattr(ours, field):
                yield case, field, ours, nsd


def test_every_server_has_answered(asked: list[Case], readings: Readings) -> None:
    """Silence is rare, or the comparison is worth nothing."""
    for name, answers in readings.items():
        assert len(answers) == len(asked)
        answered = sum(reading.answered for reading in answers)
        assert answered > 0.99 * len(asked), f"{name} has answered {answered} of {len(asked)}"
    ours = zip(asked, readings["standoff"], strict=True)
    assert not [case.text for case, reading in ours if reading.broken]


def test_as_nsd_and_knot_do(asked: list[Case], readings: Readings) -> None:
    unexplained: Counter[str] = Counter()
    lines, used = [], set()
    for case, field, ours, theirs in differences(asked, readings):
        reasons = {one.name for one in EXPLANATIONS if one.applies(case, field, ours, theirs)}
        used |= reasons
        if not reasons:
            unexplained[field] += 1
            lines.append(f"{case.text}: {field} is {_short(ours, field)}, theirs {_short(theirs, field)}")
    assert not lines, f"{dict(unexplained)}\n" + "\n".join(lines[:SHOWN])
    assert used == {one.name for one in EXPLANATIONS}, "an explanation that explains nothing"


def test_every_explanation_is_documented() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    documented = {line.split("**")[1] for line in text.splitlines() if line.startswith("- **")}
    assert {one.name for one in EXPLANATIONS} == documented & {one.name for one in EXPLANATIONS}
    assert documented == {one.name for one in EXPLANATIONS}, "a reason for a difference that is none"


@pytest.mark.parametrize("peer", ["bind", "powerdns"])
def test_tell_how_others_differ(
    peer: str, asked: list[Case], readings: Readings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decides nothing: how often each field differs, and one example."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for case, ours, theirs in zip(asked, readings["standoff"], readings[peer], strict=True):
        for field in filter(partial(_differs, ours, theirs), FIELDS):
            counts[field] += 1
            examples.setdefault(field, case.text)
    with capsys.disabled():
        told = ", ".join(f"{field} {count} ({examples[field][:40]})" for field, count in counts.most_common(6))
        print(f"\n{peer} differs from us in {len(asked)} packets: {told}")


def _differs(ours: Reading, theirs: Reading, field: str) -> bool:
    return bool(getattr(ours, field) != getattr(theirs, field))


def _short(reading: Reading, field: str) -> str:
    value = getattr(reading, field)
    return str(sorted(value) if isinstance(value, frozenset) else value)[:200]


def test_the_zone_files_are_there() -> None:
    assert len(list((Path(__file__).parent / "zones").glob("*.zone"))) >= 5
