# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False, cdivision=True
"""Who may ask, and how often: lists of networks, and response rate limiting. For the hot path.

Rate limiting keeps a server from being the amplifier of an attack with forged sources: replies to one network (/24 or
/56) beyond a rate are dropped, and every `slip`th of them goes out empty with TC set, so that a real client among the
victims can come back by TCP. Each worker counts for itself and has its share of the rate: datagrams are spread evenly
over the workers (server/sockets.py: steer).
"""

import ipaddress
import secrets

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from cpython.bytes cimport PyBytes_AS_STRING

cdef enum:
    # Networks told apart at a time; 24 bytes each. Two that meet in one bucket share it while both are busy.
    BUCKET_BITS = 15
    BUCKETS = 1 << BUCKET_BITS
    IPV4_BITS = 24
    IPV6_BYTES = 7                      # /56: what one customer usually gets


cdef class Networks:
    """A list of networks, such as `["192.0.2.0/24", "2001:db8::/32"]`. Raises ValueError for what is none."""

    def __cinit__(self, networks=()):
        parsed = [ipaddress.ip_network(text) for text in networks]
        self.count = len(parsed)
        self.items = <network_t *>calloc(max(1, self.count), sizeof(network_t))
        if self.items == NULL:
            raise MemoryError()
        for i, network in enumerate(parsed):
            packed = network.network_address.packed
            self.items[<int>i].length = len(packed)
            self.items[<int>i].bits = network.prefixlen
            memcpy(self.items[<int>i].prefix, PyBytes_AS_STRING(packed), <size_t>len(packed))

    def __dealloc__(self):
        free(self.items)

    cdef bint contains(self, const uint8_t *address, int length) noexcept nogil:
        cdef int i, whole, rest
        cdef network_t *n
        for i in range(self.count):
            n = &self.items[i]
            if n.length != length:
                continue
            whole = n.bits >> 3
            rest = n.bits & 7
            if memcmp(address, n.prefix, whole) != 0:
                continue
            if rest == 0 or (address[whole] ^ n.prefix[whole]) >> (8 - rest) == 0:
                return True
        return False

    def __contains__(self, bytes address):
        """Whether a packed address lies in one of the networks."""
        return self.contains(<const uint8_t *>PyBytes_AS_STRING(address), <int>len(address))

    def __len__(self):
        return self.count


cdef class RateLimiter:
    """At most `rate` replies a second to a network, after a burst of as many; 0 = no limit.

    slip: every so manieth reply beyond the rate is sent truncated; 1 = all of them, 0 = none.
    """

    def __cinit__(self):
        self.buckets = NULL

    def __init__(self, double rate=0.0, int slip=2, Networks exempt=None):
        if rate < 0 or slip < 0:
            raise ValueError("rate and slip may not be negative")
        self.exempt = exempt if exempt is not None else Networks()
        self.slip = slip
        self.slipped = 0
        self.seed = secrets.randbits(64) | 1
        self.enabled = rate > 0
        if self.enabled:
            self.set_rate(rate)
            self.buckets = <bucket_t *>calloc(BUCKETS, sizeof(bucket_t))
            if self.buckets == NULL:
                raise MemoryError()

    def __dealloc__(self):
        free(self.buckets)

    def set_rate(self, double rate):
        """This worker's share has changed."""
        self.cost_ns = <int64_t>(1e9 / rate)
        # A second's worth, and one reply at least: a share of less than one a second is not none.
        self.most_ns = max(1000000000, self.cost_ns)

    def judge(self, bytes address, int64_t now_ns):
        """"pass", "slip" or "drop", for tests and tools."""
        cdef int verdict = self.check(<const uint8_t *>PyBytes_AS_STRING(address), <int>len(address), now_ns)
        return ("pass", "slip", "drop")[verdict]

    cdef int check(self, const uint8_t *address, int length, int64_t now_ns) noexcept nogil:
        """Count one reply to this address at this time; what is to be done with it."""
        cdef uint64_t key = 0, hash_
        cdef bucket_t *b
        if not self.enabled or self.exempt.contains(address, length):
            return PASS
        if length == 4:
            memcpy(&key, address, IPV4_BITS / 8)
            key |= <uint64_t>1 << 63
        else:
            memcpy(&key, address, IPV6_BYTES)
        # As MurmurHash3 ends: every bit of the key counts for every bit of the index, the last byte of a /56 as well.
        hash_ = key ^ self.seed
        hash_ = (hash_ ^ hash_ >> 33) * <uint64_t>0xFF51AFD7ED558CCD
        hash_ = (hash_ ^ hash_ >> 33) * <uint64_t>0xC4CEB9FE1A85EC53
        b = &self.buckets[hash_ >> (64 - BUCKET_BITS)]
        if b.key != key and now_ns - b.at_ns > self.most_ns:
            b.key = key                 # its last owner has been quiet long enough to have its full credit back
            b.credit_ns = self.most_ns
            b.at_ns = now_ns
        b.credit_ns += now_ns - b.at_ns
        if b.credit_ns > self.most_ns:
            b.credit_ns = self.most_ns
        b.at_ns = now_ns
        if b.credit_ns >= self.cost_ns:
            b.credit_ns -= self.cost_ns
            return PASS
        if self.slip == 0:
            return DROP
        self.slipped += 1
        return SLIP if self.slipped % <uint32_t>self.slip == 0 else DROP
