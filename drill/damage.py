"""A drill of the table: bytes of it are overwritten while it is live."""

from __future__ import annotations

import struct
from collections.abc import Callable

from drill.instance import HOSTS, Instance, wait_for
from drill.scene import Scene
from drill.timeline import Outcome
from shm import layout
from shm.segment import Segment

#: The loader looks at the workers' counters ten times a second, and makes small tables anew in milliseconds.
LONGEST_REPAIR_S = 3.0
_VICTIM = 1


def damaged_table(scene: Scene) -> None:
    """Structure, not text: what no check can find, a bit in an address for instance, is not in this drill."""
    ours = scene.instance()
    client = scene.client(ours.port)
    scene.pause(0.5)
    pids = [slot.get("pid") for slot in ours.board.workers()]
    repairs = []
    for what, damage in (
        (f"the block of {HOSTS[_VICTIM]}: its size is made absurd", _break_block),
        ("the index: every entry points far outside the segment", _break_index),
    ):
        serials = _serials(ours)
        before = _damage(ours)
        scene.did(f"damaged {what}")
        _write(ours, damage)
        wait_for("a worker meets the damage", lambda before=before: _damage(ours) > before)  # type: ignore[misc]
        repairs.append(wait_for("both tables are new", lambda old=serials: not old & _serials(ours)))  # type: ignore[misc]
        scene.did(f"{_damage(ours) - before} lookups met it; both tables are new after {repairs[-1]:.2f} s")
        scene.pause(1.5)
    whole = _damage(ours)
    swap = ours.publish()
    scene.did(f"the next publish goes through in {swap.waited_s * 1e3:.1f} ms")
    scene.pause(0.5)
    seen = scene.saw(client)
    scene.check_clients(seen, versions=ours.version, servfail=True)
    refused = seen.of(Outcome.SERVFAIL)
    scene.check("damage is told as SERVFAIL", bool(refused), f"{len(refused)} of {len(seen.asked)} queries")
    scene.check("an alarm counts it", whole > 0, f"table_damaged {whole}")
    alive = [slot.get("pid") for slot in ours.board.workers()]
    scene.check("no worker dies of it", alive == pids, f"{ours.board.supervisor.get('workers_died')} deaths")
    slowest = max(repairs)
    scene.check(f"it is repaired within {LONGEST_REPAIR_S:g} s", slowest <= LONGEST_REPAIR_S, f"{slowest:.2f} s")
    again = _damage(ours) - whole
    scene.check("and does not come back", again == 0, f"{again} lookups met damage afterwards")


def _serials(instance: Instance) -> set[int]:
    return {instance.board.side_serial(side) for side in (0, 1)}


def _damage(instance: Instance) -> int:
    """Lookups that met damage, so far."""
    return sum(instance.board.slot(number).get("table_damaged") for number in instance.board.slots)


def _write(instance: Instance, damage: Callable[[memoryview], None]) -> None:
    """Into the live table, as any process of the loader's user could."""
    board = instance.board
    segment = Segment.attach(board.names.table(board.side_serial(board.live & 1)), writable=True)
    try:
        with memoryview(segment.map) as view:
            damage(view)
    finally:
        segment.close()


def _break_block(table: memoryview) -> None:
    name = b"".join(bytes([len(label)]) + label.encode() for label in HOSTS[_VICTIM].split(".")) + b"\0"
    raw = bytes(table)
    at = raw.index(name, _header(raw, "heap_offset")) - layout.NODE_HEADER.size
    struct.pack_into("=I", table, at, 0xFFFFFFFF)


def _break_index(table: memoryview) -> None:
    raw = bytes(table[: layout.TABLE_HEADER_SIZE])
    start, slots = _header(raw, "index_offset"), _header(raw, "index_slots")
    for at in range(start, start + slots * layout.INDEX_ENTRY.size, layout.INDEX_ENTRY.size):
        tag, offset = layout.INDEX_ENTRY.unpack_from(table, at)
        if offset:
            layout.INDEX_ENTRY.pack_into(table, at, tag, 0xFFFFFFF0)


def _header(raw: bytes, name: str) -> int:
    value: int = struct.unpack_from("=Q", raw, layout.header_offsets()[name])[0]
    return value
