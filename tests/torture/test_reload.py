"""Reload while answering: half of what the machine can take, and fifty swaps a second, and nobody notices.

Over UDP and TCP: no query lost, none wrong, no answer put together from two versions, none older than what every worker
had adopted before it was asked. Afterwards the counters in shared memory tell what the clients saw.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from shm.layout import SlotKind
from tests.torture.asking import BROKEN, MS, AdoptionLog, Asker
from tests.torture.changing import SET, ZONE, Changer
from tests.torture.service import Service, wait_for

DURATION_S = float(os.environ.get("STANDOFF_TORTURE_S") or 60)
SWAPS_PER_S = 50
#: Of the saturating run before.
LOAD = 0.5
CAPACITY_S = 3
ASKED_PER_S = 1000
#: A version reaches every worker within some 10 ms; a machine that stands still may take longer.
LONGEST_AGE_S = 1.0


@dataclass(frozen=True, slots=True)
class Flood:
    """What dnsperf counted."""

    sent: int
    completed: int
    lost: int
    rate: float
    rcodes: dict[str, int]


def dnsperf(service: Service, queries: Path, seconds: float, *options: str) -> Flood:
    """Sixteen clients, with at most 5,000 queries under way."""
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(service.port), "-d", str(queries), "-l", str(seconds)]
    command += ["-c", "16", "-q", "5000", "-b", "4096", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {key: re.search(rf"{key}:\s+([\d.]+)", done.stdout) for key in ("sent", "completed", "lost", "per second")}
    values = {key: float(match[1]) for key, match in found.items() if match}
    rcodes = re.search(r"Response codes:(.*)", done.stdout)
    assert len(values) == 4, done.stdout
    assert rcodes, done.stdout
    return Flood(
        int(values["sent"]),
        int(values["completed"]),
        int(values["lost"]),
        values["per second"],
        {code: int(count) for code, count in re.findall(r"([A-Z]+) (\d+) \(", rcodes[1])},
    )


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """For dnsperf: the set, names that stay, and their zone's SOA."""
    path = tmp_path / "queries"
    lines = [f"{SET} A", f"{ZONE} SOA", *(f"host{i}.{ZONE} A" for i in range(100))]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.slow
@pytest.mark.timeout(DURATION_S + 60)
def test_reload_while_answering(
    service: Service, changer: Changer, ask: Callable[..., Asker], queries: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("dnsperf") is None:
        pytest.skip("no dnsperf")
    run = service.start_run()
    wait_for("the service answers", service.ready)
    capacity = dnsperf(service, queries, CAPACITY_S)

    published = service.board.loader.get("publishes")
    counted = {kind: service.total("requests_family", kind) for kind in (SlotKind.WORKER, SlotKind.STREAM)}
    codes = service.total("responses_rcode")
    changer.start(SWAPS_PER_S)
    adoptions = AdoptionLog(service)
    adoptions.start()
    asker = ask(ASKED_PER_S)
    flood = dnsperf(service, queries, DURATION_S, "-Q", str(int(LOAD * capacity.rate)))
    answers = asker.stop()
    adopted = adoptions.stop()
    changer.stop()
    published = service.board.loader.get("publishes") - published
    with capsys.disabled():
        print(
            f"\ncapacity {capacity.rate:.0f} q/s, {flood.rate:.0f} q/s for {DURATION_S:.0f} s, {flood.lost} lost; "
            f"{published} swaps\n{answers.report()}"
        )

    assert flood.lost == 0
    assert flood.rcodes == {"NOERROR": flood.sent}
    assert not answers.faulty
    assert not answers.lost
    assert not [asked for asked in answers.tcp if asked.outcome == BROKEN]
    changes = changer.changes()
    assert not answers.ahead_of_time(changes)
    assert not answers.too_old(changes, adopted)
    # Bursts are folded, and a busy machine makes bursts.
    assert published > 0.5 * SWAPS_PER_S * DURATION_S, "the swaps were not made at all, or far fewer than wanted"
    assert max(at2 - at1 for (at1, _), (at2, _) in pairwise(adopted)) < 2000 * MS

    # The board tells what the clients saw, to the last query.
    udp = service.total("requests_family", SlotKind.WORKER) - counted[SlotKind.WORKER]
    tcp = service.total("requests_family", SlotKind.STREAM) - counted[SlotKind.STREAM]
    assert udp == flood.sent + len(answers.udp)
    assert tcp == len(answers.tcp)
    assert service.total("responses_rcode") - codes == udp + tcp
    for counter in ("dropped", "table_damaged", "receive_errors", "send_errors"):
        assert service.total(counter) == 0, counter
    # Allowed by the rules: the scheduler may stop the writer with gates in hand, and dnsperf leaves no core free.
    print(f"{service.total('gate_waits')} waits for a gate, {service.total('past_gate')} went past it")
    assert run.stop() == 0
