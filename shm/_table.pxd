from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from shm.layout cimport index_entry, node_header, table_header

cdef enum:
    FOUND = 1
    MISSING = 0
    DAMAGED = -1

# What a lookup needs, taken once from a checked header; offsets in a damaged table are checked against it on every use.
cdef struct table_view:
    uint8_t *base
    uint64_t size
    index_entry *index
    uint64_t index_slots
    uint64_t heap_offset
    uint64_t seed

# A found node: pointers into the table, checked to lie inside it.
cdef struct node_ref:
    uint8_t *name
    uint8_t *directory
    uint8_t *rrsets
    uint8_t *end
    uint8_t name_length
    uint8_t types
    uint16_t flags

cdef struct rrset_ref:
    uint8_t *wire
    uint16_t count
    uint16_t length

cdef uint64_t hash_label(uint64_t h, const uint8_t *label) noexcept nogil
cdef uint32_t tag_of(uint64_t h) noexcept nogil
cdef void prefetch_index(table_view *t, uint32_t tag) noexcept nogil
cdef bint prefetch_node(table_view *t, uint32_t tag) noexcept nogil
cdef int lookup(table_view *t, const uint8_t *name, size_t length, uint32_t tag, node_ref *node) noexcept nogil
cdef int rrset_of(node_ref *node, uint16_t type, rrset_ref *rrset) noexcept nogil

cdef class Table:
    cdef Py_buffer buffer
    cdef bint held
    cdef table_view view
    cdef table_header *header
    cdef int check_open(self) except -1
    cdef uint32_t tag(self, bytes name) except? 0
    cdef uint32_t allocate(self, uint32_t units) except 0
    cdef void release(self, uint32_t offset, uint32_t units) noexcept
    cdef int check_writable(self) except -1
    cdef int64_t index_of(self, const uint8_t *name, size_t length, uint32_t tag) except -2
    cdef uint32_t tag_at(self, const uint8_t *p, Py_ssize_t length) except? 0
