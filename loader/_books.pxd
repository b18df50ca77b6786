# cython: language_level=3

from loader._short cimport Plain


cdef class Books:
    cdef dict gifts_to, names_of, children, nothing
    cdef object zones, touch
    cdef set aggregates
    cdef object zone               # of the name before
    cdef long long revision        # the highest that has touched it, as far as that is not told

    cdef bint placed(self, bytes name, gift) except -1
    cdef bint all_placed(self, bytes name, list plains) except -1
    cdef int add_name(self, str key, bytes name, gift) except -1
    cdef bint both_placed(self, bytes name, bytes own, Plain gift) except -1
    cdef object zone_beneath(self, bytes up)
    cdef int touched(self, zone, long long revision) except -1
    cdef int link(self, bytes name, bytes up) except -1
