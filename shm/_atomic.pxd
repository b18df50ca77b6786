from libc.stdint cimport uint64_t

cdef extern from "_atomic.h" nogil:
    uint64_t word_load(const void *p) noexcept
    void word_store(void *p, uint64_t v) noexcept
    void word_store_fenced(void *p, uint64_t v) noexcept
    void word_add(void *p, uint64_t n) noexcept
    void fence() noexcept

cdef class Words:
    cdef Py_buffer view
    cdef bint held
    cdef char *at(self, Py_ssize_t offset) except NULL
    cdef char *at_writable(self, Py_ssize_t offset) except NULL
