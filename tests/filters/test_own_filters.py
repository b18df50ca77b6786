"""A filter that is not ours, installed as a package would be: what it may do, and what it can not do any harm with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import checks
from cli.settings import Settings
from tests.filters.stage import Stage, kill

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.timeout(120)

#: What it does is in a label of the records.
MODULE = """
import os, re, time

def moody(rrsets, context):
    labels = {rr.attributes.label("mood") for rrs in rrsets.values() for rr in rrs}
    if "fine" in labels:
        return {t: [rr for rr in rrs if rr.attributes.label("mood") == "fine"] for t, rrs in rrsets.items()}
    if "raise" in labels:
        raise RuntimeError("in a bad mood")
    if "nothing" in labels:
        return None
    if "nonsense" in labels:
        return {1: ["192.0.2.9"]}
    if "invent" in labels:
        return {t: [type(rr)(rr.type, rr.ttl, bytes(4), rr.key) for rr in rrs] for t, rrs in rrsets.items()}
    if "loop" in labels:
        while True:
            pass
    if "regex" in labels:
        re.match(r"(a*)*$", "a" * 40 + "b")
    if "die" in labels:
        os._exit(1)
    if "eat" in labels:
        return {1: [bytearray(1 << 20) for _ in range(1 << 20)]}
    return rrsets
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that is to be on the path, with an installed distribution in it."""
    folder = tmp_path / "site"
    about = folder / "moody-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "moody.py").write_text(MODULE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[standoff.filters]\nmoody = moody:moody\nmissing = moody:missing\n")
    return folder


def given(mood: str) -> dict[str, Any]:
    return {"data": [{"data": "192.0.2.1", "labels": {"mood": mood}}, "192.0.2.2"], "ttl": 5}


BOTH = ["192.0.2.1", "192.0.2.2"]


def verdict(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stage.standoff("status", "--json"))["verdict"]
    return found


def ready(make_stage: MakeStage, package: Path) -> Stage:
    stage = make_stage("--filters", "moody", "--filters", "windows", python_path=package)
    stage.put(good=given("fine"))
    stage.until("the filter works", lambda: stage.of("good") == ["192.0.2.1"])
    return stage


@pytest.mark.parametrize("mood", ["raise", "nothing", "nonsense", "invent"])
def test_a_filter_that_fails_at_a_name_is_left_out_there(make_stage: MakeStage, package: Path, mood: str) -> None:
    stage = ready(make_stage, package)
    stage.put(bad=given(mood))
    stage.until("all is answered", lambda: stage.of("bad") == BOTH)
    assert stage.of("good") == ["192.0.2.1"]
    stage.until("the board tells", lambda: stage.metrics()["standoff_names_unfiltered"] == 1)
    assert stage.metrics()["standoff_filter_bypasses_total"] == 1
    found = verdict(stage)
    assert found["state"] == "degraded"
    assert "filter moody is bypassed at bad.example.test." in found["reasons"][0]
    stage.put(bad=given(mood), worse=given(mood))
    stage.until("both are answered", lambda: stage.of("worse") == BOTH)
    assert stage.log.count("filter moody is bypassed at") == 1  # told once
    stage.put(bad=given("fine"), worse=None)
    stage.until("it works again", lambda: stage.of("bad") == ["192.0.2.1"])
    stage.until("and all is well", lambda: verdict(stage)["state"] == "ok")


@pytest.mark.parametrize("mood", ["loop", "regex", "die", "eat"])
def test_a_filter_that_does_not_come_back_holds_nothing_up(make_stage: MakeStage, package: Path, mood: str) -> None:
    stage = ready(make_stage, package)
    (first,) = stage.helpers("loader.filters.host")
    stage.put(bad=given(mood))
    took = stage.until("all is answered", lambda: stage.of("bad") == BOTH)
    assert took < 5
    # Other changes flow, while the filter is tried again and again.
    for number in range(5):
        stage.put(**{f"n{number}": [f"198.51.100.{number}"]})
        assert stage.until("a change", lambda n=number: stage.of(f"n{n}") == [f"198.51.100.{n}"]) < 5
    assert "is bypassed" in verdict(stage)["reasons"][0]
    # Once it is known at which name that happens, the others are asked about before it.
    stage.put(late=given("fine"))
    stage.until("others are filtered", lambda: stage.of("late") == ["192.0.2.1"])
    assert stage.of("good") == ["192.0.2.1"]
    assert stage.of("bad") == BOTH
    stage.until("all but one", lambda: stage.metrics()["standoff_names_unfiltered"] == 1)
    stage.put(bad=None, new=given("fine"))
    stage.until("it works again", lambda: stage.of("new") == ["192.0.2.1"])
    stage.until("and all is well", lambda: verdict(stage)["state"] == "ok")
    assert stage.of("good") == ["192.0.2.1"]
    (last,) = stage.helpers("loader.filters.host")
    if mood != "eat":  # that is an exception, and the process goes on
        assert last != first


def test_a_filter_process_that_is_killed(make_stage: MakeStage, package: Path) -> None:
    stage = ready(make_stage, package)
    (first,) = stage.helpers("loader.filters.host")
    kill(first)
    stage.put(new=given("fine"))
    stage.until("it works again", lambda: stage.of("new") == ["192.0.2.1"])
    assert stage.of("good") == ["192.0.2.1"]


@pytest.mark.parametrize(("name", "why"), [("missing", "AttributeError"), ("unheard-of", "no package")])
def test_a_filter_that_is_not_there(make_stage: MakeStage, package: Path, name: str, why: str) -> None:
    stage = make_stage("--filters", name, "--filters", "windows", python_path=package)
    past = {"data": "192.0.2.3", "not_after": 5, "labels": {"mood": "fine"}}
    stage.put(www=given("fine"), old=past)
    stage.until("it is answered without it", lambda: stage.of("www") == BOTH)
    stage.until("the others are asked", lambda: stage.of("old") == [])
    assert why in verdict(stage)["reasons"][0]


def test_check_looks_whether_it_is_installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package))
    wanted = ["windows", "moody", "unheard-of", "none"]
    remarks = [(remark.level, remark.text) for remark in checks.filters(Settings(filters=wanted))]
    assert remarks[0] == ("ok", "moody is moody:moody")
    assert remarks[1][0] == "warning"
    assert len(remarks) == 2
