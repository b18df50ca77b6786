"""What is asked: every name with every type; some with every flag, EDNS variant and class; what breaks the format.

Each case says of itself what the explanations (explained.py) look at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import dns.name
import dns.zone

from tests.differential.peers import ZONE_FOLDER, ZONES

RD, CD, AD, TC, AA, RA, Z = 0x0100, 0x0010, 0x0020, 0x0200, 0x0400, 0x0080, 0x0040
TYPES = {
    "A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "NAPTR": 35,
    "DNAME": 39, "DS": 43, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "NSEC3": 50, "SVCB": 64, "HTTPS": 65, "ANY": 255,
    "CAA": 257, "TYPE65280": 65280,
}  # fmt: skip
#: Asked of some names only: each means something of its own, or nothing.
ODD_TYPES = (0, 3, 4, 7, 8, 9, 10, 11, 13, 14, 17, 18, 24, 25, 29, 30, 32, 36, 41, 44, 45, 49, 51, 52, 59, 60, 61, 62,
             63, 99, 108, 128, 249, 250, 253, 254, 256, 258, 32768, 65281, 65534, 65535)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A packet, and what it is. `what`: empty for a plain question."""

    packet: bytes
    name: str
    type: int
    what: str = ""
    class_: int = 1
    stream: bool = False

    @property
    def text(self) -> str:
        way = " over TCP" if self.stream else ""
        return f"{self.name[:60]} type {self.type} class {self.class_} {self.what}{way}"


def wire(name: str) -> bytes:
    raw = dns.name.from_text(name).to_wire()
    assert raw is not None
    return raw


def message(name: bytes, type_: int, class_: int = 1, *, flags: int = 0, opt: bytes = b"") -> bytes:
    header = struct.pack("!HHHHHH", 0x5151, flags, 1, 0, 0, 1 if opt else 0)
    return header + name + struct.pack("!HH", type_, class_) + opt


def opt_record(options: bytes = b"", *, size: int = 1232, version: int = 0, flags: int = 0, rcode: int = 0) -> bytes:
    return b"\0" + struct.pack("!HHBBHH", 41, size, rcode, version, flags, len(options)) + options


def option(code: int, data: bytes = b"") -> bytes:
    return struct.pack("!HH", code, len(data)) + data


EDNS = {
    "plain OPT": opt_record(),
    "DO": opt_record(flags=0x8000),
    "other EDNS flags": opt_record(flags=0x7FFF),
    "extended rcode in the query": opt_record(rcode=1),
    "size 0": opt_record(size=0),
    "size 512": opt_record(size=512),
    "size 4096": opt_record(size=4096),
    "size 65535": opt_record(size=65535),
    "version 1": opt_record(version=1),
    "version 255, DO": opt_record(version=255, flags=0x8000),
    "version 1 with NSID": opt_record(option(3), version=1),
    "NSID": opt_record(option(3)),
    "NSID with data": opt_record(option(3, b"x")),
    "NSID twice": opt_record(option(3) * 2),
    "cookie": opt_record(option(10, b"client-c")),
    "cookie, wrong server part": opt_record(option(10, b"client-c" + bytes(16))),
    "cookie of 1 byte": opt_record(option(10, b"x")),
    "cookie of 15 bytes": opt_record(option(10, b"x" * 15)),
    "cookie of 41 bytes": opt_record(option(10, b"x" * 41)),
    "empty cookie": opt_record(option(10)),
    "client subnet": opt_record(option(8, b"\0\1\x18\0\xc0\0\2")),
    "padding": opt_record(option(12, bytes(20))),
    "keepalive over UDP": opt_record(option(11)),
    "keepalive with data": opt_record(option(11, b"\0\1")),
    "zone version": opt_record(option(19)),
    "zone version with data": opt_record(option(19, b"x")),
    "expire": opt_record(option(9)),
    "chain": opt_record(option(13, b"\0")),
    "key tag": opt_record(option(14, b"\0\1")),
    "extended error in the query": opt_record(option(15, b"\0\0")),
    "report channel": opt_record(option(18, b"\0")),
    "unknown option": opt_record(option(65001, b"abc")),
    "option ends early": opt_record(b"\0\3\0\5ab"),
    "half an option": opt_record(b"\0\3"),
    "two OPT": opt_record(),  # the second one is appended below
}


def names_of_zones() -> list[bytes]:
    """Every name there is or that stands between one and its apex, one beneath each, and some that are not there."""
    found: dict[dns.name.Name, None] = {}
    for zone in ZONES:
        origin = dns.name.from_text(zone)
        content = dns.zone.from_file(str(ZONE_FOLDER / f"{zone}.zone"), origin, relativize=False)
        for name in list(content.nodes):
            while name.is_subdomain(origin):
                found[name] = None
                name = name.parent()
    names = list(found)
    for name in list(names):
        for label in (b"nope", b"*", b"a.b"):
            try:
                names.append(dns.name.Name([*label.split(b"."), *name.labels]))
            except dns.name.NameTooLong:
                pass
    names += [dns.name.from_text(text) for text in ("test.", "outside.invalid.", ".", "zmain.test.", "xd.")]
    return [wire_of(name) for name in dict.fromkeys(names)]


def wire_of(name: dns.name.Name) -> bytes:
    raw = name.to_wire()
    assert raw is not None
    return raw


#: One name of each kind.
KINDS = (
    "a.main.test.", "main.test.", "nowhere.main.test.", "ent.main.test.", "alias.main.test.", "outward.main.test.",
    "foo.wild.main.test.", "www.sub.main.test.", "sub.main.test.", "x.dn.main.test.", "below.dn.main.test.",
    "www.child.main.test.", "child.main.test.", "outside.invalid.", "many.main.test.", "large.main.test.",
    "medium.main.test.", "x.crowd.main.test.", "mxbig.main.test.", "x.dnlong.main.test.", "dangling.main.test.",
    "x.cut4.main.test.",
)  # fmt: skip


def cases() -> Iterator[Case]:
    yield from plain()
    yield from flagged()
    yield from with_edns()
    yield from of_classes()
    yield from of_opcodes()
    yield from broken()
    yield from over_tcp()


def _asked(names: Iterable[bytes], types: Iterable[int]) -> Iterator[tuple[bytes, str, int]]:
    for name in names:
        text = str(dns.name.from_wire(name, 0)[0])
        for type_ in types:
            yield name, text, type_


def plain() -> Iterator[Case]:
    names = names_of_zones()
    types = [*TYPES.values()]
    for name, text, type_ in _asked(names, types):
        if type_ in (1, 2, 5, 6, 15, 39, 43, 255) or text.count(".") < 5:
            yield Case(message(name, type_), text, type_)
    for name, text, type_ in _asked(map(wire, KINDS), ODD_TYPES):
        yield Case(message(name, type_), text, type_, "odd type")
    for name, text, type_ in _asked(map(wire, KINDS), (1, 15)):
        swapped = name.swapcase() if name.isascii() else name
        yield Case(message(swapped, type_), text, type_, "case")


def flagged() -> Iterator[Case]:
    bits = {"RD": RD, "CD": CD, "AD": AD, "TC": TC, "AA": AA, "RA": RA, "Z": Z, "all": RD | CD | AD | TC | AA | RA | Z,
            "rcode 5": 5}  # fmt: skip
    for name, text, type_ in _asked(map(wire, KINDS), (1, 16)):
        for what, flags in bits.items():
            yield Case(message(name, type_, flags=flags), text, type_, f"flags {what}")


def with_edns() -> Iterator[Case]:
    for name, text, type_ in _asked(map(wire, KINDS), (1, 16)):
        for what, opt in EDNS.items():
            packet = bytearray(message(name, type_, opt=opt))
            if what == "two OPT":
                packet[11] = 2
                packet += opt
            yield Case(bytes(packet), text, type_, what)
    for size in (512, 513, 600, 700, 800, 1000, 1200, 1231, 1232, 1233):
        for text in ("many.main.test.", "x.crowd.main.test.", "mxbig.main.test.", "crowd.main.test."):
            for type_ in (1, 15):
                sized = message(wire(text), type_, opt=opt_record(size=size))
                yield Case(sized, text, type_, f"EDNS size {size}")


def of_classes() -> Iterator[Case]:
    for text in ("a.main.test.", "outside.invalid.", "id.server.", "version.server.", "hostname.bind.", "version.bind.",
                 "authors.bind.", "nowhere.bind."):  # fmt: skip
        for class_ in (0, 2, 3, 4, 254, 255, 65280):
            for type_ in (1, 16, 255):
                yield Case(message(wire(text), type_, class_), text, type_, "class", class_)


def of_opcodes() -> Iterator[Case]:
    for opcode in range(1, 16):
        for opt in (b"", opt_record()):
            packet = message(wire("main.test."), 6, flags=opcode << 11, opt=opt)
            yield Case(packet, "main.test.", 6, f"opcode {opcode}" + (" with OPT" if opt else ""))


def broken() -> Iterator[Case]:
    name = wire("a.main.test.")
    good = message(name, 1)
    record = name + struct.pack("!HHIH", 1, 1, 60, 4) + bytes(4)

    def counted(packet: bytes, *counts: int) -> bytes:
        return packet[:4] + struct.pack("!HHHH", *counts) + packet[12:]

    yield from (
        Case(packet, "a.main.test.", 1, what)
        for what, packet in {
            "no question": counted(good[:12], 0, 0, 0, 0),
            "no question, OPT": counted(good[:12] + opt_record(), 0, 0, 0, 1),
            "no question, cookie": counted(good[:12] + EDNS["cookie"], 0, 0, 0, 1),
            "two questions": counted(good + good[12:], 2, 0, 0, 0),
            "bytes behind": good + b"\0",
            "many bytes behind": good + bytes(40),
            "question counted, not there": good[:12],
            "name ends early": good[:15],
            "type ends early": good[:-3],
            "class ends early": good[:-1],
            "label of 64": good[:12] + b"\x40" + bytes(64) + b"\0\0\1\0\1",
            "label type 0x80": good[:12] + b"\x80" + bytes(64) + b"\0\0\1\0\1",
            "pointer to itself": good[:12] + b"\xc0\x0c\0\1\0\1",
            "pointer forward": good[:12] + b"\xc0\x20\0\1\0\1",
            "pointer into the header": good[:12] + b"\xc0\x04\0\1\0\1",
            "name of 256": good[:12] + b"\x3f" + b"x" * 63 + (b"\x3f" + b"x" * 63) * 2 + b"\x3f" + b"x" * 63
            + b"\0\0\1\0\1",
            "answer record": counted(good + record, 1, 1, 0, 0),
            "authority record": counted(good + record, 1, 0, 1, 0),
            "additional record": counted(good + record, 1, 0, 0, 1),
            "additional record, then OPT": counted(good + record + opt_record(), 1, 0, 0, 2),
            "OPT, then additional record": counted(good + opt_record() + record, 1, 0, 0, 2),
            "OPT in the answer section": counted(good + opt_record(), 1, 1, 0, 0),
            "OPT in the authority section": counted(good + opt_record(), 1, 0, 1, 0),
            "OPT with a name": counted(good + b"\1x" + opt_record(), 1, 0, 0, 1),
            "OPT ends early": counted(good + opt_record()[:-1], 1, 0, 0, 1),
            "OPT data ends early": counted(good + opt_record(option(3))[:-1], 1, 0, 0, 1),
            "additional counted, not there": counted(good, 1, 0, 0, 1),
            "answer counted, not there": counted(good, 1, 1, 0, 0),
            "record ends early": counted(good + record[:-6], 1, 0, 0, 1),
            "response": good[:2] + b"\x80" + good[3:],
            "response, opcode 5": good[:2] + b"\xa8" + good[3:],
            "header of 11": good[:11],
            "two bytes": good[:2],
            "header only, empty": good[:4] + bytes(8),
        }.items()
    )  # fmt: skip


def over_tcp() -> Iterator[Case]:
    for name, text, type_ in _asked(map(wire, KINDS), (1, 15, 16, 255)):
        yield Case(message(name, type_), text, type_, stream=True)
        yield Case(message(name, type_, opt=EDNS["plain OPT"]), text, type_, "plain OPT", stream=True)
    for what in ("keepalive over UDP", "cookie", "NSID", "version 1"):
        yield Case(message(wire("a.main.test."), 1, opt=EDNS[what]), "a.main.test.", 1, what, stream=True)
