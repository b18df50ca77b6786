# The C view of shm/layout.py. tests/unit/test_layout.py asserts that the two agree.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    EXACT_CLASSES = 129
    LARGE_CLASSES = 8 * 15
    FREE_LISTS = EXACT_CLASSES + LARGE_CLASSES
    TABLE_HEADER_SIZE = 2048
    NODE_HEADER_SIZE = 8
    DIRECTORY_ENTRY_SIZE = 6
    NEGATIVE_SOA = 0

cdef enum:
    FLAG_APEX = 1
    FLAG_DELEGATION = 2
    FLAG_WILDCARD_CHILD = 4
    FLAG_EMPTY = 8
    FLAG_BELOW_CUT = 16
    FLAG_DNAME = 32
    FLAG_AGGREGATE = 64

cdef packed struct table_header:
    char magic[8]
    uint32_t layout_version
    uint32_t layout_check
    uint64_t segment_size
    uint64_t serial
    uint64_t generation
    uint64_t revision
    uint64_t hash_seed
    uint64_t meta_offset
    uint64_t meta_length
    uint64_t index_offset
    uint64_t index_slots
    uint64_t heap_offset
    uint64_t heap_end
    uint64_t names
    uint64_t free_bytes
    uint32_t free_lists[FREE_LISTS]

cdef struct index_entry:
    uint32_t tag
    uint32_t offset

cdef packed struct node_header:
    uint32_t units
    uint8_t name_length
    uint8_t types
    uint16_t flags

cdef packed struct directory_entry:
    uint16_t type
    uint16_t count
    uint16_t length
