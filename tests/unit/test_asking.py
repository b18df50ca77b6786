"""The loader's control socket, and what tools make of it: rejects, explain, export from a loader that really runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli import asking, control, explaining
from cli.main import standoff
from cli.settings import Settings
from loader import control as loader_control
from loader import names
from loader.compiler import Gift
from loader.control import LENGTH, MAX_REQUEST, PAGE, Desk, LoaderSocket, split
from shm.board import Board
from shm.errors import NotRunning
from shm.reading import TableObserver
from shm.segment import Names, is_held, remove_instance

ROOT = Path(__file__).parents[2]
WWW = names.from_text("www.example.test.")


class Book:
    """A publisher's knowledge."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.gifts: list[Gift] = []
        self.asked = 0
        self.when_asked: Callable[[], None] = lambda: None

    def rejects(self) -> Mapping[str, str]:
        self.asked += 1
        self.when_asked()
        return self.problems

    def revision_of(self, name: str) -> int:
        return len(name)

    def about(self, name: bytes) -> tuple[list[Gift], Mapping[str, str], Mapping[str, str]]:
        if name != WWW:
            return [], {}, {}
        return self.gifts, {"/n/bad": "is refused"}, {"1:/n/warned": "is changed"}


@contextmanager
def listening(path: Path, desk: Desk) -> Iterator[asyncio.AbstractEventLoop]:
    """The socket in a loop of its own, as a loader has one."""
    loop = asyncio.new_event_loop()
    made = LoaderSocket(path, desk)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(made.open(), loop).result(10)
        yield loop
        asyncio.run_coroutine_threadsafe(made.close(), loop).result(10)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(instance="asked", runtime_dir=tmp_path / "run")


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def path(settings: Settings, book: Book) -> Iterator[Path]:
    with listening(settings.loader_control_path, Desk(book, lambda: {"revision": 7})):
        yield settings.loader_control_path


# ---------------------------------------------------------------- the socket


def test_owner_and_group_may_ask(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert control.ask(path, "status", {}, part="loader")[1]["revision"] == 7


def test_what_is_not_known(path: Path) -> None:
    assert "knows no command 'dance'" in control.ask(path, "dance", {})[0].message
    assert "name is a name" in control.ask(path, "explain", {"name": "x"})[0].message
    assert not control.ask(path, "rejects", {"from": -1})[0].ok


def test_explain_tells_of_the_type_asked_for_and_how_many_there_are(path: Path, book: Book) -> None:
    """Hundreds of SkyDNS keys give to one name, and a reply has no room for all."""
    address = [(f"/s/{i}", 1, None, 1, 60, bytes(4), 33, 60, bytes(200)) for i in range(600)]
    book.gifts = [*address, ("/s/ns", 2, None, 2, 60, b"\0"), ("/s/zz", 3, None, 16, 60, b"\1x")]
    asked = {n: control.ask(path, "explain", {"name": WWW, "type": n})[1] for n in (1, 2, 16, 255)}
    keys = {n: [gift["key"] for gift in one["gifts"]] for n, one in asked.items()}
    assert (keys[2], keys[16], keys[255][0]) == (["/s/ns"], ["/s/ns", "/s/zz"], "/s/0")
    assert (asked[1]["total"], len(keys[1]) < 500) == (601, True)
    told = explaining.Told([explaining.Given("/s/0", 0, 1, [])], 601)
    assert explaining.made_note(1, told) == "from a key that is not among the 1 of 601 that the loader tells of"
    assert "made by the loader" in explaining.made_note(2, explaining.Told())


def test_a_socket_that_vanishes_is_made_again(
    settings: Settings, book: Book, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_control, "LOOK_S", 0.01)
    path = settings.loader_control_path
    with listening(path, Desk(book, lambda: {"revision": 7})):
        for times in (1, 2):
            shutil.rmtree(path.parent)
            deadline = time.monotonic() + 20
            while len(caplog.records) < times and time.monotonic() < deadline:
                time.sleep(0.01)
            assert control.ask(path, "status", {}, part="loader")[1]["revision"] == 7
    assert [record.message for record in caplog.records] == [f"control socket {path} was gone: made again"] * 2
    assert not path.exists()


@pytest.mark.parametrize(
    "raw", [b"\0", LENGTH.pack(MAX_REQUEST + 1), LENGTH.pack(1) + b"\xc1", LENGTH.pack(1) + b"\x01"]
)
def test_noise_gets_no_reply_and_does_no_harm(path: Path, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert control.ask(path, "status", {})[0].ok


def test_the_file_goes_with_the_loader_and_a_dead_ones_is_replaced(settings: Settings, book: Book) -> None:
    path = settings.loader_control_path
    path.parent.mkdir()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with listening(path, Desk(book, dict)):
        assert control.ask(path, "status", {})[0].ok
    assert not path.exists()


@pytest.mark.parametrize("hindrance", ["file", "folder"])
def test_without_a_socket_the_loader_goes_on(settings: Settings, book: Book, hindrance: str) -> None:
    path = settings.loader_control_path
    if hindrance == "file":
        path.parent.mkdir()
        path.write_text("precious")
    else:
        path.parent.write_text("not a folder")
    with listening(path, Desk(book, dict)):
        pass
    assert (path if hindrance == "file" else path.parent).read_text()


# ---------------------------------------------------------------- rejects


def test_rejects_page_by_page(path: Path, settings: Settings, book: Book) -> None:
    book.problems = {f"/n/{number:05}": "because" for number in range(3 * PAGE + 7)}
    found = asking.rejects(settings)
    assert [one.key for one in found.rejects] == sorted(book.problems)
    assert (found.total, found.complete) == (3 * PAGE + 7, True)
    assert found.rejects[0] == asking.Reject("/n/00000", 0, len("/n/00000"), "because")
    few = asking.rejects(settings, 10)
    assert (len(few.rejects), few.total, few.complete) == (10, 3 * PAGE + 7, False)


def test_long_reasons_make_short_pages(path: Path, settings: Settings, book: Book) -> None:
    book.problems = {f"1:/n/{number:05}" + "k" * 5000: "ä" * 5000 for number in range(100)}
    found = asking.rejects(settings)
    assert len(found.rejects) == 100
    assert found.rejects[0].source == 1
    assert len(found.rejects[0].reason) == 2048


@pytest.mark.parametrize("always", [False, True])
def test_a_list_that_changes_is_begun_again(path: Path, settings: Settings, book: Book, always: bool) -> None:
    book.problems = {f"/n/{number:05}": "because" for number in range(2 * PAGE)}

    def change() -> None:
        if book.asked == 2 or always:
            book.problems = {**book.problems, f"/n/more{book.asked}": "new"}

    book.when_asked = change
    found = asking.rejects(settings)
    assert found.complete != always
    assert len(found.rejects) >= 2 * PAGE


def test_sources_have_numbers() -> None:
    assert split("/n/a") == (0, "/n/a")
    assert split("12:/n/1:b\n") == (12, "/n/1:b\n")
    assert split("file:/x:1") == (0, "file:/x:1")


def test_explain_is_bounded(path: Path, settings: Settings, book: Book) -> None:
    book.gifts = [(f"/n/{number}", number, None, 1, 60, bytes(4)) for number in range(PAGE * 2)]
    fields = asking.request(settings, "explain", name=WWW)
    assert fields["total"] == PAGE * 2
    assert 100 < len(fields["gifts"]) <= PAGE
    assert fields["warnings"][0]["source"] == 1
    book.gifts = [("/n/large", 3, None, *([16, 60, b"x" * 60000] * 50))]
    fields = asking.request(settings, "explain", name=WWW)
    assert len(fields["gifts"][0]["records"][0]["data"]) == explaining.CUT


def test_no_loader(settings: Settings) -> None:
    with pytest.raises(NotRunning, match="no loader listens"):
        asking.rejects(settings)


# ---------------------------------------------------------------- which keys are about a name


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("/names/example.test/www/A", "www.example.test.", True),
        ("/names/Example.Test./WWW/TXT", "www.example.test.", True),
        ("/names/example.test/@/MX", "example.test.", True),
        ("/names/test/www.example/A", "www.example.test.", True),
        ("/skydns/test/example/www/x1", "www.example.test.", True),
        ("file:/x.jsonl:www.example.test./A", "www.example.test.", True),
        ("/names/example.test/ww/A", "www.example.test.", False),
        ("/names/other.test/www/A", "www.example.test.", False),
        ("/skydns/test/example/www/x1/y", "www.example.test.", False),
        ("/skydns/test/example/www", "www.example.test.", True),
        ("/names/example.test/0/25/PTR", "0/25.example.test.", True),
    ],
)
def test_keys_that_concern_a_name(key: str, text: str, wanted: bool) -> None:
    assert explaining.Concerning([names.from_text(text)])(key) is wanted
    assert not explaining.Concerning([names.ROOT])(key)
    assert not explaining.Concerning([])(key)


# ---------------------------------------------------------------- with a loader

ZONE = """\
$TTL 60
@ IN SOA ns1 hostmaster 7 7200 1800 86400 30
  IN NS ns1
ns1 IN A 192.0.2.53
www IN A 192.0.2.1
www IN A 192.0.2.2
alias IN CNAME www
away IN CNAME www.example.net.
*.wild IN TXT "any"
sub IN NS ns.sub
ns.sub IN A 192.0.2.54
old IN DNAME new
x.new IN A 192.0.2.9
"""
LINES = """\
{"name":"www.example.test","type":"A","data":"192.0.2.3"}
{"name":"www.example.test","type":"CNAME","data":"other.example.test."}
{"name":"elsewhere.invalid","type":"A","data":"192.0.2.4"}
{"name":"bad.example.test","type":"A","data":"nonsense"}
{"name":"made.test","type":"TXT","data":"x"}
"""


class Running:
    """A loader process on files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.runtime = name, folder / "run"
        (folder / "example.test.zone").write_text(ZONE)
        (folder / "more.jsonl").write_text(LINES)
        sources = ["--source", f"file:{folder}/example.test.zone", "--source", f"file:{folder}/more.jsonl"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "load", "--instance", name, "--runtime-dir", str(self.runtime),
             "--zone", "made.test", *sources],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Until the table is there, and the problems have been looked through."""
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            result = self.call("rejects", "--json")
            if result.exit_code == 0 and msgspec.json.decode(result.stdout)["total"]:
                return
            time.sleep(0.05)

    def call(self, command: str, *arguments: str) -> Result:
        runtime = [] if command in ("export", "status") else ["--runtime-dir", str(self.runtime)]
        return CliRunner().invoke(standoff, [command, "--instance", self.name, *runtime, *arguments])

    def explain(self, *arguments: str) -> dict[str, Any]:
        result = self.call("explain", "--json", *arguments)
        return dict(msgspec.json.decode(result.stdout))

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)[1]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    name = f"asking-{os.getpid()}"
    remove_instance(name)
    made = Running(name, tmp_path_factory.mktemp("asking"))
    try:
        made.wait()
        yield made
    finally:
        made.process.kill()
        made.process.communicate()
        remove_instance(name)


def test_rejects_of_a_loader(running: Running) -> None:
    result = running.call("rejects")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    assert "more.jsonl:elsewhere.invalid./A (source 1)" in result.stdout
    assert "is outside every zone" in result.stdout
    assert "'nonsense' is not an IPv4 address" in result.stdout
    found = msgspec.json.decode(running.call("rejects", "--json").stdout)
    assert found["complete"]
    assert all(one["revision"] > 1_000_000 for one in found["rejects"])
    assert "2 of 3" in running.call("rejects", "-n", "2").stderr


def test_explain_names_the_keys(running: Running) -> None:
    found = running.explain("www.example.test")
    (step,) = found["steps"]
    by_data = {record["data"]: record["keys"] for record in step["records"]}
    assert set(by_data) == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    assert by_data["192.0.2.1"][0]["key"].endswith("example.test.zone:www.example.test./A")
    assert by_data["192.0.2.3"][0]["source"] == 1
    assert by_data["192.0.2.3"][0]["mod_revision"] > 1_000_000
    assert "CNAME" in found["rejects"][0]["key"]
    assert found["reply"]["rcode"] == "NOERROR"
    assert len(found["reply"]["answer"]) == 3
    assert "AA" in found["reply"]["flags"]
    assert (found["workers"], found["loader"]) == ([], "asked")


@pytest.mark.parametrize(
    ("asked", "kinds", "last"),
    [
        (["alias.example.test"], ["cname", "answer"], "www.example.test."),
        (["away.example.test"], ["cname"], "away.example.test."),
        (["a.wild.example.test", "TXT"], ["wildcard"], "*.wild.example.test."),
        (["x.old.example.test"], ["dname", "answer"], "x.new.example.test."),
        (["deep.sub.example.test"], ["delegation"], "sub.example.test."),
        (["nothing.example.test"], ["nxdomain"], "example.test."),
        (["elsewhere.invalid"], ["refused"], None),
    ],
)
def test_explain_follows(running: Running, asked: list[str], kinds: list[str], last: str | None) -> None:
    found = running.explain(*asked)
    assert [step["kind"] for step in found["steps"]] == kinds
    assert found["steps"][-1]["owner"] == last
    for step in found["steps"]:
        assert all(record["keys"] for record in step["records"])


def test_explain_of_what_was_made(running: Running) -> None:
    result = running.call("explain", "made.test", "SOA")
    assert result.exit_code == 0
    assert "made by the loader: the zone brings none" in result.stdout
    found = running.explain("example.test", "SOA")
    assert found["steps"][0]["records"][0]["keys"]


def test_explain_shows_what_was_rejected_nearby(running: Running) -> None:
    assert [one["reason"] for one in running.explain("elsewhere.invalid")["rejects"]] != []
    result = running.call("explain", "www.example.test")
    assert "rejected or changed\n" in result.stdout
    assert "none is alive: nobody answers" in result.stdout
    assert result.stderr == ""


def test_export_of_an_instance_and_back(running: Running, tmp_path: Path) -> None:
    result = running.call("export", "--zone", "example.test")
    assert result.exit_code == 0
    assert "\nwww.example.test.\t60\tIN\tA\t192.0.2.1\n" in result.stdout
    assert "made.test" not in result.stdout
    outputs: dict[str, set[str]] = {}
    for format, target in (("zone", "zones"), ("jsonl", "all.jsonl"), ("msgpack", "all.msgpack")):
        assert running.call("export", "-f", format, "-o", str(tmp_path / target)).exit_code == 0
        back = CliRunner().invoke(standoff, ["import", str(tmp_path / target)])
        assert (back.exit_code, back.stderr) == (0, "")
        outputs[format] = set(back.stdout.splitlines())
    assert len({frozenset(lines) for lines in outputs.values()}) == 1
    assert any('"/standoff/example.test/www/A"' in line for line in outputs["zone"])
    straight = running.call("export", f"file:{tmp_path}/all.jsonl", "--json")
    assert set(straight.stdout.splitlines()) == set(running.call("export", "--json").stdout.splitlines())


def test_export_of_a_table_that_never_holds_still(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = running.call("export", "--json").stdout

    def look(*_: object) -> None:
        raise NotRunning("the table changes faster than it can be read; try again")

    monkeypatch.setattr(TableObserver, "look", look)
    assert running.call("export", "--json").stdout == calm


def test_export_of_nothing(running: Running) -> None:
    assert running.call("export", "--zone", "absent.test").exit_code == 1
    assert running.call("export", "file:/nowhere/at.all").exit_code == 2


def test_explain_without_a_loader(tmp_path: Path) -> None:
    name = f"asking-alone-{os.getpid()}"
    remove_instance(name)
    made = Running(name, tmp_path)
    try:
        made.wait()
        made.stop()
        assert not is_held(Names(name).lock("writer"))
        assert not (made.runtime / f"{name}.loader.sock").exists()
        if Board.attach(name).live:
            result = made.call("explain", "www.example.test")
            assert result.exit_code == 0
            assert "no loader answers: which keys gave the records is not known" in result.stderr
            assert "192.0.2.1" in result.stdout
        assert made.call("rejects").exit_code == 3
    finally:
        made.process.kill()
        made.process.communicate()
        remove_instance(name)


def test_explain_usage(running: Running) -> None:
    assert running.call("explain", "a..b").exit_code == 2
    assert running.call("explain", "a.test", "NOTYPE").exit_code == 2
    assert CliRunner().invoke(standoff, ["explain", "a.test", "--instance", "no-such-instance"]).exit_code == 3
