"""`standoff import` without etcd: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.commands.import_ import MOST_REMARKS
from cli.main import standoff


def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(standoff, ["import", *arguments], input=stdin)


def test_keys_and_values_are_printed() -> None:
    line = '{"name":"www.example.test","type":"A","ttl":60,"data":"192.0.2.1"}\n'
    result = call("-", "--from", "jsonl", "--zone", "example.test", stdin=line)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [json.loads(one) for one in result.stdout.splitlines()] == [
        {"key": "/standoff/example.test/www/A", "value": '{"ttl":60,"data":["192.0.2.1"]}'}
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "SOURCE"),
        (["x.zone", "--dry-run"], "give --to URL"),
        (["x.zone", "--delete"], "give --to URL"),
        (["x.zone", "--to", "http://somewhere/x"], "etcd"),
        (["x.zone", "--to", "etcd://h/p?schema=skydns"], "in the schema records"),
        (["x.zone", "--to", "etcd://h"], "needs a prefix"),
        (["etcd://h/p?schema=skydns"], "give them with --zone"),
    ],
)
def test_usage(arguments: list[str], told: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_a_source_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text('{"name":"www.example.test","type":"A","data":"192.0.2.1"}\n')
    arguments = [str(good), str(tmp_path / "absent.zone"), "--zone", "example.test"]
    result = call(*arguments)
    assert result.exit_code == 0
    assert "absent.zone: No such file or directory" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    strict = call(*arguments, "--strict")
    assert (strict.exit_code, strict.stdout) == (1, "")
    assert "nothing is changed (--strict)" in strict.stderr


def test_nothing_to_import(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    result = call(str(empty))
    assert result.exit_code == 1
    assert "there is nothing to import" in result.stderr


def test_remarks_have_an_end() -> None:
    lines = "nonsense\n" * (MOST_REMARKS + 5)
    result = call("-", "--from", "jsonl", stdin=lines)
    assert "and 5 more like these" in result.stderr
    assert len(result.stderr.splitlines()) == MOST_REMARKS + 2


def test_a_zone_from_standard_input() -> None:
    result = call("-", "--zone", "example.test", stdin="www 60 IN A 192.0.2.1\n")
    assert json.loads(result.stdout)["key"] == "/standoff/example.test/www/A"


def test_names_outside_the_zone_are_told_by_name(tmp_path: Path) -> None:
    file = tmp_path / "example.test.zone"
    file.write_text("@ 60 IN SOA a b 1 2 3 4 5\nwww.other.test. 60 IN A 192.0.2.1\n")
    result = call(str(file))
    assert result.exit_code == 0
    assert "not taken over: www.other.test./A: www.other.test. is outside the file's zone" in result.stderr


def test_one_zone_is_the_origin_of_one_file_whose_name_says_nothing(tmp_path: Path) -> None:
    text = "$TTL 60\n@ SOA ns1 h 1 2 3 4 5\nwww A 192.0.2.1\n"
    for name, zone in (
        ("db.10", "example.test"),
        ("what is it.txt", "example.test"),
        ("a.example.test", "a.example.test"),
    ):
        (tmp_path / name).write_text(text)
        result = call(str(tmp_path / name), "--zone", "example.test")
        assert (result.exit_code, result.stderr) == (0, "")
        assert {json.loads(line)["key"].split("/")[2] for line in result.stdout.splitlines()} == {zone}


def test_marks_and_octets_of_other_systems() -> None:
    """Byte order marks, ends of lines, octets that are no UTF-8."""
    mark, tail = b"\xef\xbb\xbf", ("--zone", "example.test")
    zone = mark + b'$TTL 60\r\n@ SOA ns1 h 1 2 3 4 5\r\nt TXT "caf\xe9 \xc3\xa9" ; \xff\r\n'
    pdns = mark + b'example.test 60 IN SOA a b 1 2 3 4 5\r\nt.example.test 60 IN TXT "caf\xe9 \xc3\xa9"\r\n'
    for form, raw in (("zone", zone), ("powerdns", pdns)):
        result = call("-", "--from", form, *tail, stdin=raw)
        assert (result.exit_code, result.stderr) == (0, "")
        value = json.loads(json.loads(result.stdout.splitlines()[-1])["value"])
        assert value == {"ttl": 60, "data": ['"caf\\233 \\195\\169"']}
    lines = mark + b'{"name":"www.example.test","type":"A","data":"192.0.2.1"}\r\n'
    assert call("-", "--from", "jsonl", *tail, stdin=lines).stderr == ""


def test_files_of_a_folder_that_are_not_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "example.test.zone").write_text("$TTL 60\n@ SOA ns1 h 1 2 3 4 5\n")
    (tmp_path / "db.example.test").write_text("www 60 A 192.0.2.1\n")
    (tmp_path / "sub").mkdir()
    result = call(str(tmp_path))
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if "is not read" in line] == [
        f"standoff: note: {tmp_path / 'db.example.test'}: is not read: in a folder zone files end in .zone or .db"
    ]


def test_a_zone_file_on_standard_input_tells_its_origin(tmp_path: Path) -> None:
    """A zone that the configuration happens to name is not its."""
    config = tmp_path / "standoff.toml"
    config.write_text('zone = ["example.test"]\n')
    relative, absolute = "www 60 IN A 192.0.2.1\n", "www.example.test. 60 IN A 192.0.2.1\n"
    target = "a.example.test. 60 IN A 192.0.2.1\nb.example.test. 60 IN CNAME www\n"
    for arguments, text, line in (([], relative, 1), (["-c", str(config)], relative, 1), ([], target, 2)):
        refused = call("-", *arguments, stdin=text)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert f"-: standard input, line {line}: a relative name, and no $ORIGIN before it" in refused.stderr
    key = {"key": "/standoff/example.test/www/A", "value": '{"ttl":60,"data":["192.0.2.1"]}'}
    named = ["--zone", "example.test"]
    said = "$ORIGIN example.test.\n" + relative
    for arguments, text in ((["-c", str(config)], absolute), (named, absolute), (named, relative), (named, said)):
        taken = call("-", *arguments, stdin=text)
        assert [json.loads(line) for line in taken.stdout.splitlines()] == [key], taken.stderr
    outside = call("-", stdin=said)
    assert "www.example.test.: is outside every zone: give its zone with --zone" in outside.stderr
    several = call("-", "--zone", "a.test", "--zone", "b.test", stdin=relative)
    assert "or give one --zone" in several.stderr


def test_mistakes_on_standard_input_have_a_line_and_no_path() -> None:
    for text in ("\n$ORIGIN example.test.\nwww 60 IN A nowhere\n", "\n\nwww 60 IN A \xe4\n"):
        refused = call("-", "--zone", "example.test", stdin=text.encode("latin-1"))
        assert refused.exit_code == 1
        assert "-: standard input, line " in refused.stderr
        assert "/" not in refused.stderr
