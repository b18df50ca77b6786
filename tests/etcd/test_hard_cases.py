"""One bad value costs one key: what etcd may hold that no name server wants, through running processes.

The neighbours of every bad key are asked all the while, and answer as if it were not there.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from loader.etcd import Etcd
from tests.etcd.test_running import Running, make_running
from tests.support.mirroring import run_async
from tests.torture.service import wait_for

__all__ = ["make_running"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ZONE = "/names/example.test"
MEGABYTE = 1 << 20
LONG = "x" * 64
NAME_TOO_LONG = "/".join(["y" * 60] * 5)

#: What is wrong -> key, value, a part of the reason.
RECORDS: dict[str, tuple[str | bytes, bytes, str]] = {
    "1 MB of text for an address": (f"{ZONE}/mb1/A", b"1" * MEGABYTE, "is not an IPv4 address"),
    "1 MB of TXT": (f"{ZONE}/mb2/TXT", b"t" * MEGABYTE, "octets"),
    "1 MB of JSON": (f"{ZONE}/mb3/A", b"[" * MEGABYTE, "not understood"),
    "1 MB of addresses": (
        f"{ZONE}/mb4/A",
        json.dumps(["192.0.2.1", *[f"10.0.{i >> 8}.{i & 255}" for i in range(65_000)]]).encode(),
        "outgrow",
    ),
    "1 MB of one JSON string": (f"{ZONE}/mb5/CNAME", json.dumps("c" * (MEGABYTE - 2)).encode(), "label"),
    "no JSON": (f"{ZONE}/json/A", b'{"data":', "not understood"),
    "an unknown field": (f"{ZONE}/field/A", b'{"data":"192.0.2.9","tll":1}', "tll"),
    "a number for data": (f"{ZONE}/type1/A", b'{"data":1}', "not understood"),
    "a text for ttl": (f"{ZONE}/type2/A", b'{"data":"192.0.2.9","ttl":"60"}', "not understood"),
    "a negative ttl": (f"{ZONE}/type3/A", b'{"data":"192.0.2.9","ttl":-1}', "ttl is 0"),
    "nothing": (f"{ZONE}/empty/A", b"", "empty"),
    "an empty list": (f"{ZONE}/none/A", b"[]", "empty list"),
    "a value that is not UTF-8": (f"{ZONE}/bytes1/TXT", b"\xff\xfe", "not UTF-8"),
    "JSON that is not UTF-8": (f"{ZONE}/bytes2/TXT", b'"\xff"', "not UTF-8"),
    "a key that is not UTF-8": (f"{ZONE}/\xff/A".encode("latin-1"), b"192.0.2.9", "the key is not UTF-8"),
    "a label that is too long": (f"{ZONE}/{LONG}/A", b"192.0.2.9", "63"),
    "a name that is too long": (f"{ZONE}/{NAME_TOO_LONG.replace('/', '.')}/A", b"192.0.2.9", "255"),
    "a target that is too long": (f"{ZONE}/target/CNAME", f"{LONG}.example.".encode(), "63"),
    "no such type": (f"{ZONE}/what/NONSENSE", b"192.0.2.9", "NONSENSE"),
    "a bad address": (f"{ZONE}/address/A", b"192.0.2.256", "is not an IPv4 address"),
    "an address of the other family": (f"{ZONE}/family/AAAA", b"192.0.2.1", "IPv6"),
    "a key without a type": (f"{ZONE}/www", b"192.0.2.9", "not PREFIX/ZONE/OWNER/TYPE"),
    "two CNAMEs": (f"{ZONE}/two/CNAME", b'["a.example.","b.example."]', "one CNAME"),
    "a CNAME beside data": (f"{ZONE}/www/CNAME", b"other.example.", "the older key"),
    "a CNAME at the apex": (f"{ZONE}/@/CNAME", b"other.example.", "apex"),
}
#: Under the prefix of schema skydns, whose zone is example.test.
SKYDNS: dict[str, tuple[str | bytes, bytes, str]] = {
    "1 MB of host": ("/names/test/example/mb1", json.dumps({"host": "h" * (MEGABYTE - 20)}).encode(), "label"),
    "1 MB of text": ("/names/test/example/mb2", json.dumps({"text": "t" * (MEGABYTE - 20)}).encode(), "octets"),
    "1 MB that is no JSON": ("/names/test/example/mb3", b"{" * MEGABYTE, "not understood"),
    "a number for host": ("/names/test/example/type1", b'{"host":1}', "not understood"),
    "a port that is none": ("/names/test/example/type2", b'{"host":"192.0.2.9","port":70000}', "port"),
    "a text for ttl": ("/names/test/example/type3", b'{"host":"192.0.2.9","ttl":"1"}', "not understood"),
    "a list": ("/names/test/example/type4", b"[]", "not understood"),
    "not UTF-8": ("/names/test/example/bytes1", b'{"host":"\xff"}', "not UTF-8"),
    "a key that is not UTF-8": (b"/names/test/example/\xff", b'{"host":"192.0.2.9"}', "not ASCII"),
    "a label that is too long": (f"/names/test/example/{LONG}", b'{"host":"192.0.2.9"}', "63"),
    "a name that is too long": (f"/names/test/example/{NAME_TOO_LONG}", b'{"host":"192.0.2.9"}', "255"),
    "an empty label": ("/names/test/example//x", b'{"host":"192.0.2.9"}', "label"),
    "outside every zone": ("/names/org/other/x", b'{"host":"192.0.2.9"}', "outside every zone"),
}
GOOD = {
    "records": {f"{ZONE}/www/A": b"192.0.2.1", f"{ZONE}/mail/A": b"192.0.2.2"},
    "skydns": {"/names/test/example/www": b'{"host":"192.0.2.1"}', "/names/test/example/mail": b'{"host":"192.0.2.2"}'},
}


@pytest.mark.parametrize("schema", ["records", "skydns"])
@pytest.mark.parametrize("when", ["in the first list", "as changes"])
def test_each_costs_its_own_key(make_running: Callable[..., Running], schema: str, when: str) -> None:
    running = make_running("--max-request-bytes", str(4 << 20))
    cases = RECORDS if schema == "records" else SKYDNS
    for key, value in GOOD[schema].items():
        running.put(key, value)

    async def put_all() -> dict[str, int]:
        async with Etcd(running.etcd.endpoint) as client:
            return {what: await client.put(key, value) for what, (key, value, _) in cases.items()}

    if when == "in the first list":
        revisions = run_async(put_all())
        running.start(schema)
    else:
        running.start(schema)
        running.until("www.example.test", "192.0.2.1")
        revisions = run_async(put_all())
    running.until("www.example.test", "192.0.2.1")
    running.until("mail.example.test", "192.0.2.2")
    wait_for("all are rejected", lambda: len(running.rejects()) >= len(cases))
    found = {one["revision"]: one for one in running.reject_list()}
    assert len(found) == len(cases)
    for what, (key, _, reason) in cases.items():
        one = found[revisions[what]]
        assert reason in one["reason"], what
        assert "\n" not in one["reason"], what
        assert len(one["reason"]) < 400, what
        if isinstance(key, str):
            assert one["key"] == key, what
    assert running.metric("standoff_source_rejects") == len(cases)
    # Nothing of it has cost a neighbour, and what is right is right at once.
    assert running.ask("www.example.test") == ["192.0.2.1"]
    path = f"{ZONE}/new/A" if schema == "records" else "/names/test/example/new"
    running.put(path, b"192.0.2.3" if schema == "records" else b'{"host":"192.0.2.3"}')
    running.until("new.example.test", "192.0.2.3")


#: Keys under one name, and what they may cost. A million take 10 times as long; nothing grows faster.
CROWD = 100_000
MOST = 256


def test_a_crowd_under_one_name(make_running: Callable[..., Running]) -> None:
    """100,000 services beneath www.example.test: answered with a sample, and other names as ever, while they come and
    when they are there."""
    running = make_running("--unsafe-no-fsync", "--max-txn-ops", "1000", "--quota-backend-bytes", str(1 << 30))
    running.put("/names/test/example/mail", b'{"host":"192.0.2.2"}')

    async def crowd(first: int, count: int) -> int:
        async with Etcd(running.etcd.endpoint) as client:
            revision = 0
            for start in range(first, first + count, 1000):
                puts = [
                    (f"/names/test/example/www/k{n:06}", f'{{"host":"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"}}'.encode())
                    for n in range(start, start + 1000)
                ]
                revision = await client.transact(puts)
            return revision

    run_async(crowd(0, CROWD // 2))
    began = time.monotonic()
    running.start("skydns")
    running.until("mail.example.test", "192.0.2.2")
    print(f"{CROWD // 2} keys loaded after {time.monotonic() - began:.1f} s")
    before = running.loader_memory()

    async def ask_meanwhile() -> tuple[float, float]:
        """The other half comes: the slowest answer of another name, and the loader's longest silence meanwhile."""
        coming = asyncio.ensure_future(crowd(CROWD // 2, CROWD // 2))
        slowest = silence = 0.0
        while not coming.done() or running.service.adopted() < coming.result():
            asked = time.monotonic()
            answer = await asyncio.to_thread(running.ask, "mail.example.test")
            assert answer == ["192.0.2.2"]
            slowest = max(slowest, time.monotonic() - asked)
            silence = max(
                silence, (time.monotonic_ns() - running.service.board.loader.get("loader_heartbeat_ns")) / 1e9
            )
            await asyncio.sleep(0.01)
        return slowest, silence

    began = time.monotonic()
    slowest, silence = run_async(ask_meanwhile())
    print(f"the other half: {time.monotonic() - began:.1f} s, slowest answer of another name {slowest * 1e3:.0f} ms")
    print(f"the loader was silent for {silence:.1f} s at most")
    assert slowest < 2
    assert silence < 5
    memory = running.loader_memory()
    print(f"the loader has {before >> 20} MB, then {memory >> 20} MB")
    assert memory < 700 << 20
    assert len(running.ask("www.example.test")) == MOST
    assert running.ask("k099999.www.example.test") == ["10.1.134.159"]
    changes = []
    for n in range(20):
        at = time.monotonic()
        key = f"/names/test/example/www/k{n:06}"
        revision = running.put(key, b'{"host":"10.9.9.9"}') if n % 2 else running.delete(key)
        wait_for("the change is there", lambda revision=revision: running.service.adopted() >= revision)  # type: ignore[misc]
        changes.append(time.monotonic() - at)
    print(f"one change among them: {sorted(changes)[10] * 1e3:.0f} ms")
    assert sorted(changes)[10] < 2
    assert f"answers with a sample of {MOST} of the" in running.service.log.read_text()
    assert running.metric("standoff_source_rejects") == 0
