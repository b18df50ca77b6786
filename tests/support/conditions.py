"""Records with attributes, as hypothesis makes them: every field that a value may have, and its odd cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from loader.attributes import NONE, Attributes, address_text
from loader.exchange import conditions
from loader.exchange.sets import RecordSet
from loader.model import Reject
from loader.rdata import AAAA, A

_LAST = 2.0**43
moments = (
    st.integers(0, 2**43)
    | st.floats(0, _LAST)
    | st.datetimes().map(lambda when: f"{when.isoformat()}Z")
    | st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "1969-12-31T23:59:59.5Z"])
)
paths = st.sampled_from(["", "/", "/up?a=b&interval=3", "/{address}", "/192.0.2.1"])
hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}(:[0-9]{1,4})?", fullmatch=True)
options = st.fixed_dictionaries(
    {},
    optional={
        "interval": st.floats(1, 3600) | st.integers(1, 3600) | st.just(10),
        "timeout": st.floats(0.01, 1),
        "rise": st.integers(1, 100),
        "fall": st.integers(1, 100),
        "status": st.integers(100, 599) | st.lists(st.integers(100, 599), min_size=1, max_size=4),
        "host": hosts,
        "sni": st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True),
        "verify": st.booleans(),
    },
)
#: Without what a record of any type can say.
OTHERS = ("192.0.2.1", "[2001:DB8::1]", "[::ffff:192.0.2.1]")


def _checks(address: str) -> st.SearchStrategy[Any]:
    """address: of the record; empty: it has none."""
    own = ["{address}", f"[{address}]" if ":" in address else address] if address else []
    places = st.sampled_from([*own, *OTHERS])
    tcp = st.tuples(places, st.integers(1, 65535)).map(lambda found: f"tcp://{found[0]}:{found[1]}")
    ports = st.just("") | st.integers(1, 65535).map(":{}".format)
    https = st.tuples(places, ports, paths).map(lambda found: f"https://{''.join(found)}")
    objects = st.tuples(https, options).map(lambda found: {"url": found[0]} | found[1])
    return tcp | https | objects


def said(address: str) -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a value."""
    word = st.text(max_size=8)
    return st.fixed_dictionaries(
        {},
        optional={
            "not_before": moments,
            "not_after": moments,
            "weight": st.integers(0, 65535),
            "pick": st.integers(1, 65535),
            "period": st.integers(5, 86400),
            "check": _checks(address),
            "labels": st.dictionaries(word, word, max_size=3),
        },
    )


def _read(fields: dict[str, Any], type_: int, data: bytes) -> Attributes | None:
    try:
        return conditions.read(fields, type_, data)
    except Reject:
        return None  # a window that ends before it begins


def attributes_of(type_: int, data: bytes) -> st.SearchStrategy[Attributes]:
    """What a record of this type and data may have; often nothing."""
    address = address_text(data) if type_ in (A, AAAA) else ""
    given = said(address).map(lambda fields: _read(fields, type_, data))
    return st.just(NONE) | given.filter(lambda found: found is not None).map(lambda found: found or NONE)


def conditional(rrsets: st.SearchStrategy[RecordSet]) -> st.SearchStrategy[RecordSet]:
    """The sets with attributes; some data twice, with different ones; some with the same for all."""
    return rrsets.flatmap(_conditional)


def _conditional(one: RecordSet) -> st.SearchStrategy[RecordSet]:
    def whole(given: list[list[Attributes]]) -> RecordSet:
        pairs = [(data, each) for data, those in zip(one.data, given, strict=True) for each in those]
        if all(each == NONE for _, each in pairs):
            return one
        return replace(one, data=tuple(data for data, _ in pairs), attributes=tuple(each for _, each in pairs))

    apart = st.tuples(
        *(st.lists(attributes_of(one.type, data), min_size=1, max_size=2, unique=True) for data in one.data)
    ).map(lambda found: whole(list(found)))
    alike = said("").map(lambda fields: _read(fields, one.type, one.data[0])).filter(lambda found: found is not None)
    return apart | alike.map(lambda found: whole([[found or NONE]] * len(one.data)))
