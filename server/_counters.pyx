# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""The counters of one slot's page (layout.COUNTER_ARRAYS), bumped a message at a time. One writer: this process."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from server._answer cimport parse, question
from shm._atomic cimport Words, word_add

from shm import layout
from shm.layout import DropReason


cdef class Counters:
    """Counts requests, responses, and what got none. `start`: of which set (layout.COUNTERS, ENCRYPTED_COUNTERS)."""

    def __init__(self, Words words, int start=layout.COUNTERS):
        self.words = words
        offsets = {name: offset for name, (offset, _) in layout.counter_offsets(start).items()}
        self.family = words.at_writable(offsets["requests_family"])
        self.rcode = words.at_writable(offsets["responses_rcode"])
        self.type = words.at_writable(offsets["requests_type"])
        self.dropped = words.at_writable(offsets["dropped"])
        self.truncated = words.at_writable(offsets["truncated"])
        self.request_bytes = words.at_writable(offsets["request_bytes"])
        self.response_bytes = words.at_writable(offsets["response_bytes"])
        self.edns = words.at_writable(offsets["edns"])
        self.dnssec_ok = words.at_writable(offsets["dnssec_ok"])
        self.declined = words.at_writable(layout.SLOT_WORDS["declined"])
        self.other_type = len(layout.COUNTED_TYPES)
        memset(self.type_index, self.other_type, sizeof(self.type_index))
        for i, type_ in enumerate(layout.COUNTED_TYPES):
            self.type_index[<int>type_] = <uint8_t>i

    cdef void request(self, question *q, int length, int ipv6) noexcept nogil:
        word_add(self.family + 8 * ipv6, 1)
        word_add(self.type + 8 * self.type_index[q.type], 1)
        word_add(self.request_bytes, <uint64_t>length)
        if q.edns:
            word_add(self.edns, 1)
            word_add(self.dnssec_ok, q.dnssec_ok)

    cdef void response(self, const uint8_t *p, int size) noexcept nogil:
        word_add(self.rcode + 8 * (p[3] & 15), 1)
        word_add(self.response_bytes, <uint64_t>size)
        if p[2] & 2:
            word_add(self.truncated, 1)

    cdef void drop(self, int reason) noexcept nogil:
        word_add(self.dropped + 8 * reason, 1)

    def count(self, bytes packet, reply, bint ipv6=False):
        """Count one message that is answered by another way. `reply` None: it got none."""
        cdef question q
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
        cdef int length = <int>PyBytes_GET_SIZE(packet)
        parse(p, length, &q)
        self.request(&q, length, ipv6)
        if reply is not None:
            self.response(<const uint8_t *>PyBytes_AS_STRING(reply), <int>PyBytes_GET_SIZE(reply))
        elif length < 12:
            self.drop(DropReason.SHORT)
        else:
            self.drop(DropReason.RESPONSE if p[2] & 0x80 else DropReason.UNANSWERABLE)
