from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from shm._table cimport table_view

cdef enum:
    HEADER_SIZE = 12
    DROPPED = 0
    DECLINED = -1
    MOST_LABELS = 128
    PLAIN_UDP_SIZE = 512
    UNCOUNTED_TYPE = 0xFFFF
    MOST_SECRETS = 8                    # server/policy.py
    MOST_NSID = 128
    LONGEST_STALE = 64

# A name in lower case with the hashes of all its suffixes; [labels] = the root's.
cdef struct name_t:
    uint16_t length
    int labels
    uint8_t starts[MOST_LABELS]
    uint64_t hashes[MOST_LABELS + 1]
    uint8_t wire[256]

# A parsed question. `state`: where the question ends, or DROPPED, or DECLINED.
cdef struct question:
    int state
    uint16_t type
    uint16_t udp_size
    uint8_t edns
    uint8_t dnssec_ok
    uint8_t nsid
    uint8_t zone_version
    uint8_t keepalive
    uint8_t padding
    uint8_t cookie_length               # 0 = none
    uint8_t cookie[40]
    name_t name

# server/policy.py's Policy and the part of Moment that a whole batch shares.
cdef struct terms_t:
    int max_udp_size
    int max_answers
    uint8_t rotate
    uint8_t stale
    uint8_t secrets
    uint8_t nsid_length
    uint8_t stale_length
    uint8_t secret[MOST_SECRETS][16]
    uint8_t nsid[MOST_NSID]
    uint8_t stale_option[LONGEST_STALE]
    uint16_t keepalive_ds               # RFC 7828 counts in 100 ms
    int64_t now_s

# The rest of Moment.
cdef struct client_t:
    const uint8_t *address
    int address_length
    uint32_t turn
    uint8_t stream
    uint8_t encrypted

cdef int parse(const uint8_t *p, int length, question *q) noexcept nogil
cdef void hash_name(table_view *t, name_t *name) noexcept nogil
cdef bint look_ahead(table_view *t, name_t *name) noexcept nogil
cdef void look_further(table_view *t, name_t *name) noexcept nogil
cdef int reply_limit(question *q, terms_t *terms, bint stream) noexcept nogil
cdef int resolve(table_view *t, uint8_t *p, question *q, int limit, terms_t *terms, client_t *client) noexcept nogil
cdef int valid_cookie(question *q, terms_t *terms, client_t *client) noexcept nogil

cdef class Terms:
    cdef terms_t c
    cdef object policy
