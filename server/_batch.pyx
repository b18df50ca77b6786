# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False, cdivision=True
"""The hot path: recvmmsg, the common answers, sendmmsg. Gives the reference's bytes (server/answer.py) or declines.

Three passes over a batch, so that a table of a million names, which no cache holds, is read ahead: parse and hash every
question; bring in the nodes; answer. No lock is taken here, and no Python object is touched without the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from shm._atomic cimport Words, word_add
from shm._table cimport (
    DAMAGED, FOUND, MISSING, Table, hash_label, lookup, node_ref, prefetch_index, prefetch_node, rrset_of, rrset_ref,
    table_view, tag_of,
)
from shm.layout cimport FLAG_APEX, FLAG_BELOW_CUT, FLAG_DELEGATION, FLAG_DNAME, FLAG_WILDCARD_CHILD, NEGATIVE_SOA

from shm import layout

cdef extern from "_mmsg.h" nogil:
    int errno
    enum: MSG_DONTWAIT
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
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr *m, unsigned int n, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *m, unsigned int n, int flags)

cdef enum:
    # Datagrams a system call. The limit of recvmmsg's gain is near here (docs/performance.md), and it bounds what a
    # worker that dies takes with it.
    BATCH = 64
    # Queries longer than this arrive cut off and get FORMERR.
    LONGEST_QUERY = 2048
    MOST_LABELS = 128
    OPT_SIZE = 11
    PLAIN_UDP_SIZE = 512
    HEADER_SIZE = 12
    DROPPED = 0
    DECLINED = -1
    UNCOUNTED_TYPE = 0xFFFF

# A parsed question. `state` is the result of `parse`: HEADER_SIZE or more = go on, DROPPED, DECLINED.
cdef struct question:
    int state
    uint16_t type
    uint8_t edns
    uint8_t dnssec_ok
    uint16_t udp_size
    uint16_t name_length
    int labels
    uint8_t starts[MOST_LABELS]
    uint64_t hashes[MOST_LABELS + 1]      # of the name from label i on; [labels] = the root's
    uint8_t name[256]

cdef uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>(p[0] << 8 | p[1])


cdef int parse(const uint8_t *p, int length, question *q) noexcept nogil:
    """One question of class IN, an OPT at most: everything else is declined (or dropped)."""
    cdef int at = HEADER_SIZE, labels = 0, i
    cdef uint8_t c
    q.type = UNCOUNTED_TYPE
    q.edns = 0
    q.dnssec_ok = 0
    if length < HEADER_SIZE or p[2] & 0x80:
        return DROPPED
    if p[2] & 0x78 or be16(p + 4) != 1 or be16(p + 6) or be16(p + 8) or be16(p + 10) > 1:
        return DECLINED
    while at < length and p[at]:
        if p[at] > 63 or labels == MOST_LABELS - 1 or at - HEADER_SIZE + p[at] + 1 > 254:
            return DECLINED
        q.starts[labels] = <uint8_t>(at - HEADER_SIZE)
        labels += 1
        at += p[at] + 1
    if at + 5 > length:
        return DECLINED
    q.labels = labels
    q.name_length = <uint16_t>(at + 1 - HEADER_SIZE)
    for i in range(q.name_length):          # a label's length is below 'A': folding the case leaves it alone
        c = p[HEADER_SIZE + i]
        q.name[i] = c | <uint8_t>((<uint8_t>(c - 65) < 26) << 5)
    q.type = be16(p + at + 1)
    if be16(p + at + 3) != 1:
        return DECLINED
    at += 5
    if p[11]:
        if parse_opt(p + at, length - at, q) == DECLINED:
            return DECLINED
    elif at != length:
        return DECLINED
    if 251 <= q.type <= 255 or q.type == NEGATIVE_SOA:
        return DECLINED
    return HEADER_SIZE + q.name_length + 4


cdef int parse_opt(const uint8_t *p, int length, question *q) noexcept nogil:
    """Version 0, to the end of the packet, its options well-formed and unknown to us (RFC 6891)."""
    cdef int at = OPT_SIZE
    if length < OPT_SIZE or p[0] or be16(p + 1) != 41 or p[6] or length != OPT_SIZE + be16(p + 9):
        return DECLINED
    while at < length:
        if at + 4 > length:
            return DECLINED
        at += 4 + be16(p + at + 2)
    if at != length:
        return DECLINED
    q.edns = 1
    q.udp_size = be16(p + 3)
    q.dnssec_ok = p[7] >> 7
    return 0


cdef void hash_question(table_view *t, question *q) noexcept nogil:
    cdef int i = q.labels
    q.hashes[i] = t.seed
    while i > 0:
        i -= 1
        q.hashes[i] = hash_label(q.hashes[i + 1], q.name + q.starts[i])
    prefetch_index(t, tag_of(q.hashes[0]))


cdef int find_suffix(table_view *t, question *q, int label, node_ref *node) noexcept nogil:
    """Look up the name from label number `label` on."""
    cdef int start = q.starts[label] if label < q.labels else q.name_length - 1
    return lookup(t, q.name + start, q.name_length - start, tag_of(q.hashes[label]), node)


cdef int resolve(table_view *t, uint8_t *p, question *q, int limit, int udp_limit) noexcept nogil:
    """Turn the query at `p` into its reply; the reply's length, or DECLINED with `p` as it was.

    `limit` bounds the whole reply, `udp_limit` is what the reply's OPT says.
    """
    cdef node_ref node, apex
    cdef rrset_ref rrset
    cdef int label = 0, found = MISSING, rcode = 0, size = q.state, room = limit - (OPT_SIZE if q.edns else 0)
    cdef int truncated = 0, section = 6, authoritative = 4, start
    while label <= q.labels:
        found = find_suffix(t, q, label, &node)
        if found != MISSING:
            break
        label += 1
    if found == DAMAGED:
        return DECLINED
    if found == MISSING:
        rcode = 5                           # REFUSED: outside our zones
        authoritative = 0
    elif node.flags & (FLAG_BELOW_CUT | FLAG_DELEGATION | FLAG_DNAME):
        return DECLINED
    elif label == 0:
        found = rrset_of(&node, q.type, &rrset)
        if found == MISSING and rrset_of(&node, 5, &rrset) != MISSING:
            return DECLINED                 # an alias to follow
    else:
        if node.flags & FLAG_WILDCARD_CHILD:
            return DECLINED
        rcode = 3                           # NXDOMAIN
        found = MISSING
    if found == MISSING and rcode != 5:     # the SOA of the zone goes into the authority section
        section = 8
        apex = node
        found = FOUND
        while found != FOUND or not apex.flags & FLAG_APEX:
            label += 1
            if label > q.labels:
                return DECLINED
            found = find_suffix(t, q, label, &apex)
            if found == DAMAGED:
                return DECLINED
        found = rrset_of(&apex, NEGATIVE_SOA, &rrset)
        if found != FOUND:
            return DECLINED
    if found == DAMAGED:
        return DECLINED
    p[4] = 0; p[5] = 1
    memset(p + 6, 0, 6)
    if found == FOUND:
        if size + rrset.length <= room:
            memcpy(p + size, rrset.wire, rrset.length)
            if section == 8:
                start = HEADER_SIZE + (q.starts[label] if label < q.labels else q.name_length - 1)
                p[size] = <uint8_t>(0xC0 | start >> 8)
                p[size + 1] = <uint8_t>start
            size += rrset.length
            p[section] = <uint8_t>(rrset.count >> 8)
            p[section + 1] = <uint8_t>rrset.count
        else:
            truncated = 2
    p[2] = <uint8_t>(0x80 | authoritative | truncated | (p[2] & 1))
    p[3] = <uint8_t>((p[3] & 0x10) | rcode)
    if q.edns:
        p[11] = 1
        memset(p + size, 0, OPT_SIZE)
        p[size + 2] = 41
        p[size + 3] = <uint8_t>(udp_limit >> 8)
        p[size + 4] = <uint8_t>udp_limit
        p[size + 7] = <uint8_t>(q.dnssec_ok << 7)
        size += OPT_SIZE
    return size


cdef int udp_reply_limit(question *q, int max_udp_size) noexcept nogil:
    if not q.edns or q.udp_size < PLAIN_UDP_SIZE:
        return PLAIN_UDP_SIZE
    return q.udp_size if q.udp_size < max_udp_size else max_udp_size


cdef class Counters:
    """The counters of one slot's page (layout.COUNTER_ARRAYS), bumped a reply at a time."""

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

    def __init__(self, Words words):
        self.words = words
        offsets = {name: offset for name, (offset, _) in layout.counter_offsets().items()}
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

    cdef void response(self, const uint8_t *p, int size, const uint8_t *query_first) noexcept nogil:
        if size <= 0:
            # layout.DropReason: SHORT, RESPONSE, UNANSWERABLE
            word_add(self.dropped + 8 * (0 if query_first == NULL else 1 if query_first[2] & 0x80 else 2), 1)
            return
        word_add(self.rcode + 8 * (p[3] & 15), 1)
        word_add(self.response_bytes, <uint64_t>size)
        if p[2] & 2:
            word_add(self.truncated, 1)

    def count(self, bytes packet, reply, bint ipv6=False):
        """Count one message that came by another way (the stream worker)."""
        cdef question q
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
        cdef int length = <int>PyBytes_GET_SIZE(packet)
        parse(p, length, &q)
        self.request(&q, length, ipv6)
        if reply is None:
            self.response(NULL, 0, p if length >= HEADER_SIZE else NULL)
        else:
            self.response(<const uint8_t *>PyBytes_AS_STRING(reply), <int>PyBytes_GET_SIZE(reply), p)


cdef class Batch:
    """Up to 64 datagrams in work. `reference(packet, table)` answers what the hot path declines."""

    cdef mmsghdr received[BATCH]
    cdef mmsghdr sending[BATCH]
    cdef iovec parts[BATCH]
    cdef sockaddr_storage sources[BATCH]
    cdef question *questions
    cdef uint8_t *buffers
    cdef int sizes[BATCH]
    cdef int stride
    cdef int max_udp_size
    cdef int count
    cdef int last_errno
    cdef object reference
    cdef Counters counters

    def __cinit__(self):
        self.questions = NULL
        self.buffers = NULL

    def __init__(self, int max_udp_size, reference, Counters counters):
        if not PLAIN_UDP_SIZE <= max_udp_size <= 65535:
            raise ValueError("max_udp_size must be 512 to 65535")
        # An odd number of cache lines, so that buffer starts do not all fall into the same cache set.
        self.stride = ((max(LONGEST_QUERY, max_udp_size) + 127) / 128) * 128 + 64
        self.max_udp_size = max_udp_size
        self.reference = reference
        self.counters = counters
        self.count = 0
        self.questions = <question *>calloc(BATCH, sizeof(question))
        self.buffers = <uint8_t *>calloc(BATCH, self.stride)
        if self.questions == NULL or self.buffers == NULL:
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

    def receive(self, int fd):
        """Take what is queued on a non-blocking socket, 64 datagrams at most; how many. 0 also on an error (`error`)."""
        cdef int i, n
        with nogil:
            for i in range(BATCH):
                self.parts[i].iov_len = LONGEST_QUERY
                self.received[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
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
        cdef int i, declined = 0
        cdef question *q
        cdef uint8_t *p
        cdef table_view *t = NULL
        if table is not None:
            table.check_open()
            t = &table.view
        with nogil:
            for i in range(self.count):
                q = &self.questions[i]
                p = self.buffers + i * self.stride
                q.state = parse(p, <int>self.received[i].msg_len, q)
                if q.state > 0 and t != NULL:
                    hash_question(t, q)
            if t != NULL:
                for i in range(self.count):
                    if self.questions[i].state > 0:
                        prefetch_node(t, tag_of(self.questions[i].hashes[0]))
            for i in range(self.count):
                q = &self.questions[i]
                p = self.buffers + i * self.stride
                self.counters.request(q, <int>self.received[i].msg_len, self.sources[i].ss_family == AF_INET6)
                self.sizes[i] = q.state
                if q.state > 0:
                    if t == NULL:
                        self.sizes[i] = DECLINED
                    else:
                        self.sizes[i] = resolve(t, p, q, udp_reply_limit(q, self.max_udp_size), self.max_udp_size)
                if self.sizes[i] == DECLINED:
                    declined += 1
                else:
                    self.counters.response(p, self.sizes[i], p if self.received[i].msg_len >= HEADER_SIZE else NULL)
        if declined:
            word_add(self.counters.declined, declined)
            self.refer(table)

    cdef object refer(self, table):
        """Have the reference answer what was declined."""
        cdef int i
        cdef uint8_t *p
        for i in range(self.count):
            if self.sizes[i] != DECLINED:
                continue
            p = self.buffers + i * self.stride
            packet = PyBytes_FromStringAndSize(<char *>p, self.received[i].msg_len)
            reply = self.reference(packet, table)
            self.sizes[i] = 0
            if reply is not None and len(reply) <= self.stride:
                memcpy(p, PyBytes_AS_STRING(reply), <size_t>len(reply))
                self.sizes[i] = <int>len(reply)
            self.counters.response(p, self.sizes[i], <const uint8_t *>PyBytes_AS_STRING(packet))

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


def answer_packet(bytes packet, Table table, int max_udp_size, bint stream=False):
    """The hot path on one packet: the reply, b"" if it is dropped, None if it is declined. For tests and the stream worker."""
    cdef question q
    cdef int length = <int>PyBytes_GET_SIZE(packet), size
    cdef uint8_t *p
    table.check_open()
    size = parse(<const uint8_t *>PyBytes_AS_STRING(packet), length, &q)
    if size == DROPPED:
        return b""
    if size == DECLINED:
        return None
    q.state = size
    hash_question(&table.view, &q)
    cdef int limit = 65535 if stream else udp_reply_limit(&q, max_udp_size)
    p = <uint8_t *>calloc(1, max(limit, length))
    if p == NULL:
        raise MemoryError()
    memcpy(p, PyBytes_AS_STRING(packet), length)
    try:
        size = resolve(&table.view, p, &q, limit, max_udp_size)
        return None if size == DECLINED else PyBytes_FromStringAndSize(<char *>p, size)
    finally:
        free(p)
