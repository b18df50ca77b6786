# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""The short way of SkyDNS keys that are as most keys are, compiled: key and value -> what is kept of them.

It declines what is unusual in any way, and then the long way decides: loader/skydns.py. tests/unit/test_short.py
compares the two.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

cimport cython

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET
    int AF_INET6
    int inet_pton(int family, const char *text, void *address)

cdef enum:
    MAX_LABEL = 63
    MAX_BASE = 0xFFFF
    MAX_HOST = 45                  # the longest address: IPv6 with an IPv4 tail
    MAX_STRING = 255               # of TXT (RFC 1035 section 3.3)
    MAX_TEXT_DATA = 8192 + 34      # a length octet for every 255
    MAX_TEXT = 8192                # of the value; longer texts are the long way's matter

#: What most gifts share: one object for each TTL, and for the number of a type.
cdef dict _TTLS = {}
cdef object _A = 1
cdef object _AAAA = 28
cdef object _TXT = 16
cdef object _SRV = 33

#: Of a SRV: priority 10, weight 100, port 0.
SRV_HEAD = b"\x00\x0a\x00\x64\x00\x00"

cdef const uint8_t *_MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


# ---------------------------------------------------------------- a key and its value

cdef struct Value:
    const uint8_t *host
    const uint8_t *text
    Py_ssize_t text_length         # as it is written, with escapes
    Py_ssize_t host_length
    uint32_t ttl
    uint32_t strip
    bint seen_host
    bint seen_ttl
    bint seen_strip
    bint seen_text


cdef const uint8_t *skip_space(const uint8_t *at, const uint8_t *end) noexcept nogil:
    while at < end and (at[0] == c" " or at[0] == c"\n" or at[0] == c"\t" or at[0] == c"\r"):
        at += 1
    return at


cdef const uint8_t *skip_string(const uint8_t *at, const uint8_t *end, bint *escaped) noexcept nogil:
    """Behind the closing quote of the string that begins behind an opening one at `at`; NULL: the long way."""
    escaped[0] = False
    while at < end:
        if at[0] == c'"':
            return at + 1
        if at[0] < 0x20 or at[0] >= 0x7F:
            return NULL
        if at[0] == c"\\":
            escaped[0] = True
            at += 1
            if at == end or not (at[0] == c'"' or at[0] == c"\\" or at[0] == c"/" or at[0] == c"n" or at[0] == c"t"):
                return NULL
        at += 1
    return NULL


cdef const uint8_t *read_number(const uint8_t *at, const uint8_t *end, uint32_t *number) noexcept nogil:
    """Behind an integer of 1 to 9 digits; NULL: the long way."""
    cdef const uint8_t *start = at
    number[0] = 0
    while at < end and c"0" <= at[0] <= c"9" and at - start < 10:
        number[0] = number[0] * 10 + (at[0] - c"0")
        at += 1
    if at == start or at - start > 9 or (start[0] == c"0" and at - start > 1):
        return NULL
    return at


cdef const uint8_t *read_field(const uint8_t *at, const uint8_t *end, Value *value) noexcept nogil:
    """Behind one `"name":value`; NULL: a field that is unusual, or that is there twice."""
    cdef const uint8_t *name = at + 1
    cdef const uint8_t *start
    cdef bint escaped
    cdef Py_ssize_t length
    if at == end or at[0] != c'"':
        return NULL
    at = skip_string(name, end, &escaped)
    if at == NULL or escaped:
        return NULL
    length = at - name - 1
    at = skip_space(at, end)
    if at == end or at[0] != c":":
        return NULL
    at = skip_space(at + 1, end)
    if at == end:
        return NULL
    if length == 4 and memcmp(name, b"host", 4) == 0 and not value.seen_host:
        if at[0] != c'"':
            return NULL
        value.seen_host = True
        start = at + 1
        at = skip_string(start, end, &escaped)
        if at == NULL or escaped:
            return NULL
        value.host = start
        value.host_length = at - start - 1
        return at
    if length == 4 and memcmp(name, b"text", 4) == 0 and not value.seen_text:
        if at[0] != c'"':
            return NULL
        value.seen_text = True
        value.text = at + 1
        at = skip_string(at + 1, end, &escaped)
        value.text_length = at - value.text - 1
        return at
    if length == 3 and memcmp(name, b"ttl", 3) == 0 and not value.seen_ttl:
        value.seen_ttl = True
        return read_number(at, end, &value.ttl)
    if length == 11 and memcmp(name, b"targetstrip", 11) == 0 and not value.seen_strip:
        value.seen_strip = True
        return read_number(at, end, &value.strip)
    return NULL


cdef bint read_value(const uint8_t *at, Py_ssize_t size, Value *value) noexcept nogil:
    """False: the long way."""
    cdef const uint8_t *end = at + size
    memset(value, 0, sizeof(Value))
    if size > MAX_TEXT:
        return False
    at = skip_space(at, end)
    if at == end or at[0] != c"{":
        return False
    at += 1
    while True:
        at = read_field(skip_space(at, end), end, value)
        if at == NULL:
            return False
        at = skip_space(at, end)
        if at == end:
            return False
        if at[0] == c"}":
            return skip_space(at + 1, end) == end and value.strip <= 128
        if at[0] != c",":
            return False
        at += 1


cdef int read_name(const char *path, Py_ssize_t size, uint8_t *name) noexcept nogil:
    """Labels from right to left into `name`; its length, 0: not ASCII in lower case, or no name at all."""
    cdef Py_ssize_t end = size, start, i, label
    cdef int length = 0
    cdef uint8_t octet
    while True:
        start = end
        while start > 0 and path[start - 1] != c"/":
            start -= 1
        label = end - start
        if label < 1 or label > MAX_LABEL or length + label + 2 > MAX_NAME:
            return 0
        name[length] = <uint8_t>label
        length += 1
        for i in range(start, end):
            octet = <uint8_t>path[i]
            if octet >= 0x80 or c"A" <= octet <= c"Z":
                return 0
            name[length] = octet
            length += 1
        if start == 0:
            name[length] = 0
            return length + 1
        end = start - 1


cdef int read_host(Value *value, uint8_t *address) noexcept nogil:
    """4 or 16, the length of the address; 0: the long way."""
    cdef char text[MAX_HOST + 1]
    cdef Py_ssize_t i
    if value.host_length < 1 or value.host_length > MAX_HOST:
        return 0
    memcpy(text, value.host, value.host_length)
    text[value.host_length] = 0
    for i in range(value.host_length):
        if text[i] == c":":
            if inet_pton(AF_INET6, text, address) != 1 or memcmp(address, _MAPPED, 12) == 0:
                return 0
            return 16
    return 4 if inet_pton(AF_INET, text, address) == 1 else 0


cdef bytes read_text(Value *value):
    """TXT data: strings of 255 octets, the last one shorter. None: the long way."""
    cdef uint8_t data[MAX_TEXT_DATA]
    cdef const uint8_t *at = value.text
    cdef const uint8_t *end = at + value.text_length
    cdef Py_ssize_t start = 0, size = 1
    if not value.seen_text or at == end:
        return None
    while at < end:
        if size - start > MAX_STRING:
            data[start] = MAX_STRING
            start = size
            size += 1
        if at[0] == c"\\":
            at += 1
            if at[0] == c"n" or at[0] == c"t":
                return None
        data[size] = at[0]
        size += 1
        at += 1
    data[start] = <uint8_t>(size - start - 1)
    return PyBytes_FromStringAndSize(<char *>data, size)


cdef object shared_ttl(long ttl):
    cdef object made = ttl
    cdef object held = _TTLS.get(made)
    if held is None:
        if len(_TTLS) > 1000:
            _TTLS.clear()
        _TTLS[made] = held = made
    return held


# ---------------------------------------------------------------- what is kept

@cython.final
@cython.no_gc
cdef class Plain:
    """A key without a lease that gives an address to one name or several: 64 octets, where its gift
    (loader/compiler.py) takes four times as much. ttl in seconds.

    coredns: with it goes a SRV with port 0 and the default priority and weight, whose target is the key's name without
    its first `skipped` octets. strict: `text` is there, TXT data or b"" for none, and the name that it is given to is
    the key's without its first `skipped` octets.
    """

    @property
    def type(self):
        """A or AAAA."""
        return _A if self.size == 4 else _AAAA

    @property
    def name(self):
        """That its own records are at."""
        cdef uint8_t name[MAX_NAME + 1]
        cdef int length = name_into(self, name), at = 0 if self.text is None else self.skipped
        return PyBytes_FromStringAndSize(<char *>name + at, length - at)

    @property
    def address(self):
        return PyBytes_FromStringAndSize(<char *>self.octets, self.size)

    def gift(self, int sharing=1):
        """The same as a gift. sharing: how many such keys give to the name, which the SRVs' weights tell."""
        cdef uint8_t target[6 + MAX_NAME + 1]
        cdef uint8_t name[MAX_NAME + 1]
        cdef int length = name_into(self, name) - self.skipped
        cdef object ttl = shared_ttl(self.ttl)
        if self.text is not None:
            given = self.key, self.revision, None, self.type, ttl, self.address
            return (*given, _TXT, ttl, self.text) if self.text else given
        memcpy(target, PyBytes_AS_STRING(SRV_HEAD), 6)
        target[3] = <uint8_t>max(100 // sharing, 1)
        memcpy(target + 6, name + self.skipped, length)
        data = PyBytes_FromStringAndSize(<char *>target, 6 + length)
        return self.key, self.revision, None, self.type, ttl, self.address, _SRV, ttl, data


def fold(str base, str key, revision, long ttl, bytes address, int skipped, bytes text=None):
    """A Plain. base: what the key begins with, with the last slash; what follows is spelled as the name is, from right
    to left. address: 4 or 16 octets. Raises ValueError."""
    cdef Plain made = Plain.__new__(Plain)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(address)
    if not key.startswith(base) or len(base) > MAX_BASE or not base.isascii() or size not in (4, 16):
        raise ValueError(f"{key!r} is not a plain key")
    made.key, made.revision, made.ttl = key, revision, ttl
    made.base, made.skipped, made.size, made.text = len(base), skipped, size, text
    memcpy(made.octets, PyBytes_AS_STRING(address), size)
    return made


cdef object take(
    str base, str key, bytes value, object revision, long default_ttl, bint strict, uint8_t *name, int *length
):
    """See plain(); the name goes into `name`."""
    cdef Py_ssize_t base_size, key_size
    cdef const char *base_text = PyUnicode_AsUTF8AndSize(base, &base_size)
    cdef const char *text
    cdef Value found
    cdef Plain made
    cdef int skipped = 0
    cdef uint32_t left
    cdef bytes data = None
    if not key.isascii():
        return None
    text = PyUnicode_AsUTF8AndSize(key, &key_size)
    if key_size <= base_size or base_size > MAX_BASE or memcmp(text, base_text, base_size):
        return None
    if key_size - base_size == 6 and memcmp(text + base_size, b"config", 6) == 0:
        return None
    if not read_value(<const uint8_t *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), &found):
        return None
    if found.ttl == 0 and default_ttl < 0:
        return None
    length[0] = read_name(text + base_size, key_size - base_size, name)
    if length[0] == 0:
        return None
    if strict or found.host_length == 0:
        data = read_text(&found)
    if found.host_length == 0:
        if data is None or (strict and found.strip):
            return None
        return key, revision, None, _TXT, shared_ttl(found.ttl or default_ttl), data
    made = Plain.__new__(Plain)
    made.size = <uint8_t>read_host(&found, made.octets)
    if made.size == 0 or (strict and data is None and found.text_length):
        return None
    if strict:
        made.text = data or b""
    left = found.strip
    while left and name[skipped]:
        skipped += name[skipped] + 1
        left -= 1
    made.key, made.revision, made.base = key, revision, <uint16_t>base_size
    made.ttl = found.ttl or <uint32_t>default_ttl
    made.skipped = <uint8_t>skipped if name[skipped] else 0
    return made


def plain(str base, str key, bytes value, object revision, long default_ttl, bint strict=False):
    """(name, what is kept) of a key that gives an address and nothing unusual, a Plain; or a text, a gift. None: the
    long way.

    base: what all keys begin with, with the last slash; strict: the semantics. It comes to what skydns.decode and the
    views come to for a name that has this service alone; default_ttl, in seconds, is for a value without one.
    """
    cdef uint8_t name[MAX_NAME + 1]
    cdef int length
    made = take(base, key, value, revision, default_ttl, strict, name, &length)
    return None if made is None else (PyBytes_FromStringAndSize(<char *>name, length), made)


# ---------------------------------------------------------------- names and keys

cdef int name_into(Plain plain, uint8_t *name) except -1:
    """The name of its key; its length."""
    return spell_name(plain.key, plain.base, name)


cdef int spell_name(str key, Py_ssize_t base, uint8_t *name) except -1:
    """The name of a key that is plain, behind the first `base` octets; its length. Raises ValueError."""
    cdef Py_ssize_t size
    cdef const char *text = PyUnicode_AsUTF8AndSize(key, &size)
    cdef int length = read_name(text + base, size - base, name) if size > base else 0
    if length == 0:
        raise ValueError(f"{key!r} is not a plain key")
    return length


cdef bytes behind(bytes name):
    """The name without its first label."""
    cdef Py_ssize_t skipped = <Py_ssize_t><uint8_t>PyBytes_AS_STRING(name)[0] + 1
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(name) + skipped, PyBytes_GET_SIZE(name) - skipped)


def name_of(str base, str key):
    """The name of a key that is plain. Raises ValueError."""
    cdef uint8_t name[MAX_NAME + 1]
    cdef int length = spell_name(key, len(base), name)
    return PyBytes_FromStringAndSize(<char *>name, length)


cdef str key_of(str base, bytes name):
    """See spelled()."""
    cdef const uint8_t *octets = <const uint8_t *>PyBytes_AS_STRING(name)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name), at = 0, end
    cdef char path[MAX_NAME + 1]
    if size > MAX_NAME:
        raise ValueError("longer than a name")
    end = size - 2 if size > 1 else 0
    size = end
    while octets[at]:
        end -= octets[at]
        memcpy(path + end, octets + at + 1, octets[at])
        if end > 0:
            end -= 1
            path[end] = c"/"
        at += octets[at] + 1
    return base + PyUnicode_DecodeLatin1(path, size, NULL)


def spelled(str base, bytes name):
    """The key that stands for a name if it has no capitals: the inverse of name_of."""
    return key_of(base, name)
