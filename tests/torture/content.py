"""What the tables should hold: a fresh compile of etcd's content, by the loader's own modules, without its tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import dns.message
import dns.rdatatype

from loader import records
from loader.etcd import Etcd
from loader.zone import Zones
from shm import node
from shm._table import Table
from shm.board import Board
from shm.reading import TableObserver
from shm.segment import Segment
from tests.torture.changing import ZONE
from tests.torture.service import PREFIX, Service, ask_all

Blocks = Mapping[bytes, bytes]


def compiled(endpoint: str) -> Blocks:
    """Name -> node block."""
    return asyncio.run(_compiled(endpoint))


async def _compiled(endpoint: str) -> Blocks:
    zones = Zones([], 300)
    async with Etcd(endpoint) as etcd:
        async for page in etcd.pages(PREFIX + "/"):
            for put in page.entries:
                zones.apply(put.key, records.parse(PREFIX, put), put.mod_revision)
    return by_name(zones.all_nodes())


def by_name(blocks: object) -> Blocks:
    return {node.unpack(block).name: bytes(block) for block in blocks}  # type: ignore[attr-defined]


def published(board: Board) -> Blocks:
    """The active table, as a reader without a slot sees it."""
    observer = TableObserver(board)
    try:
        blocks: Blocks = observer.look(lambda table: by_name(table.blocks()))
        return blocks
    finally:
        observer.close()


def both_sides(board: Board) -> list[Blocks]:
    """Left and right, while nothing changes: the loader has brought both up to date before it rests."""
    sides = []
    for side in (0, 1):
        segment = Segment.attach(board.names.table(board.side_serial(side)))
        table = Table(segment.map)
        sides.append(by_name(table.blocks()))
        table.close()
        segment.close()
    return sides


def check_answers(service: Service, blocks: Blocks) -> int:
    """Ask for every RRset of the blocks over UDP, and compare; how many there were."""
    expected = {}
    for block in blocks.values():
        found = node.unpack(block)
        for type_, rrset in found.rrsets.items():
            if type_:
                question = bytes(2) + b"\0\0\0\1\0\0\0\0\0\0" + found.name + type_.to_bytes(2, "big") + b"\0\1"
                expected[question] = rrset
    for question, answer in ask_all(service.port, list(expected)).items():
        rrset = expected[question]
        assert answer[3] & 15 == 0, question
        assert answer[6:8] == rrset.count.to_bytes(2, "big"), question
        # The RRs may begin with any of them.
        section = answer[len(question) : len(question) + len(rrset.wire)]
        assert sorted(rrs(section)) == sorted(rrs(rrset.wire)), question
    return len(expected)


def rrs(wire: bytes) -> Iterator[bytes]:
    """The RRs of a stored RRset: owner (a pointer), type, class, TTL, length, data."""
    at = 0
    while at < len(wire):
        end = at + 12 + int.from_bytes(wire[at + 10 : at + 12], "big")
        yield wire[at:end]
        at = end


def soa_serial(service: Service) -> int:
    """Of the zone, as it is answered."""
    question = dns.message.make_query(f"{ZONE}.", dns.rdatatype.SOA).to_wire()
    (answer,) = ask_all(service.port, [question]).values()
    serial: int = dns.message.from_wire(answer).answer[0][0].serial
    return serial
