"""A reply being written: whole RRsets behind the question, or none of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from server.query import HEADER, QR, RD, TC, Query, Rcode
from shm.node import RRset

ANSWER, AUTHORITY, ADDITIONAL = range(3)
#: How far a compression pointer reaches (RFC 1035 section 4.1.4).
POINTER_REACH = 0x4000
#: Owner pointer, type, class, TTL, length: what stands before an RR's data in a stored RRset.
RR_HEAD = 12


@dataclass(slots=True)
class Reply:
    """Sections and flags of a reply. `limit`: bytes that header, question and sections may take."""

    query: Query
    limit: int
    flags: int = 0
    rcode: int = Rcode.NOERROR
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    body: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def __post_init__(self) -> None:
        self.body += self.query.question

    @property
    def size(self) -> int:
        return HEADER.size + len(self.body)

    def add(self, section: int, rrset: RRset, owner_at: int) -> int | None:
        """Append an RRset whose owner stands at `owner_at`. Where its first RR begins; None if it does not fit."""
        if self.size + len(rrset.wire) > self.limit:
            return None
        start = self.size
        self.body += rrset.wire
        self.counts[section] += rrset.count
        if owner_at != HEADER.size:
            pointer = (0xC000 | owner_at).to_bytes(2, "big")
            for at in rr_offsets(rrset.wire):
                self.body[start - HEADER.size + at : start - HEADER.size + at + 2] = pointer
        return start

    def message(self, opt: bytes) -> bytes:
        """The whole message, with `opt` as its last record if it is not empty.

        Of the query's flags RD comes back. CD does not: it speaks to resolvers (RFC 4035 section 3.1.6).
        """
        flags = QR | self.flags | self.query.flags & RD | self.rcode & 0xF | (TC if self.truncated else 0)
        answers, authorities, additionals = self.counts
        questions = 1 if self.query.question else 0
        header = HEADER.pack(self.query.identifier, flags, questions, answers, authorities, additionals + bool(opt))
        return header + bytes(self.body) + opt


def rr_offsets(wire: bytes) -> Iterator[int]:
    """Where each RR of a stored RRset begins."""
    at = 0
    while at < len(wire):
        yield at
        at += RR_HEAD + int.from_bytes(wire[at + 10 : at + 12], "big")


def rr(type_: int, class_: int, ttl: int, rdata: bytes) -> bytes:
    """An RR as a stored RRset has it, owner 0xC00C."""
    head = b"\xc0\x0c" + type_.to_bytes(2, "big") + class_.to_bytes(2, "big") + ttl.to_bytes(4, "big")
    return head + len(rdata).to_bytes(2, "big") + rdata
