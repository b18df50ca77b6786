"""Tables for tests: names, RRsets and whole zones in the shape that the loader gives them.

A second, small compiler beside the loader's, so that a mistake of that one is not taken for the truth here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import dns.name
import dns.rdatatype
import dns.zone

from shm._table import Table
from shm.layout import NEGATIVE_SOA, OWNER_POINTER, NodeFlag
from shm.node import RRset, pack

SOA, NS, DNAME = 6, 2, 39


def wire(name: str) -> bytes:
    """A name in lower-case wire form."""
    return to_wire(dns.name.from_text(name))


def to_wire(name: dns.name.Name) -> bytes:
    raw = name.to_wire()
    assert raw is not None
    return raw.lower()


def rrset(type_: int, ttl: int, *rdatas: bytes) -> RRset:
    fixed = OWNER_POINTER + type_.to_bytes(2, "big") + b"\0\1" + ttl.to_bytes(4, "big")
    return RRset(type_, len(rdatas), b"".join(fixed + len(rdata).to_bytes(2, "big") + rdata for rdata in rdatas))


def block(name: bytes, size: int = 0, fill: bytes = b"\x01", flags: int = 0) -> bytes:
    """A node of one RRset of about `size` bytes."""
    return pack(name, flags, [rrset(16, 60, (fill * size)[:size])])


def compile_zone(origin: str, text: str) -> list[bytes]:
    """Node blocks of a zone in master-file format."""
    zone = dns.zone.from_text(text, origin, relativize=False)
    apex = wire(origin)
    sets: dict[bytes, list[RRset]] = {}
    for name, rdataset in zone.iterate_rdatasets():
        rdatas = [rdata.to_wire() for rdata in rdataset]
        assert all(rdata is not None for rdata in rdatas)
        sets.setdefault(to_wire(name), []).append(rrset(int(rdataset.rdtype), rdataset.ttl, *rdatas))
    cuts = {name for name, rrsets in sets.items() if name != apex and any(r.type == NS for r in rrsets)}
    names = {ancestor for name in sets for ancestor in _up_to(name, apex)}
    return [pack(name, _flags(name, apex, names, sets, cuts), _sets(name, apex, sets)) for name in sorted(names)]


def _sets(name: bytes, apex: bytes, sets: dict[bytes, list[RRset]]) -> list[RRset]:
    rrsets = sets.get(name, [])
    if name != apex:
        return rrsets
    soa = next(r for r in rrsets if r.type == SOA)
    minimum = int.from_bytes(soa.wire[-4:], "big")
    ttl = min(minimum, int.from_bytes(soa.wire[6:10], "big"))
    negative = soa.wire[:6] + ttl.to_bytes(4, "big") + soa.wire[10:]
    return [*rrsets, RRset(NEGATIVE_SOA, 1, negative)]


def _flags(name: bytes, apex: bytes, names: set[bytes], sets: dict[bytes, list[RRset]], cuts: set[bytes]) -> int:
    flags = NodeFlag(0)
    if name == apex:
        flags |= NodeFlag.APEX
    if name in cuts:
        flags |= NodeFlag.DELEGATION
    if b"\x01*" + name in names:
        flags |= NodeFlag.WILDCARD_CHILD
    if name not in sets:
        flags |= NodeFlag.EMPTY
    if any(ancestor in cuts for ancestor in _up_to(name, apex) if ancestor != name):
        flags |= NodeFlag.BELOW_CUT
    if any(r.type == DNAME for r in sets.get(name, ())):
        flags |= NodeFlag.DNAME
    return int(flags)


def _up_to(name: bytes, apex: bytes) -> list[bytes]:
    """The name and its ancestors, down to the apex."""
    result = [name]
    while name != apex:
        name = name[1 + name[0] :]
        result.append(name)
    return result


def make_table(blocks: Iterable[bytes], size: int = 1 << 20, names: int = 1000, seed: int = 1) -> Table:
    """A table in ordinary memory."""
    buffer = bytearray(size)
    Table.format(buffer, 1, seed, names, {})
    table = Table(buffer, writable=True)
    for one in blocks:
        table.put(one)
    return table


#: TXT RRsets whose replies come out near what a datagram may be, with and without an OPT.
EDGES = (*range(440, 484, 2), *range(1150, 1204, 2))


def _strings(size: int) -> str:
    """TXT data of `size` bytes in wire form."""
    full, rest = divmod(size - 2, 201)
    return " ".join([*('"' + "e" * 200 + '"' for _ in range(full)), '"' + "e" * rest + '"'])


LONG_LABEL = "x" * 63
#: 255 bytes in wire form: the longest name there is.
LONGEST = ".".join([LONG_LABEL, LONG_LABEL, LONG_LABEL, "y" * 48, "example.test."])
#: 127 labels, as many as fit.
DEEPEST = "a." * 120 + "example.test."

EXAMPLE = rf"""
@           300 SOA ns1 hostmaster 7 7200 1800 86400 30
@           300 NS  ns1
@           300 NS  ns2.other.test.
@           300 MX  10 mail
ns1         300 A     192.0.2.53
ns1         300 AAAA  2001:db8::53
a            60 A     192.0.2.1
two          60 A     192.0.2.2
two          60 A     192.0.2.3
two          60 AAAA  2001:db8::2
mail         60 A     192.0.2.25
_sip._tcp    60 SRV   1 2 5060 a
txt          60 TXT   "one" "two"
b\001in\.ary 60 A     192.0.2.99
alias        60 CNAME a
alias2       60 CNAME ALIAS
outward      60 CNAME www.elsewhere.test.
across       60 CNAME www.other.test.
dangling     60 CNAME nowhere
towild       60 CNAME foo.wild
tocut        60 CNAME www.sub
loop1        60 CNAME loop2
loop2        60 CNAME loop1
self         60 CNAME self
*.wild       60 A     192.0.2.42
*.wild       60 TXT   "star"
real.wild    60 A     192.0.2.43
x.ent.wild   60 A     192.0.2.44
*.wcname     60 CNAME a
deep.empty.ent 60 A   192.0.2.45
sub         300 NS    ns1.sub
sub         300 NS    ns2.sub
sub         300 NS    ns1
sub         300 DS    1 8 2 {"ab" * 32}
ns1.sub     300 A     192.0.2.61
ns2.sub     300 A     192.0.2.62
ns2.sub     300 AAAA  2001:db8::62
bare        300 NS    ns.elsewhere.test.
medium       60 TXT   {" ".join('"' + "m" * 200 + '"' for _ in range(3))}
large        60 TXT   {" ".join('"' + "l" * 250 + '"' for _ in range(6))}
{LONGEST}    60 A     192.0.2.7
{DEEPEST}    60 A     192.0.2.8
{"".join(f"edge{size} 60 TXT {_strings(size)}" + chr(10) for size in EDGES)}
{"".join(f"many 60 A 10.0.{i >> 8}.{i & 255}" + chr(10) for i in range(200))}
{"".join(f"huge 60 A 10.1.{i >> 8}.{i & 255}" + chr(10) for i in range(3700))}
{"".join(f"crowd 300 NS ns{i}.crowd{chr(10)}ns{i}.crowd 300 A 10.2.0.{i}" + chr(10) for i in range(40))}
"""
OTHER = """
@           300 SOA ns2 hostmaster 1 7200 1800 86400 600
@           300 NS  ns2
ns2         300 A     192.0.2.54
www          60 A     192.0.2.80
*            60 A     192.0.2.81
"""


@functools.cache
def example_blocks() -> tuple[bytes, ...]:
    return (*compile_zone("example.test.", EXAMPLE), *compile_zone("other.test.", OTHER))


@functools.cache
def example_table() -> Table:
    """Two zones with one of everything. Not to be written to."""
    return make_table(example_blocks())
