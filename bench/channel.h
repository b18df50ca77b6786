/* Sockets of flood.c with the queries that are under way on each: sending, receiving, losses. */
#ifndef STANDOFF_BENCH_CHANNEL_H
#define STANDOFF_BENCH_CHANNEL_H

#include "measure.h"
#include "queries.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define BATCH 64         /* messages a system call */
#define MAX_ANSWER 1500
#define LOST_AFTER SECOND
#define MAX_RING 65536   /* IDs are 16 bits */
#define COMPLAINTS 5     /* wrong answers described */
#define MAX_SEGMENTS 60  /* the kernel's limit for one UDP_SEGMENT send is 64 */

/* A query under way. They are kept in the order sent, in a ring indexed by the ID, so the oldest is always known. */
struct flight {
    uint64_t since_ns; /* closed loop: when sent; open loop: when due */
    uint64_t sent_ns;
    const struct query *query;
    bool open;
    bool counted; /* falls into the measured time */
};

struct channel {
    int fd;
    uint32_t head, tail; /* next to send, oldest not settled */
    unsigned under_way;
    uint32_t number; /* highest number of a set seen here; a worker may not go back */
    struct flight *ring;
};

struct totals {
    uint64_t sent, answered, lost, wrong, mixed, back, unmatched, errors;
    uint64_t in_time;  /* answers that came in the measured time: the throughput */
    uint64_t received; /* in all, warm-up and end included: what the server has worked for */
    uint64_t longest_gap_ns, latest_ns;
};

static struct queries queries;
static struct totals totals;
static struct histogram latencies; /* from since_ns until this program has read the answer: what a client feels */
static struct histogram turnarounds; /* from the send until the answer's arrival in the kernel: the server's part alone */
static int64_t realtime_ahead_ns; /* the kernel stamps arrivals with CLOCK_REALTIME */
static struct channel *channels;
static uint32_t ring_size;
static unsigned most_segments; /* queries in one send, 0 or 1: no UDP_SEGMENT */
static size_t next_query;
static uint64_t begin_ns, end_ns, last_answer_ns;

static bool measured(uint64_t ns) { return ns >= begin_ns && ns < end_ns; }

static struct flight *flight_of(struct channel *c, uint32_t id) { return &c->ring[id & (ring_size - 1)]; }

/* ---- losses: only the oldest can be overdue. One that a whole ring of later ones has overtaken is lost, too. */
static void settle(struct channel *c, uint64_t now)
{
    for (; c->tail != c->head; c->tail++) {
        struct flight *f = flight_of(c, c->tail);
        if (f->open && now < f->since_ns + LOST_AFTER && c->head - c->tail < ring_size)
            return;
        if (f->open) {
            f->open = false;
            c->under_way--;
            totals.lost += f->counted;
        }
    }
}

/* ---- sending */
static uint8_t out[BATCH * MAX_QUERY];
static struct iovec out_parts[BATCH];
static struct mmsghdr out_messages[BATCH];
static union { char bytes[CMSG_SPACE(sizeof(uint16_t))]; struct cmsghdr align; } out_control[BATCH];

static void mark_segmented(unsigned message, uint16_t size)
{
    struct msghdr *header = &out_messages[message].msg_hdr;
    header->msg_control = out_control[message].bytes;
    header->msg_controllen = sizeof out_control[message].bytes;
    struct cmsghdr *c = CMSG_FIRSTHDR(header);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof size);
    memcpy(CMSG_DATA(c), &size, sizeof size);
}

static void send_messages(int fd, unsigned count)
{
    unsigned done = 0;
    for (int tries = 0; done < count && tries < 8;) {
        int sent = sendmmsg(fd, out_messages + done, count - done, MSG_DONTWAIT);
        if (sent > 0) {
            done += (unsigned)sent;
        } else { /* what stays unsent will count as lost */
            totals.errors++;
            tries++;
        }
    }
}

/* Send up to `count` queries; since[i] is when each was due, or NULL for now. */
static void send_queries(struct channel *c, unsigned count, const uint64_t *since, uint64_t now)
{
    unsigned messages = 0, segments = 0;
    size_t segment_size = 0;
    uint8_t *p = out;
    for (unsigned i = 0; i < count; i++) {
        uint64_t when = since ? since[i] : now;
        settle(c, now);
        const struct query *q = &queries.all[next_query];
        next_query = next_query + 1 == queries.count ? 0 : next_query + 1;
        *flight_of(c, c->head) = (struct flight){
            .since_ns = when, .sent_ns = now, .query = q, .open = true, .counted = measured(when)};
        totals.sent += measured(when);
        memcpy(p, queries.wire + q->offset, q->length);
        put16(p, c->head & 0xffff);
        c->head++;
        c->under_way++;
        if (segments && segments < most_segments && q->length == segment_size) {
            if (segments == 1)
                mark_segmented(messages - 1, q->length);
            out_parts[messages - 1].iov_len += q->length;
            segments++;
        } else {
            out_parts[messages] = (struct iovec){p, q->length};
            out_messages[messages].msg_hdr = (struct msghdr){.msg_iov = &out_parts[messages], .msg_iovlen = 1};
            messages++;
            segments = 1;
            segment_size = q->length;
        }
        p += q->length;
    }
    send_messages(c->fd, messages);
}

/* ---- receiving */
static uint8_t in[BATCH][MAX_ANSWER];
static struct iovec in_parts[BATCH];
static struct mmsghdr in_messages[BATCH];
static union { char bytes[CMSG_SPACE(sizeof(struct timespec))]; struct cmsghdr align; } in_control[BATCH];

static void set_up_receiving(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    realtime_ahead_ns = (int64_t)t.tv_sec * (int64_t)SECOND + t.tv_nsec - (int64_t)now_ns();
    for (int i = 0; i < BATCH; i++) {
        in_parts[i] = (struct iovec){in[i], MAX_ANSWER};
        in_messages[i].msg_hdr = (struct msghdr){
            .msg_iov = &in_parts[i], .msg_iovlen = 1, .msg_control = in_control[i].bytes,
            .msg_controllen = sizeof in_control[i].bytes};
    }
}

/* When the kernel got this message; `now` if it does not say. Readies the message for the next use. */
static uint64_t arrival_ns(struct msghdr *header, uint64_t now)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(header);
    struct timespec t;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
        memcpy(&t, CMSG_DATA(c), sizeof t);
        now = (uint64_t)((int64_t)t.tv_sec * (int64_t)SECOND + t.tv_nsec - realtime_ahead_ns);
    }
    header->msg_controllen = sizeof in_control[0].bytes;
    return now;
}

static void complain(const char *fault, const uint8_t *packet, size_t length)
{
    if (totals.wrong + totals.mixed > COMPLAINTS)
        return;
    fprintf(stderr, "flood: wrong answer: %s (%zu bytes:", fault, length);
    for (size_t i = 0; i < length && i < 64; i++)
        fprintf(stderr, "%s%02x", i % 4 ? "" : " ", packet[i]);
    fprintf(stderr, ")\n");
}

/* A set's number as this socket's worker tells it must not fall: each change to the set carries a higher one. */
static void check_order(struct channel *c, const struct query *q, const uint8_t *packet, size_t length)
{
    struct walk w = {.at = packet + HEADER + q->question, .end = packet + length, .left = 1};
    if (!next_rr(&w) || w.length != 4)
        return;
    uint32_t number = get32(w.rdata) & 0xffffff;
    if (number < c->number)
        totals.back++;
    else
        c->number = number;
}

static void take_answer(struct channel *c, const uint8_t *packet, size_t length, uint64_t now, uint64_t arrived)
{
    uint32_t id = length < HEADER ? 0 : get16(packet);
    struct flight *f = flight_of(c, id);
    if (length < HEADER || ((id - c->tail) & 0xffff) >= c->head - c->tail || !f->open) {
        totals.unmatched++;
        return;
    }
    f->open = false;
    c->under_way--;
    if (f->counted) {
        totals.answered++;
        record(&latencies, now > f->since_ns ? now - f->since_ns : 0);
        record(&turnarounds, arrived > f->sent_ns ? arrived - f->sent_ns : 0);
    }
    struct verdict verdict = check_answer(packet, length, f->query, queries.wire + f->query->offset + HEADER);
    if (verdict.fault) {
        totals.wrong++;
        totals.mixed += verdict.mixed;
        complain(verdict.fault, packet, length);
    } else if (f->query->want == WANT_SET) {
        check_order(c, f->query, packet, length);
    }
}

static void note_gap(uint64_t now)
{
    if (last_answer_ns && now - last_answer_ns > totals.longest_gap_ns)
        totals.longest_gap_ns = now - last_answer_ns;
    last_answer_ns = now;
}

static void receive_answers(struct channel *c)
{
    int count = recvmmsg(c->fd, in_messages, BATCH, MSG_DONTWAIT, NULL);
    if (count < 0) {
        totals.errors += errno != EAGAIN;
        return;
    }
    uint64_t now = now_ns();
    totals.received += (unsigned)count;
    if (measured(now)) {
        totals.in_time += (unsigned)count;
        note_gap(now);
    }
    for (int i = 0; i < count; i++)
        take_answer(c, in[i], in_messages[i].msg_len, now, arrival_ns(&in_messages[i].msg_hdr, now));
}

#endif
