/* tcpflood: a closed-loop load generator for DNS over TCP that checks every answer. One thread; pin it to a core.
 *
 *     gcc -O2 -o tcpflood tcpflood.c
 *     taskset -c 1 ./tcpflood -p 5300 -f queries.txt -c 100 -d 10 -t 5
 *
 * Each of -c connections has -d queries under way, all the time: as many new ones leave, in one send, as answers have
 * come in one read. Answers may come in any order; they are told by ID and checked against queries.h. Latency is from the
 * send to the read, so at saturation it is connections * depth / throughput (Little's law) and says little.
 *
 * stdout gets one line of JSON, with the keys of flood.c where they mean the same; the first wrong answers are described
 * on stderr. A connection that ends is an error and is not opened again. Exit status 0 whatever the answers were. */
#define _GNU_SOURCE
#include "measure.h"
#include "queries.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_CONNECTIONS 4096
#define MOST_DEPTH 256
#define INPUT 65536      /* a whole message of the largest size need not fit: answers here are small */
#define EVENTS 128
#define COMPLAINTS 5
#define PATIENCE (2 * SECOND) /* for what is under way at the end */

struct flight {
    uint64_t sent_ns; /* 0: the place is free */
    uint32_t query;
};

/* IDs are places in `flights`, so none is under way twice. `spare`: a stack of free places. */
struct connection {
    int fd;
    unsigned spares;
    uint16_t spare[MOST_DEPTH];
    struct flight flights[MOST_DEPTH];
    size_t filled;
    uint8_t input[INPUT];
};

static struct {
    const char *address, *port, *file;
    unsigned connections, depth;
    double warm_up_s, measure_s;
    int watch_core;
    enum extras extras;
} options = {.address = "127.0.0.1", .connections = 100, .depth = 1, .warm_up_s = 1, .measure_s = 5, .watch_core = -1};

static struct connection *connections;
static struct queries queries;
static struct histogram latencies;
static uint64_t sent, answered, in_time, wrong, mixed, unmatched, errors, begin_ns = UINT64_MAX, end_ns;
static size_t next_query;
static unsigned complaints;
static bool over;

static void complain(const char *fault, const uint8_t *packet)
{
    if (complaints++ < COMPLAINTS)
        fprintf(stderr, "tcpflood: ID %u: %s (rcode %u)\n", get16(packet), fault, packet[3] & 15u);
}

static void hang_up(struct connection *c)
{
    errors++;
    close(c->fd); /* epoll forgets it */
    c->fd = -1;
}

/* A query into every free place, all in one send. A window is small beside a socket buffer, so it is taken whole. */
static void send_queries(struct connection *c)
{
    static uint8_t out[MOST_DEPTH * (MAX_QUERY + 2)];
    uint8_t *p = out;
    uint64_t now = now_ns();
    while (c->spares) {
        uint16_t place = c->spare[--c->spares];
        const struct query *q = &queries.all[next_query];
        c->flights[place] = (struct flight){.sent_ns = now, .query = (uint32_t)next_query};
        next_query = next_query + 1 == queries.count ? 0 : next_query + 1;
        p = put16(p, q->length);
        memcpy(p, queries.wire + q->offset, q->length);
        put16(p, place);
        p += q->length;
        sent++;
    }
    if (p > out && send(c->fd, out, (size_t)(p - out), MSG_NOSIGNAL) != p - out)
        hang_up(c);
}

static void take_answer(struct connection *c, const uint8_t *packet, size_t length, uint64_t now)
{
    uint16_t place = length < HEADER ? UINT16_MAX : get16(packet);
    if (place >= options.depth || !c->flights[place].sent_ns) {
        unmatched++;
        return;
    }
    const struct query *q = &queries.all[c->flights[place].query];
    struct verdict verdict = check_answer(packet, length, q, queries.wire + q->offset + HEADER);
    if (verdict.fault) {
        complain(verdict.fault, packet);
        verdict.mixed ? mixed++ : wrong++;
    }
    answered++;
    if (now >= begin_ns && now < end_ns) {
        in_time++;
        record(&latencies, now - c->flights[place].sent_ns);
    }
    c->flights[place].sent_ns = 0;
    c->spare[c->spares++] = place;
}

static void receive_answers(struct connection *c)
{
    ssize_t n = recv(c->fd, c->input + c->filled, INPUT - c->filled, MSG_DONTWAIT);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            hang_up(c);
        return;
    }
    uint64_t now = now_ns();
    size_t at = 0;
    c->filled += (size_t)n;
    while (c->filled - at >= 2 && c->filled - at - 2 >= get16(c->input + at)) {
        size_t length = get16(c->input + at);
        take_answer(c, c->input + at + 2, length, now);
        at += 2 + length;
    }
    c->filled -= at;
    memmove(c->input, c->input + at, c->filled);
    if (!over)
        send_queries(c);
}

static void run_until(int poll, uint64_t until, bool draining)
{
    struct epoll_event ready[EVENTS];
    while (now_ns() < until && (!draining || answered < sent)) {
        int n = epoll_wait(poll, ready, EVENTS, 50);
        for (int i = 0; i < n; i++)
            if (connections[ready[i].data.u32].fd >= 0)
                receive_answers(&connections[ready[i].data.u32]);
    }
}

static void open_connection(struct connection *c, unsigned number, int poll)
{
    int on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(options.port))};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || inet_pton(AF_INET, options.address, &at.sin_addr) != 1 ||
        connect(c->fd, (struct sockaddr *)&at, sizeof at) || epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event)) {
        perror("tcpflood: connection");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (unsigned i = 0; i < options.depth; i++)
        c->spare[c->spares++] = (uint16_t)i;
}

static void read_options(int argc, char **argv)
{
    for (int o; (o = getopt(argc, argv, "a:p:f:c:d:w:t:kC:h")) != -1;)
        switch (o) {
        case 'a': options.address = optarg; break;
        case 'p': options.port = optarg; break;
        case 'f': options.file = optarg; break;
        case 'c': options.connections = (unsigned)atoi(optarg); break;
        case 'd': options.depth = (unsigned)atoi(optarg); break;
        case 'w': options.warm_up_s = atof(optarg); break;
        case 't': options.measure_s = atof(optarg); break;
        case 'k': options.extras = COOKIE; break;
        case 'C': options.watch_core = atoi(optarg); break;
        default: options.port = NULL;
        }
    if (!options.port || !options.file || options.connections < 1 || options.connections > MOST_CONNECTIONS ||
        options.depth < 1 || options.depth > MOST_DEPTH || options.measure_s <= 0) {
        fprintf(stderr, "tcpflood -p PORT -f FILE [options]     the file's format: queries.h\n"
                        "  -a ADDRESS  IPv4 address (127.0.0.1)         -c N   connections (100)\n"
                        "  -d N        queries under way on each (1)    -k     queries carry EDNS and a cookie\n"
                        "  -w S        warm-up, not measured (1)        -t S   measured seconds (5)\n"
                        "  -C CORE     also tell how busy that core was\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct core_ticks before, after;
    read_options(argc, argv);
    queries = load_queries(options.file, options.extras);
    connections = grown(NULL, options.connections * sizeof *connections);
    memset(connections, 0, options.connections * sizeof *connections);
    int poll = epoll_create1(0);
    for (unsigned i = 0; i < options.connections; i++)
        open_connection(&connections[i], i, poll);
    for (unsigned i = 0; i < options.connections; i++)
        send_queries(&connections[i]);
    run_until(poll, now_ns() + (uint64_t)(options.warm_up_s * (double)SECOND), false);
    before = read_core(options.watch_core);
    begin_ns = now_ns();
    end_ns = begin_ns + (uint64_t)(options.measure_s * (double)SECOND);
    run_until(poll, end_ns, false);
    after = read_core(options.watch_core);
    over = true;
    run_until(poll, now_ns() + PATIENCE, true);
    printf("{\"connections\":%u,\"depth\":%u,\"sent\":%" PRIu64 ",\"received\":%" PRIu64 ",\"lost\":%" PRIu64
           ",\"wrong\":%" PRIu64 ",\"mixed\":%" PRIu64 ",\"unmatched\":%" PRIu64 ",\"errors\":%" PRIu64 ",",
           options.connections, options.depth, sent, answered, sent - answered, wrong, mixed, unmatched, errors);
    printf("\"qps\":%.0f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f",
           (double)in_time / options.measure_s, percentile_us(&latencies, 0.5), percentile_us(&latencies, 0.99),
           percentile_us(&latencies, 0.999), (double)latencies.longest / 1000.0);
    if (options.watch_core >= 0 && after.all > before.all)
        printf(",\"core_busy\":%.3f", (double)(after.busy - before.busy) / (double)(after.all - before.all));
    printf("}\n");
    return 0;
}
