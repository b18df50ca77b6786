# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False, cdivision=True
"""One table in a buffer: find, put, delete. Format and conditions of validity: shm/layout.py.

A reader may look at a table while nobody edits it (shm/rwlock.py sees to that); nothing here takes a lock. Every offset
read from the table is checked before use: a damaged table gives TableDamaged, never a read outside the segment.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from shm.layout cimport (
    DIRECTORY_ENTRY_SIZE, EXACT_CLASSES, FREE_LISTS, NODE_HEADER_SIZE, TABLE_HEADER_SIZE,
    directory_entry, index_entry, node_header, table_header,
)

import msgpack

from shm import layout
from shm.errors import LayoutMismatch, TableDamaged, TableFull

cdef extern from *:
    void __builtin_prefetch(const void *p) noexcept nogil

cdef enum:
    # Probes beyond this mean a damaged index: at two thirds full, runs are some dozens of entries at most.
    MOST_PROBES = 100000


# ---------------------------------------------------------------- lookup

cdef uint64_t hash_label(uint64_t h, const uint8_t *label) noexcept nogil:
    """Hash of the name whose rest hashes to `h` and whose first label is `label` (with its length byte, lower case).

    From the root leftwards, so that a name's hash gives those of all its ancestors on the way.
    """
    cdef uint64_t chunk
    cdef size_t left = <size_t>label[0] + 1
    while left >= 8:
        memcpy(&chunk, label, 8)
        h = (h ^ chunk) * <uint64_t>0x9E3779B97F4A7C15
        h ^= h >> 29
        label += 8
        left -= 8
    if left:
        chunk = 0
        memcpy(&chunk, label, left)
        h = (h ^ chunk) * <uint64_t>0x9E3779B97F4A7C15
        h ^= h >> 29
    return h * <uint64_t>0xBF58476D1CE4E5B9


cdef uint32_t tag_of(uint64_t h) noexcept nogil:
    return <uint32_t>(h >> 32)


cdef uint64_t home(uint64_t slots, uint32_t tag) noexcept nogil:
    return (<uint64_t>tag * slots) >> 32


cdef void prefetch_index(table_view *t, uint32_t tag) noexcept nogil:
    __builtin_prefetch(&t.index[home(t.index_slots, tag)])


cdef bint prefetch_node(table_view *t, uint32_t tag) noexcept nogil:
    """Bring in the node that a later lookup of `tag` will most likely read; the index entry should be there by now.

    False if there is most likely no such node.
    """
    cdef uint64_t i = home(t.index_slots, tag), at
    cdef int _probe
    for _probe in range(8):
        if t.index[i].offset == 0:
            return False
        if t.index[i].tag == tag:
            at = <uint64_t>t.index[i].offset * 8
            if at + 64 < t.size:
                __builtin_prefetch(t.base + at)
                __builtin_prefetch(t.base + at + 63)
            return True
        i += 1
        if i == t.index_slots:
            i = 0
    return True


cdef int open_node(table_view *t, uint32_t offset, node_ref *node) noexcept nogil:
    """Conditions 5 and 6 of the layout."""
    cdef uint64_t at = <uint64_t>offset * 8
    cdef node_header header
    cdef uint64_t block
    if at < t.heap_offset or at + NODE_HEADER_SIZE > t.size:
        return DAMAGED
    memcpy(&header, t.base + at, NODE_HEADER_SIZE)
    block = <uint64_t>header.units * 8
    if block > t.size - at:
        return DAMAGED
    if <uint64_t>NODE_HEADER_SIZE + header.name_length + <uint64_t>header.types * DIRECTORY_ENTRY_SIZE > block:
        return DAMAGED
    node.name = t.base + at + NODE_HEADER_SIZE
    node.name_length = header.name_length
    node.directory = node.name + header.name_length
    node.rrsets = node.directory + <size_t>header.types * DIRECTORY_ENTRY_SIZE
    node.end = t.base + at + block
    node.types = header.types
    node.flags = header.flags
    return FOUND


cdef int lookup(table_view *t, const uint8_t *name, size_t length, uint32_t tag, node_ref *node) noexcept nogil:
    """FOUND with `node` filled, MISSING, or DAMAGED. `name` is in lower case, `tag` its hash's."""
    cdef uint64_t i = home(t.index_slots, tag)
    cdef int _probe
    for _probe in range(MOST_PROBES):
        if t.index[i].offset == 0:
            return MISSING
        if t.index[i].tag == tag:
            if open_node(t, t.index[i].offset, node) == DAMAGED:
                return DAMAGED
            if node.name_length == length and memcmp(node.name, name, length) == 0:
                return FOUND
        i += 1
        if i == t.index_slots:
            i = 0
    return DAMAGED


cdef int rrset_of(node_ref *node, uint16_t type, rrset_ref *rrset) noexcept nogil:
    """FOUND with `rrset` filled, MISSING, or DAMAGED."""
    cdef uint8_t *entry = node.directory
    cdef uint8_t *wire = node.rrsets
    cdef directory_entry e
    cdef int _entry
    for _entry in range(node.types):
        memcpy(&e, entry, DIRECTORY_ENTRY_SIZE)
        if wire + e.length > node.end:
            return DAMAGED
        if e.type == type:
            rrset.wire = wire
            rrset.count = e.count
            rrset.length = e.length
            return FOUND
        wire += e.length
        entry += DIRECTORY_ENTRY_SIZE
    return MISSING


# ---------------------------------------------------------------- blocks

cdef uint32_t class_of(uint32_t units) noexcept nogil:
    """The free list of blocks of exactly `round_up(units)` units."""
    cdef uint32_t shift
    if units < EXACT_CLASSES:
        return units
    shift = 31 - <uint32_t>__builtin_clz(units - 1)          # 7.. : 2**shift < units <= 2**(shift+1)
    return EXACT_CLASSES + (shift - 7) * 8 + ((units - 1 - (<uint32_t>1 << shift)) >> (shift - 3))


cdef uint32_t round_up(uint32_t units) noexcept nogil:
    """Blocks over 1 KiB come in eight sizes a power of two: at most 12.5 % is lost, and a freed one fits again."""
    cdef uint32_t shift, step
    if units < EXACT_CLASSES:
        return units
    shift = 31 - <uint32_t>__builtin_clz(units - 1)
    step = <uint32_t>1 << (shift - 3)
    return (units + step - 1) / step * step


cdef extern from *:
    int __builtin_clz(unsigned int x) noexcept nogil


cdef const uint8_t *name_in(bytes block, node_header *header) except NULL:
    """Where a block's name is; fills the header. Raises ValueError."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
    if size < NODE_HEADER_SIZE:
        raise ValueError("not a node block")
    memcpy(header, PyBytes_AS_STRING(block), NODE_HEADER_SIZE)
    if <Py_ssize_t>header.units * 8 != size or NODE_HEADER_SIZE + header.name_length > size:
        raise ValueError("not a node block")
    return <const uint8_t *>PyBytes_AS_STRING(block) + NODE_HEADER_SIZE


cdef class Table:
    """A table over `buffer`. Checks the header (conditions 1 to 4); raises TableDamaged or LayoutMismatch."""

    def __cinit__(self):
        self.held = False

    def __init__(self, buffer, bint writable=False):
        PyObject_GetBuffer(buffer, &self.buffer, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True
        self.header = <table_header *>self.buffer.buf
        cdef uint64_t size = <uint64_t>self.buffer.len
        if size < TABLE_HEADER_SIZE or self.header.magic[:8] != layout.TABLE_MAGIC:
            raise TableDamaged("not a table: too short, or another magic")
        if self.header.layout_version != layout.LAYOUT_VERSION or self.header.layout_check != layout.LAYOUT_CHECK:
            raise LayoutMismatch(
                "the table was written by another version of Standoff; restart loader and server together"
            )
        cdef table_header *h = self.header
        if h.segment_size != size:
            raise TableDamaged(f"the table says {h.segment_size} bytes, the segment has {size}")
        if not (
            TABLE_HEADER_SIZE <= h.meta_offset <= size and h.meta_length <= size - h.meta_offset
            and h.meta_offset + h.meta_length <= h.index_offset <= size and h.index_offset % 8 == 0
            and 1 <= h.index_slots <= (size - h.index_offset) / 8
            and h.index_offset + 8 * h.index_slots <= h.heap_offset <= size
        ):
            raise TableDamaged("the table's parts do not lie inside it in their order")
        self.view.base = <uint8_t *>self.buffer.buf
        self.view.size = size
        self.view.index = <index_entry *>(self.view.base + h.index_offset)
        self.view.index_slots = h.index_slots
        self.view.heap_offset = h.heap_offset
        self.view.seed = h.hash_seed

    def __dealloc__(self):
        self.close()

    def close(self):
        """Give the buffer back; every later use raises ValueError."""
        if self.held:
            self.held = False
            PyBuffer_Release(&self.buffer)

    cdef int check_open(self) except -1:
        if not self.held:
            raise ValueError("the table is closed")
        return 0

    @staticmethod
    def format(buffer, uint64_t serial, uint64_t seed, uint64_t names, meta):
        """Lay an empty table for about `names` names into a zeroed buffer; the rest of it is the heap."""
        packed = msgpack.packb(meta)
        if len(packed) > layout.META_SIZE:
            raise TableFull(f"the table's description takes {len(packed)} bytes, at most {layout.META_SIZE} fit")
        slots = max(64, int(names * layout.INDEX_FACTOR) + 1)
        index = TABLE_HEADER_SIZE + layout.META_SIZE
        heap = index + 8 * slots
        view = memoryview(buffer).cast("B")
        if heap + 64 > len(view):
            raise TableFull(f"an index for {names} names does not fit into {len(view)} bytes")
        view[TABLE_HEADER_SIZE:TABLE_HEADER_SIZE + len(packed)] = packed
        layout.TABLE_HEADER.pack_into(
            view, 0, layout.TABLE_MAGIC, layout.LAYOUT_VERSION, layout.LAYOUT_CHECK, len(view), serial, 0, 0, seed,
            TABLE_HEADER_SIZE, len(packed), index, slots, heap, heap, 0, 0, *([0] * FREE_LISTS),
        )

    # ---- what it is

    @property
    def serial(self):
        self.check_open()
        return self.header.serial

    @property
    def generation(self):
        """Counts swaps; set when the table's last edit was complete."""
        self.check_open()
        return self.header.generation

    @property
    def revision(self):
        """Of the source."""
        self.check_open()
        return self.header.revision

    @property
    def names(self):
        self.check_open()
        return self.header.names

    @property
    def size(self):
        """Bytes of the segment."""
        return self.view.size

    @property
    def used(self):
        """Bytes in use: header, meta, index, and live blocks."""
        self.check_open()
        return self.header.heap_end - self.header.free_bytes

    @property
    def meta(self):
        """What `format` or `describe` was given. Raises TableDamaged."""
        self.check_open()
        cdef uint64_t start = self.header.meta_offset, length = self.header.meta_length
        if start > self.view.size or length > self.view.size - start:  # again: `describe` moves the length
            raise TableDamaged(f"table {self.header.serial}: its description does not lie inside it")
        try:
            return msgpack.unpackb(PyBytes_FromStringAndSize(<char *>self.view.base + start, <Py_ssize_t>length))
        except (ValueError, msgpack.UnpackException) as error:
            raise TableDamaged(f"table {self.header.serial}: its description cannot be read: {error!r}") from error

    def stamp(self, uint64_t generation, uint64_t revision, serial=None):
        self.check_writable()
        self.header.generation = generation
        self.header.revision = revision
        if serial is not None:
            self.header.serial = serial

    def describe(self, meta):
        """Replace the meta block. Raises TableFull if it takes more than META_SIZE bytes."""
        self.check_writable()
        cdef bytes packed = msgpack.packb(meta)
        if len(packed) > layout.META_SIZE:
            raise TableFull(f"the table's description takes {len(packed)} bytes, at most {layout.META_SIZE} fit")
        memcpy(self.view.base + self.header.meta_offset, PyBytes_AS_STRING(packed), <size_t>len(packed))
        self.header.meta_length = len(packed)

    # ---- read

    cdef uint32_t tag(self, bytes name) except? 0:
        """Hash tag of a name in lower-case wire form. Raises ValueError if it is not a name."""
        return self.tag_at(<const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    cdef uint32_t tag_at(self, const uint8_t *p, Py_ssize_t length) except? 0:
        cdef Py_ssize_t at = 0
        cdef int labels = 0
        cdef uint8_t starts[128]
        while at < length and p[at] != 0:
            if p[at] > 63 or at > 254 or labels == 127:
                raise ValueError("not a name in wire form")
            starts[labels] = <uint8_t>at
            labels += 1
            at += p[at] + 1
        if at != length - 1 or length > 255:
            raise ValueError("not a name in wire form")
        cdef uint64_t h = self.view.seed
        while labels > 0:
            labels -= 1
            h = hash_label(h, p + starts[labels])
        return tag_of(h)

    def find(self, bytes name):
        """The packed node block of a name (shm.node.unpack), or None. Raises TableDamaged."""
        self.check_open()
        cdef node_ref node
        cdef int result = lookup(
            &self.view, <const uint8_t *>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name), self.tag(name), &node
        )
        if result == MISSING:
            return None
        if result == DAMAGED:
            raise TableDamaged(f"table {self.header.serial}: the node of {name!r} breaks the layout")
        cdef uint8_t *start = node.name - NODE_HEADER_SIZE
        return PyBytes_FromStringAndSize(<char *>start, node.end - start)

    def same(self, bytes block):
        """Whether the node of the block's name is this one, but for the padding of its place. Raises TableDamaged,
        ValueError."""
        self.check_open()
        cdef node_header header
        cdef const uint8_t *name = name_in(block, &header)
        cdef int64_t i = self.index_of(name, header.name_length, self.tag_at(name, header.name_length))
        cdef size_t size = <size_t>PyBytes_GET_SIZE(block)
        cdef uint8_t *at
        if i < 0:
            return False
        at = self.view.base + <uint64_t>self.view.index[i].offset * 8  # index_of has looked: the node ends inside
        return (<node_header *>at).units == round_up(header.units) and memcmp(
            at + 4, PyBytes_AS_STRING(block) + 4, size - 4  # behind `units`
        ) == 0

    def blocks(self):
        """Every node block, in the index's order. Raises TableDamaged."""
        self.check_open()
        cdef uint64_t i
        cdef node_ref node
        cdef uint8_t *start
        for i in range(self.view.index_slots):
            self.check_open()  # again: a generator may be resumed after `close`
            if self.view.index[i].offset:
                if open_node(&self.view, self.view.index[i].offset, &node) == DAMAGED:
                    raise TableDamaged(f"table {self.header.serial}: index entry {i} leads nowhere")
                start = node.name - NODE_HEADER_SIZE
                yield PyBytes_FromStringAndSize(<char *>start, node.end - start)

    # ---- write (the loader, on the inactive side only)

    cdef int check_writable(self) except -1:
        self.check_open()
        if self.buffer.readonly:
            raise TypeError("the table is mapped read-only")
        return 0

    def put(self, bytes block):
        """Insert or replace the node of `block` (shm.node.pack). Raises TableFull, with the table as it was."""
        self.check_writable()
        cdef node_header header
        cdef const uint8_t *name = name_in(block, &header)
        cdef uint32_t tag = self.tag_at(name, header.name_length), old_units, offset, units
        cdef int64_t i = self.index_of(name, header.name_length, tag)
        if i < 0 and self.header.names + 1 > self.view.index_slots * 3 / 4:
            raise TableFull(f"{self.header.names} names fill the index")
        units = round_up(header.units)
        offset = self.allocate(units)
        memcpy(self.view.base + <uint64_t>offset * 8, PyBytes_AS_STRING(block), <size_t>PyBytes_GET_SIZE(block))
        (<node_header *>(self.view.base + <uint64_t>offset * 8)).units = units
        if i >= 0:
            old_units = (<node_header *>(self.view.base + <uint64_t>self.view.index[i].offset * 8)).units
            self.release(self.view.index[i].offset, old_units)
            self.view.index[i].offset = offset
            return
        i = <int64_t>home(self.view.index_slots, tag)
        while self.view.index[i].offset:
            i += 1
            if <uint64_t>i == self.view.index_slots:
                i = 0
        self.view.index[i].tag = tag
        self.view.index[i].offset = offset
        self.header.names += 1

    def delete(self, bytes name):
        """Remove a name's node; False if there is none."""
        self.check_writable()
        cdef int64_t i = self.index_of(
            <const uint8_t *>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name), self.tag(name)
        )
        if i < 0:
            return False
        cdef node_header *node = <node_header *>(self.view.base + <uint64_t>self.view.index[i].offset * 8)
        self.release(self.view.index[i].offset, node.units)
        self.header.names -= 1
        # Shift back: an entry may move up to the gap if its home is not between gap and entry.
        cdef uint64_t slots = self.view.index_slots, gap = <uint64_t>i, at = <uint64_t>i, origin
        while True:
            at += 1
            if at == slots:
                at = 0
            if self.view.index[at].offset == 0:
                break
            origin = home(slots, self.view.index[at].tag)
            if (at - origin if at >= origin else at + slots - origin) >= (at - gap if at >= gap else at + slots - gap):
                self.view.index[gap] = self.view.index[at]
                gap = at
        self.view.index[gap].offset = 0
        self.view.index[gap].tag = 0
        return True

    cdef int64_t index_of(self, const uint8_t *name, size_t length, uint32_t tag) except -2:
        """Index entry of a name, -1 if it is not there. Raises TableDamaged."""
        cdef uint64_t i = home(self.view.index_slots, tag)
        cdef node_ref node
        cdef int _probe
        for _probe in range(MOST_PROBES):
            if self.view.index[i].offset == 0:
                return -1
            if self.view.index[i].tag == tag:
                if open_node(&self.view, self.view.index[i].offset, &node) == DAMAGED:
                    raise TableDamaged(f"table {self.header.serial}: index entry {i} leads nowhere")
                if node.name_length == length and memcmp(node.name, name, length) == 0:
                    return <int64_t>i
            i += 1
            if i == self.view.index_slots:
                i = 0
        raise TableDamaged(f"table {self.header.serial}: the index is full")

    def clone_into(self, buffer):
        """Copy the whole table into a zeroed buffer of the same size. Raises ValueError if it has another size."""
        self.check_open()
        cdef Py_buffer target
        PyObject_GetBuffer(buffer, &target, PyBUF_WRITABLE)
        try:
            if <uint64_t>target.len != self.view.size:
                raise ValueError(f"a buffer of {target.len} bytes for a table of {self.view.size}")
            memcpy(target.buf, self.view.base, self.header.heap_end)
        finally:
            PyBuffer_Release(&target)

    def copy_from(self, Table other):
        """Put every node of another table. Raises TableFull, TableDamaged."""
        for block in other.blocks():
            self.put(block)

    cdef uint32_t allocate(self, uint32_t units) except 0:
        """A block of exactly `units` (rounded by the caller) units; its offset."""
        cdef uint32_t list_ = class_of(units), offset
        cdef uint64_t bytes_ = <uint64_t>units * 8
        if list_ >= FREE_LISTS:
            raise TableFull(f"a node of {bytes_} bytes is more than a table holds")
        offset = self.header.free_lists[list_]
        if offset:
            memcpy(&self.header.free_lists[list_], self.view.base + <uint64_t>offset * 8, 4)
            self.header.free_bytes -= bytes_
            return offset
        if bytes_ > self.view.size - self.header.heap_end:
            raise TableFull(f"{self.header.names} names fill the heap of {self.view.size} bytes")
        offset = <uint32_t>(self.header.heap_end / 8)
        self.header.heap_end += bytes_
        return offset

    cdef void release(self, uint32_t offset, uint32_t units) noexcept:
        cdef uint32_t list_ = class_of(units)
        memcpy(self.view.base + <uint64_t>offset * 8, &self.header.free_lists[list_], 4)
        self.header.free_lists[list_] = offset
        self.header.free_bytes += <uint64_t>units * 8


def c_layout():
    """Sizes and offsets as the compiler sees them, for tests/unit/test_layout.py."""
    cdef table_header h
    cdef char *base = <char *>&h
    return {
        "header_size": sizeof(table_header),
        "node_header": sizeof(node_header),
        "directory_entry": sizeof(directory_entry),
        "index_entry": sizeof(index_entry),
        "free_lists": FREE_LISTS,
        "header": {
            "magic": <char *>&h.magic - base, "layout_version": <char *>&h.layout_version - base,
            "layout_check": <char *>&h.layout_check - base, "segment_size": <char *>&h.segment_size - base,
            "serial": <char *>&h.serial - base, "generation": <char *>&h.generation - base,
            "revision": <char *>&h.revision - base, "hash_seed": <char *>&h.hash_seed - base,
            "meta_offset": <char *>&h.meta_offset - base, "meta_length": <char *>&h.meta_length - base,
            "index_offset": <char *>&h.index_offset - base, "index_slots": <char *>&h.index_slots - base,
            "heap_offset": <char *>&h.heap_offset - base, "heap_end": <char *>&h.heap_end - base,
            "names": <char *>&h.names - base, "free_bytes": <char *>&h.free_bytes - base,
            "free_lists": <char *>&h.free_lists - base,
        },
    }
