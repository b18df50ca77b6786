# cython: language_level=3, boundscheck=False, wraparound=False, autotestdict=False
"""Loads and stores of shared 8-byte words, with the ordering that shm/rwlock.py relies on."""

from libc.stdint cimport uint64_t
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from shm._atomic cimport fence, word_add, word_load, word_store, word_store_fenced


cdef class Words:
    """The words of a buffer. `load` acquires, `store` releases, `store_fenced` is sequentially consistent."""

    def __cinit__(self):
        self.held = False

    def __init__(self, buffer, bint writable=False):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    def close(self):
        """Give the buffer back; every later use raises ValueError."""
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)

    cdef char *at(self, Py_ssize_t offset) except NULL:
        if not self.held:
            raise ValueError("the words are closed")
        if offset < 0 or offset & 7 or offset + 8 > self.view.len:
            raise IndexError(f"no word at offset {offset} of {self.view.len} bytes")
        return <char *>self.view.buf + offset

    cdef char *at_writable(self, Py_ssize_t offset) except NULL:
        if self.view.readonly:
            raise TypeError("the words are read-only")
        return self.at(offset)

    def load(self, Py_ssize_t offset):
        return word_load(self.at(offset))

    def store(self, Py_ssize_t offset, uint64_t value):
        word_store(self.at_writable(offset), value)

    def store_fenced(self, Py_ssize_t offset, uint64_t value):
        word_store_fenced(self.at_writable(offset), value)

    def add(self, Py_ssize_t offset, uint64_t n=1):
        """Count up a word whose only writer is the caller."""
        word_add(self.at_writable(offset), n)

    def fence(self):
        fence()
