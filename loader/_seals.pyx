# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""A checksum over what a snapshot says of a key, compiled: a start needs a million (loader/snapshot.py).

It is FNV-1a of 64 bits without the last one, which SQLite would take for a sign: against a disk, not against people.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    BITS = 64

cdef uint64_t BASIS = 0xCBF29CE484222325
cdef uint64_t PRIME = 0x100000001B3


cdef uint64_t _over(uint64_t state, const char *octets, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(size):
        state = (state ^ <unsigned char>octets[at]) * PRIME
    return state


cdef uint64_t _over_number(uint64_t state, int64_t number) noexcept nogil:
    cdef int shift
    for shift in range(0, BITS, 8):
        state = (state ^ ((<uint64_t>number >> shift) & 255)) * PRIME
    return state


cpdef int64_t seal(str key, bytes value, int64_t mod_revision, int64_t lease) except -1:
    """0 to 2**63 - 1. Raises TypeError for None in place of one of these."""
    cdef Py_ssize_t size = 0
    cdef const char *text
    if key is None or value is None:
        raise TypeError("nothing in place of a key or a value")
    text = PyUnicode_AsUTF8AndSize(key, &size)
    state = _over(BASIS, text, size)
    state = _over_number(_over_number(state, mod_revision), lease)
    return <int64_t>(_over(state, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)) >> 1)


def unsealed(rows, make):
    """What `make` makes of the first four of each row's columns; the fifth is their seal, None: it is not known.

    Raises ValueError with the key if a seal is another one, TypeError if a column is.
    """
    cdef list made = []
    for key, value, mod_revision, lease, kept in rows:
        if kept is not None and seal(key, value, mod_revision, lease) != kept:
            raise ValueError(key)
        made.append(make(key, value, mod_revision, lease))
    return made
