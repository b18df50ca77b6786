/* flood: a UDP load generator for DNS that checks every answer. One thread; pin it to a core of its own.
 *
 *     gcc -O2 -o flood flood.c
 *     taskset -c 1 ./flood -p 5300 -f queries.txt -t 5               as fast as the server goes
 *     taskset -c 1 ./flood -p 5300 -f queries.txt -t 5 -r 50000      50,000 queries a second, whatever happens
 *
 * Closed loop (the first): a window of queries is under way; each answer lets the next one go. It measures throughput.
 * Its latencies mean little: they are window / throughput (Little's law).
 *
 * Open loop (-r): query n is due at start + n / rate, and its latency counts from that moment, however late the server or
 * this program was. So a stall of 10 ms is felt by all 500 queries that fell due in it, as it is by clients; a generator
 * that waits for answers before it sends would hide it in one sample ("coordinated omission").
 *
 * Answers are matched by socket and ID and checked against queries.h. A query without an answer for a second is lost.
 * stdout gets one line of JSON; the first wrong answers are described on stderr. Exit status 0 whatever the answers were.
 * SIGTERM and SIGINT end the measurement early, with its line. */
#define _GNU_SOURCE
#include "measure.h"
#include "queries.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define BATCH 64         /* messages a system call */
#define MAX_ANSWER 1500
#define LOST_AFTER SECOND
#define MAX_RING 65536   /* IDs are 16 bits */
#define COMPLAINTS 5     /* wrong answers described */
#define RELAXED_US 500
#define MAX_SEGMENTS 60  /* the kernel's limit for one UDP_SEGMENT send is 64 */

struct options {
    const char *address, *port, *file;
    unsigned sockets, window, segments;
    double rate, warm_up_s, measure_s;
    int watch_core;
    bool edns, relaxed;
};

/* A query under way. They are kept in the order sent, in a ring indexed by the ID, so the oldest is always known. */
struct flight {
    uint64_t since_ns; /* closed loop: when sent; open loop: when due */
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
    uint64_t in_time; /* answers that came in the measured time: the throughput */
    uint64_t longest_gap_ns, latest_ns;
};

static struct options options = {
    .address = "127.0.0.1", .sockets = 16, .window = 256, .warm_up_s = 1, .measure_s = 5, .watch_core = -1};
static struct queries queries;
static struct totals totals;
static struct histogram latencies;
static struct channel *channels;
static uint32_t ring_size;
static size_t next_query;
static uint64_t begin_ns, end_ns, last_answer_ns;
static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

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
        *flight_of(c, c->head) = (struct flight){.since_ns = when, .query = q, .open = true, .counted = measured(when)};
        totals.sent += measured(when);
        memcpy(p, queries.wire + q->offset, q->length);
        put16(p, c->head & 0xffff);
        c->head++;
        c->under_way++;
        if (segments && segments < options.segments && q->length == segment_size) {
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

static void take_answer(struct channel *c, const uint8_t *packet, size_t length, uint64_t now)
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
    if (measured(now)) {
        totals.in_time += (unsigned)count;
        note_gap(now);
    }
    for (int i = 0; i < count; i++)
        take_answer(c, in[i], in_messages[i].msg_len, now);
}

/* ---- the two loops, until end_ns */
static void closed_loop(void)
{
    unsigned each = options.window / options.sockets;
    for (uint64_t now; !interrupted && (now = now_ns()) < end_ns;) {
        for (unsigned i = 0; i < options.sockets; i++) {
            struct channel *c = &channels[i];
            receive_answers(c);
            settle(c, now);
            if (c->under_way < each) {
                unsigned room = each - c->under_way;
                send_queries(c, room < BATCH ? room : BATCH, NULL, now_ns());
            }
        }
    }
}

static void open_loop(int poll, uint64_t start_ns)
{
    struct epoll_event ready[BATCH];
    uint64_t due[BATCH], sequence = 0;
    unsigned turn = 0;
    double step_ns = (double)SECOND / options.rate;
    for (uint64_t now; !interrupted && (now = now_ns()) < end_ns;) {
        unsigned count = 0;
        for (; count < BATCH; count++, sequence++) {
            due[count] = start_ns + (uint64_t)((double)sequence * step_ns);
            if (due[count] > now)
                break;
        }
        if (count) {
            if (measured(due[0]) && now - due[0] > totals.latest_ns)
                totals.latest_ns = now - due[0];
            send_queries(&channels[turn], count, due, now);
            turn = (turn + 1) % options.sockets;
        }
        /* It spins: to sleep would add the wake-up to every latency. Relaxed, it is a background load for others. */
        if (options.relaxed && count < BATCH)
            usleep(RELAXED_US);
        int events = epoll_wait(poll, ready, BATCH, 0);
        for (int i = 0; i < events; i++)
            receive_answers(&channels[ready[i].data.u32]);
    }
}

/* Wait for the answers that are due to queries sent in the measured time. */
static void drain(void)
{
    uint64_t stop_ns = now_ns() + LOST_AFTER + LOST_AFTER / 10;
    for (unsigned under_way = 1; under_way && now_ns() < stop_ns;) {
        under_way = 0;
        for (unsigned i = 0; i < options.sockets; i++) {
            receive_answers(&channels[i]);
            settle(&channels[i], now_ns());
            under_way += channels[i].under_way;
        }
        usleep(200);
    }
    for (unsigned i = 0; i < options.sockets; i++)
        settle(&channels[i], now_ns() + LOST_AFTER);
}

/* ---- setting up */
static void open_channel(struct channel *c, unsigned number, int poll)
{
    int bytes = 4 << 20;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(options.port))};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    c->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    if (inet_pton(AF_INET, options.address, &at.sin_addr) != 1 || c->fd < 0 ||
        connect(c->fd, (struct sockaddr *)&at, sizeof at) || epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event)) {
        perror("flood: socket");
        exit(1);
    }
    c->ring = grown(NULL, ring_size * sizeof *c->ring);
    memset(c->ring, 0, ring_size * sizeof *c->ring);
}

static void usage(void)
{
    fprintf(stderr,
            "flood -p PORT -f FILE [options]     the file's format: queries.h\n"
            "  -a ADDRESS  IPv4 address of the server (127.0.0.1)   -c N   sockets (16)\n"
            "  -r RATE     open loop: queries a second              -W N   closed loop: queries under way (256)\n"
            "  -w S        warm-up, not measured (1)                -t S   measured seconds (5)\n"
            "  -e          queries carry EDNS, 1232 bytes           -g N   up to N queries in one send (UDP_SEGMENT)\n"
            "  -C CORE     also tell how busy that core was         -z     open loop, sleeping: spares its core, adds 1 ms\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    for (int o; (o = getopt(argc, argv, "a:p:f:c:W:r:w:t:eg:C:zh")) != -1;)
        switch (o) {
        case 'a': options.address = optarg; break;
        case 'p': options.port = optarg; break;
        case 'f': options.file = optarg; break;
        case 'c': options.sockets = (unsigned)atoi(optarg); break;
        case 'W': options.window = (unsigned)atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'w': options.warm_up_s = atof(optarg); break;
        case 't': options.measure_s = atof(optarg); break;
        case 'e': options.edns = true; break;
        case 'z': options.relaxed = true; break;
        case 'g': options.segments = (unsigned)atoi(optarg); break;
        case 'C': options.watch_core = atoi(optarg); break;
        default: usage();
        }
    if (!options.port || !options.file || options.sockets < 1 || options.sockets > 1024 || options.rate < 0 ||
        options.window < options.sockets || options.measure_s <= 0 || options.segments > MAX_SEGMENTS)
        usage();
}

static void print_result(double seconds, const struct core_ticks *before, const struct core_ticks *after)
{
    uint32_t number = 0;
    for (unsigned i = 0; i < options.sockets; i++)
        number = channels[i].number > number ? channels[i].number : number;
    printf("{\"mode\":\"%s\",\"rate\":%.0f,\"sockets\":%u,\"window\":%u,\"seconds\":%.3f,", options.rate > 0 ? "open" : "closed",
           options.rate, options.sockets, options.rate > 0 ? 0 : options.window, seconds);
    printf("\"sent\":%" PRIu64 ",\"answered\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"wrong\":%" PRIu64 ",\"mixed\":%" PRIu64
           ",\"back\":%" PRIu64 ",\"unmatched\":%" PRIu64 ",\"errors\":%" PRIu64 ",",
           totals.sent, totals.answered, totals.lost, totals.wrong, totals.mixed, totals.back, totals.unmatched,
           totals.errors);
    printf("\"qps\":%.0f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f,\"gap_us\":%.1f,\"late_us\":%.1f,",
           (double)totals.in_time / seconds, percentile_us(&latencies, 0.5), percentile_us(&latencies, 0.99),
           percentile_us(&latencies, 0.999), (double)latencies.longest / 1000.0, (double)totals.longest_gap_ns / 1000.0,
           (double)totals.latest_ns / 1000.0);
    if (options.watch_core >= 0 && after->all > before->all)
        printf("\"core_busy\":%.3f,", (double)(after->busy - before->busy) / (double)(after->all - before->all));
    printf("\"set_number\":%u}\n", number);
}

int main(int argc, char **argv)
{
    struct core_ticks before, after;
    read_options(argc, argv);
    queries = load_queries(options.file, options.edns);
    /* Room for what falls due until a query counts as lost; a closed loop needs less, and does well in the cache. */
    double room = options.rate > 0 ? 1.3 * options.rate / options.sockets : 16.0 * options.window / options.sockets;
    for (ring_size = 2048; ring_size < MAX_RING && ring_size < room; ring_size *= 2)
        continue;
    channels = grown(NULL, options.sockets * sizeof *channels);
    memset(channels, 0, options.sockets * sizeof *channels);
    int poll = epoll_create1(0);
    for (unsigned i = 0; i < options.sockets; i++)
        open_channel(&channels[i], i, poll);
    for (int i = 0; i < BATCH; i++) {
        in_parts[i] = (struct iovec){in[i], MAX_ANSWER};
        in_messages[i].msg_hdr = (struct msghdr){.msg_iov = &in_parts[i], .msg_iovlen = 1};
    }
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);

    uint64_t start_ns = now_ns();
    begin_ns = UINT64_MAX; /* the warm-up is not measured */
    end_ns = start_ns + (uint64_t)(options.warm_up_s * (double)SECOND);
    options.rate > 0 ? open_loop(poll, start_ns) : closed_loop();
    before = read_core(options.watch_core);
    begin_ns = last_answer_ns = now_ns();
    end_ns = begin_ns + (uint64_t)(options.measure_s * (double)SECOND);
    options.rate > 0 ? open_loop(poll, begin_ns) : closed_loop();
    uint64_t stop_ns = now_ns();
    end_ns = stop_ns < end_ns ? stop_ns : end_ns;
    after = read_core(options.watch_core);
    if (end_ns > last_answer_ns) {
        uint64_t gap = end_ns - last_answer_ns;
        totals.longest_gap_ns = gap > totals.longest_gap_ns ? gap : totals.longest_gap_ns;
    }
    drain();
    print_result((double)(end_ns - begin_ns) / (double)SECOND, &before, &after);
    return 0;
}
