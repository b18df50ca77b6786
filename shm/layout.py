"""The bytes that Standoff's processes agree on. This is the only description of the shared-memory format.

Everything is native-endian and unsigned: a segment never outlives the machine's uptime. `layout.pxd` is the C view of
the same tables; `tests/unit/test_layout.py` asserts that both agree, offset by offset.

CONTROL SEGMENT  `/standoff.INSTANCE.control`: page 0, page 1, then one page for each slot.

Page 0, written by the loader (L) except for what the creator (C) writes once, before the magic:

    offset size field            who  read stale by others: what it costs
       0    8   magic             C   b"STNDCTL\\0", written last
       8    4   layout_version    C
      12    4   layout_check      C   CRC of this module's tables: builds with other sizes refuse to attach
      16    4   slots             C
      20    4   page_size         C
      64    8   live              L   generation << 1 | side; under the write lock. Stale: a batch from the old table
     128   16   side_serial[2]    L   segment serial of each side. Stale: caught by the check inside the section
     192  ...   loader words      L   for people and metrics only (LOADER_WORDS)
    2048  ...   histograms        L   of the writer's waits, holds and graces
    1024 1024   loader_note       L   UTF-8, NUL padded: lines about sources and more, for people (shm/notes.py)

Page 1, written by the supervisor, one word by its exporter: SUPERVISOR_WORDS, for people and metrics only.

Slot page, written by the process that holds the slot's lock file (SLOT_WORDS, then counters). The writer of the lock
reads section, since_ns, gate; the supervisor reads heartbeat_ns; metrics read all. A slot never goes back: section and
gate continue from the previous holder's value, so that a writer that waits on an old value sees it change.

TABLE SEGMENT  `/standoff.INSTANCE.table.SERIAL`: header, meta, index, heap. Written by the loader only.

    header   HEADER_FIELDS, TABLE_HEADER_SIZE bytes, with the heads of the free lists at its end
    meta     a msgpack map (zones, provenance), at most META_SIZE bytes
    index    index_slots entries of 8 bytes: tag u32, offset u32 in units of 8 bytes from the segment's start, 0 =
             empty. Open addressing, linear probing; home = tag * index_slots >> 32, so that a deletion can shift back
             without looking at the nodes.
    heap     blocks, a multiple of 8 bytes each

NODE BLOCK  everything the server knows of one owner name

       0    4   units             block size / 8
       4    1   name_length       1..255, the root label included
       5    1   types             entries of the directory
       6    2   flags             NodeFlag
       8        name              wire form, lower case
                directory         types entries of 6 bytes: type u16, count u16, length u16
                RRsets            in the directory's order; each `count` RRs in wire form, owner 0xC00C, big-endian
                                  as on the wire: ready to copy behind a question

A directory entry of type NEGATIVE_SOA (0) at a zone's apex is the SOA as negative answers carry it (RFC 2308, 3).

A reader accepts a table if and only if (each condition has a test in tests/unit/test_table_damage.py)
  1. the segment is at least TABLE_HEADER_SIZE bytes and its magic is TABLE_MAGIC;
  2. layout_version and layout_check are this build's;
  3. segment_size equals the size of the mapping;
  4. meta, index and heap lie inside the segment, in this order.
A node is accepted if and only if
  5. its offset lies in the heap and its units * 8 bytes end inside the segment;
  6. name, directory and RRsets end inside the block.
Anything else raises TableDamaged, and the query gets SERVFAIL.
"""

from __future__ import annotations

import enum
import struct
import zlib

PAGE = 4096
LAYOUT_VERSION = 1
CONTROL_MAGIC = b"STNDCTL\0"
TABLE_MAGIC = b"STNDTBL\0"

#: Slots for readers: workers, the stream worker, and room for replacements. Bounds the control segment (264 KiB) and
#: the time the writer needs to take every gate.
SLOTS = 64

# ---------------------------------------------------------------- control segment, page 0

LIVE = 64
SIDE_SERIAL = 128
LOADER_NOTE = 1024
LOADER_NOTE_SIZE = 1024


def _words(start: int, *names: str) -> dict[str, int]:
    """Offsets of consecutive 8-byte words."""
    return {name: start + 8 * i for i, name in enumerate(names)}


LOADER_WORDS = _words(
    192,
    "loader_pid",
    "loader_started_ns",  # CLOCK_REALTIME
    "loader_heartbeat_ns",  # CLOCK_MONOTONIC
    "loader_state",  # LoaderState
    "revision",  # of the source, in the live table
    "published_ns",  # CLOCK_REALTIME of the last swap
    "source_seen_ns",  # CLOCK_REALTIME of the source's last sign of life
    "publishes",
    "write_retries",  # attempts that found a gate busy
    "write_wait_max_ns",  # asked for the lock -> had it
    "write_hold_max_ns",
    "grace_max_ns",  # swap -> every reader left
    "names",
    "keys",
    "rejects",
    "relists",
    "drift",  # differences found by re-lists
    "table_bytes",
    "grown",  # rebuilds into a larger segment
    "dead_skipped",  # slots whose holder was dead inside
    "write_hold_since_ns",  # CLOCK_MONOTONIC, 0 = not held
    "write_wait_since_ns",  # CLOCK_MONOTONIC, 0 = nobody waits
    "kept",  # rejects that go on with their last good value
    "watch_event_ns",  # CLOCK_REALTIME of the last event of a watch, 0 = none yet
    "watch_progress_ns",  # CLOCK_REALTIME of that, or of etcd's word that there is none to send
    "relisted_ns",  # CLOCK_REALTIME of the last list compared in full
    "source_alarms",  # sources that have raised one: etcd's NOSPACE, CORRUPT
    "checks_up",  # targets of health checks that are up, or not known yet
    "checks_down",
    "check_flips",
    "checker_starts",
    "filter_bypasses",  # names at which a filter was left out, each time
    "names_unfiltered",  # those at which one is left out at present
    "held_changes",  # that wait for a decision
    "held_names",  # in them
    "held_since_ns",  # CLOCK_REALTIME of the oldest, 0 = none
    "rejected_names",  # answered against the source's word
    "pinned_names",  # that the source has changed since the table was pinned
    "pinned_revision",  # where it is pinned, if it is
    "pinned_since_ns",  # CLOCK_REALTIME, 0 = not pinned
    "snapshot_unwritable",  # files of the kind whose last write failed; of the kinds in STATE_KINDS
    "history_unwritable",
    "image_unwritable",
    "held_unwritable",
)

#: What the loader keeps in state_dir.
STATE_KINDS = ("snapshot", "history", "image", "held")

# ---------------------------------------------------------------- control segment, page 1

SUPERVISOR_PAGE = 1
SUPERVISOR_WORDS = _words(
    0,
    "supervisor_pid",
    "supervisor_started_ns",
    "supervisor_heartbeat_ns",
    "workers_wanted",
    "workers_started",
    "workers_died",
    "workers_condemned",
    "leaks_reported",  # R6: readers inside for longer than leak_after
    "metrics_errno",  # why metrics are not served, 0 = they are, or are not to be; the exporter's, once it runs
)

# ---------------------------------------------------------------- control segment, slot pages

FIRST_SLOT_PAGE = 2

SLOT_WORDS = {
    **_words(
        0,
        "kind",  # SlotKind, FREE when the holder left in order
        "pid",
        "started_ns",
        "gate",
        "worker",
        "counted_kind",  # whose counters these are: `kind`, of the last holder too
    ),
    # A line of its own: these two change twice a batch.
    **_words(64, "section", "since_ns"),
    **_words(
        128,
        "heartbeat_ns",
        "generation",
        "revision",
        "mapped_serial_0",
        "mapped_serial_1",
        "past_gate",  # R1: went past a gate that stayed taken
        "gate_waits",  # found the gate taken at first
        "gate_wait_max_ns",
        "hold_max_ns",
        "table_damaged",
        "declined",  # answered by the reference
        "receive_errors",
        "send_errors",
        "batches",
        "neighbour_batches",
        "waiting_since_ns",  # CLOCK_MONOTONIC, 0 = does not wait for its gate
        "certificate_expires_s",  # CLOCK_REALTIME; the stream worker's, 0 = has none
    ),
}

#: Counters of the answering code, one array of 8-byte words each, in the slot's page. The stream worker counts what
#: came encrypted in a second set.
COUNTERS = 512
ENCRYPTED_COUNTERS = 1024
COUNTER_ARRAYS = {
    "requests_family": 2,  # IPv4, IPv6
    "responses_rcode": 24,
    "requests_type": 16,  # index: COUNTED_TYPES, then "other"
    "dropped": 4,  # DropReason
    "truncated": 1,
    "request_bytes": 1,
    "response_bytes": 1,
    "edns": 1,
    "dnssec_ok": 1,
}
COUNTED_TYPES = (1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 52, 64, 65, 255, 257)

#: log2 histograms of nanoseconds, bucket i counts [2**i, 2**(i+1)); the last takes the rest.
HISTOGRAM_BUCKETS = 34
GATE_WAIT_HISTOGRAM = 2048
HOLD_HISTOGRAM = GATE_WAIT_HISTOGRAM + 8 * HISTOGRAM_BUCKETS
assert HOLD_HISTOGRAM + 8 * HISTOGRAM_BUCKETS <= PAGE

#: The writer's, in page 0: asked -> had all gates; had them -> let go; swapped -> every reader left.
WRITE_WAIT_HISTOGRAM = 2048
WRITE_HOLD_HISTOGRAM = WRITE_WAIT_HISTOGRAM + 8 * HISTOGRAM_BUCKETS
GRACE_HISTOGRAM = WRITE_HOLD_HISTOGRAM + 8 * HISTOGRAM_BUCKETS
assert GRACE_HISTOGRAM + 8 * HISTOGRAM_BUCKETS <= PAGE


class SlotKind(enum.IntEnum):
    """What holds a slot."""

    FREE = 0
    WORKER = 1
    STREAM = 2
    OTHER = 3  # a program that uses the lock for data of its own


class LoaderState(enum.IntEnum):
    """What the loader says of its source."""

    STARTING = 0
    LISTING = 1
    FRESH = 2
    STALE = 3  # the source is away; answers go on from the last good table
    STANDBY = 4


class DropReason(enum.IntEnum):
    """Why a datagram got no answer (RFC 9619 and common practice)."""

    SHORT = 0
    RESPONSE = 1
    UNANSWERABLE = 2
    LIMITED = 3  # response rate limiting


def counter_offsets(start: int = COUNTERS) -> dict[str, tuple[int, int]]:
    """Name -> (offset in the slot's page, number of words)."""
    result, offset = {}, start
    for name, length in COUNTER_ARRAYS.items():
        result[name] = (offset, length)
        offset += 8 * length
    assert offset <= (ENCRYPTED_COUNTERS if start < ENCRYPTED_COUNTERS else GATE_WAIT_HISTOGRAM)
    return result


def control_size(slots: int = SLOTS) -> int:
    """Bytes of a control segment."""
    return PAGE * (FIRST_SLOT_PAGE + slots)


def slot_page(slot: int) -> int:
    """Offset of a slot's page in the control segment."""
    return PAGE * (FIRST_SLOT_PAGE + slot)


# ---------------------------------------------------------------- table segment

#: Free lists: exact classes of 8..1024 bytes in steps of 8, then eight classes a power of two up to 32 MiB.
EXACT_CLASSES = 129
LARGE_CLASSES = 8 * 15
FREE_LISTS = EXACT_CLASSES + LARGE_CLASSES

HEADER_FIELDS = (
    ("magic", "8s"),
    ("layout_version", "I"),
    ("layout_check", "I"),
    ("segment_size", "Q"),
    ("serial", "Q"),
    ("generation", "Q"),
    ("revision", "Q"),
    ("hash_seed", "Q"),
    ("meta_offset", "Q"),
    ("meta_length", "Q"),
    ("index_offset", "Q"),
    ("index_slots", "Q"),
    ("heap_offset", "Q"),
    ("heap_end", "Q"),  # where the unused rest of the heap starts
    ("names", "Q"),
    ("free_bytes", "Q"),  # on the free lists
    ("free_lists", f"{FREE_LISTS}I"),
)
TABLE_HEADER = struct.Struct("=" + "".join(code for _, code in HEADER_FIELDS))
TABLE_HEADER_SIZE = 2048
assert TABLE_HEADER.size <= TABLE_HEADER_SIZE
META_SIZE = 64 * 1024 - TABLE_HEADER_SIZE

INDEX_ENTRY = struct.Struct("=II")
#: Index entries for each name: linear probing stays short (about 2 probes a hit, 5 a miss) up to two thirds full.
INDEX_FACTOR = 1.5

NODE_HEADER = struct.Struct("=IBBH")
DIRECTORY_ENTRY = struct.Struct("=HHH")
NEGATIVE_SOA = 0
#: Owner of every stored RR: a pointer to the question's name (RFC 1035 section 4.1.4).
OWNER_POINTER = b"\xc0\x0c"


class NodeFlag(enum.IntFlag):
    """What a node is besides its RRsets."""

    APEX = 1  # of a zone; has a NEGATIVE_SOA entry
    DELEGATION = 2  # NS below the apex: a zone cut
    WILDCARD_CHILD = 4  # `*` beneath it exists (RFC 4592)
    EMPTY = 8  # empty non-terminal: only names beneath it have RRsets
    BELOW_CUT = 16  # beneath a delegation: glue or occluded, never authoritative
    DNAME = 32  # names beneath it are redirected (RFC 6672)
    AGGREGATE = 64  # questions for its children `*` and `any` are for all that is beneath it: its own answer (SkyDNS)


def header_offsets() -> dict[str, int]:
    """Name -> offset in the table header."""
    result, offset = {}, 0
    for name, code in HEADER_FIELDS:
        result[name] = offset
        offset += struct.calcsize("=" + code)
    return result


def _check() -> int:
    """CRC-32 of every table above: two builds agree on it if and only if they agree on the format."""
    parts = (
        LAYOUT_VERSION, PAGE, SLOTS, LIVE, SIDE_SERIAL, LOADER_NOTE, LOADER_NOTE_SIZE, LOADER_WORDS,
        SUPERVISOR_PAGE, SUPERVISOR_WORDS, FIRST_SLOT_PAGE, SLOT_WORDS, counter_offsets(COUNTERS), COUNTED_TYPES,
        ENCRYPTED_COUNTERS, HISTOGRAM_BUCKETS,
        GATE_WAIT_HISTOGRAM, HOLD_HISTOGRAM, WRITE_WAIT_HISTOGRAM, WRITE_HOLD_HISTOGRAM,
        GRACE_HISTOGRAM, header_offsets(), TABLE_HEADER_SIZE, META_SIZE, FREE_LISTS,
        NODE_HEADER.format, DIRECTORY_ENTRY.format, INDEX_ENTRY.format, NEGATIVE_SOA, struct.calcsize("P"),
        *(sorted((name, int(member)) for name, member in kind.__members__.items())
          for kind in (SlotKind, LoaderState, DropReason, NodeFlag)),
    )  # fmt: skip
    return zlib.crc32(repr(parts).encode())


LAYOUT_CHECK = _check()
