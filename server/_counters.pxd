from libc.stdint cimport uint8_t

from server._answer cimport question
from shm._atomic cimport Words

cdef class Counters:
    cdef Words words
    cdef char *family
    cdef char *rcode
    cdef char *type
    cdef char *dropped
    cdef char *truncated
    cdef char *request_bytes
    cdef char *response_bytes
    cdef char *edns
    cdef char *dnssec_ok
    cdef char *declined
    cdef uint8_t type_index[65536]
    cdef int other_type
    cdef void request(self, question *q, int length, int ipv6) noexcept nogil
    cdef void response(self, const uint8_t *p, int size) noexcept nogil
    cdef void drop(self, int reason) noexcept nogil
