"""Attributes on their way in and out: how they look, what a table's export has of them, which formats have none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings

from cli.main import standoff
from loader import importing, names, rdata, records
from loader.attributes import Conditional
from loader.exchange import conditions, keys, written
from loader.exchange.sets import Gathered, RecordSet, from_nodes, gather, join, records_of
from loader.model import Put, Record
from loader.zone import Zones
from shm.board import Board
from shm.tables import TableWriter
from tests.support.conditions import conditional
from tests.support.instances import fresh_instance
from tests.support.processes import drive
from tests.unit.test_exchange import PREFIX, ZONE, contents_of, plain, rrsets, whole

ROOT = Path(__file__).parents[2]
relaxed = settings(deadline=None, max_examples=40)
WWW = f"{PREFIX}/example.test/www/A"


def parsed(value: Any, key: str = WWW) -> list[Record]:
    return records.parse(PREFIX, Put(key, json.dumps(value).encode(), 1))


def sets_of(value: Any, key: str = WWW) -> list[RecordSet]:
    return gather(parsed(value, key), ()).sets


def value_of(value: Any, key: str = WWW) -> Any:
    (one,) = sets_of(value, key)
    return json.loads(keys.value_of(one))


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(standoff, arguments, input=stdin)


@pytest.mark.parametrize("origin", ["file", "variable"])
def test_only_the_flag_leaves_zones_out(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones that somebody has set for a source of schema skydns are no reason to leave out others."""
    config = tmp_path / "standoff.toml"
    config.write_text('zone = ["one.test"]\n' if origin == "file" else "")
    if origin == "variable":
        monkeypatch.setenv("STANDOFF_ZONE", "one.test")
    source = tmp_path / "zones"
    source.mkdir()
    (source / "one.jsonl").write_text('{"name": "www.one.test", "type": "A", "data": "192.0.2.1"}\n')
    (source / "two.test.zone").write_text("@ 60 SOA ns1 host 1 60 60 60 60\n@ 60 NS ns1\nwww 60 A 192.0.2.1\n")
    arguments = ("export", f"file:{source}", "--config", str(config), "--json")
    for zones, expected in ((), ["www.one.test.", "www.two.test."]), (("--zone", "two.test"), ["www.two.test."]):
        done = call(*arguments, *zones)
        assert done.exit_code == 0, done.output
        assert [one["name"] for one in map(json.loads, done.stdout.splitlines()) if one["type"] == "A"] == expected


def test_only_the_flag_leaves_zones_of_an_instance_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Zones([names.from_text("one.test."), names.from_text("two.test.")])
    monkeypatch.setenv("STANDOFF_ZONE", "one.test")
    with fresh_instance() as instance:
        board = Board.create_or_attach(instance)
        writer = TableWriter(board)
        drive(writer.replace(model.all_nodes(), 1, {}))
        for zones, expected in ((), {"one.test.", "two.test."}), (("--zone", "two.test"), {"two.test."}):
            done = call("export", "--instance", instance, "--json", *zones)
            assert done.exit_code == 0, done.output
            assert {one["name"] for one in map(json.loads, done.stdout.splitlines())} == expected
        writer.close()
        board.close()


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text("".join(f'{{"name": "h{n}.one.test", "type": "A", "data": "192.0.2.1"}}\n' for n in range(9000)))
    program = [sys.executable, "-c", "from cli.main import main; main()", "export", f"file:{source}", "--zone=one.test"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as exporting:
        assert exporting.stdout is not None
        assert exporting.stderr is not None
        assert exporting.stdout.readline()
        exporting.stdout.close()
        assert exporting.stderr.read() == b""
    assert exporting.returncode == 0
    with open("/dev/full", "wb") as nowhere:
        full = subprocess.run(program, cwd=ROOT, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    assert full.stderr == "standoff: standard output: No space left on device\n"
    assert full.returncode == 1


def test_what_all_items_say_is_said_once() -> None:
    for value in (
        {"ttl": 5, "data": ["192.0.2.1", "192.0.2.2"], "check": "tcp://{address}:443", "labels": {"site": "ams"}},
        {
            "data": [{"data": "192.0.2.1", "weight": 9}, {"data": "192.0.2.2", "weight": 1}],
            "pick": 2, "period": 30, "not_before": "2031-01-31T09:00:00Z", "not_after": 1e12,
            "check": {"url": "https://{address}/up", "interval": 5, "status": [200, 204], "verify": True},
        },
        {"data": [{"data": "192.0.2.1", "weight": 9}, "192.0.2.2", {"data": "192.0.2.1", "weight": 2}]},
    ):  # fmt: skip
        assert value_of(value) == value
    assert value_of({"data": ["192.0.2.1"], "check": "tcp://192.0.2.1:80"})["check"] == "tcp://{address}:80"
    mixed = {"data": [{"data": "192.0.2.1", "check": "tcp://192.0.2.10:1"}]}
    assert value_of(mixed) == {"data": ["192.0.2.1"], "check": "tcp://192.0.2.10:1"}
    text = {"data": [{"data": ["a", "b"], "weight": 1}, "c"]}
    assert value_of(text, f"{PREFIX}/example.test/t/TXT") == text


def test_a_braced_word_in_a_path_is_not_the_address() -> None:
    (record,) = parsed({"data": "192.0.2.1", "check": "http://{address}/{address}"})
    assert isinstance(record, Conditional)
    assert record.attributes.check is not None
    assert record.attributes.check.text == "http://192.0.2.1/{address}"
    assert record.attributes.check.path == "/{address}"


@relaxed
@given(contents_of(rrsets | conditional(rrsets)))
def test_an_export_by_the_zone_model_keeps_attributes(sets: list[RecordSet]) -> None:
    model = Zones([ZONE])
    given_records = list(records_of(sets))
    for one in sets:
        model.apply(one.title, list(records_of([one])), 5)
    made = conditions.attach(
        from_nodes(model.all_nodes()), [one for one in given_records if isinstance(one, Conditional)], given_records
    )
    bare = {(one.owner, one.type, data) for one in from_nodes(model.all_nodes()) for data in one.data}
    for one in made:
        if (one.owner, one.type) in {(each.owner, each.type) for each in sets}:
            assert plain([one]) <= plain(sets)
    assert {(one.owner, one.type, data) for one in made for data in one.data} == bare


def test_zone_files_have_each_record_once() -> None:
    (one,) = sets_of({"data": [{"data": "192.0.2.1", "weight": 9}, {"data": "192.0.2.1", "weight": 2}]})
    assert len(one.data) == 2
    assert len(list(written.zone_file([one]))) == 2  # with $ORIGIN


def test_msgpack_that_says_something_wrong() -> None:
    head = next(written.packed([], {}))
    www = names.from_text("www", ZONE)
    soa = rdata.from_text(rdata.SOA, "ns1 hostmaster 7 7200 1800 86400 30", ZONE)
    rows = (
        [ZONE, www, 1, 5, [bytes(4)], [{"weight": 70000}]],
        [ZONE, www, 1, 5, [bytes(4)], [{"color": 1}]],
        [ZONE, www, 1, 5, [bytes(4)], [{}, {}]],
        [ZONE, www, 1, 5, [bytes(4)], {}],
        [ZONE, www, 1, 5, [bytes(4)], [7]],
        [ZONE, www, 1, 5, [bytes(4)], [{}], 1],
        [ZONE, www, 5, 5, [b"\1a\0"], [{"check": "tcp://{address}:1"}]],
        [ZONE, ZONE, 6, 5, [soa], [{"weight": 1}]],
    )
    found = written.read_packed(head + b"".join(map(msgspec.msgpack.encode, rows)))
    assert not found.sets
    assert len(found.problems) == len(rows)
    assert "weight is 0 to 65535" in found.problems[0].reason
    fine = written.read_packed(head + msgspec.msgpack.encode([ZONE, www, 1, 5, [bytes(4)], [{}]]))
    assert whole(fine) == [RecordSet(ZONE, www, 1, 5, (bytes(4),))]


def test_a_plan_tells_attributes_apart_unless_the_input_has_none() -> None:
    held = {WWW: b'{"data":["192.0.2.1"],"weight":3}'}
    other, same, bare = (
        {WWW: value} for value in (
            b'{"data":["192.0.2.1"],"weight":4}',
            b'{"weight":3,"data":[{"data":"192.0.2.1"}]}',
            b'{"data":["192.0.2.1"]}',
        )
    )  # fmt: skip
    (change,) = keys.plan(PREFIX, held, other)
    assert (change.sign, change.new) == ("~", other[WWW])
    assert keys.bared(PREFIX, [change]) == 0
    assert keys.plan(PREFIX, held, same) == []
    assert keys.bared(PREFIX, keys.plan(PREFIX, held, bare)) == 1
    assert keys.plan(PREFIX, held, bare, mute={WWW}) == []
    more = {WWW: b'{"data":["192.0.2.1","192.0.2.2"]}'}
    assert keys.bared(PREFIX, keys.plan(PREFIX, held, more, mute={WWW})) == 1


def test_what_one_input_cannot_say_another_can(tmp_path: Path) -> None:
    zone = tmp_path / "example.test.zone"
    zone.write_text("@ 60 IN SOA a b 1 2 3 4 5\nwww 60 IN A 192.0.2.1\nx 60 IN A 192.0.2.1\n")
    mute = importing.read(str(zone), "zone", (), bytes)
    www = names.from_text("www", ZONE)
    assert {(www, 1), (ZONE, 6)} < mute.mute
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"name":"www.example.test","type":"A","ttl":60,"data":"192.0.2.1","weight":3}\n')
    both = importing.read(str(tmp_path), "zone", [ZONE], bytes)
    assert both.mute == mute.mute - {(www, 1)}
    (one,) = (one for one in both.sets if one.owner == www)
    assert [each.weight for each in one.attributes] == [-1, 3]
    assert keys.muted(PREFIX, both, {WWW, f"{PREFIX}/example.test/x/A"}) == {f"{PREFIX}/example.test/x/A"}
    assert join([Gathered(), mute], ()).mute == mute.mute


LINE = '{"name":"www.example.test","type":"A","ttl":60,"data":["192.0.2.1","192.0.2.2"],"check":"tcp://{address}:443"}'


@pytest.mark.parametrize("format", ["jsonl", "msgpack"])
def test_out_of_a_file_and_into_it(format: str, tmp_path: Path) -> None:
    source = tmp_path / "names.jsonl"
    source.write_text(f"{LINE}\n")
    target = tmp_path / f"out.{'mp' if format == 'msgpack' else format}"
    out = call("export", f"file:{source}", "--zone", "example.test", "-f", format, "-o", str(target))
    assert out.exit_code == 0
    assert "attributes" not in out.stderr
    result = call("import", str(target), "--zone", "example.test")
    values = {one["key"]: json.loads(one["value"]) for one in map(json.loads, result.stdout.splitlines())}
    assert values[WWW] == {"ttl": 60, "data": ["192.0.2.1", "192.0.2.2"], "check": "tcp://{address}:443"}


def test_zone_files_say_what_they_cannot(tmp_path: Path) -> None:
    source = tmp_path / "names.jsonl"
    source.write_text(f'{LINE}\n{{"name":"x.example.test","type":"A","data":"192.0.2.3"}}\n')
    out = call("export", f"file:{source}", "--zone", "example.test")
    assert out.exit_code == 0
    assert [line for line in out.stderr.splitlines() if "attributes" in line] == [
        "standoff: 2 records have attributes, which zone files cannot say: jsonl and msgpack can"
    ]
    source.write_text('{"name":"x.example.test","type":"A","data":"192.0.2.3"}\n')
    assert "attributes" not in call("export", f"file:{source}", "--zone", "example.test").stderr
