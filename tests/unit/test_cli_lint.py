"""`standoff lint`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from cli.main import standoff

KEYS: dict[str, Any] = {
    "/skydns/test/example/www/1acbad7e": {"host": "192.0.2.1", "targetstrip": 1, "text": "heritage=external-dns"},
    "/skydns/test/example/one": '{"host":"192.0.2.7","port":80}',
    "/skydns/test/example/bad": "{",
    "/skydns/test/example/x": {"host": "192.0.2.8"},
    "/skydns/test/example/x/y": {"host": "a.example.net", "text": "t"},
    "/skydns/test/example/Up": {},
    "/skydns/org/out": {"host": "192.0.2.9"},
}


def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    result = CliRunner().invoke(standoff, ["lint", *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_report(tmp_path: Path) -> None:
    dump = tmp_path / "dump.json"
    dump.write_text(json.dumps(KEYS))
    status, out, err = call(str(dump), "--zone", "example.test", "--json")
    found = json.loads(out)
    assert status == 1
    assert "7 keys:" in err
    differing = [one for one in found if one["kind"] == "difference"]
    differences = {(one["what"], one["type"]): (one["coredns"], one["strict"]) for one in differing}
    assert differences["1acbad7e.www.example.test.", "A"] == ("192.0.2.1", "nothing")
    assert ("www.example.test.", "A") not in differences
    assert differences["www.example.test.", "TXT"] == ("nothing", '"heritage=external-dns"')
    assert differences["example.test.", "A"] == ("192.0.2.1, 192.0.2.7, 192.0.2.8", "nothing")
    assert differences["x.example.test.", "CNAME"] == ("a.example.net.", "nothing")
    assert differences["x.example.test.", "A"] == ("nothing", "192.0.2.8")
    assert ("one.example.test.", "SRV") not in differences
    rejects = {one["what"]: one["text"] for one in found if one["kind"] == "reject"}
    assert set(rejects) == {"/skydns/test/example/bad", "/skydns/org/out"}
    notes = [f"{one['what']} {one['text']}" for one in found if one["kind"] == "note"]
    for expected in ("x is hidden", "x/y has a name and a text", "x/y no CNAME at example.test.", "Up has capitals",
                     "Up has neither host nor text"):  # fmt: skip
        assert any(expected in note for note in notes), expected


def test_table_of_what_etcdctl_prints() -> None:
    kvs = [
        {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(b'{"host":"192.0.2.1"}').decode(),
         "mod_revision": 7, "create_revision": 7, "version": 1}
        for key in ("/skydns/test/example/a/b", "/skydns/test/example/c")
    ]  # fmt: skip
    dump = json.dumps({"header": {}, "kvs": kvs, "count": 2}).encode()
    status, out, _ = call("-", "--zone", "example.test", stdin=dump)
    assert status == 0
    assert "difference a.example.test. A: coredns 192.0.2.1; strict nothing" in out.splitlines()


def test_a_dump_without_keys_and_what_is_none() -> None:
    status, _, errors = call("-", "--zone", "example.test", stdin=b'{"header":{"cluster_id":1,"revision":7}}')
    assert (status, errors) == (0, "standoff: 0 keys: 0 differences, 0 keys that cannot be served, 0 notes\n")
    for stdin, reason in ((b"", "the JSON ends too early"), (b"; a zone", "no JSON at octet 1"), (b"[]", "an object")):
        status, _, errors = call("-", "--zone", "example.test", stdin=stdin)
        assert status == 2
        assert "- is no dump of keys: " in errors
        assert reason in errors


def test_usage(tmp_path: Path) -> None:
    assert call("-", stdin=b"{}")[0] == 2  # no zone
    assert call("/nonexistent", "--zone", "example.test")[0] == 2
    assert call("-", "--zone", "example.test", stdin=b"[]")[0] == 2
    assert call("-", "--zone", "example.test", stdin=b"x")[0] == 2
    assert call("etcd://127.0.0.1:1/x?schema=records", "--zone", "example.test")[0] == 2
