"""What ExternalDNS writes, in a real etcd, through source, schema, zone model and table to the answer.

Its habits (provider/coredns): a key for each target, under the name and eight random hexadecimal digits, with
targetstrip; the registry's text in the first key of a name, or in keys of names of its own (`a-NAME`); PTR without
digits; deletion by prefix.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from loader import etcd_url, names
from loader.etcd import Etcd
from loader.etcd_channel import ClientOptions
from loader.etcd_source import EtcdSource
from loader.skydns import Semantics
from loader.skydns_feed import SkydnsFeed
from tests.support.etcd import EtcdServer
from tests.support.mirroring import run_async
from tests.support.skydns import World

ZONES = ("example.test", "10.in-addr.arpa")
TEXT = '"heritage=external-dns,external-dns/owner=me,external-dns/resource=service/default/nginx"'
#: Seconds; ends tests that hang.
LIMIT = 20.0


class Setup(SimpleNamespace):
    """etcd, and a world that follows it."""

    etcd: Etcd
    world: World
    prefix: str

    async def write(self, name: str, value: dict[str, Any], lease: int = 0, *, digits: bool = True) -> str:
        """As ExternalDNS: the key."""
        path = "/".join(reversed(name.split(".")))
        key = f"{self.prefix}/{path}" + (f"/{secrets.token_hex(4)}" if digits else "")
        await self.etcd.put(key, json.dumps(value).encode(), lease)
        return key

    async def settled(self) -> None:
        """Until the world has what etcd has."""
        key = f"{self.prefix}/test/example/zz-mark"
        revision = await self.etcd.put(key, b"{}")
        await self.until(lambda: self.world.revision >= revision)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)


@asynccontextmanager
async def following(server: EtcdServer, prefix: str, semantics: Semantics) -> AsyncGenerator[Setup, None]:
    world = World({}, semantics, ZONES)
    url = etcd_url.parse(f"etcd://{server.endpoint}{prefix}?schema=skydns")
    feed = SkydnsFeed(EtcdSource(url, ClientOptions()), prefix, [names.from_text(zone) for zone in ZONES], semantics)

    async def follow() -> None:
        async for update in feed.run():
            world.apply(update)
            world.revision = update.revision

    async with Etcd(server.endpoint) as etcd:
        task = asyncio.ensure_future(follow())
        try:
            yield Setup(etcd=etcd, world=world, prefix=prefix)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
def test_service_with_several_addresses(shared_etcd: EtcdServer, prefix: str, semantics: Semantics) -> None:
    async def body() -> None:
        async with following(shared_etcd, prefix, semantics) as setup:
            first = {"host": "172.18.0.2", "text": TEXT, "targetstrip": 1, "ttl": 60, "owner": "me"}
            await setup.write("nginx.example.test", first)
            await setup.write("nginx.example.test", {"host": "172.18.0.3", "targetstrip": 1, "ttl": 60})
            gone = await setup.write("nginx.example.test", {"host": "172.18.0.4", "targetstrip": 1, "ttl": 60})
            await setup.write("nginx.example.test", {"host": "2001:db8::5", "targetstrip": 1, "ttl": 60})
            await setup.write("a-nginx.example.test", {"text": TEXT, "targetstrip": 1})
            await setup.settled()
            ask = setup.world.ask
            three = ["A 60 172.18.0.2", "A 60 172.18.0.3", "A 60 172.18.0.4"]
            assert ask("nginx.example.test", "A") == three
            assert ask("nginx.example.test", "AAAA") == ["AAAA 60 2001:db8::5"]
            assert len(ask("a-nginx.example.test", "TXT")) == 1
            assert len(ask("nginx.example.test", "TXT")) == (1 if semantics == "strict" else 0)
            assert ask("example.test", "A") == (three if semantics == "coredns" else [])
            await setup.etcd.delete_prefix(gone)
            await setup.settled()
            assert ask("nginx.example.test", "A") == three[:2]
            await setup.etcd.delete_prefix(f"{prefix}/test/example/nginx/")
            await setup.settled()
            assert ask("nginx.example.test", "A") == ["NXDOMAIN"]
            assert len(ask("a-nginx.example.test", "TXT")) == 1

    run_async(body())


@pytest.mark.parametrize("semantics", ["coredns", "strict"])
def test_ingress_hosts_aliases_wildcards_and_pointers(
    shared_etcd: EtcdServer, prefix: str, semantics: Semantics
) -> None:
    async def body() -> None:
        async with following(shared_etcd, prefix, semantics) as setup:
            for host in ("shop.example.test", "blog.example.test"):
                await setup.write(host, {"host": "192.0.2.80", "targetstrip": 1})
            alias = {"host": "lb.cloud.example", "text": TEXT, "targetstrip": 1}
            await setup.write("alias.example.test", alias)
            await setup.write("cname-alias.example.test", {"text": TEXT, "targetstrip": 1})
            await setup.write("inside.example.test", {"host": "shop.example.test", "targetstrip": 1})
            await setup.write("*.apps.example.test", {"host": "192.0.2.90", "targetstrip": 1})
            await setup.write("5.0.0.10.in-addr.arpa", {"host": "shop.example.test"}, digits=False)
            await setup.settled()
            ask = setup.world.ask
            assert ask("shop.example.test", "A") == ask("blog.example.test", "A") == ["A 192.0.2.80"]
            assert ask("alias.example.test", "A") == ["CNAME lb.cloud.example."]
            assert ask("inside.example.test", "A") == ["CNAME shop.example.test.", "shop.example.test. A 192.0.2.80"]
            assert ask("5.0.0.10.in-addr.arpa", "PTR") == ["PTR shop.example.test."]
            one = ask("one.apps.example.test", "A")
            assert one == (["NXDOMAIN"] if semantics == "coredns" else ["A 192.0.2.90"])
            assert ask("*.apps.example.test", "A") == ["A 192.0.2.90"]
            await setup.etcd.delete(f"{prefix}/arpa/in-addr/10/0/0/5")
            await setup.settled()
            assert ask("5.0.0.10.in-addr.arpa", "PTR") == ["NXDOMAIN"]

    run_async(body())


def test_groups(shared_etcd: EtcdServer, prefix: str) -> None:
    async def body() -> None:
        async with following(shared_etcd, prefix, "coredns") as setup:
            await setup.write("a.example.test", {"host": "192.0.2.1", "group": "g1", "targetstrip": 1})
            await setup.write("sub.a.example.test", {"host": "192.0.2.2", "group": "g2", "targetstrip": 1})
            await setup.settled()
            assert setup.world.ask("a.example.test", "A") == ["A 192.0.2.1"]
            assert setup.world.ask("sub.a.example.test", "A") == ["A 192.0.2.2"]

    run_async(body())


def test_leases(shared_etcd: EtcdServer, prefix: str) -> None:
    async def body() -> None:
        async with following(shared_etcd, prefix, "coredns") as setup:
            lease, short = await setup.etcd.grant_lease(90), await setup.etcd.grant_lease(60)
            await setup.write("pod.example.test", {"host": "192.0.2.1", "ttl": 600}, lease)
            await setup.write("pod.example.test", {"host": "192.0.2.2", "ttl": 45}, short)
            await setup.settled()
            ask = setup.world.ask
            await setup.until(lambda: ask("pod.example.test", "A") == ["A 45 192.0.2.1", "A 45 192.0.2.2"])
            await setup.etcd.revoke_lease(short)
            await setup.settled()
            await setup.until(lambda: ask("pod.example.test", "A") == ["A 90 192.0.2.1"])

    run_async(body())
