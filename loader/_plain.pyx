# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""The short way from a key of schema records to a gift, compiled: for addresses, which most keys hold.

It takes what is usual and declines everything else; then the long way decides, and says what is wrong:
loader/records.py, loader/zone.py. tests/unit/test_plain.py compares the two.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp, memcpy

from loader import names

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET
    int AF_INET6
    int inet_pton(int family, const char *text, void *address)

cdef enum:
    TYPE_A = 1
    TYPE_AAAA = 28
    IP = 0                  # either
    MAX_NAME = 255
    MAX_LABEL = 63
    MAX_ADDRESS = 45        # characters: IPv6 with an IPv4 tail
    MOST = 64               # addresses of a key
    NONE_GIVEN = -1

#: One object for each TTL, as most keys share theirs.
cdef dict _TTLS = {}

cdef object _A = TYPE_A
cdef object _AAAA = TYPE_AAAA


cdef struct address_t:
    int size                # 4 or 16
    uint8_t octets[16]


cdef struct value_t:
    long ttl                # or NONE_GIVEN
    int count
    address_t addresses[MOST]


cdef class Short:
    """Keys under one prefix of etcd."""

    cdef bytes base
    cdef str prefix
    cdef long default_ttl
    cdef bytes zone_text    # of the key before
    cdef bytes zone

    def __init__(self, str base, str prefix, long default_ttl):
        """base: what all keys begin with, its last slash included. prefix: what goes before a key in its gift.
        default_ttl: in seconds, of values that give none."""
        self.base = base.encode()
        self.prefix = prefix
        self.default_ttl = default_ttl
        self.zone_text = b""
        self.zone = b""

    def gift(self, str key, bytes value, object revision):
        """(name, gift: loader/compiler.py) of a key; None: the long way."""
        cdef Py_ssize_t size, zone_size, owner_size
        cdef const char *text
        cdef const char *end
        cdef const char *owner
        cdef const char *type_
        cdef uint8_t name[MAX_NAME + 1]
        cdef value_t found
        cdef int wanted, length
        if not key.isascii():
            return None
        text = PyUnicode_AsUTF8AndSize(key, &size)
        end = text + size
        if size <= PyBytes_GET_SIZE(self.base) or memcmp(text, PyBytes_AS_STRING(self.base), len(self.base)):
            return None
        text += PyBytes_GET_SIZE(self.base)
        owner = <const char *>memchr(text, c"/", end - text)
        if owner == NULL:
            return None
        zone_size = owner - text
        owner += 1
        type_ = <const char *>memchr(owner, c"/", end - owner)
        if type_ == NULL:
            return None
        owner_size = type_ - owner
        type_ += 1
        wanted = type_of(type_, end - type_)
        if wanted < 0 or not self.know_zone(text, zone_size):
            return None
        length = read_owner(owner, owner_size, self.zone, name)
        if length == 0 or not read_value(value, wanted, &found):
            return None
        return PyBytes_FromStringAndSize(<char *>name, length), self.made(key, revision, &found)

    cdef bint know_zone(self, const char *text, Py_ssize_t size) except -1:
        """Whether the text is a zone's name; `zone` is it then. Most keys follow another of the same zone."""
        cdef bytes raw
        if PyBytes_GET_SIZE(self.zone_text) == size and memcmp(PyBytes_AS_STRING(self.zone_text), text, size) == 0:
            return size > 0
        raw = text[:size]
        if raw == b"@" or raw == b"":
            return False
        try:
            self.zone = names.from_text(raw.decode())
        except names.BadName:
            return False
        self.zone_text = raw
        return True

    cdef tuple made(self, str key, object revision, value_t *found):
        cdef tuple gift = PyTuple_New(3 + 3 * found.count)
        cdef object ttl = shared_ttl(self.default_ttl if found.ttl == NONE_GIVEN else found.ttl)
        cdef int i
        put(gift, 0, self.prefix + key if self.prefix else key)
        put(gift, 1, revision)
        put(gift, 2, self.zone)
        for i in range(found.count):
            put(gift, 3 + 3 * i, _A if found.addresses[i].size == 4 else _AAAA)
            put(gift, 4 + 3 * i, ttl)
            put(gift, 5 + 3 * i, PyBytes_FromStringAndSize(
                <char *>found.addresses[i].octets, found.addresses[i].size
            ))
        return gift


cdef void put(tuple gift, Py_ssize_t at, object item):
    Py_INCREF(item)                 # the tuple's: it takes the reference over
    PyTuple_SET_ITEM(gift, at, item)


cdef object shared_ttl(long ttl):
    cdef object made = ttl
    return _TTLS.setdefault(made, made) if len(_TTLS) < 1000 else _TTLS.get(made, made)


cdef int type_of(const char *text, Py_ssize_t size) noexcept nogil:
    """What a key may hold; -1: the long way."""
    if size == 1 and text[0] == c"A":
        return TYPE_A
    if size == 4 and memcmp(text, b"AAAA", 4) == 0:
        return TYPE_AAAA
    if size == 2 and memcmp(text, b"IP", 2) == 0:
        return IP
    return -1


cdef int read_owner(const char *text, Py_ssize_t size, bytes zone, uint8_t *name) noexcept:
    """Labels of letters, digits, `-` and `_` in lower case, and the zone, into `name`; its length, 0: the long way."""
    cdef Py_ssize_t i, zone_size = PyBytes_GET_SIZE(zone)
    cdef int start = 0, at = 1
    cdef char c
    if size < 1 or size + 1 + zone_size > MAX_NAME:
        return 0
    for i in range(size):
        c = text[i]
        if c == c".":
            if not 1 <= at - start - 1 <= MAX_LABEL:
                return 0
            name[start] = <uint8_t>(at - start - 1)
            start = at
        elif c"A" <= c <= c"Z":
            name[at] = <uint8_t>(c + 32)
        elif c"a" <= c <= c"z" or c"0" <= c <= c"9" or c == c"-" or c == c"_":
            name[at] = <uint8_t>c
        else:
            return 0
        at += 1
    if not 1 <= at - start - 1 <= MAX_LABEL:       # also a name that ends in a dot: it is absolute
        return 0
    name[start] = <uint8_t>(at - start - 1)
    memcpy(name + at, PyBytes_AS_STRING(zone), zone_size)
    return <int>(at + zone_size)


# ---------------------------------------------------------------- values

cdef bint read_value(bytes value, int wanted, value_t *found) noexcept:
    """An address, a JSON string, a list of them, or an object with ttl and data. False: the long way."""
    cdef const char *at = PyBytes_AS_STRING(value)
    cdef const char *end = at + PyBytes_GET_SIZE(value)
    found.count = 0
    found.ttl = NONE_GIVEN
    at = skip_space(at, end)
    while end > at and is_space((end - 1)[0]):
        end -= 1
    if at == end:
        return False
    if at[0] == c"{":
        return read_object(at + 1, end, wanted, found)
    if at[0] == c'"' or at[0] == c"[":
        return read_data(at, end, wanted, found) == end
    return add_address(at, end - at, wanted, found)


cdef bint is_space(char c) noexcept nogil:
    return c == c" " or c == c"\n" or c == c"\t" or c == c"\r"


cdef const char *skip_space(const char *at, const char *end) noexcept nogil:
    while at < end and is_space(at[0]):
        at += 1
    return at


cdef bint read_object(const char *at, const char *end, int wanted, value_t *found) noexcept nogil:
    """`at` is behind the brace. Two fields, in any order, each once at most."""
    while True:
        at = skip_space(at, end)
        if end - at > 6 and memcmp(at, b'"data"', 6) == 0 and found.count == 0:
            at = read_data(behind_colon(at + 6, end), end, wanted, found)
        elif end - at > 5 and memcmp(at, b'"ttl"', 5) == 0 and found.ttl == NONE_GIVEN:
            at = read_number(behind_colon(at + 5, end), end, &found.ttl)
        else:
            return False
        if at == NULL:
            return False
        at = skip_space(at, end)
        if at == end:
            return False
        if at[0] == c"}":
            return at + 1 == end and found.count > 0
        if at[0] != c",":
            return False
        at += 1


cdef const char *behind_colon(const char *at, const char *end) noexcept nogil:
    """Where the value begins; `end` if there is no colon: nothing is read from there."""
    at = skip_space(at, end)
    if at == end or at[0] != c":":
        return end
    return skip_space(at + 1, end)


cdef const char *read_number(const char *at, const char *end, long *number) noexcept nogil:
    """Behind an integer of one to nine digits; NULL: the long way."""
    cdef const char *start = at
    number[0] = 0
    while at < end and c"0" <= at[0] <= c"9" and at - start < 10:
        number[0] = number[0] * 10 + (at[0] - c"0")
        at += 1
    if at == start or at - start > 9 or (start[0] == c"0" and at - start > 1):
        return NULL
    return at


cdef const char *read_data(const char *at, const char *end, int wanted, value_t *found) noexcept nogil:
    """Behind a string or a list of strings; NULL: the long way."""
    if at == end:
        return NULL
    if at[0] == c'"':
        return read_string(at, end, wanted, found)
    if at[0] != c"[":
        return NULL
    at += 1
    while True:
        at = skip_space(at, end)
        at = read_string(at, end, wanted, found)
        if at == NULL:
            return NULL
        at = skip_space(at, end)
        if at == end:
            return NULL
        if at[0] == c"]":
            return at + 1
        if at[0] != c",":
            return NULL
        at += 1


cdef const char *read_string(const char *at, const char *end, int wanted, value_t *found) noexcept nogil:
    """Behind a string that is an address; NULL: the long way."""
    cdef const char *close
    if at == end or at[0] != c'"':
        return NULL
    at += 1
    close = <const char *>memchr(at, c'"', end - at)
    if close == NULL or not add_address(at, close - at, wanted, found):
        return NULL
    return close + 1


cdef bint add_address(const char *text, Py_ssize_t size, int wanted, value_t *found) noexcept nogil:
    """The system's parser decides, as it does for the long way."""
    cdef char copy[MAX_ADDRESS + 1]
    cdef address_t *address
    cdef Py_ssize_t i
    cdef bint colon = False
    if not 1 <= size <= MAX_ADDRESS or found.count == MOST:
        return False
    for i in range(size):
        copy[i] = text[i]
        colon |= text[i] == c":"
        if text[i] == 0:
            return False
    copy[size] = 0
    if (wanted == TYPE_A and colon) or (wanted == TYPE_AAAA and not colon):
        return False
    address = &found.addresses[found.count]
    address.size = 16 if colon else 4
    if inet_pton(AF_INET6 if colon else AF_INET, copy, address.octets) != 1:
        return False
    found.count += 1
    return True
