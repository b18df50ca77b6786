# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""The compiled half of shm/rwlock.py: a reader's way in and out when its gate is free. Nothing else may use it.

A worker goes through here once a batch; in Python this took a twentieth of its time.
"""

from libc.stdint cimport uint64_t
from libc.time cimport time_t

from shm._atomic cimport Words, word_add, word_load, word_store, word_store_fenced

from shm import layout
from shm.errors import ClosedLock, ForkedLock, NestedRead, NotHeld, WouldBlock

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    sem_t *SEM_FAILED
    sem_t *sem_open(const char *name, int flags)
    int sem_close(sem_t *gate)
    int sem_trywait(sem_t *gate)
    int sem_post(sem_t *gate)

cdef extern from "<time.h>" nogil:
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef extern from *:
    int __builtin_clzll(unsigned long long x) noexcept nogil


cdef uint64_t monotonic_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef class Section:
    """One reader's section and gate. A subclass has `_wait()` (R1: True if it got the gate) and `_renew_gate()`."""

    cdef sem_t *gate
    cdef Words own
    cdef Words board
    cdef char *section_at
    cdef char *since_at
    cdef char *live_at
    cdef char *histogram_at
    cdef char *hold_max_at
    cdef uint64_t section
    cdef uint64_t since
    cdef bint inside
    cdef bint past
    cdef bint foreign
    cdef int last_bucket
    cdef object __weakref__

    def __cinit__(self):
        self.gate = NULL

    def __init__(self, Words board, Words own):
        self.own = own
        self.board = board
        self.live_at = board.at(layout.LIVE)
        self.section_at = own.at_writable(layout.SLOT_WORDS["section"])
        self.since_at = own.at_writable(layout.SLOT_WORDS["since_ns"])
        self.hold_max_at = own.at_writable(layout.SLOT_WORDS["hold_max_ns"])
        self.histogram_at = own.at_writable(layout.HOLD_HISTOGRAM)
        self.last_bucket = layout.HISTOGRAM_BUCKETS - 1
        self.section = word_load(self.section_at)

    def __dealloc__(self):
        self._close_gate()

    @property
    def held(self):
        """Whether this reader is inside."""
        return self.inside

    @property
    def gated(self):
        """Whether it has a gate."""
        return self.gate != NULL

    def _open_gate(self, str name):
        """Use the semaphore of this name from now on. Raises OSError."""
        cdef bytes encoded = name.encode()
        cdef sem_t *gate = sem_open(encoded, 0)
        if gate == SEM_FAILED:
            raise OSError(f"cannot open semaphore {name}")
        self._close_gate()
        self.gate = gate

    def _close_gate(self):
        if self.gate != NULL:
            sem_close(self.gate)
            self.gate = NULL

    def _try_gate(self):
        """Take the gate if it is free."""
        return self.gate != NULL and sem_trywait(self.gate) == 0

    def _disown(self):
        """In a forked child: the slot and its gate are the parent's."""
        self.foreign = True

    def read(self):
        """For `with`: wait for the gate as long as R1 says, then go in whatever it does."""
        return self

    def try_read(self):
        """For `with`: raises WouldBlock if the gate is not free at once."""
        return TryRead(self)

    def __enter__(self):
        """Returns the live word."""
        self.check()
        self.past = sem_trywait(self.gate) != 0 and not self._wait()
        return self.go_in()

    cdef int check(self) except -1:
        if self.inside:
            raise NestedRead(f"read lock acquired twice: the first section was never left{self._acquired_at()}")
        if self.foreign:
            raise ForkedLock("read lock used in a child forked after it was opened: open it again in the child")
        if self.gate == NULL:
            raise ClosedLock("read lock used after close")
        return 0

    cdef uint64_t go_in(self) noexcept:
        self.inside = True
        self.section += 1
        self.since = monotonic_ns()
        word_store(self.since_at, self.since)
        word_store_fenced(self.section_at, self.section)  # R2: before `live` is read
        return word_load(self.live_at)

    def __exit__(self, kind, error, trace):
        if not self.inside:
            raise NotHeld("read lock released without having been acquired")
        if self.foreign:
            raise ForkedLock("read lock released in a child forked inside the section: the parent is the reader")
        self.section += 1
        word_store(self.section_at, self.section)
        self.inside = False
        cdef uint64_t held = monotonic_ns() - self.since
        cdef int bucket = 63 - __builtin_clzll(held | 1)
        word_add(self.histogram_at + 8 * (bucket if bucket < self.last_bucket else self.last_bucket), 1)
        if held > word_load(self.hold_max_at):
            word_store(self.hold_max_at, held)
        if self.past:
            self.past = False
            self._renew_gate()
        else:
            sem_post(self.gate)


cdef class TryRead:
    """`with lock.try_read() as live:`"""

    cdef Section section

    def __init__(self, Section section):
        self.section = section

    def __enter__(self):
        self.section.check()
        if sem_trywait(self.section.gate) != 0:
            raise WouldBlock("a writer holds the gate")
        self.section.past = False
        return self.section.go_in()

    def __exit__(self, kind, error, trace):
        self.section.__exit__(kind, error, trace)
