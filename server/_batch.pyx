# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False, cdivision=True
"""A batch of datagrams: recvmmsg, the common answers (server/_answer.pyx), sendmmsg. Takes no lock itself.

Three passes over a batch, so that a table of a million names, which no cache holds, is read ahead: parse and hash every
question; bring in the nodes; answer. What the hot path declines goes to the reference, in Python, one by one.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from libc.time cimport time_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from server._answer cimport (
    DECLINED, DROPPED, HEADER_SIZE, Terms, client_t, hash_name, look_ahead, look_further, parse, question, reply_limit,
    resolve, valid_cookie,
)
from server._counters cimport Counters
from server._limits cimport DROP, PASS, SLIP, Networks, RateLimiter
from shm._atomic cimport word_add
from shm._table cimport Table, table_view

from shm.layout import DropReason

cdef extern from "_mmsg.h" nogil:
    int errno
    enum: MSG_DONTWAIT
    enum: MSG_CTRUNC
    enum: AF_INET6
    enum: EINTR
    enum: EAGAIN
    struct iovec:
        void *iov_base
        size_t iov_len
    struct sockaddr_storage:
        unsigned short ss_family
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr *m, unsigned int n, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *m, unsigned int n, int flags)

cdef extern from "<time.h>" nogil:
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef enum:
    # Datagrams a system call. The gain of recvmmsg levels off near here (docs/performance.md), and it bounds what a
    # worker that dies takes with it.
    BATCH = 64
    # Queries longer than this arrive cut off and get FORMERR.
    LONGEST_QUERY = 2048
    # Room for one IP_PKTINFO or IPV6_PKTINFO message.
    CONTROL = 64
    REFUSED_CLIENT = -2                 # in `sizes`: the reference says so to the client

cdef int SHORT = DropReason.SHORT
cdef int RESPONSE = DropReason.RESPONSE
cdef int UNANSWERABLE = DropReason.UNANSWERABLE
cdef int LIMITED = DropReason.LIMITED


cdef class Batch:
    """Up to 64 datagrams in work.

    reference(packet, table, address, turn, refused) answers what the hot path declines, with the Terms of the moment.
    refuse, drop: clients that get REFUSED, or nothing.
    """

    cdef mmsghdr received[BATCH]
    cdef mmsghdr sending[BATCH]
    cdef iovec parts[BATCH]
    cdef sockaddr_storage sources[BATCH]
    cdef uint8_t controls[BATCH][CONTROL]
    cdef question *questions
    cdef uint8_t *buffers
    cdef uint8_t *kept                  # a query's bytes behind its question, in case the hot path declines late
    cdef int sizes[BATCH]
    cdef int stride
    cdef int count
    cdef int last_errno
    cdef uint32_t turn
    cdef uint32_t stride_of_turns
    cdef object reference
    cdef Terms terms
    cdef Counters counters
    cdef RateLimiter limiter
    cdef Networks refuse
    cdef Networks drop

    def __cinit__(self):
        self.questions = NULL
        self.buffers = NULL
        self.kept = NULL

    def __init__(
        self, Terms terms, reference, Counters counters, RateLimiter limiter=None, Networks refuse=None,
        Networks drop=None, uint32_t turn=0, bint random_turns=False,
    ):
        # Steps of the golden ratio visit all turns, in an order that looks random.
        self.stride_of_turns = <uint32_t>2654435761 if random_turns else 1
        # An odd number of cache lines, so that buffers do not all begin in the same cache set.
        self.stride = ((max(LONGEST_QUERY, terms.c.max_udp_size) + 127) / 128) * 128 + 64
        self.terms = terms
        self.reference = reference
        self.counters = counters
        self.limiter = limiter if limiter is not None else RateLimiter()
        self.refuse = refuse if refuse is not None else Networks()
        self.drop = drop if drop is not None else Networks()
        self.turn = turn
        self.count = 0
        self.questions = <question *>calloc(BATCH, sizeof(question))
        self.buffers = <uint8_t *>calloc(BATCH, self.stride)
        self.kept = <uint8_t *>calloc(1, LONGEST_QUERY)
        if self.questions == NULL or self.buffers == NULL or self.kept == NULL:
            raise MemoryError()
        cdef int i
        memset(self.received, 0, sizeof(self.received))
        memset(self.sending, 0, sizeof(self.sending))
        for i in range(BATCH):
            self.parts[i].iov_base = self.buffers + i * self.stride
            self.received[i].msg_hdr.msg_iov = &self.parts[i]
            self.received[i].msg_hdr.msg_iovlen = 1
            self.received[i].msg_hdr.msg_name = &self.sources[i]

    def __dealloc__(self):
        free(self.questions)
        free(self.buffers)
        free(self.kept)

    def receive(self, int fd, bint packet_info=False):
        """Take what is queued on a non-blocking socket, 64 datagrams at most; how many. 0 also on an error (`error`).

        packet_info: the socket is bound to all addresses and tells each datagram's own, which the reply comes from.
        """
        cdef int i, n
        with nogil:
            for i in range(BATCH):
                self.parts[i].iov_len = LONGEST_QUERY
                self.received[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
                self.received[i].msg_hdr.msg_control = self.controls[i] if packet_info else NULL
                self.received[i].msg_hdr.msg_controllen = CONTROL if packet_info else 0
            n = recvmmsg(fd, self.received, BATCH, MSG_DONTWAIT, NULL)
            self.last_errno = 0
            if n < 0:
                if errno != EAGAIN and errno != EINTR:
                    self.last_errno = errno
                n = 0
        self.count = n
        return n

    @property
    def error(self):
        """errno of the last receive or send, 0 if it went well."""
        return self.last_errno

    def answer(self, Table table):
        """Answer the batch from `table` (None: nothing is published). Inside the read lock."""
        cdef int i, declined = 0, misses = 0
        cdef int missing[BATCH]
        cdef table_view *t = NULL
        cdef question *q
        if table is not None:
            table.check_open()
            t = &table.view
        with nogil:
            for i in range(self.count):
                q = &self.questions[i]
                q.state = parse(self.buffers + i * self.stride, <int>self.received[i].msg_len, q)
                if q.state > 0 and t != NULL:
                    hash_name(t, &q.name)
            if t != NULL:
                for i in range(self.count):
                    if self.questions[i].state > 0 and not look_ahead(t, &self.questions[i].name):
                        missing[misses] = i
                        misses += 1
                for i in range(misses):
                    look_further(t, &self.questions[missing[i]].name)
            for i in range(self.count):
                self.sizes[i] = self.answer_one(i, t)
                declined += self.sizes[i] < 0
        if declined:
            word_add(self.counters.declined, declined)
            self.refer(table)
        self.limit()

    cdef void client(self, int i, client_t *c) noexcept nogil:
        """Who sent datagram `i`."""
        cdef bint ipv6 = self.sources[i].ss_family == AF_INET6
        c.address = <const uint8_t *>&self.sources[i] + (8 if ipv6 else 4)
        c.address_length = 16 if ipv6 else 4
        c.stream = 0
        c.encrypted = 0
        c.turn = (self.turn + <uint32_t>i) * self.stride_of_turns

    cdef int answer_one(self, int i, table_view *t) noexcept nogil:
        """The reply's size, DROPPED, DECLINED (the query is as it was) or REFUSED_CLIENT."""
        cdef question *q = &self.questions[i]
        cdef uint8_t *p = self.buffers + i * self.stride
        cdef client_t c
        cdef int length = <int>self.received[i].msg_len, size, behind
        self.client(i, &c)
        self.counters.request(q, length, c.address_length == 16)
        if self.drop.count and self.drop.contains(c.address, c.address_length):
            return DROPPED
        if self.refuse.count and self.refuse.contains(c.address, c.address_length):
            return REFUSED_CLIENT if q.state else DROPPED
        if q.state <= 0 or t == NULL:
            return DECLINED if q.state else DROPPED
        behind = length - q.state
        if behind:
            memcpy(self.kept, p + q.state, behind)
        size = resolve(t, p, q, reply_limit(q, &self.terms.c, False), &self.terms.c, &c)
        if size == DECLINED and behind:
            memcpy(p + q.state, self.kept, behind)
        return size

    cdef object refer(self, table):
        """Have the reference answer what was declined."""
        cdef int i
        cdef uint8_t *p
        cdef client_t c
        for i in range(self.count):
            if self.sizes[i] >= 0:
                continue
            p = self.buffers + i * self.stride
            self.client(i, &c)
            packet = PyBytes_FromStringAndSize(<char *>p, self.received[i].msg_len)
            address = PyBytes_FromStringAndSize(<const char *>c.address, c.address_length)
            reply = self.reference(packet, table, address, c.turn, self.sizes[i] == REFUSED_CLIENT)
            self.sizes[i] = DROPPED
            if reply is not None and len(reply) <= self.stride:
                memcpy(p, PyBytes_AS_STRING(reply), <size_t>len(reply))
                self.sizes[i] = <int>len(reply)

    cdef void limit(self) noexcept:
        """Rate limiting, and the counters of what goes out."""
        cdef int i, verdict
        cdef timespec now
        cdef int64_t now_ns
        cdef uint8_t *p
        cdef client_t c
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &now)
            now_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
            for i in range(self.count):
                p = self.buffers + i * self.stride
                if self.sizes[i] <= 0:
                    self.counters.drop(
                        SHORT if self.received[i].msg_len < HEADER_SIZE else RESPONSE if p[2] & 0x80 else UNANSWERABLE
                    )
                    continue
                if self.limiter.enabled:
                    self.client(i, &c)
                    verdict = PASS
                    if not valid_cookie(&self.questions[i], &self.terms.c, &c):
                        verdict = self.limiter.check(c.address, c.address_length, now_ns)
                    if verdict == DROP:
                        self.sizes[i] = 0
                        self.counters.drop(LIMITED)
                        continue
                    if verdict == SLIP:
                        self.slip(i)
                self.counters.response(p, self.sizes[i])
            self.turn += <uint32_t>self.count

    cdef void slip(self, int i) noexcept nogil:
        """Empty the reply and set TC: a client that really asked comes back by TCP."""
        cdef uint8_t *p = self.buffers + i * self.stride
        p[2] |= 2
        memset(p + 6, 0, 6)
        self.sizes[i] = self.questions[i].state if self.questions[i].state > 0 else HEADER_SIZE
        if self.questions[i].state <= 0:
            p[4] = p[5] = 0

    def send(self, int fd):
        """Send the replies; how many. One that cannot be sent is skipped (`error` tells why)."""
        cdef int i, n = 0, done = 0, sent = 0
        with nogil:
            self.last_errno = 0
            for i in range(self.count):
                if self.sizes[i] <= 0:
                    continue
                self.parts[i].iov_len = <size_t>self.sizes[i]
                self.sending[n].msg_hdr = self.received[i].msg_hdr
                n += 1
            while done < n:
                i = sendmmsg(fd, self.sending + done, n - done, 0)
                if i > 0:
                    done += i
                    sent += i
                elif errno != EINTR:
                    self.last_errno = errno
                    done += 1
            self.count = 0
        return sent
