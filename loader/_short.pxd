# cython: language_level=3

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef enum:
    MAX_NAME = 255


# No methods of C: they would cost each of a million objects a pointer.
cdef class Plain:
    cdef readonly str key
    cdef readonly long long revision
    cdef readonly uint32_t ttl
    cdef uint16_t base              # octets of the key in front of its path
    cdef readonly uint8_t skipped   # octets of the key's name that `targetstrip` takes off
    cdef uint8_t size               # of the address
    cdef uint8_t octets[16]
    cdef readonly bytes text        # data of TXT, b"" for none; None: there is a SRV instead


cdef object take(
    str base, str key, bytes value, object revision, long default_ttl, bint strict, uint8_t *name, int *length
)
cdef int name_into(Plain plain, uint8_t *name) except -1
cdef int spell_name(str key, Py_ssize_t base, uint8_t *name) except -1
cdef bytes behind(bytes name)
cdef str key_of(str base, bytes name)
