"""`standoff import` and `export` against a real etcd: what is written is what was read, and only what differs."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.commands import export
from cli.main import standoff
from loader.etcd import Etcd
from loader.importing import BATCH
from loader.model import Put
from tests.support.etcd import EtcdServer, Proxy, free_ports

ZONE = """\
$TTL 60
@ IN SOA ns1 hostmaster 7 7200 1800 86400 30
  IN NS ns1
ns1 IN A 192.0.2.53
www IN A 192.0.2.1
www IN A 192.0.2.2
txt IN TXT "a b" "c"
"""
Call = Callable[..., Result]


def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(standoff, arguments, input=stdin)


def on_etcd(server: EtcdServer, work: Callable[[Etcd], Any]) -> Any:
    async def run() -> Any:
        async with Etcd(server.endpoint) as etcd:
            return await work(etcd)

    return asyncio.run(run())


def content(server: EtcdServer, prefix: str) -> dict[str, Put]:
    async def work(etcd: Etcd) -> dict[str, Put]:
        return {put.key: put async for page in etcd.pages(prefix + "/") for put in page.entries}

    found: dict[str, Put] = on_etcd(server, work)
    return found


def fill(server: EtcdServer, entries: dict[str, bytes]) -> None:
    async def work(etcd: Etcd) -> None:
        for key, value in entries.items():
            await etcd.put(key, value)

    on_etcd(server, work)


@pytest.fixture
def zone(tmp_path: Path) -> str:
    path = tmp_path / "example.test.zone"
    path.write_text(ZONE)
    return str(path)


@pytest.fixture
def target(shared_etcd: EtcdServer, prefix: str) -> str:
    return f"etcd://{shared_etcd.endpoint}{prefix}"


def test_a_zone_comes_in_and_goes_out_again(shared_etcd: EtcdServer, prefix: str, target: str, zone: str) -> None:
    result = call("import", zone, "--to", target)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "5 added, 0 changed, 0 removed, 0 unchanged" in result.stderr
    found = content(shared_etcd, prefix)
    assert found[f"{prefix}/example.test/www/A"].value == b'{"ttl":60,"data":["192.0.2.1","192.0.2.2"]}'
    assert found[f"{prefix}/example.test/txt/TXT"].value == b'{"ttl":60,"data":[["a b","c"]]}'
    assert len({put.mod_revision for put in found.values()}) == 1
    out = call("export", f"{target}?schema=records")
    assert out.exit_code == 0
    again = call("import", "-", "--to", target, "--json", stdin=out.stdout)
    assert again.exit_code == 0
    assert {name: json.loads(again.stdout)[name] for name in ("added", "changed", "removed", "unchanged")} == {
        "added": 0, "changed": 0, "removed": 0, "unchanged": 5,
    }  # fmt: skip
    assert content(shared_etcd, prefix) == found


def test_dry_run_is_a_diff(shared_etcd: EtcdServer, prefix: str, target: str, zone: str) -> None:
    before = {
        f"{prefix}/example.test/www/A": b"192.0.2.9",
        f"{prefix}/example.test/old/A": b"192.0.2.8",
        f"{prefix}/other.test/x/A": b"192.0.2.7",
        f"{prefix}/example.test/NS1/A": b'{"data":["192.0.2.53"],"ttl":60}',
    }
    fill(shared_etcd, before)
    result = call("import", zone, "--to", target, "--dry-run", "--delete")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["+", f"{prefix}/example.test/@/NS"],
        ["+", f"{prefix}/example.test/@/SOA"],
        ["-", f"{prefix}/example.test/old/A"],
        ["+", f"{prefix}/example.test/txt/TXT"],
        ["~", f"{prefix}/example.test/www/A"],
    ]
    assert lines[-1].endswith('192.0.2.9 -> {"ttl":60,"data":["192.0.2.1","192.0.2.2"]}')
    assert {key: put.value for key, put in content(shared_etcd, prefix).items()} == before
    told = json.loads(call("import", zone, "--to", target, "--dry-run", "--json").stdout)
    assert (told["removed"], told["written"], len(told["changes"])) == (0, 0, 4)
    assert call("import", zone, "--to", target).exit_code == 0
    assert f"{prefix}/example.test/old/A" in content(shared_etcd, prefix)
    assert call("import", zone, "--to", target, "--delete").exit_code == 0
    left = content(shared_etcd, prefix)
    assert f"{prefix}/example.test/old/A" not in left
    assert f"{prefix}/other.test/x/A" in left


def test_many_keys_take_many_transactions(etcd_server: EtcdServer, prefix: str, tmp_path: Path) -> None:
    lines = [f'{{"name":"n{i}.example.test","type":"A","data":"192.0.2.1"}}' for i in range(3 * BATCH + 5)]
    path = tmp_path / "names.jsonl"
    path.write_text("\n".join(lines))
    result = call("import", str(path), "--zone", "example.test", "--to", f"etcd://{etcd_server.endpoint}{prefix}")
    assert result.exit_code == 0
    found = content(etcd_server, prefix)
    assert len(found) == 3 * BATCH + 5
    assert len({put.mod_revision for put in found.values()}) == 4


def test_from_skydns(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    fill(
        shared_etcd,
        {
            f"{prefix}/sky/test/example/www": b'{"host":"192.0.2.1","ttl":60}',
            f"{prefix}/sky/test/example/alias": b'{"host":"www.example.test"}',
            f"{prefix}/sky/test/example/bad": b"nonsense",
        },
    )
    source = f"{target}/sky?schema=skydns"
    assert call("import", source, "--to", f"{target}/rec").exit_code == 2
    result = call("import", source, "--zone", "example.test", "--to", f"{target}/rec")
    assert result.exit_code == 0
    assert f"not taken over: {prefix}/sky/test/example/bad" in result.stderr
    found = {key.removeprefix(f"{prefix}/rec"): put.value for key, put in content(shared_etcd, f"{prefix}/rec").items()}
    assert json.loads(found["/example.test/www/A"]) == {"ttl": 60, "data": ["192.0.2.1"]}
    assert json.loads(found["/example.test/alias/CNAME"])["data"] == ["www.example.test."]


def test_leases_and_wildcards_of_skydns_are_told(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    async def lease(etcd: Etcd) -> None:
        await etcd.put(f"{prefix}/test/example/pod", b'{"host":"192.0.2.2"}', await etcd.grant_lease(600))

    wildcard = f"{prefix}/test/example/apps/*/1acbad7e"
    fill(shared_etcd, {wildcard: b'{"host":"192.0.2.1","targetstrip":1}'})
    on_etcd(shared_etcd, lease)
    told = {
        semantics: call("import", f"{target}?schema=skydns", "--zone", "example.test", "--semantics", semantics)
        for semantics in ("coredns", "strict")
    }
    for result in told.values():
        assert f"note: {prefix}/test/example/pod: has a lease" in result.stderr
    assert f"note: {wildcard}: is no wildcard" in told["coredns"].stderr
    assert f"{wildcard}: is no" not in told["strict"].stderr
    assert "/standoff/example.test/*.apps/A" in told["strict"].stdout


def test_what_would_not_be_answered_is_told_before_it_is_written(
    shared_etcd: EtcdServer, prefix: str, target: str, tmp_path: Path
) -> None:
    path = tmp_path / "example.test.zone"
    path.write_text(ZONE + "c CNAME www\nc TXT x\nd DNAME other.test.\nx.d A 192.0.2.3\n@ NSEC www A\n")
    fill(
        shared_etcd, {f"{prefix}/example.test/www/CNAME": b"other.test.", f"{prefix}/example.test/y.d/A": b"192.0.2.4"}
    )
    for more in (["--dry-run"], []):
        result = call("import", str(path), "--to", target, *more)
        assert result.exit_code == 0
        told = result.stderr.splitlines()
        assert any("not taken over: c.example.test. TXT: other data beside a CNAME" in line for line in told)
        assert any("not answered beside what etcd has: www.example.test. A: " in line for line in told)
        assert any("note: beside what etcd has: y.d.example.test. A: " in line for line in told)
        assert sum("x.d.example.test. is hidden by a DNAME above it" in line for line in told) == 1
        assert any("left out: 1 NSEC" in line for line in told)
    told = json.loads(call("import", str(path), "--to", target, "--dry-run", "--json").stdout)
    assert [one["where"] for one in told["not_taken_over"]] == ["c.example.test. TXT"]
    assert [one["where"] for one in told["notes"]] == ["example.test.", "x.d.example.test. A"]
    found = content(shared_etcd, prefix)
    assert {f"{prefix}/example.test/{key}" for key in ("c/CNAME", "x.d/A", "www/A")} <= found.keys()
    assert not {f"{prefix}/example.test/{key}" for key in ("c/TXT", "@/NSEC")} & found.keys()


def test_an_export_of_a_source_is_as_a_loader_has_it(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    """The older of two keys that contradict each other stays; what a DNAME hides is in it."""
    one = f"{prefix}/example.test"
    fill(shared_etcd, {f"{one}/c/CNAME": b"www", f"{one}/c/A": b"192.0.2.1"})
    fill(shared_etcd, {f"{one}/d/DNAME": b"other.test.", f"{one}/x.d/A": b"192.0.2.2"})
    for form in ("zone", "jsonl"):
        out = call("export", f"{target}?schema=records", "--format", form)
        assert f"not exported: {one}/c/A: other data beside a CNAME" in out.stderr
        assert "192.0.2.1" not in out.stdout
        assert "192.0.2.2" in out.stdout
        assert "c.example.test" in out.stdout


def test_several_zones_on_one_stream_come_in_again(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    zones = ("example.test", "a.example.test", "other.test")
    fill(shared_etcd, {f"{prefix}/{zone}/www/A": b"192.0.2.1" for zone in zones})
    out = call("export", f"{target}?schema=records")
    assert call("import", "-", "--to", f"{target}x", stdin=out.stdout).exit_code == 0
    again = content(shared_etcd, f"{prefix}x")
    assert again.keys() == {f"{prefix}x/{zone}/{key}" for zone in zones for key in ("@/SOA", "@/NS", "www/A")}


def test_strict_changes_nothing(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    dump = "example.test 60 IN SOA a b 1 2 3 4 5\nexample.test 60 IN ALIAS x.test\nw.example.test 60 IN A 192.0.2.1\n"
    strict = call("import", "-", "--from", "powerdns", "--to", target, "--strict", stdin=dump)
    assert strict.exit_code == 1
    assert "not taken over: example.test ALIAS (line 2): PowerDNS looks the target up" in strict.stderr
    assert content(shared_etcd, prefix) == {}
    assert call("import", "-", "--from", "powerdns", "--to", target, stdin=dump).exit_code == 0
    assert len(content(shared_etcd, prefix)) == 2


def test_delete_spares_what_could_not_be_taken_over(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    by_hand = f"{prefix}/example.test/@/A"
    fill(shared_etcd, {by_hand: b"192.0.2.1", f"{prefix}/example.test/old/A": b"192.0.2.8"})
    dump = "example.test 60 IN SOA a b 1 2 3 4 5\nexample.test 60 IN ALIAS x.test\n"
    arguments = ("import", "-", "--from", "powerdns", "--to", target, "--delete")
    unreadable = call(*arguments, stdin=dump + "what is this?\n")
    assert unreadable.exit_code == 1
    assert "nothing is removed" in unreadable.stderr
    assert len(content(shared_etcd, prefix)) == 3
    assert call(*arguments, stdin=dump).exit_code == 0
    assert set(content(shared_etcd, prefix)) == {by_hand, f"{prefix}/example.test/@/SOA"}


def test_etcd_away(zone: str) -> None:
    (port,) = free_ports(1)
    result = call("import", zone, "--to", f"etcd://127.0.0.1:{port}/names")
    assert result.exit_code == 1
    assert f"127.0.0.1:{port}" in result.stderr


def test_the_second_endpoint_will_do(shared_etcd: EtcdServer, prefix: str, zone: str) -> None:
    (port,) = free_ports(1)
    assert call("import", zone, "--to", f"etcd://127.0.0.1:{port},{shared_etcd.endpoint}{prefix}").exit_code == 0
    assert len(content(shared_etcd, prefix)) == 5


def test_etcd_breaks_off_in_the_middle(
    etcd_server: EtcdServer, prefix: str, tmp_path: Path, make_proxy: Callable[[str], Proxy], monkeypatch: Any
) -> None:
    """It says how far it came, and the next import does the rest."""
    path = tmp_path / "names.jsonl"
    lines = [f'{{"name":"n{i}.example.test","type":"A","data":"192.0.2.1"}}' for i in range(3 * BATCH)]
    path.write_text("\n".join(lines))
    proxy = make_proxy(etcd_server.endpoint)
    counter = itertools.count(1)
    transact = Etcd.transact

    async def breaking(self: Etcd, *arguments: Any) -> int:
        if next(counter) == 2:
            proxy.refuse()
            proxy.cut()
        return await transact(self, *arguments)

    monkeypatch.setattr(Etcd, "transact", breaking)
    arguments = ("import", str(path), "--zone", "example.test", "--to")
    result = call(*arguments, f"etcd://{proxy.endpoint}{prefix}")
    assert result.exit_code == 1
    assert f"{BATCH} of {3 * BATCH} changes are written: import again to go on" in result.stderr
    assert len(content(etcd_server, prefix)) == BATCH
    assert call(*arguments, f"etcd://{etcd_server.endpoint}{prefix}").exit_code == 0
    assert len(content(etcd_server, prefix)) == 3 * BATCH


def test_broken_off_by_hand(
    shared_etcd: EtcdServer, prefix: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "names.jsonl"
    lines = [f'{{"name":"n{i}.example.test","type":"A","data":"192.0.2.1"}}' for i in range(3 * BATCH)]
    path.write_text("\n".join(lines))
    counter = itertools.count(1)
    transact = Etcd.transact

    async def breaking(self: Etcd, *arguments: Any) -> int:
        if next(counter) == 2:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
        return await transact(self, *arguments)

    monkeypatch.setattr(Etcd, "transact", breaking)
    result = call("import", str(path), "--zone", "example.test", "--to", target)
    assert result.exit_code == 1
    assert f"broken off; at least {BATCH} of {3 * BATCH} changes are written: import again to go on" in result.stderr
    assert len(content(shared_etcd, prefix)) == BATCH


def test_a_folder_of_zone_files(
    shared_etcd: EtcdServer, prefix: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of zones that are gone are told; a file that cannot be written leaves the old one, and nothing else."""
    fill(shared_etcd, {f"{prefix}/{zone}/www/A": b"192.0.2.1" for zone in ("example.test", "other.test")})
    arguments = ("export", f"{target}?schema=records", "--output", str(tmp_path / "zones"))
    assert "of other zones" not in call(*arguments).stderr
    (tmp_path / "zones" / "gone.test.zone").write_text("old")
    assert "1 zone file of other zones, too: gone.test.zone" in call(*arguments).stderr
    before = {path.name: path.read_bytes() for path in (tmp_path / "zones").iterdir()}

    def full(lines: Any) -> Any:
        yield b"half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_lines", full)
    result = call(*arguments)
    assert (result.exit_code, "No space left" in result.stderr) == (1, True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "zones").iterdir()} == before


def test_attributes_go_round(shared_etcd: EtcdServer, prefix: str, tmp_path: Path) -> None:
    """Out of one prefix and into another: both give the same, and a second import has nothing to do."""
    values: dict[str, dict[str, Any]] = {
        "www/A": {
            "ttl": 30, "data": [{"data": "192.0.2.1", "weight": 9}, {"data": "192.0.2.2", "weight": 1}],
            "check": {"url": "https://{address}/health", "host": "www.example.test", "interval": 5}, "pick": 1,
        },
        "sale/TXT": {"ttl": 60, "data": ["now"], "not_before": "2031-01-31T09:00:00Z", "not_after": 1e12},
        "near/AAAA": {"ttl": 5, "data": ["2001:db8::1", "2001:db8::2"], "labels": {"site": "ams"}},
    }  # fmt: skip
    fill(shared_etcd, {f"{prefix}/a/example.test/{key}": json.dumps(value).encode() for key, value in values.items()})
    source, target = (
        f"etcd://{shared_etcd.endpoint}{prefix}/a?schema=records",
        f"etcd://{shared_etcd.endpoint}{prefix}/b",
    )
    for format in ("jsonl", "msgpack"):
        path = str(tmp_path / f"names.{format}")
        assert call("export", source, "-f", format, "-o", path).exit_code == 0
        assert call("import", path, "--to", target).exit_code == 0
        found = content(shared_etcd, f"{prefix}/b")
        for key, value in values.items():
            assert json.loads(found[f"{prefix}/b/example.test/{key}"].value) == value
        assert "0 added, 0 changed" in call("import", path, "--to", target).stderr
    assert "0 added, 0 changed, 0 removed, 3 unchanged" in call("import", source, "--to", target).stderr
    out = call("export", source)
    assert "5 records have attributes, which zone files cannot say" in out.stderr
    # What the zone file cannot say stays; what differs otherwise is written, and the loss told.
    again = call("import", "-", "--to", target, stdin=out.stdout)
    assert "0 changed" in again.stderr
    assert "attributes" not in again.stderr
    less = call("import", "-", "--to", target, "--dry-run", stdin=out.stdout.replace("192.0.2.2", "192.0.2.7"))
    assert "1 values would lose their attributes" in less.stderr


def test_a_dry_run_shows_attributes(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    fill(shared_etcd, {f"{prefix}/example.test/www/A": b'{"ttl":60,"data":["192.0.2.1"],"weight":3}'})
    line = '{"name":"www.example.test","type":"A","ttl":60,"data":"192.0.2.1","weight":%d}'
    arguments = ("import", "-", "--from", "jsonl", "--zone", "example.test", "--to", target, "--dry-run")
    assert call(*arguments, stdin=line % 3).stdout == ""
    assert call(*arguments, stdin=line % 4).stdout == (
        f'~ {prefix}/example.test/www/A {{"ttl":60,"data":["192.0.2.1"],"weight":3}}'
        ' -> {"ttl":60,"data":["192.0.2.1"],"weight":4}\n'
    )


def test_attributes_from_skydns(shared_etcd: EtcdServer, prefix: str, target: str) -> None:
    """Several keys beneath a name: each of the name's records has those of its own key."""
    fill(
        shared_etcd,
        {
            f"{prefix}/sky/test/example/www/a": b'{"host":"192.0.2.1","ttl":60,"check":"tcp://{address}:80"}',
            f"{prefix}/sky/test/example/www/b": b'{"host":"192.0.2.2","ttl":60,"labels":{"site":"ams"}}',
            f"{prefix}/sky/test/example/www/c": b'{"host":"192.0.2.3","ttl":60,"not_after":"2031-01-01T00:00:00Z"}',
            f"{prefix}/sky/test/example/www/d": b'{"host":"192.0.2.4","ttl":60}',
        },
    )
    source = f"{target}/sky?schema=skydns"
    arguments = ("import", source, "--zone", "example.test", "--to", f"{target}/rec")
    assert call(*arguments).exit_code == 0
    found = {key.removeprefix(f"{prefix}/rec"): put.value for key, put in content(shared_etcd, f"{prefix}/rec").items()}
    assert json.loads(found["/example.test/www/A"]) == {
        "ttl": 60,
        "data": [
            {"data": "192.0.2.1", "check": "tcp://{address}:80"},
            {"data": "192.0.2.2", "labels": {"site": "ams"}},
            {"data": "192.0.2.3", "not_after": "2031-01-01T00:00:00Z"},
            "192.0.2.4",
        ],
    }
    services = json.loads(found["/example.test/www/SRV"])["data"]
    assert [one["check"] for one in services if "check" in one] == ["tcp://192.0.2.1:80"]
    assert "0 added, 0 changed, 0 removed" in call(*arguments).stderr
    lines = call("export", source, "--zone", "example.test", "--json").stdout.splitlines()
    assert sum('"check"' in line for line in lines) == 6  # A and SRV, of a.www, of www, and of the apex above
