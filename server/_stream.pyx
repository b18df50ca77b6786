# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False, cdivision=True
"""Many stream clients at a time: receive, split into messages, answer, send. Takes no lock itself.

One round is `wait` (epoll), `receive`, `answer` (the only step inside the read lock: no system call, and a budget of
messages), `send`. Answers are written one behind the other into one arena, and a client's share of it leaves in one
system call. Only what a socket does not take is kept for its client, and while something is kept nothing more is read
from that client: whoever does not read stalls nobody but itself.

Encrypted clients take part in `answer` only: Python gives what it has decrypted (`feed`) and takes what is to be
encrypted (`unsent`, `sent`). Who may connect, and for how long, is Python's business too (server/stream.py).

A query may be answered from elsewhere (`defer`, `push`, `settled`), message by message, while others of its client are
answered here.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset
from libc.time cimport time_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from server._answer cimport DROPPED, Terms, client_t, hash_name, parse, question, resolve
from server._counters cimport Counters
from server._limits cimport Networks
from shm._atomic cimport word_add
from shm._table cimport Table, table_view

from shm.layout import DropReason

cdef extern from "_stream.h" nogil:
    int errno
    enum: EAGAIN
    enum: EINTR
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLERR
    enum: EPOLLHUP
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CLOEXEC
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    struct epoll_event:
        uint32_t events
    int epoll_create1(int flags)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout_ms)
    int epoll_set(int epoll, int operation, int fd, uint32_t events, uint64_t data)
    uint64_t epoll_data(const epoll_event *event)
    ssize_t recv(int fd, void *p, size_t n, int flags)
    ssize_t c_send "send" (int fd, const void *p, size_t n, int flags)
    int c_close "close" (int fd)

cdef extern from "<time.h>" nogil:
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef enum:
    # Clients in a round. Their order is the kernel's ready list: first come, first served.
    ROUND = 64
    # Bytes received from a client in a round: some 400 queries.
    READ = 16384
    LARGEST = 65535                     # RFC 1035 section 4.2.2: a length is two bytes
    FRAME = LARGEST + 2
    # What one section of the read lock may cost: a message of the hot path is 1, one that the reference answers SLOW.
    # 512 take about a quarter of a millisecond.
    BUDGET = 512
    SLOW = 16
    # One client's share of it; bytes after which its turn ends. A client that does not read has at most SHARE + FRAME
    # bytes of replies here.
    TURN = 64
    SHARE = 65536
    ARENA = 512 * 1024
    # A reader makes progress with so many bytes, or with all that is kept for it.
    STEP = 16384
    LISTENERS = 1 << 30                 # epoll data from here on is the number of a socket of Python's
    HELD_MESSAGE = -2                   # what `answer_one` says besides the reply's size
    UNANSWERED = -3

cdef int SHORT = DropReason.SHORT
cdef int RESPONSE = DropReason.RESPONSE
cdef int UNANSWERABLE = DropReason.UNANSWERABLE

# A client. `input`: received and not answered; `owned` is its memory if it does not stand in the round's inbox.
cdef struct conn_t:
    int fd                              # -1 = nobody
    uint32_t events                     # that epoll watches
    uint8_t address_length
    uint8_t encrypted
    uint8_t ended                       # sends no more (RFC 7766 section 6.2.3: but reads)
    uint8_t leaving                     # is closed when the replies are out
    uint8_t queued
    uint8_t held                        # waits for what Python makes of its first message
    uint8_t asked                       # Python has been asked about its first message, and passed
    uint16_t deferred                   # queries that are answered from elsewhere
    uint8_t address[16]
    int64_t progress_ns
    uint8_t *input
    size_t input_size
    uint8_t *owned
    size_t owned_room
    uint8_t *unsent
    size_t unsent_at
    size_t unsent_size
    size_t step

# A client's replies in the arena.
cdef struct part_t:
    int slot
    size_t start
    size_t size


cdef class Streams:
    """The clients of a stream worker, by slot: a number from 0 to `most` - 1.

    reference(packet, table, address, turn, refused, encrypted, asked) gives what the hot path declines: a reply, None
    for silence (the client is cut off), or b"" to be asked outside the lock: see `held`.
    refuse: clients that get REFUSED.
    """

    cdef conn_t *conns
    cdef int *spare                     # stack of free slots
    cdef int spares
    cdef readonly int most
    cdef int *queue                     # ring of slots with a whole message
    cdef int queue_head
    cdef int queue_length
    cdef int readable[ROUND]
    cdef int readables
    cdef epoll_event events[ROUND]
    cdef part_t parts[ROUND]
    cdef int part_count
    cdef uint8_t *inbox
    cdef uint8_t *arena
    cdef size_t used
    cdef int epoll
    cdef int64_t now_ns
    cdef uint32_t turn
    cdef uint32_t stride_of_turns
    cdef object reference
    cdef Terms terms
    cdef Counters counters
    cdef Counters encrypted_counters
    cdef Networks refuse
    cdef list closed
    cdef list held
    cdef list outgoing
    cdef question q

    def __cinit__(self):
        self.conns = NULL
        self.spare = self.queue = NULL
        self.inbox = self.arena = NULL
        self.epoll = -1

    def __init__(
        self, int most, Terms terms, reference, Counters counters, Counters encrypted_counters, Networks refuse=None,
        uint32_t turn=0, bint random_turns=False,
    ):
        cdef int i
        if self.conns != NULL or not 0 < most < LISTENERS:
            raise ValueError("a number of clients from 1 on, once")
        self.most = self.spares = most
        self.conns = <conn_t *>calloc(most, sizeof(conn_t))
        self.spare = <int *>calloc(most, sizeof(int))
        self.queue = <int *>calloc(most, sizeof(int))
        self.inbox = <uint8_t *>malloc(ROUND * READ)
        self.arena = <uint8_t *>malloc(ARENA)
        if self.conns == NULL or self.spare == NULL or self.queue == NULL or self.inbox == NULL or self.arena == NULL:
            raise MemoryError()
        for i in range(most):
            self.conns[i].fd = -1
            self.spare[i] = most - 1 - i
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "no epoll")
        # Steps of the golden ratio visit all turns, in an order that looks random.
        self.stride_of_turns = <uint32_t>2654435761 if random_turns else 1
        self.turn = turn
        self.terms = terms
        self.reference = reference
        self.counters = counters
        self.encrypted_counters = encrypted_counters
        self.refuse = refuse if refuse is not None else Networks()
        self.closed = []
        self.held = []
        self.outgoing = []
        self.look_at_clock()

    def __dealloc__(self):
        cdef int i
        if self.conns != NULL:
            for i in range(self.most):
                free(self.conns[i].owned)
                free(self.conns[i].unsent)
                if self.conns[i].fd >= 0 and not self.conns[i].encrypted:
                    c_close(self.conns[i].fd)
        free(self.conns)
        free(self.spare)
        free(self.queue)
        free(self.inbox)
        free(self.arena)
        if self.epoll >= 0:
            c_close(self.epoll)

    # ---- who is there

    def listen(self, int fd, int number):
        """Report a socket of Python's as -1 - number when there is something to take. Raises OSError."""
        if epoll_set(self.epoll, EPOLL_CTL_ADD, fd, EPOLLIN, <uint64_t>LISTENERS + number):
            raise OSError(errno, "cannot watch a socket")

    def unlisten(self, int fd):
        epoll_set(self.epoll, EPOLL_CTL_DEL, fd, 0, 0)

    def add(self, int fd, bytes address, bint encrypted=False):
        """A client's slot, -1 if there is no room. Its descriptor is ours from now on, unless it is encrypted."""
        cdef conn_t *c
        cdef int slot
        if self.spares == 0 or len(address) > 16:
            return -1
        slot = self.spare[self.spares - 1]
        if epoll_set(self.epoll, EPOLL_CTL_ADD, fd, EPOLLIN, <uint64_t>slot):
            return -1
        self.spares -= 1
        c = &self.conns[slot]
        memset(c, 0, sizeof(conn_t))
        c.fd = fd
        c.events = EPOLLIN
        c.encrypted = encrypted
        c.address_length = <uint8_t>len(address)
        memcpy(c.address, PyBytes_AS_STRING(address), c.address_length)
        c.progress_ns = self.now_ns
        return slot

    def __len__(self):
        return self.most - self.spares

    def address(self, int slot):
        cdef conn_t *c = self.at(slot)
        return PyBytes_FromStringAndSize(<char *>c.address, c.address_length)

    def idlest(self, bytes prefix=b""):
        """(slot, seconds) of the client silent for longest, of those whose address begins so. (-1, 0): none."""
        cdef int i, best = -1
        cdef Py_ssize_t n = len(prefix)
        for i in range(self.most):
            if self.conns[i].fd < 0 or (best >= 0 and self.conns[i].progress_ns >= self.conns[best].progress_ns):
                continue
            if patient(&self.conns[i]):
                continue
            if n and (<bytes>self.address(i))[:n] != prefix:
                continue
            best = i
        if best < 0:
            return -1, 0.0
        return best, (self.now_ns - self.conns[best].progress_ns) / 1e9

    def cut_off_silent(self, double idle_s):
        """Close whoever has neither asked nor read for so long."""
        cdef int i
        cdef int64_t since = self.now_ns - <int64_t>(idle_s * 1e9)
        for i in range(self.most):
            if self.conns[i].fd >= 0 and self.conns[i].progress_ns < since and not patient(&self.conns[i]):
                self.drop(i)

    def close(self, int slot):
        """Now, whatever is in the works. An encrypted client's descriptor is the caller's to close."""
        self.at(slot)
        self.drop(slot)

    def take_closed(self):
        """[(slot, address)] of clients that are gone since the last call; their slots are free from now on."""
        cdef int slot
        closed, self.closed = self.closed, []
        for slot, _ in closed:
            self.spare[self.spares] = slot
            self.spares += 1
        return closed

    cdef conn_t *at(self, int slot) except NULL:
        if not 0 <= slot < self.most or self.conns[slot].fd < 0:
            raise IndexError("nobody has this slot")
        return &self.conns[slot]

    cdef int drop(self, int slot) except -1:
        cdef conn_t *c = &self.conns[slot]
        if c.fd < 0:
            return 0
        if c.queued:
            self.unqueue(slot)
        epoll_set(self.epoll, EPOLL_CTL_DEL, c.fd, 0, 0)
        if not c.encrypted:
            c_close(c.fd)
        c.fd = -1
        free(c.owned)
        free(c.unsent)
        c.owned = c.unsent = c.input = NULL
        c.input_size = c.unsent_size = 0
        self.closed.append((slot, PyBytes_FromStringAndSize(<char *>c.address, c.address_length)))
        return 0

    cdef void unqueue(self, int slot) noexcept:
        """Take it out of the ring, in order."""
        cdef int i, kept = 0, other
        for i in range(self.queue_length):
            other = self.queue[(self.queue_head + i) % self.most]
            if other != slot:
                self.queue[(self.queue_head + kept) % self.most] = other
                kept += 1
        self.queue_length = kept
        self.conns[slot].queued = 0

    # ---- in

    cdef void look_at_clock(self) noexcept nogil:
        cdef timespec now
        clock_gettime(CLOCK_MONOTONIC, &now)
        self.now_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec

    def wait(self, int timeout_ms):
        """Until something can be done, at most so long. What is Python's: [slot, or -1 - number as `listen` has it]."""
        cdef int i, n
        cdef uint64_t data
        cdef uint32_t what
        cdef conn_t *c
        with nogil:
            n = epoll_wait(self.epoll, self.events, ROUND, 0 if self.queue_length else timeout_ms)
            self.look_at_clock()
        self.readables = 0
        others = []
        for i in range(n):
            data = epoll_data(&self.events[i])
            what = self.events[i].events
            if data >= LISTENERS:
                others.append(-1 - <int>(data - LISTENERS))
                continue
            c = &self.conns[<int>data]
            if c.fd < 0:
                continue
            if c.encrypted:
                others.append(<int>data)
            elif what & (EPOLLERR | EPOLLHUP):
                self.drop(<int>data)
            elif what & EPOLLOUT:
                self.flush(<int>data)
            elif what & EPOLLIN:
                self.readable[self.readables] = <int>data
                self.readables += 1
        return others

    def receive(self):
        """Take what the readable clients have sent."""
        cdef int i, slot
        cdef ssize_t n
        cdef uint8_t *to
        cdef conn_t *c
        for i in range(self.readables):
            slot = self.readable[i]
            c = &self.conns[slot]
            if c.fd < 0 or c.encrypted:         # gone since `wait`; its slot may be another's by now
                continue
            to = self.inbox + i * READ
            if c.input_size:
                if not self.own(c, READ):
                    self.drop(slot)
                    continue
                to = c.owned + c.input_size
            n = recv(c.fd, to, READ, MSG_DONTWAIT)
            if n < 0:
                if errno != EAGAIN and errno != EINTR:
                    self.drop(slot)
                continue
            if n == 0:
                c.ended = 1
            elif c.input_size == 0:
                c.input = to
            c.input_size += n
            self.enqueue(slot)
            if n == 0:
                self.settle(slot)

    def feed(self, int slot, bytes data):
        """What an encrypted client has sent; b"": it sends no more."""
        cdef conn_t *c = self.at(slot)
        cdef size_t n = <size_t>PyBytes_GET_SIZE(data)
        if n == 0:
            c.ended = 1
        elif not self.own(c, n):
            self.drop(slot)
            return
        else:
            memcpy(c.owned + c.input_size, PyBytes_AS_STRING(data), n)
            c.input_size += n
        self.enqueue(slot)

    cdef bint own(self, conn_t *c, size_t more) noexcept:
        """Have the input in memory of its own, with room for so many bytes behind it. False: there is no memory."""
        cdef uint8_t *p
        if c.owned_room < c.input_size + more:
            p = <uint8_t *>malloc(c.input_size + more)
            if p == NULL:
                return False
            if c.input_size:
                memcpy(p, c.input, c.input_size)
            free(c.owned)
            c.owned = p
            c.owned_room = c.input_size + more
        elif c.input != c.owned and c.input_size:
            memmove(c.owned, c.input, c.input_size)
        c.input = c.owned
        return True

    cdef void enqueue(self, int slot) noexcept:
        """Queue a client that has a whole message, unless it has to read, or wait, first."""
        cdef conn_t *c = &self.conns[slot]
        if c.queued or c.held or c.leaving or c.unsent_size or not whole(c):
            return
        c.queued = 1
        self.queue[(self.queue_head + self.queue_length) % self.most] = slot
        self.queue_length += 1

    # ---- answers

    @property
    def waiting(self):
        """Clients with a message that can be answered."""
        return self.queue_length

    def answer(self, Table table):
        """Answer what is queued, within the budget (None: nothing is published). Inside the read lock."""
        cdef int budget = BUDGET, slot
        cdef table_view *t = NULL
        cdef conn_t *c
        if table is not None:
            table.check_open()
            t = &table.view
        self.used = 0
        self.part_count = 0
        while self.queue_length and budget > 0 and self.part_count < ROUND and self.used + FRAME <= ARENA:
            slot = self.queue[self.queue_head]
            self.queue_head = (self.queue_head + 1) % self.most
            self.queue_length -= 1
            c = &self.conns[slot]
            c.queued = 0
            budget = self.answer_client(slot, c, table, t, budget)

    cdef int answer_client(self, int slot, conn_t *c, Table table, table_view *t, int budget) except? -1:
        """One client's turn; what is left of the budget."""
        cdef size_t at = 0, length, start = self.used
        cdef int size, end = budget - TURN
        while (
            budget > end and budget > 0 and self.used - start < SHARE and self.used + FRAME <= ARENA
            and c.input_size - at >= 2
        ):
            length = <size_t>c.input[at] << 8 | c.input[at + 1]
            if c.input_size - at < 2 + length:
                break
            size = self.answer_one(c, c.input + at + 2, <int>length, table, t, &budget)
            if size == HELD_MESSAGE:
                c.held = 1
                self.held.append(slot)
                break
            at += 2 + length
            c.asked = 0
            c.progress_ns = self.now_ns
            if size <= 0:               # not a query: whoever sends this over TCP has nothing to lose
                c.leaving = 1
                at = c.input_size
                break
            self.arena[self.used] = <uint8_t>(size >> 8)
            self.arena[self.used + 1] = <uint8_t>size
            self.used += 2 + size
        c.input += at
        c.input_size -= at
        self.parts[self.part_count].slot = slot
        self.parts[self.part_count].start = start
        self.parts[self.part_count].size = self.used - start
        self.part_count += 1
        return budget

    cdef int answer_one(
        self, conn_t *c, const uint8_t *p, int length, Table table, table_view *t, int *budget
    ) except? -1:
        """Write the reply behind the arena's end, two bytes on; its size, DROPPED, or HELD_MESSAGE."""
        cdef uint8_t *to = self.arena + self.used + 2
        cdef Counters counters = self.encrypted_counters if c.encrypted else self.counters
        cdef client_t client
        cdef int size
        cdef bint refused = self.refuse.count and self.refuse.contains(c.address, c.address_length)
        budget[0] -= 1
        self.turn += 1
        self.q.state = parse(p, length, &self.q)
        size = UNANSWERED
        if self.q.state == DROPPED:
            counters.request(&self.q, length, c.address_length == 16)
            counters.drop(SHORT if length < 12 else RESPONSE)
            return DROPPED
        if self.q.state > 0 and t != NULL and not refused:
            client.address = c.address
            client.address_length = c.address_length
            client.turn = self.turn * self.stride_of_turns
            client.stream = 1
            client.encrypted = c.encrypted
            memcpy(to, p, length)
            hash_name(t, &self.q.name)
            size = resolve(t, to, &self.q, LARGEST, &self.terms.c, &client)
        if size < 0:
            size = self.refer(c, p, length, table, refused)
            budget[0] -= SLOW - 1
        if size != HELD_MESSAGE:
            counters.request(&self.q, length, c.address_length == 16)
            if size > 0:
                counters.response(to, size)
            else:
                counters.drop(UNANSWERABLE)
        return size

    cdef int refer(self, conn_t *c, const uint8_t *p, int length, Table table, bint refused) except? -1:
        """Have the reference answer."""
        packet = PyBytes_FromStringAndSize(<const char *>p, length)
        address = PyBytes_FromStringAndSize(<char *>c.address, c.address_length)
        turn = self.turn * self.stride_of_turns
        reply = self.reference(packet, table, address, turn, refused, bool(c.encrypted), bool(c.asked))
        if reply is not None and len(reply) == 0 and not c.asked:
            return HELD_MESSAGE
        word_add(self.counters.declined, 1)
        if reply is None or not 0 < len(reply) <= LARGEST:
            return DROPPED
        memcpy(self.arena + self.used + 2, PyBytes_AS_STRING(reply), <size_t>len(reply))
        return <int>len(reply)

    # ---- out

    def send(self):
        """Send what was answered, and put aside what the round did not come to. Outside the lock."""
        cdef int i, slot
        cdef ssize_t n
        cdef conn_t *c
        cdef part_t *part
        for i in range(self.part_count):
            part = &self.parts[i]
            slot = part.slot
            c = &self.conns[slot]
            n = 0
            if part.size and not c.encrypted and not c.unsent_size:
                n = c_send(c.fd, self.arena + part.start, part.size, MSG_DONTWAIT | MSG_NOSIGNAL)
                if n < 0:
                    if errno != EAGAIN and errno != EINTR:
                        self.drop(slot)
                        continue
                    n = 0
            if not self.keep_reply(c, self.arena + part.start + n, part.size - n) or not self.keep_input(c):
                self.drop(slot)
                continue
            self.enqueue(slot)
            self.settle(slot)
        self.part_count = 0
        for i in range(self.readables):
            c = &self.conns[self.readable[i]]
            if c.fd >= 0 and not self.keep_input(c):
                self.drop(self.readable[i])
        self.readables = 0

    cdef bint keep_reply(self, conn_t *c, const uint8_t *p, size_t size) noexcept:
        """Keep what the client has not read yet. False: there is no memory."""
        cdef uint8_t *more
        if size == 0:
            return True
        if c.unsent_at:
            memmove(c.unsent, c.unsent + c.unsent_at, c.unsent_size)
            c.unsent_at = 0
        more = <uint8_t *>realloc(c.unsent, c.unsent_size + size)
        if more == NULL:
            return False
        memcpy(more + c.unsent_size, p, size)
        c.unsent = more
        c.unsent_size += size
        return True

    cdef bint keep_input(self, conn_t *c) noexcept:
        """The inbox is for one round: take what is left in it along. An empty input needs no memory."""
        if c.input_size == 0:
            free(c.owned)
            c.owned = c.input = NULL
            c.owned_room = 0
            return True
        return c.input == c.owned or self.own(c, 0)

    cdef int flush(self, int slot) except -1:
        """Send what was kept."""
        cdef conn_t *c = &self.conns[slot]
        cdef ssize_t n = 0
        if c.unsent_size:
            n = c_send(c.fd, c.unsent + c.unsent_at, c.unsent_size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if n < 0:
                if errno != EAGAIN and errno != EINTR:
                    return self.drop(slot)
                n = 0
            self.went_out(slot, <size_t>n)
        self.settle(slot)
        return 0

    cdef void went_out(self, int slot, size_t n) noexcept:
        cdef conn_t *c = &self.conns[slot]
        c.unsent_at += n
        c.unsent_size -= n
        c.step += n
        if c.step >= STEP or c.unsent_size == 0:
            c.progress_ns = self.now_ns
            c.step = 0
        if c.unsent_size == 0:
            free(c.unsent)
            c.unsent = NULL
            c.unsent_at = 0
            self.enqueue(slot)

    cdef int settle(self, int slot) except -1:
        """What comes next for a client: to read, to be read from, to wait, to leave."""
        cdef conn_t *c = &self.conns[slot]
        cdef uint32_t events = EPOLLIN
        if c.fd < 0:
            return 0
        if c.encrypted:
            self.outgoing.append(slot)
            return 0
        if c.unsent_size:
            events = EPOLLOUT
        elif c.queued or c.held or (c.ended and c.deferred and not c.leaving):
            events = 0
        elif c.leaving or c.ended:
            return self.drop(slot)
        if events != c.events:
            c.events = events
            epoll_set(self.epoll, EPOLL_CTL_MOD, c.fd, events, <uint64_t>slot)
        return 0

    # ---- for encrypted clients, and for held ones

    def take_outgoing(self):
        """[slot] of encrypted clients to be looked after: replies to send, a turn that has ended."""
        outgoing, self.outgoing = self.outgoing, []
        return outgoing

    def unsent(self, int slot):
        """What is to be sent, 64 KiB at most."""
        cdef conn_t *c = self.at(slot)
        return PyBytes_FromStringAndSize(<char *>c.unsent + c.unsent_at, min(c.unsent_size, <size_t>SHARE))

    def sent(self, int slot, Py_ssize_t n):
        """So much of it is gone."""
        cdef conn_t *c = self.at(slot)
        if not 0 <= n <= <Py_ssize_t>c.unsent_size:
            raise ValueError("more than there was")
        self.went_out(slot, <size_t>n)

    def watch(self, int slot, bint reading, bint writing):
        """What an encrypted client's socket waits for."""
        cdef conn_t *c = self.at(slot)
        cdef uint32_t events = (EPOLLIN if reading else 0) | (EPOLLOUT if writing else 0)
        if events != c.events:
            c.events = events
            epoll_set(self.epoll, EPOLL_CTL_MOD, c.fd, events, <uint64_t>slot)

    def state(self, int slot):
        """"busy": not to be read from now; "done": to be closed; "open"."""
        cdef conn_t *c = self.at(slot)
        if c.unsent_size or c.queued or c.held or (c.ended and c.deferred and not c.leaving):
            return "busy"
        return "done" if c.leaving or c.ended else "open"

    def take_held(self):
        """[slot] of clients whose first message the reference wants Python to look at outside the lock."""
        held, self.held = self.held, []
        return [slot for slot in held if self.conns[<int>slot].fd >= 0]

    def first_message(self, int slot):
        """What a held client has asked."""
        cdef conn_t *c = self.at(slot)
        if not whole(c):
            raise ValueError("there is no whole message")
        return PyBytes_FromStringAndSize(<char *>c.input + 2, <size_t>c.input[0] << 8 | c.input[1])

    def go_on(self, int slot):
        """End the hold: the reference answers the message, and is not to ask for a hold again."""
        cdef conn_t *c = self.at(slot)
        if not c.held:
            raise ValueError("it is not held")
        c.held = 0
        c.asked = 1
        self.enqueue(slot)
        self.settle(slot)

    def defer(self, int slot):
        """End the hold: the message is answered by `push`, those behind it go on."""
        cdef conn_t *c = self.at(slot)
        cdef size_t length
        if not c.held or not whole(c):
            raise ValueError("it is not held")
        length = <size_t>c.input[0] << 8 | c.input[1]
        self.q.state = parse(c.input + 2, <int>length, &self.q)
        (self.encrypted_counters if c.encrypted else self.counters).request(
            &self.q, <int>length, c.address_length == 16
        )
        c.input += 2 + length
        c.input_size -= 2 + length
        c.held = 0
        c.asked = 0
        c.deferred += 1
        c.progress_ns = self.now_ns
        if not self.keep_input(c):
            self.drop(slot)
            return
        self.enqueue(slot)
        self.settle(slot)

    def push(self, int slot, bytes reply, bint counted):
        """A message of the answer to a deferred query. `counted`: as the response, which one of them is."""
        cdef conn_t *c = self.at(slot)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(reply)
        cdef uint8_t head[2]
        if not 12 <= size <= LARGEST:
            raise ValueError("not a message")
        head[0] = <uint8_t>(size >> 8)
        head[1] = <uint8_t>size
        if counted:
            (self.encrypted_counters if c.encrypted else self.counters).response(
                <const uint8_t *>PyBytes_AS_STRING(reply), <int>size
            )
        if not self.keep_reply(c, head, 2) or not self.keep_reply(c, <const uint8_t *>PyBytes_AS_STRING(reply), size):
            self.drop(slot)
        elif c.encrypted:
            self.outgoing.append(slot)
        else:
            self.flush(slot)

    def settled(self, int slot):
        """A deferred query has got all of its answer."""
        cdef conn_t *c = self.at(slot)
        if c.deferred == 0:
            raise ValueError("there is no deferred query")
        c.deferred -= 1
        c.progress_ns = self.now_ns
        self.settle(slot)

    def is_open(self, int slot):
        """Whether somebody has this slot."""
        return 0 <= slot < self.most and self.conns[slot].fd >= 0

    def takes_more(self, int slot):
        """Whether the client has read (or its kernel has taken) all replies up to now."""
        return self.at(slot).unsent_size == 0

    @property
    def unread(self):
        """Clients that have not read all their replies."""
        cdef int i, count = 0
        for i in range(self.most):
            count += self.conns[i].fd >= 0 and self.conns[i].unsent_size > 0
        return count


cdef bint whole(conn_t *c) noexcept:
    """Whether the first message is there."""
    return c.input_size >= 2 and c.input_size - 2 >= (<size_t>c.input[0] << 8 | c.input[1])


cdef bint patient(conn_t *c) noexcept:
    """Whether it is us whom the client waits for."""
    return c.deferred != 0 and c.unsent_size == 0
