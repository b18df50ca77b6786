from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    PASS = 0
    SLIP = 1                            # answer with TC set and nothing else
    DROP = 2

cdef struct network_t:
    uint8_t length                      # bytes of the address: 4 or 16
    uint8_t bits
    uint8_t prefix[16]

cdef class Networks:
    cdef network_t *items
    cdef int count
    cdef bint contains(self, const uint8_t *address, int length) noexcept nogil

cdef struct bucket_t:
    uint64_t key
    int64_t at_ns
    int64_t credit_ns

cdef class RateLimiter:
    cdef bucket_t *buckets
    cdef uint64_t seed
    cdef int64_t cost_ns
    cdef int64_t most_ns
    cdef int slip
    cdef uint32_t slipped
    cdef readonly bint enabled
    cdef readonly Networks exempt
    cdef int check(self, const uint8_t *address, int length, int64_t now_ns) noexcept nogil
