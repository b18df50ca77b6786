/* Time and latencies, for flood.c. All times in nanoseconds of CLOCK_MONOTONIC. */
#ifndef STANDOFF_BENCH_MEASURE_H
#define STANDOFF_BENCH_MEASURE_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SECOND UINT64_C(1000000000)

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* A histogram with 128 steps to the octave: no value is off by more than 0.8 %, and recording one is a few instructions.
 * Octaves from 2^7 ns up to 2^40 ns (18 minutes). */
#define STEP_BITS 7
#define STEPS (1 << STEP_BITS)
#define OCTAVES 34

struct histogram {
    uint64_t count, longest;
    uint64_t buckets[OCTAVES * STEPS];
};

static inline unsigned bucket_of(uint64_t ns)
{
    if (ns < STEPS)
        return (unsigned)ns;
    unsigned octave = 63u - (unsigned)__builtin_clzll(ns) - STEP_BITS; /* 0: STEPS..2*STEPS-1, one ns a step */
    unsigned bucket = (octave + 1) * STEPS + (unsigned)(ns >> octave) - STEPS;
    return bucket < OCTAVES * STEPS ? bucket : OCTAVES * STEPS - 1;
}

static inline void record(struct histogram *h, uint64_t ns)
{
    h->buckets[bucket_of(ns)]++;
    h->count++;
    if (ns > h->longest)
        h->longest = ns;
}

/* Microseconds that `share` of the values do not exceed: the upper edge of the bucket, so never flattering. 0 if empty. */
static inline double percentile_us(const struct histogram *h, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)h->count), passed = 0;
    for (unsigned i = 0; i < OCTAVES * STEPS; i++) {
        passed += h->buckets[i];
        if (passed > wanted) {
            uint64_t edge = i < STEPS ? i : (uint64_t)(i % STEPS + STEPS + 1) << (i / STEPS - 1);
            return (double)(edge < h->longest ? edge : h->longest) / 1000.0;
        }
    }
    return (double)h->longest / 1000.0;
}

/* Clock ticks that a core has spent since boot: all of them, and those it was not idle. */
struct core_ticks {
    uint64_t all, busy;
};

static inline struct core_ticks read_core(int core)
{
    struct core_ticks ticks = {0, 0};
    char tag[24], line[512];
    int length = snprintf(tag, sizeof tag, "cpu%d ", core);
    FILE *stat = fopen("/proc/stat", "r");
    while (stat && fgets(line, sizeof line, stat)) {
        if (strncmp(line, tag, (size_t)length))
            continue;
        uint64_t v[8] = {0}; /* user nice system idle iowait irq softirq steal */
        sscanf(line + length, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64,
               v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7);
        for (int i = 0; i < 8; i++)
            ticks.all += v[i];
        ticks.busy = ticks.all - v[3] - v[4];
    }
    if (stat)
        fclose(stat);
    return ticks;
}

#endif
