# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""Node blocks of names with one gift, which most are, compiled. Others are the long way's matter: loader/compiler.py.
tests/unit/test_short.py compares the two.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from loader._books cimport Books
from loader._short cimport MAX_NAME, Plain, name_into
from shm.layout cimport DIRECTORY_ENTRY_SIZE, NODE_HEADER_SIZE, directory_entry, node_header

from loader._short import SRV_HEAD

cdef enum:
    TYPE_A = 1
    TYPE_AAAA = 28
    TYPE_SRV = 33
    RR_HEAD = 12
    SRV_SIZE = 6
    FIRST_RR = 3                   # loader/compiler.py: Gift

cdef const uint8_t *_SRV_HEAD = <const uint8_t *>PyBytes_AS_STRING(SRV_HEAD)


cdef uint8_t *put16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value
    return at + 2


cdef uint8_t *put_head(uint8_t *at, uint32_t type_, uint32_t ttl, uint32_t size) noexcept nogil:
    """What is in front of an RR's data."""
    at = put16(at, 0xC00C)                             # the owner: where the question's name is
    at = put16(at, type_)
    at = put16(at, 1)                                  # IN
    at = put16(put16(at, ttl >> 16), ttl)
    return put16(at, size)


cdef uint8_t *put_entry(uint8_t *at, uint32_t type_, Py_ssize_t count, Py_ssize_t length) noexcept nogil:
    cdef directory_entry entry
    entry.type, entry.count, entry.length = <uint16_t>type_, <uint16_t>count, <uint16_t>length
    memcpy(at, &entry, DIRECTORY_ENTRY_SIZE)
    return at + DIRECTORY_ENTRY_SIZE


cdef uint8_t *begin(bytes made, bytes name, int flags, int types, Py_ssize_t size) noexcept:
    """The head of a node of `size` octets, which are rounded up; where its directory begins."""
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(made)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(name)
    cdef node_header header
    memset(at + size, 0, PyBytes_GET_SIZE(made) - size)
    header.units = <uint32_t>(PyBytes_GET_SIZE(made) >> 3)
    header.name_length, header.types, header.flags = <uint8_t>length, <uint8_t>types, <uint16_t>flags
    memcpy(at, &header, NODE_HEADER_SIZE)
    memcpy(at + NODE_HEADER_SIZE, PyBytes_AS_STRING(name), length)
    return at + NODE_HEADER_SIZE + length


cdef Py_ssize_t whole_units(Py_ssize_t size) noexcept nogil:
    return (size + 7) & ~7


cdef bytes plain_block(bytes name, int flags, Plain plain):
    cdef uint8_t octets[MAX_NAME + 1]
    cdef int length
    cdef Py_ssize_t size = NODE_HEADER_SIZE + PyBytes_GET_SIZE(name) + 2 * (DIRECTORY_ENTRY_SIZE + RR_HEAD)
    cdef uint8_t *at
    cdef bytes made
    cdef uint32_t type_ = TYPE_A if plain.size == 4 else TYPE_AAAA
    if plain.text is not None:
        return gift_block(name, flags, plain.gift())
    length = name_into(plain, octets) - plain.skipped
    size += plain.size + SRV_SIZE + length
    made = PyBytes_FromStringAndSize(NULL, whole_units(size))
    at = begin(made, name, flags, 2, size)
    at = put_entry(put_entry(at, type_, 1, RR_HEAD + plain.size), TYPE_SRV, 1, RR_HEAD + SRV_SIZE + length)
    at = put_head(at, type_, plain.ttl, plain.size)
    memcpy(at, plain.octets, plain.size)
    at = put_head(at + plain.size, TYPE_SRV, plain.ttl, SRV_SIZE + length)
    memcpy(at, _SRV_HEAD, SRV_SIZE)
    memcpy(at + SRV_SIZE, octets + plain.skipped, length)
    return made


cdef bytes gift_block(bytes name, int flags, tuple gift):
    cdef Py_ssize_t parts = len(gift), size = NODE_HEADER_SIZE + PyBytes_GET_SIZE(name), i
    cdef uint8_t *at
    cdef bytes made, data
    if parts == FIRST_RR + 6 and gift[FIRST_RR] > gift[FIRST_RR + 3]:
        gift = gift[:FIRST_RR] + gift[FIRST_RR + 3 :] + gift[FIRST_RR : FIRST_RR + 3]
    if parts != FIRST_RR + 3 and (parts != FIRST_RR + 6 or gift[FIRST_RR] == gift[FIRST_RR + 3]):
        return None
    for i in range(FIRST_RR, parts, 3):
        data = gift[i + 2]
        size += DIRECTORY_ENTRY_SIZE + RR_HEAD + PyBytes_GET_SIZE(data)
    made = PyBytes_FromStringAndSize(NULL, whole_units(size))
    at = begin(made, name, flags, <int>((parts - FIRST_RR) // 3), size)
    for i in range(FIRST_RR, parts, 3):
        data = gift[i + 2]
        at = put_entry(at, gift[i], 1, RR_HEAD + PyBytes_GET_SIZE(data))
    for i in range(FIRST_RR, parts, 3):
        data = gift[i + 2]
        at = put_head(at, gift[i], gift[i + 1], <uint32_t>PyBytes_GET_SIZE(data))
        memcpy(at, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        at += PyBytes_GET_SIZE(data)
    return made


cdef bytes shared_block(bytes name, int flags, list plains):
    """Of several keys with the same TTL, in their order."""
    cdef dict sets = {}
    cdef Py_ssize_t size = NODE_HEADER_SIZE + PyBytes_GET_SIZE(name), i
    cdef Plain plain = plains[0]
    cdef uint32_t ttl = plain.ttl
    cdef uint8_t *at
    cdef bytes made, data
    for plain in plains:
        gift = plain.gift(len(plains))
        for i in range(FIRST_RR, len(gift), 3):
            sets.setdefault(gift[i], {})[gift[i + 2]] = None
    types = sorted(sets)
    for type_ in types:
        size += DIRECTORY_ENTRY_SIZE + sum([RR_HEAD + len(data) for data in sets[type_]])
    made = PyBytes_FromStringAndSize(NULL, whole_units(size))
    at = begin(made, name, flags, <int>len(types), size)
    for type_ in types:
        at = put_entry(at, type_, len(sets[type_]), sum([RR_HEAD + len(data) for data in sets[type_]]))
    for type_ in types:
        for data in sets[type_]:
            at = put_head(at, type_, ttl, <uint32_t>PyBytes_GET_SIZE(data))
            memcpy(at, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            at += PyBytes_GET_SIZE(data)
    return made


def block(bytes name, int flags, held):
    """compiler.node of a name that is given this alone: a Plain, several with the same TTL, a gift. None: the long way,
    for it is something else, or a gift with more than two types, or with several RRs of a type."""
    if type(held) is Plain:
        return plain_block(name, flags, <Plain>held)
    if type(held) is tuple:
        return gift_block(name, flags, <tuple>held)
    if type(held) is list and type((<list>held)[0]) is Plain:
        return shared_block(name, flags, <list>held)
    return None


cdef bint has_star(children, bytes name) except -1:
    """Whether a name's child is `*`, or one of them is."""
    if type(children) is bytes:
        return PyBytes_GET_SIZE(<bytes>children) > 1 and memcmp(PyBytes_AS_STRING(<bytes>children), b"\x01*", 2) == 0
    return b"\x01*" + name in <set>children


def blocks(Books books, outside, int wildcard, int aggregate, list left):
    """The nodes of all names with one gift, where there is neither cut nor DNAME; the others are appended to `left`.

    wildcard, aggregate: the flags of names with a child `*`, and of aggregates. outside: names that no zone encloses.
    """
    cdef bytes name
    cdef int flags
    for name, held in books.gifts_to.items():
        made = None
        if type(held) is not dict and name not in books.zones and name not in books.nothing:
            if name in outside:
                continue
            children = books.children.get(name)
            flags = wildcard if children is not None and has_star(children, name) else 0
            made = block(name, flags | aggregate if name in books.aggregates else flags, held)
        if made is None:
            left.append(name)
        else:
            yield made
