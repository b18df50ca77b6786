/* The queries that flood.c sends, and what a right answer to each looks like.
 *
 * A query file has a line `NAME TYPE [WANT]` for each query. WANT is
 *     any         any answer to this question will do
 *     answer      NOERROR with at least one RR, the first of the type asked (the default)
 *     nxdomain    NXDOMAIN, no RR
 *     nodata      NOERROR, no RR
 *     192.0.2.1   one A record with this address first in the answer
 *     set:N       N addresses which all carry the same number in their last three bytes: RRs of two generations of the
 *                 set in one answer are a mixed answer, the fault that a half-made table would show */
#ifndef STANDOFF_BENCH_QUERIES_H
#define STANDOFF_BENCH_QUERIES_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEADER 12
#define MAX_QUERY 300 /* header, a name of 255, type, class, OPT */

enum extras { PLAIN, EDNS, COOKIE };
enum want { WANT_ANY, WANT_ANSWER, WANT_NXDOMAIN, WANT_NODATA, WANT_ADDRESS, WANT_SET };

struct query {
    size_t offset; /* into the wire bytes of all queries */
    uint16_t length;
    uint16_t question; /* bytes of the question section */
    uint16_t type;
    uint16_t want;
    uint32_t value; /* WANT_ADDRESS: the address, host order; WANT_SET: how many */
};

struct queries {
    struct query *all;
    size_t count, room;
    uint8_t *wire;
    size_t used, size;
};

static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

static inline uint8_t *put16(uint8_t *p, unsigned value)
{
    *p++ = (uint8_t)(value >> 8);
    *p++ = (uint8_t)value;
    return p;
}

static int type_number(const char *name)
{
    static const struct { const char *name; int number; } known[] = {
        {"A", 1}, {"NS", 2}, {"CNAME", 5}, {"SOA", 6}, {"PTR", 12}, {"MX", 15}, {"TXT", 16}, {"AAAA", 28}, {"SRV", 33},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(name, known[i].name))
            return known[i].number;
    return strncasecmp(name, "TYPE", 4) ? -1 : atoi(name + 4); /* RFC 3597 */
}

/* A query without its ID; 0 if the name cannot be one. `question` gets the length of the question section. */
static size_t encode_query(uint8_t *packet, const char *name, int type, enum extras extras, uint16_t *question)
{
    uint8_t *p = packet + HEADER;
    memset(packet, 0, HEADER);
    packet[5] = 1; /* QDCOUNT */
    packet[11] = extras != PLAIN;
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        if (length < 1 || length > 63 || (size_t)(p - packet) + length > HEADER + 253)
            return 0;
        *p++ = (uint8_t)length;
        memcpy(p, label, length);
        p += length;
        label += length + (label[length] == '.');
    }
    *p++ = 0;
    p = put16(put16(p, (unsigned)type), 1);
    *question = (uint16_t)(p - packet - HEADER);
    if (extras != PLAIN) {
        static const uint8_t opt[23] = {
            0, 0, 41, 1232 >> 8, 1232 & 0xff, 0, 0, 0, 0, 0, 12, /* root, OPT, payload size, flags, length */
            0, 10, 0, 8, 'b', 'e', 'n', 'c', 'h', 'm', 'a', 'r', /* COOKIE, a client's (RFC 7873) */
        };
        memcpy(p, opt, sizeof opt);
        if (extras == EDNS)
            p[10] = 0;
        p += extras == EDNS ? 11 : sizeof opt;
    }
    return (size_t)(p - packet);
}

static bool parse_want(const char *word, struct query *q)
{
    struct in_addr address;
    static const char *const words[] = {"any", "answer", "nxdomain", "nodata"};
    for (uint16_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(word, words[i])) {
            q->want = i;
            return true;
        }
    if (!strncasecmp(word, "set:", 4)) {
        q->want = WANT_SET;
        q->value = (uint32_t)strtoul(word + 4, NULL, 10);
        return q->value > 0;
    }
    q->want = WANT_ADDRESS;
    if (inet_pton(AF_INET, word, &address) != 1)
        return false;
    q->value = ntohl(address.s_addr);
    return true;
}

static void *grown(void *block, size_t size)
{
    block = realloc(block, size);
    if (!block) {
        fprintf(stderr, "flood: out of memory\n");
        exit(1);
    }
    return block;
}

/* Every query of a file; exits with a message about the first line that is none. */
static struct queries load_queries(const char *path, enum extras extras)
{
    struct queries qs = {0};
    char line[1024], name[512], type[32], want[64];
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        exit(2);
    }
    for (unsigned long number = 1; fgets(line, sizeof line, file); number++) {
        int words = sscanf(line, "%511s %31s %63s", name, type, want);
        if (words < 1 || name[0] == '#')
            continue;
        if (qs.count == qs.room)
            qs.all = grown(qs.all, (qs.room = qs.room ? 2 * qs.room : 4096) * sizeof *qs.all);
        if (qs.used + MAX_QUERY > qs.size)
            qs.wire = grown(qs.wire, qs.size = qs.size ? 2 * qs.size : 1 << 20);
        struct query *q = &qs.all[qs.count];
        *q = (struct query){.offset = qs.used, .want = WANT_ANSWER};
        int code = words > 1 ? type_number(type) : 1;
        if (code > 0)
            q->length = (uint16_t)encode_query(qs.wire + qs.used, strcmp(name, ".") ? name : "", code, extras, &q->question);
        q->type = (uint16_t)code;
        if (!q->length || (words > 2 && !parse_want(want, q))) {
            fprintf(stderr, "flood: %s:%lu: not a query: %s", path, number, line);
            exit(2);
        }
        qs.used += q->length;
        qs.count++;
    }
    fclose(file);
    if (!qs.count) {
        fprintf(stderr, "flood: %s has no query\n", path);
        exit(2);
    }
    return qs;
}

/* ---- answers */

/* Walks the RRs of an answer section. */
struct walk {
    const uint8_t *at, *end;
    unsigned left;
    uint16_t type, length;
    const uint8_t *rdata;
};

static bool next_rr(struct walk *w)
{
    if (!w->left)
        return false;
    w->left--;
    const uint8_t *p = w->at;
    while (p < w->end && *p && *p < 0xc0)
        p += *p + 1;
    if (p >= w->end)
        return false;
    p += *p ? 2 : 1;
    if (w->end - p < 10 || w->end - p - 10 < get16(p + 8))
        return false;
    w->type = get16(p);
    w->length = get16(p + 8);
    w->rdata = p + 10;
    w->at = w->rdata + w->length;
    return true;
}

struct verdict {
    const char *fault; /* NULL: the answer is right */
    bool mixed;        /* the fault is RRs of several generations in one set */
};

#define FAULT(text) ((struct verdict){.fault = (text)})

static struct verdict check_set(struct walk w, uint32_t wanted)
{
    uint32_t seen = 0, number = 0;
    bool mixed = false;
    while (next_rr(&w)) {
        if (w.type != 1 || w.length != 4)
            continue;
        uint32_t its = get32(w.rdata) & 0xffffff;
        mixed |= seen && its != number;
        number = its;
        seen++;
    }
    if (mixed)
        return (struct verdict){.fault = "addresses of several generations", .mixed = true};
    return seen == wanted ? FAULT(NULL) : FAULT("not the whole set");
}

/* Is this the answer to `q`, whose question section is at `question`? */
static struct verdict check_answer(const uint8_t *packet, size_t length, const struct query *q, const uint8_t *question)
{
    unsigned rcode = packet[3] & 15, answers = get16(packet + 6);
    if (!(packet[2] & 0x80))
        return FAULT("QR is not set");
    if (get16(packet + 4) != 1 || length < (size_t)HEADER + q->question || memcmp(packet + HEADER, question, q->question))
        return FAULT("not the question asked");
    struct walk w = {.at = packet + HEADER + q->question, .end = packet + length, .left = answers};
    switch ((enum want)q->want) {
    case WANT_ANY:
        return FAULT(NULL);
    case WANT_NXDOMAIN:
        return rcode == 3 && !answers ? FAULT(NULL) : FAULT("NXDOMAIN expected");
    case WANT_NODATA:
        return rcode == 0 && !answers ? FAULT(NULL) : FAULT("no data expected");
    case WANT_ANSWER:
        return rcode == 0 && next_rr(&w) && w.type == q->type ? FAULT(NULL) : FAULT("an RR of the type asked expected");
    case WANT_ADDRESS:
        return rcode == 0 && next_rr(&w) && w.type == 1 && w.length == 4 && get32(w.rdata) == q->value
                   ? FAULT(NULL) : FAULT("another address expected");
    case WANT_SET:
        return rcode == 0 ? check_set(w, q->value) : FAULT("a set of addresses expected");
    }
    return FAULT("unknown expectation");
}

#endif
