"""The `coredns` semantics against a model of CoreDNS: its etcd plugin's lookup, and plugin/backend_lookup.go.

The model asks all keys at each question, as CoreDNS asks etcd; the tree has worked the answers out. Left out is what
docs/skydns.md says differs on purpose: aliases beside other data, texts beside hosts, `*` and `any`, ties of groups.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.skydns import World

Value = dict[str, Any]
Keys = dict[str, Value]
ZONE = "example.test"

#: Few, so that many lie beneath others.
BENEATH = (
    "a",
    "a/b",
    "a/b/c",
    "a/c",
    "a/c/d",
    "anya",
    "b/_tcp/x-1",
    "dns",
    "dns/apex",
    "dns/apex/a",
    "dns/ns",
    "dns/ns/a/b",
)
PATHS = st.sampled_from(["test/example", *(f"test/example/{one}" for one in BENEATH)])
HOSTS = st.fixed_dictionaries(
    {"host": st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"])},
    optional={
        "port": st.sampled_from([-1, 0, 80, 65535]),
        "priority": st.sampled_from([0, 5, 10]),
        "weight": st.sampled_from([0, 1, 30, 100, 1000]),
        "mail": st.booleans(),
        "ttl": st.sampled_from([0, 30, 3600]),
        "targetstrip": st.integers(0, 6),
        "group": st.sampled_from(["g", "h"]),
    },
)
TARGETS = st.fixed_dictionaries(
    {"host": st.sampled_from(["a.example.test", "web.example.net."]), "port": st.integers(1, 3)},
    optional={"mail": st.booleans(), "ttl": st.just(60), "group": st.sampled_from(["", "g"])},
)
TEXTS = st.fixed_dictionaries(
    {"text": st.sampled_from(["t", "u"])}, optional={"ttl": st.just(60), "group": st.sampled_from(["", "g", "h"])}
)
KEYS = st.dictionaries(PATHS, st.one_of(HOSTS, TARGETS, TEXTS), max_size=len(BENEATH))


class Model:
    """CoreDNS, with one zone."""

    def __init__(self, keys: Keys) -> None:
        self.keys = dict(sorted(keys.items()))

    def services(self, name: str, field: str) -> list[tuple[str, Value]]:
        """All keys beneath the name's path, or else the one at it; those of the group."""
        path = "/".join(reversed(name.split(".")))
        held = [(key, value) for key, value in self.keys.items() if field in value]
        found = [one for one in held if one[0].startswith(path + "/")] or [one for one in held if one[0] == path]
        return group(found)

    def addresses(self, name: str, version: int) -> set[tuple[str, int]]:
        special = self.services(f"apex.dns.{name}", "host") if name == ZONE else []
        found = special or self.services(name, "host")
        return {(value["host"], ttl(value)) for _, value in found if ip(value) == version}

    def srv(self, name: str) -> dict[tuple[str, int], set[tuple[int, int]]]:
        """(target, port) -> (priority, weight) of each: of those that are the same so CoreDNS answers one."""
        found = self.services(name, "host")
        sums: dict[int, int] = {}
        for _, value in found:
            priority = value.get("priority") or 10
            sums[priority] = sums.get(priority, 0) + (value.get("weight") or 100)
        made: dict[tuple[str, int], set[tuple[int, int]]] = {}
        for key, value in found:
            if value.get("port", 0) != -1:
                priority, weight = value.get("priority") or 10, value.get("weight") or 100
                share = max(100 * weight // sums[priority], 1)
                made.setdefault((target(key, value), value.get("port", 0)), set()).add((priority, share))
        return made

    def mx(self, name: str) -> set[tuple[int, str]]:
        found = self.services(name, "host")
        return {(value.get("priority") or 10, target(key, value)) for key, value in found if value.get("mail")}

    def servers(self) -> set[str]:
        return {target(key, value) for key, value in self.services(f"ns.dns.{ZONE}", "host")}


def ip(value: Value) -> int:
    """4, 6, or 0 for a name."""
    try:
        return ipaddress.ip_address(value["host"]).version
    except ValueError:
        return 0


def ttl(value: Value) -> int:
    return value.get("ttl") or 300


def target(key: str, value: Value) -> str:
    """The name of the key without its first labels, unless nothing would be left; or the host's name."""
    if not ip(value):
        return str(value["host"]).rstrip(".") + "."
    labels = key.split("/")[::-1]
    return ".".join(labels[value.get("targetstrip", 0) :] or labels) + "."


def group(found: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
    """The shortest key's group wins; equally short ones that disagree end it."""
    if not found:
        return []
    depth = min(key.count("/") for key, _ in found)
    shortest = {value.get("group", "") for key, value in found if key.count("/") == depth}
    assume(len(shortest) == 1 or "" not in shortest)
    if len(shortest) > 1 or shortest == {""}:
        return found
    return [one for one in found if one[1].get("group", "") in ("", *shortest)]


def lowest(found: set[tuple[str, int]]) -> set[str]:
    """As World.ask has it: one TTL for all."""
    ttls = min((seconds for _, seconds in found), default=0)
    return {
        f"{'A' if '.' in host else 'AAAA'} {ttls if ttls != 300 else ''} {host}".replace("  ", " ") for host, _ in found
    }


def data(world: World, name: str, type_: str) -> list[list[str]]:
    """The data's words of each record."""
    return [str(rdata).split() for rrset in world.message(name, type_).answer for rdata in rrset]


@settings(max_examples=60, deadline=None)
@given(keys=KEYS, gone=st.lists(PATHS, max_size=3))
def test_answers_are_coredns_answers(keys: Keys, gone: list[str]) -> None:
    world = World({path: json.dumps(value) for path, value in keys.items()})
    for path in gone:
        world.change(world.delete(path))
    kept = {path: value for path, value in keys.items() if path not in gone}
    model = Model(kept)
    names = {".".join(path.split("/")[::-1][cut:]) for path in kept for cut in range(path.count("/"))}
    for name in sorted(one for one in names | {ZONE} if one.endswith(ZONE)):
        for version, type_ in ((4, "A"), (6, "AAAA")):
            assert set(world.ask(name, type_)) == lowest(model.addresses(name, version)), (name, type_)
        texts = {f'"{value["text"]}"' for _, value in model.services(name, "text")}
        assert {word for (word,) in data(world, name, "TXT")} == texts, name
        srv: dict[tuple[str, int], set[tuple[int, int]]] = {}
        for priority, weight, port, to in data(world, name, "SRV"):
            srv.setdefault((to, int(port)), set()).add((int(priority), int(weight)))
        assert srv == model.srv(name), name
        assert {(int(preference), to) for preference, to in data(world, name, "MX")} == model.mx(name), name
    assert {to for (to,) in data(world, ZONE, "NS")} == (model.servers() or {f"ns1.{ZONE}."})
