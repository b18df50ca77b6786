"""loader/files.py, zonefile.py, jsonlines.py: the file source."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from loader import jsonlines, names, rdata, zonefile
from loader.feed import Update
from loader.files import FileSource
from loader.model import DEFAULT_TTL, Record, Reject
from loader.zone import Zones
from shm.layout import LoaderState
from shm.node import unpack

A, NS, CNAME, SOA, MX, TXT = 1, 2, 5, 6, 15, 16
APEX = names.from_text("example.test")
HEAD = "$ORIGIN example.test.\n$TTL 60\n@ SOA ns1 hostmaster 4711 7200 1800 86400 30\n@ NS ns1\n"


def n(text: str) -> bytes:
    return names.from_text(text)


class Clock:
    """Gives files increasing times: two writes in a test may fall into one tick of the file system."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000

    def write(self, path: Path, text: str) -> Path:
        self.now_s += 1
        path.write_text(text)
        os.utime(path, (self.now_s, self.now_s))
        return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


def news(source: FileSource) -> Update:
    update = source.look()
    assert update is not None
    return update


def short(update: Update, root: Path) -> dict[str, int | None]:
    """Key without the folder -> number of records."""
    return {
        key.replace(f"{root}/", ""): None if records is None else len(records)
        for key, records in update.records.items()
    }


# ---------------------------------------------------------------- zone files


def test_a_zone_file(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "www 30 A 192.0.2.1\n    A 192.0.2.2\nMail MX 10 Mail\n")
    update = news(FileSource(path))
    assert update.full
    assert update.problems == {}
    assert update.revision == 1_700_000_001
    records = update.records[f"file:{path}:www.example.test./A"]
    assert records == [
        Record(APEX, n("www.example.test"), A, 30, b"\xc0\x00\x02\x01"),
        Record(APEX, n("www.example.test"), A, 60, b"\xc0\x00\x02\x02"),
    ]
    mail = update.records[f"file:{path}:mail.example.test./MX"]
    assert mail is not None
    assert (mail[0].owner, mail[0].rdata) == (n("mail.example.test"), b"\x00\x0a\x04Mail" + APEX)


def test_the_serial_of_a_zone_file_is_kept(tmp_path: Path, clock: Clock) -> None:
    update = news(FileSource(clock.write(tmp_path / "x.zone", HEAD)))
    zones = Zones()
    for key, records in update.records.items():
        zones.apply(key, records or (), update.revision)
    apex = unpack(next(zones.all_nodes()))
    assert apex.rrsets[SOA].wire[-20:-16] == (4711).to_bytes(4, "big")


def test_without_origin_the_files_name_says_it(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "example.test.db", "$TTL 60\nwww A 192.0.2.1\n")
    (records,) = news(FileSource(path)).records.values()
    assert records == [Record(APEX, n("www.example.test"), A, 60, b"\xc0\x00\x02\x01")]


def test_without_soa_a_file_adds_to_a_configured_zone(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "sub.example.test.zone", "www 60 A 192.0.2.1\n")
    (records,) = news(FileSource(path, [APEX])).records.values()
    assert records is not None
    assert (records[0].zone, records[0].owner) == (None, n("www.sub.example.test"))


def test_cname_beside_data_does_not_spoil_the_file(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "www CNAME a\nwww A 192.0.2.1\n")
    assert len(news(FileSource(path)).records) == 4


def test_names_outside_the_zone_are_told(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "www.other.test. A 192.0.2.1\n")
    update = news(FileSource(path))
    key = f"file:{path}:www.other.test./A"
    assert "outside the file's zone example.test." in update.problems[key]
    assert update.records[key] is None


def test_types_that_are_no_data(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "www TYPE255 \\# 0\n")
    assert list(news(FileSource(path)).problems) == [f"file:{path}:www.example.test./ANY"]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("www A 192.0.2.256\n", 5, "192.0.2.256"),
        ("\n\nwww NOPE x\n", 7, "unknown rdatatype 'NOPE'"),
        ("www A (192.0.2.1\n", 5, ""),
        ("$NOPE x\n", 5, "$NOPE"),
        ("$ORIGIN a..b.\n", 5, ""),
        ("$INCLUDE missing\n", 5, "missing"),
        ("$INCLUDE x.zone\n", 5, "nests deeper"),
        ("$GENERATE 1-x a A 1.1.1.1\n", 5, ""),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, clock: Clock, text: str, line: int, reason: str) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + text)
    with pytest.raises(Reject) as caught:
        zonefile.read(path, (), zonefile.ZoneFile())
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert reason in message
    assert "\n" not in message


def test_long_texts_are_cut(tmp_path: Path, clock: Clock) -> None:
    """As CoreDNS does it."""
    long = "k" * 253 + '\\"\\200\\\\é'
    text = f't 60 TXT "a" ( "{long}"\n "z" ) ; {long}\ntxt TXT b\nu URI 1 1 "{"u" * 300}"\ns IN SPF "{"s" * 511}"\n'
    path = clock.write(tmp_path / "x.zone", HEAD + text)
    found = zonefile.ZoneFile()
    zonefile.read(path, (), found)
    assert not found.problems
    data = {key.partition(".")[0]: records[0].rdata for key, records in found.records.items()}
    pieces = [b"a", b"k" * 253 + b'"\xc8', "\\é".encode(), b"z"]
    assert data["t"] == b"".join(bytes([len(one)]) + one for one in pieces)
    assert data["txt"] == b"\1b"
    assert data["u"].endswith(b"u" * 300)
    assert data["s"] == b"\xff" + b"s" * 255 + b"\xff" + b"s" * 255 + b"\1s"


def test_each_soa_is_a_zone(tmp_path: Path, clock: Clock) -> None:
    """As exports of several zones have it."""
    text = "a.example.test. SOA ns1 h 1 2 3 4 5\nx.a.example.test. A 192.0.2.1\nother.test. SOA ns1 h 1 2 3 4 5\n"
    path = clock.write(
        tmp_path / "x.zone", HEAD + text + "www.other.test. A 192.0.2.2\nwww A 192.0.2.3\nfar.test. A 192.0.2.4\n"
    )
    found = zonefile.ZoneFile()
    zonefile.read(path, (), found)
    zones = {key: records[0].zone for key, records in found.records.items()}
    assert zones["x.a.example.test./A"] == n("a.example.test")
    assert zones["www.other.test./A"] == n("other.test")
    assert zones["www.example.test./A"] == APEX
    assert list(found.problems) == ["far.test./A"]
    assert "outside the file's 3 zones, example.test. and others" in found.problems["far.test./A"]


def test_generated_data_may_have_several_words(tmp_path: Path, clock: Clock) -> None:
    """As BIND has it: in quotes."""
    text = '$GENERATE 1-2 m$ 60 MX "10 host$"\n$GENERATE 1-2 t$ TXT "one $ three" ; said\nlast TXT "a b"\n'
    path = clock.write(tmp_path / "x.zone", HEAD + text)
    found = zonefile.ZoneFile()
    zonefile.read(path, (), found)
    data = {key.partition(".")[0]: records[0].rdata for key, records in found.records.items()}
    assert data["m2"] == b"\0\x0a\x05host2\x07example\x04test\0"
    assert data["t1"] == rdata.txt(["one", "1", "three"])
    assert data["last"] == rdata.txt(["a b"])


def test_includes_are_relative_to_their_file_and_watched(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "parts").mkdir()
    deep = clock.write(tmp_path / "parts" / "deep", "deep A 192.0.2.2\n")
    clock.write(tmp_path / "parts" / "hosts", "www A 192.0.2.1\n$INCLUDE deep\n")
    path = clock.write(tmp_path / "x.zone", HEAD + '$INCLUDE "parts/hosts" sub\nlast A 192.0.2.3\n')
    source = FileSource(path)
    owners = {records[0].owner for records in news(source).records.values() if records}
    assert {n("www.sub.example.test"), n("deep.sub.example.test"), n("last.example.test")} < owners
    assert source.look() is None
    clock.write(deep, "deeper A 192.0.2.2\n")
    update = news(source)
    assert set(update.records) == {f"file:{path}:{one}.sub.example.test./A" for one in ("deep", "deeper")}


def test_a_mistake_in_an_included_file_names_that_file_and_is_watched(tmp_path: Path, clock: Clock) -> None:
    part = clock.write(tmp_path / "part", "\nwww A nowhere\n")
    source = FileSource(clock.write(tmp_path / "x.zone", HEAD + "$INCLUDE part\n"))
    assert source.look() is None
    assert source.status.error.startswith(f"{part}:2: ")
    clock.write(part, "www A 192.0.2.1\n")
    assert news(source).full


# ---------------------------------------------------------------- JSON lines


def test_json_lines() -> None:
    lines = [
        b'{"name":"www.example.test","type":"A","ttl":60,"data":["192.0.2.1","192.0.2.2"]}\n',
        b"\n",
        b'{"name":"WWW.example.test.","type":"a","data":"192.0.2.3"}\n',
        b'{"name":"www.example.test","type":"IP","data":["::1","192.0.2.4"]}\n',
        b'{"name":"m.example.test","type":"MX","data":"10 mail.example.test"}',
    ]
    found, wrong = jsonlines.read(lines)
    www = n("www.example.test")
    assert wrong == {}
    assert [(record.ttl, record.rdata[-1]) for record in jsonlines.as_list(found["www.example.test./A"])] == [
        (60, 1),
        (60, 2),
        (DEFAULT_TTL, 3),
    ]
    assert {
        (record.zone, record.owner, record.type) for record in jsonlines.as_list(found["www.example.test./IP"])
    } == {
        (None, www, 28),
        (None, www, A),
    }
    assert jsonlines.as_list(found["m.example.test./MX"])[0].rdata == b"\x00\x0a" + n("mail.example.test")


def test_a_soa_line_makes_a_zone() -> None:
    found, _ = jsonlines.read([b'{"name":"example.test","type":"SOA","data":"ns1.a. h.a. 9 1 2 3 4"}'])
    assert jsonlines.as_list(found["example.test./SOA"])[0].zone == APEX


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x", "not understood"),
        (b'{"name":"a.","type":"A","data":"192.0.2.1","tll":1}', "no field tll"),
        (b'{"name":"a.","type":"A"}', "data"),
        (b'{"name":"a..b","type":"A","data":"192.0.2.1"}', "empty"),
        (b'{"name":"a","type":"A","data":"x"}', "not an IPv4 address"),
        (b'{"name":"a","type":"A","data":[]}', "empty list"),
        (b'{"name":"a","type":"A","data":"192.0.2.1","ttl":-1}', "ttl is 0 to"),
        (b'{"name":"\xff","type":"A","data":"192.0.2.1"}', "not UTF-8"),
        (b'"' + b"x" * (1 << 20) + b'"', "longer than"),
    ],
)
def test_a_wrong_line_costs_that_line(line: bytes, reason: str) -> None:
    good = b'{"name":"www","type":"A","data":"192.0.2.1"}'
    found, wrong = jsonlines.read([good, line, good.replace(b"www", b"web")])
    assert set(found) == {"www./A", "web./A"}
    assert list(wrong) == [2]
    assert reason in wrong[2]


def test_a_wrong_line_is_told_with_file_and_line(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.jsonl", '{"name":"www.","type":"A","data":"192.0.2.1"}\nx\n')
    source = FileSource(path)
    update = news(source)
    assert update.records[f"file:{path}:2"] is None
    assert update.problems[f"file:{path}:2"].startswith(f"{path}:2: ")
    clock.write(path, '{"name":"www.","type":"A","data":"192.0.2.1"}\n\n')
    update = news(source)
    assert update == Update({f"file:{path}:2": None}, update.revision)


# ---------------------------------------------------------------- watching


def test_only_what_changed_is_told(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "a A 192.0.2.1\nb A 192.0.2.2\nc A 192.0.2.3\n")
    source = FileSource(tmp_path)
    first = news(source)
    assert source.look() is None
    clock.write(path, HEAD + "d A 192.0.2.4\nc A 192.0.2.33\na A 192.0.2.1\n")
    update = news(source)
    assert not update.full
    assert update.revision > first.revision
    assert short(update, tmp_path) == {
        "file:x.zone:b.example.test./A": None,
        "file:x.zone:c.example.test./A": 1,
        "file:x.zone:d.example.test./A": 1,
    }


def test_a_file_replaced_by_one_of_the_same_time_and_size(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "a A 192.0.2.1\n")
    source = FileSource(path)
    news(source)
    other = clock.write(tmp_path / "new", HEAD + "a A 192.0.2.2\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    assert len(news(source).records) == 1


def test_the_same_content_again_is_no_news(tmp_path: Path, clock: Clock) -> None:
    source = FileSource(clock.write(tmp_path / "x.zone", HEAD))
    news(source)
    clock.write(tmp_path / "x.zone", "; a comment\n" + HEAD)
    assert source.look() is None


def test_a_broken_file_keeps_its_last_good_content(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD + "a A 192.0.2.1\n")
    source = FileSource(path)
    news(source)
    clock.write(path, HEAD + "a A 192.0.2.1\nb A nowhere\n")
    update = news(source)
    assert dict(update.records) == {f"file:{path}": None}
    assert update.problems[f"file:{path}"].startswith(f"{path}:6: ")
    assert source.status.error
    assert source.look() is None
    clock.write(path, HEAD + "a A 192.0.2.1\nb A 192.0.2.2\n")
    update = news(source)
    assert update.problems == {}
    assert short(update, tmp_path) == {"file:x.zone": None, "file:x.zone:b.example.test./A": 1}
    assert source.status.error == ""


def test_a_file_that_is_gone_keeps_its_last_good_content(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD)
    source = FileSource(path)
    news(source)
    path.unlink()
    update = news(source)
    assert dict(update.records) == {f"file:{path}": None}
    assert "No such file" in update.problems[f"file:{path}"]
    states = [source.status.state]
    clock.write(path, HEAD)
    assert dict(news(source).records) == {f"file:{path}": None}
    states.append(source.status.state)
    assert states == [LoaderState.STALE, LoaderState.FRESH]


def test_a_folder(tmp_path: Path, clock: Clock) -> None:
    clock.write(tmp_path / "a.test.zone", "www 60 A 192.0.2.1\n")
    clock.write(tmp_path / "b.test.db", "www 60 A 192.0.2.1\n")
    clock.write(tmp_path / "c.jsonl", '{"name":"www.a.test","type":"TXT","data":"x"}\n')
    clock.write(tmp_path / "notes.txt", "not a zone")
    clock.write(tmp_path / ".hidden.zone", "not a zone")
    source = FileSource(tmp_path)
    assert short(news(source), tmp_path) == {
        "file:a.test.zone:www.a.test./A": 1,
        "file:b.test.db:www.b.test./A": 1,
        "file:c.jsonl:www.a.test./TXT": 1,
    }
    (tmp_path / "b.test.db").unlink()
    clock.write(tmp_path / "d.test.zone", "www 60 A 192.0.2.1\n")
    assert short(news(source), tmp_path) == {
        "file:b.test.db:www.b.test./A": None,
        "file:d.test.zone:www.d.test./A": 1,
    }


def test_a_folder_that_is_gone_keeps_everything(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "zones"
    folder.mkdir()
    clock.write(folder / "a.test.zone", "www 60 A 192.0.2.1\n")
    source = FileSource(folder)
    news(source)
    folder.rename(tmp_path / "elsewhere")
    assert dict(news(source).records) == {f"file:{folder}": None}


def test_one_broken_file_of_a_folder_does_not_hold_the_others(tmp_path: Path, clock: Clock) -> None:
    clock.write(tmp_path / "a.test.zone", "www 60 A 192.0.2.1\n")
    broken = clock.write(tmp_path / "b.test.zone", "www 60 A nowhere\n")
    update = news(FileSource(tmp_path))
    assert update.full
    assert short(update, tmp_path) == {"file:a.test.zone:www.a.test./A": 1, "file:b.test.zone": None}
    assert list(update.problems) == [f"file:{broken}"]


def test_nothing_is_told_before_something_was_readable(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "x.zone"
    source = FileSource(path)
    assert source.look() is None
    assert source.status.state == LoaderState.STARTING
    assert "No such file" in source.status.error
    clock.write(path, HEAD + "www A nowhere\n")
    assert source.look() is None
    clock.write(path, HEAD)
    assert news(source).full


@pytest.mark.parametrize("text", ["", "; nothing but this\n"])
def test_a_file_that_was_emptied_keeps_its_content(tmp_path: Path, text: str) -> None:
    """A full disk or an editor does so; the zone must not go."""
    path = tmp_path / "a.zone"
    path.write_text("$ORIGIN example.test.\n$TTL 60\n@ SOA ns1 hostmaster 1 2 3 4 5\n@ NS ns1\nns1 A 192.0.2.1\n")
    source = FileSource(path, interval_s=0.01)
    assert source.look() is not None
    path.write_text(text)
    os.utime(path, (1, 1))
    update = source.look()
    assert update is not None
    assert set(update.records) == {f"file:{path}"}
    assert "holds no record any more" in update.problems[f"file:{path}"]
    assert "leave its SOA in it, or restart the loader" in update.problems[f"file:{path}"]
    path.write_text("$ORIGIN example.test.\n$TTL 60\n@ SOA ns1 hostmaster 1 2 3 4 5\n@ NS ns1\nns1 A 192.0.2.1\n")
    os.utime(path, (2, 2))
    assert source.look() is not None
    assert source.status.error == ""


def test_how_names_of_an_emptied_file_are_taken_away(tmp_path: Path, clock: Clock) -> None:
    """What the message says works."""
    folder = tmp_path / "zones"
    folder.mkdir()
    path = clock.write(folder / "a.zone", HEAD + "www A 192.0.2.1\n")
    both = [FileSource(path), FileSource(folder)]
    assert all(source.look() for source in both)
    clock.write(path, "")
    alone, among = (news(source).problems[f"file:{path}"] for source in both)
    assert "take the file away" in among
    assert "take the file away" not in alone
    assert news(FileSource(path)).records == {}  # a restart
    path.unlink()
    assert news(both[1]).records[f"file:{path}:www.example.test./A"] is None
    clock.write(path, HEAD.splitlines()[0] + "\n@ 60 SOA ns1 hostmaster 4712 7200 1800 86400 30\n")
    left = news(both[0]).records
    assert left[f"file:{path}:www.example.test./A"] is None
    assert left[f"file:{path}:example.test./SOA"] is not None


def test_an_empty_folder_is_an_empty_source(tmp_path: Path) -> None:
    update = news(FileSource(tmp_path))
    assert update.full
    assert update.records == {}


def test_the_revision_does_not_go_back_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD)
    source = FileSource(path)
    assert news(source).revision == clock.now_s
    clock.now_s += 100
    clock.write(path, HEAD + "a A 192.0.2.1\n")
    assert news(source).revision == news(FileSource(path)).revision == clock.now_s


def test_the_revision_grows_with_each_change(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD)
    source = FileSource(path)
    first = news(source).revision
    clock.now_s -= 5
    clock.write(path, HEAD + "a A 192.0.2.1\n")
    assert news(source).revision == first + 1


@pytest.mark.parametrize("part", ["x.zone", "included"])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    clock.write(tmp_path / "included", "a A 192.0.2.1\n")
    path = clock.write(tmp_path / "x.zone", HEAD + "$INCLUDE included\n")
    read = zonefile.read

    def slow_read(*args: Any) -> None:
        read(*args)
        torn = tmp_path / part
        torn.write_text(torn.read_text() + "b A 192.0.2.2\n")
        in_the_future = time.time_ns() + 10**9
        os.utime(torn, ns=(in_the_future, in_the_future))

    monkeypatch.setattr(zonefile, "read", slow_read)
    source = FileSource(path)
    assert source.look() is None
    monkeypatch.undo()
    clock.write(tmp_path / part, (tmp_path / part).read_text())
    assert f"file:{path}:b.example.test./A" in news(source).records


def test_run_gives_updates_as_files_change(tmp_path: Path, clock: Clock) -> None:
    path = clock.write(tmp_path / "x.zone", HEAD)

    async def main() -> list[bool]:
        seen = []
        async with aclosing(FileSource(path, interval_s=0.01).run()) as updates:
            async for update in updates:
                seen.append(update.full)
                if len(seen) == 2:
                    return seen
                clock.write(path, HEAD + "a A 192.0.2.1\n")
        return seen

    assert asyncio.run(main()) == [True, False]


def test_the_sample_zone() -> None:
    sample = Path(__file__).parents[2] / "deploy" / "sample" / "example.test.zone"
    update = news(FileSource(sample))
    zones = Zones()
    for key, records in update.records.items():
        zones.apply(key, records or (), update.revision)
    assert update.problems == zones.problems == zones.warnings == {}
    assert len(zones) == 16
