"""history, diff and lookup --at on a history that was written here, with a table beside it and without."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import differing
from cli.main import standoff
from loader.history import NONE, History, Publish, path_of
from shm.board import Board
from shm.tables import TableWriter
from tests.support.instances import fresh_instance
from tests.support.processes import drive
from tests.support.published import APEX, Published, wire


@pytest.fixture
def instance() -> Iterator[str]:
    with fresh_instance() as name:
        yield name


@pytest.fixture
def published(instance: str, tmp_path: Path) -> Published:
    """n1 is the first table, n2 to n4 change www, n5 is a zone's worth of names, n6 removes most of them."""
    made = Published(History(path_of(tmp_path, instance), 1000, 1 << 20))
    made.first(5)
    for revision in (10, 20, 30):
        made.change(revision, {"www": revision // 10, "mail": 1})
    made.change(40, {f"h{i}": i for i in range(20)} | {"*": 7})
    made.change(50, {f"h{i}": None for i in range(18)} | {"www": 9}, "approve")
    made.history.close()
    return made


@pytest.fixture
def standoff_here(instance: str, tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Runner(instance, tmp_path)


class Runner:
    def __init__(self, instance: str, folder: Path) -> None:
        self.options = ["--instance", instance, "--state-dir", str(folder)]

    def __call__(self, *arguments: str, status: int = 0) -> Result:
        result = CliRunner().invoke(standoff, [*arguments, *self.options])
        assert result.exit_code == status, result.output + repr(result.exception)
        return result


def publish(instance: str, blocks: dict[bytes, bytes], revision: int) -> Board:
    board = Board.create_or_attach(instance)
    writer = TableWriter(board)
    drive(writer.replace(iter(blocks.values()), revision, {"zones": [APEX]}))
    writer.close()
    return board


def test_history(standoff_here: Runner) -> None:
    lines = standoff_here("history").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["n6", "n5", "n4", "n3", "n2", "n1"]
    assert re.fullmatch(
        r"n6  2023-\d\d-\d\d \d\d:\d\d:\d\d  50  approve  \+0 -18 ~1  \S+.example.test. .* and 15 more", lines[0]
    )
    assert re.search(r"  5  first +1 name$", lines[-1])
    assert re.search(r"\+0 -0 ~1 +www.example.test.$", lines[2]), "mail did not change, and the apex does not count"


def test_history_of_a_name_and_of_a_zone(standoff_here: Runner) -> None:
    named = standoff_here("history", "--name", "WWW.example.test").stdout.splitlines()
    assert [line.split()[0] for line in named] == ["n6", "n4", "n3", "n2"]
    assert re.search(r"\+0 -0 ~1 +www.example.test.$", named[0])
    assert not standoff_here("history", "--zone", "ample.test").stdout
    assert len(standoff_here("history", "--zone", "example.test", "--limit", "2").stdout.splitlines()) == 2
    assert standoff_here("history", "--since", "10m").stderr == "standoff: nothing is in the history that matches\n"
    assert len(standoff_here("history", "--since", "2023-01-01").stdout.splitlines()) == 6
    for state in ("n4", "30"):
        done = standoff_here("history", "--since", state, "--limit", "2")
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["n6", "n5"], "what came after it"
        assert not done.stderr, "there is no more of it"
    assert "nothing is in the history that matches" in standoff_here("history", "--since", "now").stderr
    assert "there is no entry n9 yet" in standoff_here("history", "--since", "n9", status=1).stderr
    standoff_here("history", "--since", "soon", status=2)
    standoff_here("history", "--name", "a..b", status=2)


def test_history_as_json(standoff_here: Runner) -> None:
    told = json.loads(standoff_here("history", "--json", "--limit", "1").stdout)
    (entry,) = told["entries"]
    assert entry | {"time": "", "names": []} == {
        "number": 6, "time": "", "revision": 50, "why": "approve", "note": "", "known": True,
        "added": 0, "removed": 18, "changed": 1, "names": [],
    }  # fmt: skip


def test_diff(standoff_here: Runner) -> None:
    result = standoff_here("diff", "10", "n4")
    assert [line for line in result.stdout.splitlines() if line[1:3] not in ("--", "++")] == [
        "-www.example.test. 60 IN A 192.0.2.1", "+www.example.test. 60 IN A 192.0.2.3",
    ]  # fmt: skip
    assert re.match(r"--- n2  revision 10  2023-.*\n\+\+\+ n4  revision 30  2023-", result.stdout)
    assert result.stderr == "standoff: 1 name differs: 0 new, 0 gone, 1 changed\n"
    back = standoff_here("diff", "n4", "10").stdout
    assert "-www.example.test. 60 IN A 192.0.2.3" in back
    now = standoff_here("diff", "40").stdout.splitlines()
    assert now[2:4] == ["-h0.example.test. 60 IN A 192.0.2.0", "-h1.example.test. 60 IN A 192.0.2.1"]
    assert len(now) == 2 + 18 + 2
    assert not any("SOA" in line for line in now)
    assert sum("SOA" in line for line in standoff_here("diff", "40", "--all").stdout.splitlines()) == 2


def test_diff_as_json(standoff_here: Runner) -> None:
    told = json.loads(standoff_here("diff", "20", "30", "--json").stdout)
    assert (told["from"]["number"], told["to"]["revision"], told["changed"]) == (3, 30, 1)
    assert told["names"] == [
        {
            "name": "www.example.test.", "sign": "~",
            "removed": [{"type": "A", "ttl": 60, "data": "192.0.2.2"}],
            "added": [{"type": "A", "ttl": 60, "data": "192.0.2.3"}],
        }
    ]  # fmt: skip


def test_diff_that_the_history_does_not_tell(standoff_here: Runner, published: Published) -> None:
    assert "older than the history: it begins with n1" in standoff_here("diff", "3", status=1).stderr
    assert "there is no entry n9 yet" in standoff_here("diff", "n9", status=1).stderr
    assert "is not a revision, n12 for entry 12" in standoff_here("diff", "yesterday", status=2).stderr
    history = History(published.history.path, 1000, 1 << 20)
    history.record(Publish(NONE, published.version, "first", names=3))
    history.close()
    error = standoff_here("diff", "30", status=1).stderr
    assert "not known before n7 (revision 50): the table was made anew" in error


def test_what_is_still_to_come(standoff_here: Runner, instance: str, published: Published) -> None:
    asked = (["diff"], ["rollback", "--dry-run"], ["rollback", "--yes"], ["lookup", "www.example.test", "--at"])
    for arguments in asked:
        error = standoff_here(*arguments, "60", status=1).stderr
        assert "there is no revision 60 yet: the newest that was published is 50" in error
        error = standoff_here(*arguments, "2100-01-01T00:00", status=1).stderr
        assert "2100-01-01T00:00 is in the future: the newest state is n6 (revision 50, " in error
    board = publish(instance, published.table, 60)  # publishes that changed nothing have no entry
    for arguments in asked[0], asked[1], asked[3]:
        standoff_here(*arguments, "60")
        assert (
            "no revision 61 yet: the newest that was published is 60"
            in standoff_here(*arguments, "61", status=1).stderr
        )
    board.close()


def test_lookup_then_without_a_table(standoff_here: Runner) -> None:
    result = standoff_here("lookup", "www.example.test", "A", "--at", "20")
    assert result.stdout == "www.example.test. 60 IN A 192.0.2.2\n"
    assert "as of n3  revision 20" in result.stderr
    # A name that never changed may have been there all the time.
    assert "no table is published" in standoff_here("lookup", "new.example.test", "--at", "n5", status=1).stderr
    told = json.loads(standoff_here("lookup", "h3.example.test", "--at", "40", "--json").stdout)
    assert (told["records"][0]["data"], told["state"]["number"]) == ("192.0.2.3", 5)


def test_lookup_then_beside_a_table(standoff_here: Runner, instance: str, published: Published) -> None:
    """What has not changed since is in the table only; what the history lacks of it is not made up."""
    history = History(published.history.path, 3, 1 << 20)
    published.history = history
    published.change(60, {"www": 1})
    published.change(70, {"www": 2})
    history.close()  # n6 to n8 are kept
    board = publish(instance, published.table, 70)
    assert "192.0.2.1\n" in standoff_here("lookup", "mail.example.test", "--at", "50").stdout
    assert standoff_here("lookup", "h3.example.test", "--at", "n5").stdout.endswith("192.0.2.3\n")
    wildcard = standoff_here("lookup", "h3.example.test", "--at", "50")
    assert "made from the wildcard" in wildcard.stderr
    assert "n6 is the table before" not in standoff_here("lookup", "mail.example.test", "--at", "n4", status=1).stderr
    board.close()


def test_lookup_before_a_hole(standoff_here: Runner, published: Published, instance: str) -> None:
    history = History(published.history.path, 1000, 1 << 20)
    history.record(Publish(NONE, published.version, "first", names=3))
    history.close()
    board = publish(instance, published.table, 50)
    assert "192.0.2.2\n" in standoff_here("lookup", "www.example.test", "--at", "20").stdout
    error = standoff_here("lookup", "never.example.test", "--at", "20", status=1).stderr
    assert "never.example.test. then: not known before n7 (revision 50): the table was made anew" in error
    board.close()


def test_without_a_history(instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    run = Runner(instance, tmp_path / "none")
    for arguments in (["history"], ["diff", "1"], ["lookup", "a.test", "--at", "1"]):
        assert "there is no history at" in run(*arguments, status=3).stderr


def test_names_are_in_the_order_of_a_zone_file(published: Published) -> None:
    blocks = {wire(label): (None, published.table[wire("www")]) for label in ("b", "a.b", "a", "z.a")}
    found = [differing.name_text(one.name) for one in differing.differences(blocks)]
    assert found == [f"{label}.example.test." for label in ("a", "z.a", "b", "a.b")]
