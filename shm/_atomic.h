/* Shared words: 8 bytes, aligned, one writer each. C11 atomics, so that the ordering holds off x86 too. */
#ifndef STANDOFF_ATOMIC_H
#define STANDOFF_ATOMIC_H

#include <stdatomic.h>
#include <stdint.h>

static inline uint64_t word_load(const void *p)
{
    return atomic_load_explicit((const _Atomic uint64_t *)p, memory_order_acquire);
}

static inline void word_store(void *p, uint64_t v)
{
    atomic_store_explicit((_Atomic uint64_t *)p, v, memory_order_release);
}

/* For the reader's way in: the store is visible to everyone before any later load is done. */
static inline void word_store_fenced(void *p, uint64_t v)
{
    atomic_store_explicit((_Atomic uint64_t *)p, v, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
}

/* A counter with one writer needs no locked instruction: nobody else stores to it. */
static inline void word_add(void *p, uint64_t n)
{
    _Atomic uint64_t *w = (_Atomic uint64_t *)p;
    atomic_store_explicit(w, atomic_load_explicit(w, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline void fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

#endif
