"""standoff pending, approve and reject, in front of a warden in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli import deciding
from cli.control import ControlFailed
from cli.main import standoff
from tests.unit.test_warden import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    def request(_: object, command: str, **arguments: Any) -> dict[str, Any]:
        woken = made.woken
        reply: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(made.ask(command, **arguments)))
        if not reply["ok"]:
            raise ControlFailed(f"the loader says: {reply['message']}")
        if made.woken != woken:
            made.publish()
        return reply

    monkeypatch.setattr(deciding, "request", request)
    return made


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(standoff, list(arguments))
    assert done.exit_code == status, done.output
    return done


def test_nothing_is_held(world: World) -> None:
    assert run("pending").stderr == "standoff: nothing is held back\n"
    assert run("pending", "--rejected").stderr == "standoff: nothing is rejected\n"
    assert json.loads(run("pending", "--json").stdout) == {
        "changes": [], "differences": [], "total": 0, "complete": True,
    }  # fmt: skip
    assert run("approve", "--all").stderr == "standoff: nothing is held back\n"


def test_from_held_to_published(world: World) -> None:
    world.hold()
    done = run("pending")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("change 1  pending since 0.")
    assert lines[0].endswith(" s ago, revision 2, 8 names")
    assert lines[1] == "  8 of 11 names would be lost: 73%, guard_removed allows 50%"
    assert lines[2:] == [f"  - h{n}.example.test. 60 A 192.0.2.1" for n in range(8)]
    assert "`standoff approve 1` publishes it, `standoff reject 1` keeps the answers" in done.stderr
    done = run("pending", "--limit", "2")
    assert len(done.stdout.splitlines()) == 4
    assert "2 of 8 names are shown (--limit)" in done.stderr
    assert len(run("pending", "--limit", "0").stdout.splitlines()) == 2
    assert run("reject", "1").stdout == "change 1 with 8 names is rejected: answers stay as they are\n"
    assert "change 1  rejected since" in run("pending", "--rejected").stdout
    assert run("approve", "1", "--rejected").stdout == "change 1 with 8 names is published\n"
    assert len(world.table) == 3


def test_a_decision_that_does_not_get_on_disk(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(deciding, "KEEP_S", 0.1)
    world.hold()
    world.warden._path = tmp_path / "no folder" / "test.held"
    done = run("reject", "1")
    assert "rejected" in done.stdout
    assert "not on disk: it is not after 0.1 s; after a restart of the loader look at `standoff pending`" in done.stderr
    world.warden.error = "test.held cannot be written: No space left on device"
    assert "not on disk: test.held cannot be written" in run("approve", "1", "--rejected").stderr


def test_a_decision_that_is_on_disk(world: World, tmp_path: Path) -> None:
    world.hold()
    world.warden._path = tmp_path / "test.held"
    world.warden._written = 10**6
    assert run("reject", "--all").stderr == ""


def test_the_first_names_are_the_first_in_order(world: World) -> None:
    world.warden.gate.pin({}, "pinned at revision 1", 1)
    for host in (7, 3, 1, 5, 2):
        world.hosts(range(host, host + 1), "192.0.2.9")
        world.publish()
    whole = json.loads(run("pending", "--json").stdout)["differences"]
    assert [one["name"] for one in whole] == [f"h{n}.example.test." for n in (1, 2, 3, 5, 7)]
    first = json.loads(run("pending", "--limit", "2", "--json").stdout)
    assert (first["differences"], first["total"], first["complete"]) == (whole[:2], 5, False)
    assert json.loads(run("pending", "--limit", "0", "--json").stdout)["differences"] == []


def test_a_new_address(world: World) -> None:
    world.warden.gate.pin({}, "pinned at revision 1", 1)
    world.hosts(range(1), "192.0.2.9")
    world.publish()
    done = run("pending")
    assert "  - h0.example.test. 60 A 192.0.2.1\n  + h0.example.test. 60 A 192.0.2.9\n" in done.stdout
    assert "standoff resume" in done.stderr
    assert json.loads(run("pending", "--json").stdout)["changes"][0]["state"] == "pinned"


def test_a_pin_is_not_decided_on(world: World) -> None:
    world.warden.gate.pin({}, "pinned at revision 1", 1)
    assert world.warden.note() == "pinned at revision 1"
    for command in ("approve", "reject"):
        error = run(command, "1", status=1).stderr
        assert "change 1 is the pin of a rollback: `standoff resume` ends it" in error


def test_one_name_is_not_several(world: World) -> None:
    world.warden.gate.pin({}, "pinned at revision 1", 1)
    world.hosts(range(1), "192.0.2.9")
    world.publish()
    assert run("pending").stdout.splitlines()[0].endswith(", 1 name")
    assert "0 of 1 name is shown (--limit)" in run("pending", "--limit", "0").stderr


def test_asked_wrongly(world: World) -> None:
    for command in ("approve", "reject"):
        assert "the number of a change, or --all" in run(command, status=2).stderr
        error = run(command, "--all", "3", status=2).stderr
        assert "3 is one change, --all is all of them: leave out one of both" in error
        assert "there is no held change 7" in run(command, "7", status=1).stderr
    world.hold()
    assert json.loads(run("approve", "--all", "--json").stdout)["decided"][0]["change"] == 1
