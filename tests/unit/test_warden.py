"""What surrounds the gate: pages for tools, a person's word, the hook, the clock, the file."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loader import held_file, names, rdata, takeover
from loader import hook as hooks
from loader.apex import serial
from loader.control import Desk
from loader.difference import difference
from loader.held import State
from loader.model import Record
from loader.warden import Warden, bounded, limits_of
from loader.zone import Zones

APEX = names.from_text("example.test.")
DEFAULTS = {
    "instance": "test", "state_dir": None, "guard": "on", "guard_removed": 0.5, "guard_floor": 4, "guard_window": 60.0,
    "guard_last_address": "off", "guard_canary": [], "guard_order": "flow", "guard_hold_for": 0.0,
    "guard_then": "reject", "guard_hook": "",
}  # fmt: skip


class World:
    """A model of hosts, a warden, and readers' table."""

    def __init__(self, hosts: int = 10, **settings: Any) -> None:
        self.settings: Any = SimpleNamespace(**DEFAULTS | settings)
        self.zones = Zones([APEX])
        self.woken = 0
        self.warden = Warden(self.settings, self.zones, self._wake)
        self.table: dict[bytes, bytes] = {}
        self.revision = 0
        self.hosts(range(hosts))
        self.publish()

    def _wake(self) -> None:
        self.woken += 1

    def hosts(self, numbers: range, *addresses: str) -> None:
        self.revision += 1
        for number in numbers:
            owner = names.from_text(f"h{number}", APEX)
            records = [Record(None, owner, rdata.A, 60, rdata.ipv4(one)) for one in addresses or ["192.0.2.1"]]
            self.zones.apply(f"/h{number}", records, self.revision)

    def gone(self, numbers: range) -> None:
        self.revision += 1
        for number in numbers:
            self.zones.apply(f"/h{number}", (), self.revision)

    def publish(self) -> None:
        for name, block in self.warden.gate.sift(self.zones.take_changes(), self.table.get, self.revision).items():
            if block is None:
                self.table.pop(name, None)
            else:
                self.table[name] = block

    def hold(self, count: int = 8) -> None:
        self.gone(range(count))
        self.publish()
        assert len(self.warden.gate.pending) == 1

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        known: Any = None
        return Desk(known, dict, None, self.warden.handlers).answer({"command": command, **arguments})


def test_pages_of_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.warden.PAGE", 3)
    world = World()
    assert world.ask("pending") | {"version": 0} == {
        "ok": True, "message": "done", "version": 0, "changes": [], "differences": [], "total": 0, "more": None,
    }  # fmt: skip
    world.hold()
    found, start = [], 0
    while start is not None:
        page = world.ask("pending", **{"from": start})
        assert page["total"] == 8
        assert page["changes"][0]["names"] == 8
        found += page["differences"]
        start = page["more"]
    assert len(found) == 8
    assert sorted(one["name"] for one in found) == [f"h{n}.example.test." for n in range(8)]
    assert found[0]["removed"] == ["60 A 192.0.2.1"]
    assert found[0]["added"] == []
    assert [one["name"] for one in world.ask("pending", **{"from": 5})["differences"]] == [
        one["name"] for one in found[5:]
    ]
    assert world.ask("pending", rejected=True)["total"] == 0
    assert not world.ask("pending", **{"from": -1})["ok"]


def test_a_change_between_two_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.warden.PAGE", 3)
    world = World()
    world.hold()
    page = world.ask("pending")
    world.hosts(range(1))  # h0 is back
    world.publish()
    again = world.ask("pending", **{"from": page["more"]})
    assert again["version"] != page["version"]
    assert again["total"] == 7


def test_a_page_has_bounds() -> None:
    world = World(hosts=0)
    world.hosts(range(8), *(f"192.0.{n // 250}.{n % 250}" for n in range(2000)))
    world.publish()
    world.hold()
    page = world.ask("pending")
    assert 1 <= len(page["differences"]) < 8
    assert "more records" in page["differences"][0]["removed"][-1]
    assert len(json.dumps(page)) < 64 * 1024


def test_approve_and_reject() -> None:
    world = World()
    world.hold()
    assert world.ask("approve", change=9)["message"] == "there is no held change 9; `standoff pending` lists them"
    assert not world.ask("approve")["ok"]
    rejected = world.ask("reject", change=1)["decided"]
    assert (rejected[0]["names"], rejected[0]["change"], world.woken) == (8, 1, 1)
    assert world.ask("approve", change=1)["message"] == "change 1 is rejected"
    assert world.ask("reject", change=1)["message"] == "change 1 is rejected"
    assert world.ask("pending", rejected=True)["total"] == 8
    assert world.ask("approve", all=True)["decided"] == []
    assert world.ask("approve", all=True, rejected=True)["decided"][0]["names"] == 8
    world.publish()
    assert len(world.table) == 3


def test_the_board_and_the_note() -> None:
    world = World()
    words: dict[str, int] = {}
    board: Any = SimpleNamespace(set=words.__setitem__)
    world.warden.show(board)
    assert not any(words.values())
    assert world.warden.note() == ""
    world.hold()
    world.warden.gate.pin({}, "pinned at revision 7", 7)
    world.warden.show(board)
    assert (words["held_changes"], words["held_names"], words["rejected_names"]) == (1, 8, 0)
    assert words["held_since_ns"] > 0
    assert words["pinned_since_ns"] > 0
    assert words["pinned_revision"] == 7
    assert "change 1 is held: 8 of 11 names" in world.warden.note()
    assert "pinned at revision 7" in world.warden.note()
    assert not world.ask("approve", change=1)["ok"]  # pinned


def run(body: Any) -> None:
    asyncio.run(asyncio.wait_for(body, 30))


async def until(wanted: Callable[[], bool]) -> None:
    while not wanted():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("then", ["approve", "reject"])
def test_nobody_decides(then: str) -> None:
    world = World(guard_hold_for=0.3, guard_then=then)
    world.hold()
    assert world.ask("pending")["changes"][0]["then"] == then
    assert 0 < world.ask("pending")["changes"][0]["left"] <= 0.3

    async def body() -> None:
        task = asyncio.create_task(world.warden.run())
        await until(lambda: not world.warden.gate.pending)
        task.cancel()

    run(body())
    assert len(world.warden.gate.rejected) == (then == "reject")
    assert world.woken


# ---------------------------------------------------------------- the hook


def script(folder: Path, text: str) -> str:
    path = folder / "the hook"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return f"'{path}' argument"


@pytest.mark.parametrize(("status", "rejected", "pending"), [(0, 0, 0), (1, 1, 0), (2, 0, 1), (77, 0, 1)])
def test_the_hook_decides(tmp_path: Path, status: int, rejected: int, pending: int) -> None:
    told = tmp_path / "told"
    command = script(tmp_path, f"cat > {told}; echo $1 >&2; exit {status}\n")
    world = World(guard_hook=command)
    world.hold()

    async def body() -> None:
        world.warden._hook.look(world.warden.gate, world.warden._decide)
        task = world.warden._hook._task
        assert task is not None
        await task
        world.warden._hook.look(world.warden.gate, world.warden._decide)
        assert world.warden._hook._task is task  # it is not asked again

    run(body())
    assert (len(world.warden.gate.rejected), len(world.warden.gate.pending)) == (rejected, pending)
    asked = json.loads(told.read_text())
    assert (asked["instance"], asked["change"], asked["names"], asked["complete"]) == ("test", 1, 8, True)
    assert {"name": "h0.example.test.", "removed": ["60 A 192.0.2.1"], "added": []} in asked["differences"]


def test_the_hook_does_not_answer_or_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "HOOK_S", 0.2)
    for command in (script(tmp_path, "exec sleep 60\n"), str(tmp_path / "nothing")):
        world = World(guard_hook=command)
        world.hold()

        async def body(world: World = world) -> None:
            world.warden._hook.look(world.warden.gate, world.warden._decide)
            assert world.warden._hook._task is not None
            await world.warden._hook._task

        run(body())
        assert len(world.warden.gate.pending) == 1
    assert "no answer within 0.2 s; change 1 is left to a person" in caplog.text
    assert "No such file" in caplog.text


@pytest.mark.parametrize(
    ("text", "pending"),
    [
        ("sleep 60\n", 1),  # in a shell: the command is not the one that hangs
        ("exec yes >&2\n", 1),
        ("sleep 5 &\nexit 0\n", 0),  # leaves somebody behind who holds its pipes
        ("exec 0<&-\nexit 0\n", 0),
        ("echo Go >&2\nexit 1\n", 0),
    ],
)
def test_whatever_the_hook_does_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, pending: int
) -> None:
    monkeypatch.setattr(hooks, "HOOK_S", 1.0)
    world = World(hosts=1000, guard_hook=script(tmp_path, text))
    world.hold(900)

    async def body() -> None:
        world.warden._hook.look(world.warden.gate, world.warden._decide)
        assert world.warden._hook._task is not None
        await asyncio.wait_for(world.warden._hook._task, 20)

    run(body())
    assert len(world.warden.gate.pending) == pending


def test_a_change_grows_while_the_hook_thinks(tmp_path: Path) -> None:
    """What it says is of the change as it was: it is asked again."""
    go = tmp_path / "go"
    command = script(tmp_path, f"while [ ! -e {go} ]; do sleep 0.05; done\n")
    world = World(hosts=20, guard_hook=command, guard_floor=2)
    for number in range(13):  # a drip
        world.gone(range(number, number + 1))
        world.publish()

    async def body() -> None:
        hook, gate = world.warden._hook, world.warden.gate
        hook.look(gate, world.warden._decide)
        await asyncio.sleep(0.2)
        world.gone(range(13, 14))
        world.publish()
        go.touch()
        first = hook._task
        assert first is not None
        await first
        assert len(gate.pending) == 1
        hook.look(gate, world.warden._decide)
        assert hook._task is not first
        assert hook._task is not None
        await hook._task
        assert not gate.pending

    run(body())


def test_a_person_is_faster_than_the_hook(tmp_path: Path) -> None:
    world = World(guard_hook=script(tmp_path, "sleep 0.3\n"))
    world.hold()

    async def body() -> None:
        world.warden._hook.look(world.warden.gate, world.warden._decide)
        await asyncio.sleep(0.05)
        world.ask("approve", all=True)
        task = world.warden._hook._task
        assert task is not None
        await task

    run(body())
    world.publish()
    assert len(world.table) == 3


def test_a_hook_that_is_no_command() -> None:
    with pytest.raises(ValueError, match="quotation"):
        World(guard_hook="'")


# ---------------------------------------------------------------- the file


def test_kept_over_a_restart(tmp_path: Path) -> None:
    world = World(state_dir=tmp_path)
    assert world.warden.kept() is None
    world.hold()
    run(world.warden.close())
    kept = Warden(world.settings, world.zones, lambda: None).kept()
    assert kept == takeover.saved(world.warden.gate)
    assert kept is not None
    assert len(kept.changes[0].names) == 8
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "empty"])
def test_a_damaged_file(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(state_dir=tmp_path)
    world.hold()
    run(world.warden.close())
    path = tmp_path / "test.held"
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "flip": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
            "other": b"STNDHLD2" + content[8:],
            "empty": b"",
        }[harm]
    )
    with pytest.raises(held_file.HeldDamaged):
        held_file.read(path)
    assert world.warden.kept() is None
    assert "is judged anew" in caplog.text


def test_the_last_word_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that ends while the file is written: that thread goes on, and must not come after the next one."""
    world = World(state_dir=tmp_path)
    world.hold()
    write = held_file.write

    def slow(path: Path, saved: takeover.Saved) -> None:
        time.sleep(0.3)
        write(path, saved)

    async def body() -> None:
        task = asyncio.create_task(world.warden.keep())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        monkeypatch.setattr(held_file, "write", write)
        world.ask("reject", all=True)
        await world.warden.close()

    monkeypatch.setattr(held_file, "write", slow)
    run(body())
    kept = world.warden.kept()
    assert kept is not None
    assert kept.changes[0].state is State.REJECTED


def test_a_file_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    folder = tmp_path / "state"
    folder.write_text("a file")
    world = World(state_dir=folder)
    world.hold()
    run(world.warden.close())
    assert "cannot be written" in world.warden.error
    assert "cannot be written" in world.warden.note()
    folder.unlink()
    run(world.warden.close())
    assert world.warden.error == ""


def test_guard_is_off_and_something_was_held(tmp_path: Path) -> None:
    """It is let go; what was rejected stays so."""
    world = World(state_dir=tmp_path)
    world.hold()
    kept = takeover.saved(world.warden.gate)
    off = World(hosts=0, guard="off")
    off.hosts(range(8, 10))
    table: Any = SimpleNamespace(
        find=world.table.get, blocks=world.table.values, names=len(world.table), meta={"zones": [APEX]},
        same=lambda block: block in world.table.values(),
    )  # fmt: skip
    list(takeover.first(off.warden.gate, off.zones.all_nodes(), table, 9, "", kept))
    assert not off.warden.gate.holdings.all


# ---------------------------------------------------------------- small parts


def test_limits() -> None:
    world = World(guard_canary=["www.example.test A"], guard_order="strict")
    assert limits_of(world.settings).strict
    assert limits_of(world.settings).canaries[0].name == names.from_text("www.example.test.")


def test_differences() -> None:
    world = World(hosts=1)
    old = world.table[names.from_text("h0", APEX)]
    assert difference(b"\1a\0", None, old).added == ["60 A 192.0.2.1"]
    world.hosts(range(1), "192.0.2.1", "192.0.2.2")
    new = world.zones.block(names.from_text("h0", APEX))
    made = difference(b"\1a\0", old, new)
    assert (made.name, made.removed, made.added) == ("a.", [], ["60 A 192.0.2.2"])
    apex = world.zones.block(APEX)
    assert difference(APEX, world.table[APEX], apex).added == []  # nothing but the serial
    assert len(difference(APEX, None, apex).added) == 2
    assert bounded(difference(APEX, None, apex), 10).added == ["... and 2 more records"]


def test_serials_after_a_loss_of_the_memory(tmp_path: Path) -> None:
    """They go on from what may have been answered since the file was written; with the memory, from what was."""

    async def story() -> None:
        world = World(state_dir=tmp_path)
        world.hold()
        for held in world.warden.gate.pending:
            world.warden.gate.approve(held)
        world.publish()
        await world.warden.keep()
        answered = serial(world.table[APEX])
        assert answered > world.revision
        for lost in (True, False, True):
            another = World(state_dir=tmp_path).warden
            kept = another.kept()
            assert kept is not None
            floors = another.floors(kept, {APEX: 1 if lost else answered, b"\0": 5}, lost)
            assert floors[b"\0"] == 5
            assert (floors[APEX] > answered + 1000) if lost else (floors[APEX] == answered)
            on_disk = held_file.read(tmp_path / "test.held")
            assert on_disk is not None
            assert on_disk.reserved[APEX] > floors[APEX], "the next power cut is not to lead to the same number"
            answered = floors[APEX]
        await another.close()
        on_disk = held_file.read(tmp_path / "test.held")
        assert on_disk is not None
        assert on_disk.reserved == {APEX: answered}

    asyncio.run(story())
