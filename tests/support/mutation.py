"""Packets that are nearly queries: what a fuzzer needs to get past the first checks.

A packet begins as a well-formed query that reaches some branch of the answerers, is built again with a few of its parts
wrong, and perhaps has some bytes flipped. About a third stay valid.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from server.edns import cookie_for, option
from tests.support.answerers import POLICY, UDP
from tests.support.tables import DEEPEST, EDGES, LONGEST, wire

NAMES = [
    wire(name if name.endswith(".") else f"{name}.example.test.")
    for name in (
        "a", "two", "mail", "_sip._tcp", "txt", "alias", "alias2", "outward", "across", "dangling", "towild", "tocut",
        "loop1", "self", "foo.wild", "*.wild", "real.wild", "x.real.wild", "ent.wild", "y.ent.wild", "x.wcname", "ent",
        "deep.empty.ent", "x.deep.empty.ent", "sub", "www.sub", "ns1.sub", "bare", "x.bare", "medium", "large", "many",
        "huge", "crowd", "ns7.crowd", "nowhere", "a.b.c.d.e.f.nowhere", "ns1", "x.alias", LONGEST, DEEPEST, ".",
        "test.", "example.test.", "other.test.", "www.other.test.", "x.y.other.test.", "elsewhere.", "com.",
        r"b\001in\.ary",
    )
]  # fmt: skip
#: Names that the hot path answers, more often than all the others.
COMMON = [NAMES[i] for i in (*range(6), 15, 16, 21, 22, 29, 30, 31, 35, 36, 37, *range(39, 44), 46)]
EDGE_NAMES = [wire(f"edge{size}.example.test.") for size in EDGES]
TYPES = (*(1,) * 8, *(28,) * 4, *(16,) * 3, *(2, 5, 6, 12, 15, 33, 43, 41, 0, 39, 64, 65, 257, 65535), *range(251, 256))
TXT = 16
HEADER = struct.Struct("!6H")
#: NSID, a client's cookie, a server's cookie of ours, ZONEVERSION, keepalive: what the hot path knows.
GOOD_OPTIONS = tuple(
    option(code, data)
    for code, data in (
        (3, b""),
        (10, b"01234567"),
        (10, cookie_for(b"01234567", UDP.address, POLICY.cookie_secrets, UDP.now_s - 60)[0]),
        (10, cookie_for(b"01234567", UDP.address, POLICY.cookie_secrets[1:], UDP.now_s - 2000)[0]),
        (19, b""),
        (11, b""),
    )
)
SIZES = (0, 1, 11, 12, 511, 512, 513, 1231, 1232, 1233, 4096, 65535)


class Mutator:
    """Makes packets from a source of chance; the same seed makes the same packets."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._choice = chance.choice
        self._random = chance.random

    def packets(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield self.packet()

    def packet(self) -> bytes:
        chance = self._chance
        edge = self._random() < 0.05
        name = self._choice(EDGE_NAMES) if edge else self._name(self._choice(COMMON if self._random() < 0.6 else NAMES))
        additional, records = self._additional()
        counts = [1, 0, 0, records]
        if self._random() < 0.08:
            counts[chance.randrange(4)] = self._choice((0, 1, 2, 255, 256, 257, 65535))
        flags = self._choice((0x0100, 0, 0x0110, 0x0120)) if self._random() < 0.93 else chance.randrange(65536)
        class_ = 1 if self._random() < 0.96 else self._choice((0, 2, 3, 4, 254, 255, 256, 65535))
        type_ = TXT if edge else self._choice(TYPES)
        packet = (
            HEADER.pack(chance.randrange(65536), flags, *counts) + name + struct.pack("!HH", type_, class_) + additional
        )
        return self._hurt(packet)

    def _name(self, name: bytes) -> bytes:
        """The name, in another case, with a label more or less, or broken."""
        luck = self._random()
        if luck < 0.7:
            return name
        if luck < 0.8:
            return name.swapcase() if self._random() < 0.5 else bytes(self._case(byte) for byte in name)
        if luck < 0.86:
            label = self._choice((1, 2, 62, 63, 64, 30))
            return bytes([label]) + self._chance.randbytes(label) + name
        if luck < 0.91 and len(name) > 1:
            return name[1 + name[0] :]
        if luck < 0.94:
            return name[:-1] + self._choice((b"\xc0\x0c", b"\xc0\x00", b"\xc0", b"\xff\xff", b"\x80", b"\x40", b""))
        if luck < 0.96:
            return bytes([1, 97]) * self._chance.randrange(100, 130) + b"\0"
        broken = bytearray(name)
        broken[self._chance.randrange(len(broken))] = self._chance.randrange(256)
        return bytes(broken)

    def _case(self, byte: int) -> int:
        return byte ^ 0x20 if (65 <= byte & ~0x20 <= 90) and self._random() < 0.5 else byte

    def _additional(self) -> tuple[bytes, int]:
        """Records behind the question, mostly one OPT."""
        luck = self._random()
        if luck < 0.4:
            return b"", 0
        if luck < 0.93:
            return self._opt(), 1
        count = self._chance.randrange(1, 4)
        return b"".join(self._record() if self._random() < 0.6 else self._opt() for _ in range(count)), count

    def _opt(self) -> bytes:
        luck = self._random()
        version = 0 if luck < 0.95 else self._choice((1, 2, 255))
        flags = self._choice((0, 0, 0x8000, 0xFFFF, 0x7FFF))
        data = b"" if self._random() < 0.6 else self._options()
        length = len(data) if self._random() < 0.97 else self._choice((0, len(data) + 1, max(0, len(data) - 1), 65535))
        owner = b"\0" if self._random() < 0.98 else self._choice((b"\xc0\x0c", b"\1a\0"))
        extended = 0 if self._random() < 0.95 else 255
        size = self._choice(SIZES)
        return owner + struct.pack("!HHBBHH", 41, size, extended, version, flags, length) + data

    def _options(self) -> bytes:
        parts = []
        for _ in range(self._chance.randrange(1, 3)):
            if self._random() < 0.4:
                parts.append(self._choice(GOOD_OPTIONS))
                continue
            data = self._chance.randbytes(self._choice((0, 1, 4, 8, 24, 300)))
            length = len(data) if self._random() < 0.93 else self._choice((0, 1, len(data) + 1, 65535))
            parts.append(struct.pack("!HH", self._choice((3, 8, 10, 11, 12, 15, 19, 65001)), length) + data)
        return b"".join(parts)

    def _record(self) -> bytes:
        owner = self._choice((b"\xc0\x0c", b"\0", b"\1a\0", b"\x03abc\xc0\x0c", b"\xc0"))
        data = self._chance.randbytes(self._choice((0, 4, 16)))
        return owner + struct.pack("!HHIH", self._choice((1, 250, 24, 41)), 1, 0, len(data)) + data

    def _hurt(self, packet: bytes) -> bytes:
        luck = self._random()
        if luck < 0.75:
            return packet
        chance = self._chance
        if luck < 0.82:
            return packet[: chance.randrange(len(packet) + 1)]
        if luck < 0.87:
            return packet + chance.randbytes(self._choice((1, 2, 11, 40, 2000)))
        hurt = bytearray(packet)
        for _ in range(self._choice((1, 1, 2, 4))):
            at = chance.randrange(len(hurt))
            hurt[at] = self._choice((0, 0xFF, hurt[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
        if luck > 0.98 and len(hurt) > 14:
            at, size = chance.randrange(len(hurt)), chance.randrange(1, 12)
            del hurt[at : at + size]
        return bytes(hurt)
