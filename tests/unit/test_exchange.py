"""Everything that is written reads back as the same records."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import importing, names, rdata, records
from loader.exchange import keys, powerdns, written
from loader.exchange.sets import Gathered, RecordSet, from_nodes, gather, records_of, set_order
from loader.exchange.text import item, zone_text
from loader.model import DEFAULT_TTL, Put, Record, Reject
from loader.zone import Zones
from tests.support.conditions import conditional

ZONE = names.from_text("example.test.")
PREFIX = "/standoff"
#: The machine may be busy, and there are many of these.
relaxed = settings(deadline=None, max_examples=60)

# ---------------------------------------------------------------- what records may be

labels = st.binary(min_size=1, max_size=12).map(bytes.lower)
friendly_labels = st.from_regex(rb"[a-z0-9_*][a-z0-9-]{0,8}", fullmatch=True)
anywhere = st.lists(labels | friendly_labels, max_size=4)
wire_names = anywhere.map(lambda found: names.from_labels(found, ZONE))
#: Names in data keep their case.
targets = st.lists(st.binary(min_size=1, max_size=12), max_size=4).map(names.from_labels)
numbers = st.integers(0, 0xFFFF).map(lambda number: number.to_bytes(2))
strings = st.lists(st.binary(max_size=255), min_size=1, max_size=3).map(
    lambda found: b"".join(bytes([len(one)]) + one for one in found)
)
texts = st.lists(st.text(max_size=80), min_size=1, max_size=3).map(rdata.txt)
DATA = {
    rdata.A: st.binary(min_size=4, max_size=4),
    rdata.AAAA: st.binary(min_size=16, max_size=16),
    rdata.NS: targets,
    rdata.PTR: targets,
    rdata.MX: st.tuples(numbers, targets).map(b"".join),
    rdata.SRV: st.tuples(numbers, numbers, numbers, targets).map(b"".join),
    rdata.TXT: strings | texts,
    257: st.tuples(st.integers(0, 255), st.from_regex(b"[a-z]{1,9}", fullmatch=True), st.binary(max_size=30)).map(
        lambda caa: bytes([caa[0], len(caa[1])]) + caa[1] + caa[2]
    ),
    52: st.binary(min_size=4, max_size=40).map(lambda raw: b"\3\1\0" + raw),  # TLSA
    44: st.binary(min_size=20, max_size=20).map(lambda raw: b"\4\1" + raw),  # SSHFP
    65280: st.binary(max_size=60),
}
ttls = st.integers(0, 2**31 - 1)
rrsets = st.sampled_from(sorted(DATA)).flatmap(
    lambda type_: st.builds(
        lambda owner, ttl, data: RecordSet(ZONE, owner, type_, ttl, tuple(data)),
        wire_names, ttls, st.lists(DATA[type_], min_size=1, max_size=4, unique=True),
    )
)  # fmt: skip


def contents_of(sets: st.SearchStrategy[RecordSet]) -> st.SearchStrategy[list[RecordSet]]:
    return st.lists(sets, max_size=8, unique_by=lambda one: (one.owner, one.type)).map(
        lambda found: sorted(found, key=set_order)
    )


contents = contents_of(rrsets)
#: For formats that can say attributes.
conditional_contents = contents_of(rrsets | conditional(rrsets))
SOA = RecordSet(
    ZONE, ZONE, rdata.SOA, 300,
    (rdata.from_text(rdata.SOA, "ns1.example.test. hostmaster.example.test. 7 7200 1800 86400 30", ZONE),),
)  # fmt: skip


def plain(sets: list[RecordSet]) -> set[RecordSet]:
    """Without the order of the records in a set."""
    made = (gather(sorted(records_of([one]), key=lambda record: (record.rdata, repr(record))), ()) for one in sets)
    return {one for found in made for one in found.sets}


def whole(found: Gathered) -> list[RecordSet]:
    assert not found.problems
    assert not found.notes
    return found.sets


# ---------------------------------------------------------------- round trips


@relaxed
@given(conditional_contents)
def test_the_records_schema_gives_back_what_was_written(sets: list[RecordSet]) -> None:
    found, problems = keys.entries(PREFIX, sets)
    assert not problems
    assert len(found) == len(sets)
    again = [record for key, value in found.items() for record in records.parse(PREFIX, Put(key, value, 1))]
    assert again == list(records_of(sets))


@relaxed
@given(conditional_contents)
def test_msgpack_gives_back_what_was_written(sets: list[RecordSet]) -> None:
    raw = b"".join(written.packed(sets, {"generation": 3}))
    assert whole(written.read_packed(raw)) == sets


@relaxed
@given(conditional_contents)
def test_json_lines_give_back_what_was_written(sets: list[RecordSet]) -> None:
    raw = b"\n".join(written.json_lines([SOA, *sets]))
    assert plain(whole(importing.read("-", "jsonl", (), lambda: raw))) == plain([SOA, *sets])


@relaxed
@given(contents)
def test_zone_files_give_back_what_was_written(sets: list[RecordSet]) -> None:
    text = "\n".join(written.zone_file([SOA, *sets])) + "\n"
    assert plain(whole(importing.read("-", "zone", (), text.encode))) == plain([SOA, *sets])


@relaxed
@given(contents)
def test_a_dump_of_powerdns_may_be_our_zone_file(sets: list[RecordSet]) -> None:
    text = "\n".join(written.zone_file([SOA, *sets]))
    assert plain(whole(powerdns.read(text))) == plain([SOA, *sets])


@relaxed
@given(st.lists(rrsets, max_size=8, unique_by=lambda one: (one.owner, one.type)))
def test_a_table_holds_what_was_put_into_it(sets: list[RecordSet]) -> None:
    """From the keys by the zone model and back: what is neither refused nor made."""
    found, _ = keys.entries(PREFIX, sets)
    model = Zones([ZONE])
    for key, value in found.items():
        model.apply(key, records.parse(PREFIX, Put(key, value, 5)), 5)
    out = from_nodes(model.all_nodes())
    made = {(ZONE, rdata.SOA), (ZONE, rdata.NS)} - {(one.owner, one.type) for one in sets}
    if not model.problems:
        assert plain([one for one in out if (one.owner, one.type) not in made]) == plain(sets)
    again, problems = keys.entries(PREFIX, out)
    assert not problems
    second = Zones([ZONE])
    for key, value in again.items():
        second.apply(key, records.parse(PREFIX, Put(key, value, 5)), 5)
    numbered = {(ZONE, rdata.SOA)}  # by revision
    kept = [one for one in from_nodes(second.all_nodes()) if (one.owner, one.type) not in numbered]
    assert plain(kept) == plain([one for one in out if (one.owner, one.type) not in numbered])


@relaxed
@given(st.sampled_from(sorted(DATA)).flatmap(lambda type_: st.tuples(st.just(type_), DATA[type_])))
def test_data_as_text_reads_back(one: tuple[int, bytes]) -> None:
    type_, data = one
    assert rdata.from_text(type_, zone_text(type_, data), names.ROOT) == data
    assert records.rrset(rdata.type_name(type_), [item(type_, data)], ZONE) == [(type_, data)]


@relaxed
@given(st.lists(labels, min_size=1, max_size=4), st.lists(labels, max_size=3))
def test_keys_say_zone_and_owner(zone_labels: list[bytes], owner_labels: list[bytes]) -> None:
    zone = names.from_labels(zone_labels)
    one = RecordSet(zone, names.from_labels(owner_labels, zone), rdata.A, 60, (b"\xc0\0\2\1",))
    made = records.parse(PREFIX, Put(keys.key_of(PREFIX, one), keys.value_of(one), 1))
    assert (made[0].zone, made[0].owner) == (zone, one.owner)
    assert keys.zone_of(PREFIX, keys.key_of(PREFIX, one)) == zone


# ---------------------------------------------------------------- how it looks


def of(*lines: str, zone: str = "example.test.") -> list[RecordSet]:
    """Sets from NAME TTL TYPE DATA."""
    apex = names.from_text(zone)
    made = []
    for line in lines:
        name, ttl, type_text, data = line.split(maxsplit=3)
        type_ = rdata.type_number(type_text)
        made.append(Record(apex, names.from_text(name, apex), type_, int(ttl), rdata.from_text(type_, data, apex)))
    return gather(made, ()).sets


def test_keys_are_what_a_person_would_write() -> None:
    sets = of("www 60 A 192.0.2.1", "www 60 A 192.0.2.2", '@ 300 TXT "v=spf1 -all"', "a 5 CNAME www", "0/25 1 NS ns")
    assert keys.entries("/dns/", sets)[0] == {
        "/dns/example.test/@/TXT": b'{"ttl":300,"data":["v=spf1 -all"]}',
        "/dns/example.test/0/25/NS": b'{"ttl":1,"data":["ns.example.test."]}',
        "/dns/example.test/a/CNAME": b'{"ttl":5,"data":["www.example.test."]}',
        "/dns/example.test/www/A": b'{"ttl":60,"data":["192.0.2.1","192.0.2.2"]}',
    }
    odd = RecordSet(names.from_text("0/25.test."), names.from_text("0/25.test."), rdata.A, DEFAULT_TTL, (bytes(4),))
    assert keys.entries("/dns", [odd])[0] == {"/dns/0\\04725.test/@/A": b'{"data":["0.0.0.0"]}'}


def test_what_the_loader_would_reject_is_told() -> None:
    sets = of("@ 60 CNAME www", "www 60 A 192.0.2.1")
    found, problems = keys.entries("/dns", sets)
    assert list(found) == ["/dns/example.test/www/A"]
    assert [one.where for one in problems] == ["example.test. CNAME"]
    with pytest.raises(Reject, match="not a type that a zone can hold"):
        keys.key_of("/dns", RecordSet(ZONE, ZONE, 255, 0, ()))
    with pytest.raises(Reject):
        zone_text(rdata.A, b"abc")


def test_of_several_ttls_the_lowest_is_taken_and_told() -> None:
    made = [Record(None, names.from_text("www", ZONE), rdata.A, ttl, bytes([ttl] * 4)) for ttl in (60, 30)]
    found = gather(made, [ZONE])
    assert [one.ttl for one in found.sets] == [30]
    assert found.notes[0].where == "www.example.test. A"
    assert gather(made, []).problems[0].reason.startswith("is outside every zone")


def test_soas_that_differ_in_their_serials_are_one() -> None:
    """Two listings of a zone, made at different times."""
    texts = ("ns1 h 7 7200 1800 86400 30", "ns1 h 8 7200 1800 86400 30", "ns1 h 8 7200 1800 86400 31")
    made = [Record(None, ZONE, rdata.SOA, 300, rdata.from_text(rdata.SOA, text, ZONE)) for text in texts]
    assert [one.data for one in gather(made[:2], ()).sets] == [(made[0].rdata,)]
    assert len(gather(made, ()).sets[0].data) == 3


# ---------------------------------------------------------------- what must change


def test_a_plan_adds_changes_and_keeps() -> None:
    wanted, _ = keys.entries("/dns", of("a 60 A 192.0.2.1", "b 60 A 192.0.2.2", "c 60 A 192.0.2.3"))
    present = {
        "/dns/example.test/b/A": b'{"ttl":60,"data":["192.0.2.9"]}',
        "/dns/example.test./C/a": b'{"data":"192.0.2.3","ttl":60}',  # says the same in another way
        "/dns/example.test/d/A": b"192.0.2.4",
        "/dns/other.test/x/A": b"192.0.2.5",
    }
    assert [(one.sign, one.key) for one in keys.plan("/dns", present, wanted)] == [
        ("+", "/dns/example.test/a/A"),
        ("~", "/dns/example.test/b/A"),
    ]
    gone = keys.plan("/dns", present, wanted, {ZONE})
    assert [(one.sign, one.key) for one in gone if one.sign == "-"] == [("-", "/dns/example.test/d/A")]
    spared = keys.plan("/dns", present, wanted, {ZONE}, {names.from_text("d", ZONE)})
    assert not [one for one in spared if one.sign == "-"]
    batches = list(keys.batches(gone, 2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[-1][-1].sign == "-"


@relaxed
@given(conditional_contents, conditional_contents)
def test_a_plan_leads_there_and_then_is_empty(before: list[RecordSet], after: list[RecordSet]) -> None:
    present, _ = keys.entries(PREFIX, before)
    wanted, _ = keys.entries(PREFIX, after)
    for change in keys.plan(PREFIX, present, wanted, {ZONE}):
        assert present.get(change.key) == change.old
        if change.new is None:
            del present[change.key]
        else:
            present[change.key] = change.new
    assert present.keys() == wanted.keys()
    assert keys.plan(PREFIX, present, wanted, {ZONE}) == []


# ---------------------------------------------------------------- what is no export


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x01", b"\x81\xa6format\xa3xyz", b"\x80"])
def test_what_is_no_export(raw: bytes) -> None:
    with pytest.raises(Reject):
        written.read_packed(raw)


@relaxed
@given(st.binary(max_size=100))
def test_noise_is_refused(raw: bytes) -> None:
    head = next(written.packed([], {}))
    for noise in (raw, head + raw):
        try:
            found = written.read_packed(noise)
        except Reject:
            continue
        assert not found.sets


def test_an_export_that_is_cut_off() -> None:
    raw = b"".join(written.packed(of("www 60 A 192.0.2.1"), {}))
    with pytest.raises(Reject, match="cut off"):
        written.read_packed(raw[:-1])
    assert len(written.read_packed(raw + b"\x90").problems) == 1


def test_a_folder(tmp_path: Path) -> None:
    sets = [SOA, *of("www 60 A 192.0.2.1")]
    (tmp_path / "example.test.zone").write_text("\n".join(written.zone_file(sets)) + "\n")
    (tmp_path / "more.jsonl").write_bytes(b'{"name":"x.example.test","type":"A","data":"192.0.2.7"}\n{\n')
    (tmp_path / "broken.zone").write_text("nonsense\n")
    found = importing.read(str(tmp_path), "zone", [ZONE], bytes)
    assert [one.title for one in found.sets] == ["example.test. SOA", "www.example.test. A", "x.example.test. A"]
    assert len(found.problems) == 2


def test_names_of_files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for zone in (ZONE, names.ROOT, names.from_text("0/25.2.0.192.in-addr.arpa.")):
            path = Path(folder, written.file_name(zone))
            path.touch()
            assert importing.zonefile.origin_of(path) == zone
    for file in (
        "example.test.db",
        "example.test",
        "db.example.test",
        "example.test.zone.signed",
        "Example.TEST.hosts",
    ):
        assert importing.zonefile.origin_of(Path(file)) == ZONE
    assert [importing.format_of(one) for one in ("x.json", "etcd://h/p", "a.zone", "-", "b.jsonl")] == [
        "route53", "etcd", "zone", "zone", "jsonl",
    ]  # fmt: skip
