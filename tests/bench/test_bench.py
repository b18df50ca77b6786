"""The benchmark's own parts: its data, its changes, its report. What it measures is not tested here."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import dns.rdatatype
import dns.zone
import pytest
from rich.console import Console

from bench import changer, measures, report, scale, streaming, zones
from bench.processes import Result

ROOT = Path(__file__).resolve().parents[2]


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        zones.make(tmp_path / folder, 500)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_queries_expect_what_the_zone_has(tmp_path: Path) -> None:
    zones.make(tmp_path, 300)
    zone = dns.zone.from_file(str(tmp_path / f"{zones.ZONE}.zone"))
    kinds = set()
    for line in (tmp_path / "share.txt").read_text().splitlines() + (tmp_path / "flood.txt").read_text().splitlines():
        name, kind, want = line.split()
        node = zone.get_node(name.removesuffix(f".{zones.ZONE}"))
        if want == "nxdomain":
            assert node is None, line
        else:
            assert node is not None, line
            rdataset = node.get_rdataset(zone.rdclass, dns.rdatatype.from_text(kind))
            assert (None if want == "nodata" else want) == (rdataset and rdataset[0].to_text()), line
        kinds.add(want if want.isalpha() else "address")
    assert kinds == {"address", "nxdomain", "nodata"}


def test_a_set_carries_its_number_in_every_address() -> None:
    assert changer.set_addresses(66051) == ["10.1.2.3", "11.1.2.3", "12.1.2.3"]


def test_changes_go_on_where_the_log_ends(tmp_path: Path) -> None:
    log, target = tmp_path / "log", tmp_path / "set.jsonl"
    for _ in range(2):
        command = [sys.executable, "-m", "bench.changer", str(target), "200", str(log)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while not log.exists() or log.read_text().count("\n") < 3:
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == list(range(1, len(lines) + 1))
    assert all(sent <= done for _, sent, done in lines)
    assert "data" in target.read_text()


def test_quantile_of_few_values() -> None:
    assert measures.quantile([1.0], 0.99) == 1.0
    assert measures.quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0


def make_result(ratio: float) -> Result:
    figures = (*report.LATENCIES, *(f"server_{name}" for name in report.LATENCIES), "late_us")
    return {
        "when": "2015-01-01 00:00",
        "commit": "abc",
        "names": 1000,
        "machine": {"cores": 2},
        "throughput": {"ratio_to_echo": {"median": ratio}, "faults": {"lost": 0, "mixed": 7}},
        "latency": {"summary": {"echo": dict.fromkeys(figures, 1.0)}},
        "warnings": ["the machine was not quiet"],
    }


def test_the_report_shows_what_there_is_and_compares() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    report.show(make_result(0.9), make_result(0.6), console)
    text = console.export_text()
    assert "0.900" in text
    assert "1.500" in text, "the ratio of the ratios"
    assert "mixed 7" in text
    assert "lost" not in text
    assert "the machine was not quiet" in text


def test_the_numbers_of_changes_are_told_by_their_addresses() -> None:
    assert [streaming.changed(number) for number in (1, 258, 1_200_000)] == ["128.0.0.1", "128.0.1.2", "128.18.79.128"]


def test_one_change_costs_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CHANGES", 20)
    assert 0 < scale.change_among(200) < 1000
