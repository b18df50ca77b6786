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
#include "channel.h"

#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#define RELAXED_US 500

struct options {
    const char *address, *port, *file;
    unsigned sockets, window, segments;
    double rate, warm_up_s, measure_s;
    int watch_core;
    enum extras extras;
    bool relaxed;
};

static struct options options = {
    .address = "127.0.0.1", .sockets = 16, .window = 256, .warm_up_s = 1, .measure_s = 5, .watch_core = -1};
static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
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
    int bytes = 4 << 20, on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(options.port))};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    c->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    setsockopt(c->fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
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
    for (int o; (o = getopt(argc, argv, "a:p:f:c:W:r:w:t:ekg:C:zh")) != -1;)
        switch (o) {
        case 'a': options.address = optarg; break;
        case 'p': options.port = optarg; break;
        case 'f': options.file = optarg; break;
        case 'c': options.sockets = (unsigned)atoi(optarg); break;
        case 'W': options.window = (unsigned)atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'w': options.warm_up_s = atof(optarg); break;
        case 't': options.measure_s = atof(optarg); break;
        case 'e': options.extras = EDNS; break;
        case 'k': options.extras = COOKIE; break;
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
           ",\"back\":%" PRIu64 ",\"unmatched\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"received\":%" PRIu64 ",",
           totals.sent, totals.answered, totals.lost, totals.wrong, totals.mixed, totals.back, totals.unmatched,
           totals.errors, totals.received);
    printf("\"qps\":%.0f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f,\"gap_us\":%.1f,\"late_us\":%.1f,",
           (double)totals.in_time / seconds, percentile_us(&latencies, 0.5), percentile_us(&latencies, 0.99),
           percentile_us(&latencies, 0.999), (double)latencies.longest / 1000.0, (double)totals.longest_gap_ns / 1000.0,
           (double)totals.latest_ns / 1000.0);
    printf("\"server_p50_us\":%.1f,\"server_p99_us\":%.1f,\"server_p999_us\":%.1f,\"server_max_us\":%.1f,",
           percentile_us(&turnarounds, 0.5), percentile_us(&turnarounds, 0.99), percentile_us(&turnarounds, 0.999),
           (double)turnarounds.longest / 1000.0);
    if (options.watch_core >= 0 && after->all > before->all)
        printf("\"core_busy\":%.3f,", (double)(after->busy - before->busy) / (double)(after->all - before->all));
    printf("\"set_number\":%u}\n", number);
}

int main(int argc, char **argv)
{
    struct core_ticks before, after;
    read_options(argc, argv);
    queries = load_queries(options.file, options.extras);
    /* Room for what falls due until a query counts as lost; a closed loop needs less, and does well in the cache. */
    double room = options.rate > 0 ? 1.3 * options.rate / options.sockets : 16.0 * options.window / options.sockets;
    for (ring_size = 2048; ring_size < MAX_RING && ring_size < room; ring_size *= 2)
        continue;
    channels = grown(NULL, options.sockets * sizeof *channels);
    memset(channels, 0, options.sockets * sizeof *channels);
    int poll = epoll_create1(0);
    for (unsigned i = 0; i < options.sockets; i++)
        open_channel(&channels[i], i, poll);
    set_up_receiving();
    most_segments = options.segments;
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
