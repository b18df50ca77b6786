"""The `strict` semantics against a model of it: each name answers with the keys whose labels, less targetstrip, it is.

Aliases are left out: which of several stays depends on their ages.
"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.skydns import World
from tests.unit.test_skydns_coredns import TARGETS, ZONE, Keys, Value, data, ip, lowest, target, ttl

BENEATH = (
    "a", "a/1acbad7e", "a/2acbad7e", "a/b/3", "a/any/4", "a/*/5", "1acbad7e", "dns/apex", "dns/apex/a", "dns/ns/a/b",
    "dns/ns",
)  # fmt: skip
PATHS = st.sampled_from(["test/example", *(f"test/example/{one}" for one in BENEATH)])
HOSTS = st.fixed_dictionaries(
    {"host": st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"])},
    optional={
        "port": st.sampled_from([-1, 0, 80]),
        "priority": st.sampled_from([0, 5]),
        "weight": st.sampled_from([0, 30, 1000]),
        "mail": st.booleans(),
        "ttl": st.sampled_from([0, 30, 3600]),
        "targetstrip": st.sampled_from([1, 2, 3, 9]),
        "group": st.sampled_from(["g", "h"]),
        "text": st.sampled_from(["t", "u"]),
    },
)
TEXTS = st.fixed_dictionaries(
    {"text": st.sampled_from(["t", "v"])}, optional={"ttl": st.just(60), "targetstrip": st.integers(0, 2)}
)
KEYS = st.dictionaries(PATHS, st.one_of(HOSTS, HOSTS, TARGETS, TEXTS), max_size=len(BENEATH))


def owner(key: str, value: Value) -> str:
    """The name that a key is for: the apex, if it would be one outside of the zone."""
    labels = key.split("/")[::-1]
    name = ".".join(labels[value.get("targetstrip", 0) :] or labels)
    return name if name == ZONE or name.endswith("." + ZONE) else ZONE


def own(keys: Keys, name: str) -> list[tuple[str, Value]]:
    return [(key, value) for key, value in keys.items() if owner(key, value) == name]


def special(keys: Keys, name: str) -> list[tuple[str, Value]]:
    """The hosts in a subtree: of the keys beneath it, or else its own."""
    path = "/".join(reversed(name.split("."))) + "/"
    hosts = {key: value for key, value in keys.items() if "host" in value}
    return [one for one in hosts.items() if one[0].startswith(path)] or own(hosts, name)


@settings(max_examples=150, deadline=None)
@given(keys=KEYS, gone=st.lists(PATHS, max_size=3))
def test_names_stand_for_themselves(keys: Keys, gone: list[str]) -> None:
    world = World({path: json.dumps(value) for path, value in keys.items()}, "strict")
    for path in gone:
        world.change(world.delete(path))
    kept = {path: value for path, value in keys.items() if path not in gone}
    for name in {ZONE, *(owner(key, value) for key, value in kept.items())}:
        hosts = [one for one in own(kept, name) if "host" in one[1]]
        addressed = hosts + (special(kept, f"apex.dns.{ZONE}") if name == ZONE else [])
        for version, type_ in ((4, "A"), (6, "AAAA")):
            want = {(value["host"], ttl(value)) for _, value in addressed if ip(value) == version}
            assert set(world.ask(name, type_)) == lowest(want), (name, type_)
        sums: dict[int, int] = {}
        for _, value in hosts:
            sums[value.get("priority") or 10] = sums.get(value.get("priority") or 10, 0) + (value.get("weight") or 100)
        srv = {
            (rank, max(100 * (value.get("weight") or 100) // sums[rank], 1), value["port"], target(key, value))
            for key, value in hosts
            if value.get("port", 0) > 0
            for rank in (value.get("priority") or 10,)
        }
        assert {(int(a), int(b), int(c), to) for a, b, c, to in data(world, name, "SRV")} == srv, name
        mx = {(value.get("priority") or 10, target(key, value)) for key, value in hosts if value.get("mail")}
        assert {(int(rank), to) for rank, to in data(world, name, "MX")} == mx, name
        texts = {f'"{value["text"]}"' for _, value in own(kept, name) if "text" in value}
        assert {word for (word,) in data(world, name, "TXT")} == texts, name
    servers = {target(key, value) for key, value in special(kept, f"ns.dns.{ZONE}")}
    assert {to for (to,) in data(world, ZONE, "NS")} == (servers or {f"ns1.{ZONE}."})
