/* asker: asks for one set of addresses steadily, over UDP and TCP, and writes down what became of every single query.
 *
 *     gcc -O2 -pthread -o asker asker.c
 *     ./asker -p 5300 -n gen.example.test -r 5000 -i 5 -o log      until SIGTERM
 *
 * A set of generation N is 10.N, 11.N, 12.N and 13.N, N in the last three bytes: an answer with several numbers has been
 * put together from two tables. Query k goes out at start + k / rate whatever happens to the others; nothing is sent again.
 * TCP: one connection, a query every `-i` ms; a new connection as soon as one breaks.
 *
 * The log is a row of `struct record`, sorted by nothing. Besides queries it tells of the machine:
 * - stalls: times in which a thread that sleeps 1 ms, one on each core, or one that computes now and then, or the asker's
 *   loop itself, was not run for more than STALL_NS. What falls into those cannot be held against the server;
 * - work: how long WORK_NS of computing took, thirty times a second. On a machine that is busy with other things it takes
 *   several times as long, and so does what a server has to compute to start a worker. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND UINT64_C(1000000000)
#define SOCKETS 32
#define IDS 4096 /* of a socket; at 10,000 queries a second they are used again after 13 s */
#define SET_SIZE 4
#define STALL_NS 4000000
#define WORK_NS 3000000 /* a tenth of a core: as much as a worker wants under a moderate load */
#define WORK_PAUSE_US 27000
#define GIVE_UP_NS SECOND /* a TCP query */
#define DRAIN_NS (SECOND + SECOND / 5)
#define RETRY_NS 1000000  /* after a refused connection */
#define MAX_CORES 64

enum kind { UDP, TCP, STALL, WORK };
enum outcome { NONE, RIGHT, MIXED, WRONG, BROKEN };

/* The format is read by tests/torture/asking.py. */
struct record {
    uint64_t since_ns; /* sent; the beginning of a stall, of work */
    uint64_t until_ns; /* answered, broken; 0 = no answer; the end of a stall, of work */
    uint32_t number;   /* of the set; work: microseconds of CPU */
    uint8_t kind, outcome;
    uint8_t first; /* TCP: the first query of a connection */
    uint8_t detail; /* WRONG: the RCODE; a stall: the core, 254 = work, 255 = the asker's loop */
};

struct log {
    struct record *all;
    size_t count, room;
};

struct channel {
    int fd;
    uint32_t next;
    size_t record[IDS]; /* 1 + index into the log; 0 = none under way */
};

static struct log asked, stalls[MAX_CORES + 1], work;
static struct channel channels[SOCKETS];
static struct sockaddr_in server = {.sin_family = AF_INET};
static uint8_t query[300];
static size_t query_size;
static volatile sig_atomic_t stopping;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static size_t add(struct log *log, struct record record)
{
    if (log->count == log->room) {
        log->room = log->room ? 2 * log->room : 4096;
        log->all = realloc(log->all, log->room * sizeof *log->all);
        if (!log->all)
            die("asker");
    }
    log->all[log->count] = record;
    return log->count++;
}

static unsigned get16(const uint8_t *p) { return (unsigned)(p[0] << 8 | p[1]); }

/* ---- what the machine does */
static void note_stall(struct log *log, uint64_t due, uint64_t now, uint8_t core)
{
    if (now > due + STALL_NS)
        add(log, (struct record){.since_ns = due, .until_ns = now, .kind = STALL, .detail = core});
}

static void *watch_core(void *argument)
{
    unsigned core = (unsigned)(uintptr_t)argument;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    while (!stopping) {
        uint64_t before = now_ns();
        usleep(1000);
        note_stall(&stalls[core], before + 1000000, now_ns(), (uint8_t)core);
    }
    return NULL;
}

static uint64_t own_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void *work_now_and_then(void *argument)
{
    while (!stopping) {
        uint64_t begin = now_ns(), cpu = own_cpu_ns(), used;
        while ((used = own_cpu_ns() - cpu) < WORK_NS)
            ;
        uint64_t end = now_ns();
        add(&work, (struct record){.since_ns = begin, .until_ns = end, .number = (uint32_t)(used / 1000), .kind = WORK});
        note_stall(&work, begin + used, end, 254);
        usleep(WORK_PAUSE_US);
    }
    return argument;
}

/* ---- answers */
static void make_query(const char *name)
{
    uint8_t *p = query + 12;
    query[5] = 1; /* QDCOUNT */
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        *p++ = (uint8_t)length;
        memcpy(p, label, length);
        p += length;
        label += length + (label[length] == '.');
    }
    memcpy(p, "\0\0\1\0\1", 5); /* root, A, IN */
    query_size = (size_t)(p + 5 - query);
}

static void judge(const uint8_t *p, size_t length, struct record *r)
{
    unsigned seen = 0;
    r->outcome = WRONG;
    r->detail = length > 3 ? p[3] & 15 : 255;
    if (length != query_size + SET_SIZE * 16 || r->detail || !(p[2] & 0x80) || get16(p + 6) != SET_SIZE ||
        memcmp(p + 12, query + 12, query_size - 12))
        return;
    for (const uint8_t *rr = p + query_size; rr < p + length; rr += 16) {
        uint32_t number = (uint32_t)(rr[13] << 16 | rr[14] << 8 | rr[15]);
        if (memcmp(rr, "\xc0\x0c\0\1\0\1", 6) || get16(rr + 10) != 4 || rr[12] < 10 || rr[12] >= 10 + SET_SIZE)
            return;
        if (seen && number != r->number) {
            r->outcome = MIXED;
            return;
        }
        r->number = number;
        seen |= 1u << (rr[12] - 10);
    }
    if (seen == (1u << SET_SIZE) - 1)
        r->outcome = RIGHT;
}

/* ---- UDP */
static void send_udp(struct channel *c)
{
    uint32_t id = c->next++ % IDS;
    query[0] = (uint8_t)(id >> 8);
    query[1] = (uint8_t)id;
    c->record[id] = 1 + add(&asked, (struct record){.since_ns = now_ns(), .kind = UDP});
    if (send(c->fd, query, query_size, MSG_DONTWAIT) < 0) /* an earlier one's ICMP error is told here: try once more */
        send(c->fd, query, query_size, MSG_DONTWAIT);
}

static void receive_udp(struct channel *c)
{
    uint8_t answer[1500];
    for (;;) {
        ssize_t length = recv(c->fd, answer, sizeof answer, MSG_DONTWAIT);
        if (length < 0)
            return;
        uint64_t now = now_ns();
        unsigned id = length < 12 ? IDS : get16(answer);
        if (id >= IDS || !c->record[id]) {
            add(&asked, (struct record){.since_ns = now, .until_ns = now, .kind = UDP, .outcome = WRONG, .detail = 255});
            continue;
        }
        struct record *r = &asked.all[c->record[id] - 1];
        c->record[id] = 0;
        r->until_ns = now;
        judge(answer, (size_t)length, r);
    }
}

/* ---- TCP: one connection, one query under way */
static struct {
    int fd, poll;
    bool connected, asking, fresh;
    size_t record;
    uint64_t due_ns, interval_ns;
    uint8_t buffer[2048];
    size_t have;
} tcp = {.fd = -1};

static void tcp_settle(enum outcome outcome)
{
    struct record *r = &asked.all[tcp.record];
    if (tcp.asking && r->outcome == NONE) {
        r->outcome = (uint8_t)outcome;
        r->until_ns = now_ns();
    }
    tcp.asking = false;
}

static void tcp_drop(enum outcome outcome)
{
    tcp_settle(outcome);
    if (tcp.fd >= 0)
        close(tcp.fd);
    tcp.fd = -1;
    tcp.connected = false;
    tcp.due_ns = now_ns() + RETRY_NS;
}

static void tcp_send(void)
{
    uint8_t message[2 + sizeof query] = {(uint8_t)(query_size >> 8), (uint8_t)query_size};
    memcpy(message + 2, query, query_size);
    tcp.have = 0;
    if (send(tcp.fd, message, 2 + query_size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)(2 + query_size))
        tcp_drop(BROKEN);
}

static void tcp_ask(void)
{
    tcp.asking = true;
    tcp.record = add(&asked, (struct record){.since_ns = now_ns(), .kind = TCP, .first = tcp.fd < 0});
    if (tcp.fd >= 0) {
        tcp_send();
        return;
    }
    tcp.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = SOCKETS};
    if (tcp.fd < 0 || epoll_ctl(tcp.poll, EPOLL_CTL_ADD, tcp.fd, &event))
        die("asker: socket");
    if (connect(tcp.fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
        tcp_drop(BROKEN);
}

static void tcp_event(uint32_t events)
{
    if (tcp.fd < 0)
        return;
    if (!tcp.connected && events & EPOLLOUT && !(events & (EPOLLERR | EPOLLHUP))) {
        tcp.connected = true;
        tcp_send();
    }
    while (tcp.fd >= 0) {
        ssize_t length = recv(tcp.fd, tcp.buffer + tcp.have, sizeof tcp.buffer - tcp.have, MSG_DONTWAIT);
        if (length < 0 && errno == EAGAIN)
            break;
        if (length <= 0) {
            tcp_drop(BROKEN);
            return;
        }
        tcp.have += (size_t)length;
        if (tcp.asking && tcp.have >= 2 && tcp.have >= 2 + get16(tcp.buffer)) {
            struct record *r = &asked.all[tcp.record];
            r->until_ns = now_ns();
            judge(tcp.buffer + 2, tcp.have - 2, r);
            tcp.asking = false;
            tcp.due_ns = r->until_ns + tcp.interval_ns;
        }
    }
}

static void tcp_tick(uint64_t now)
{
    if (tcp.asking && now > asked.all[tcp.record].since_ns + GIVE_UP_NS)
        tcp_drop(NONE);
    if (!tcp.asking && now >= tcp.due_ns && !stopping)
        tcp_ask();
}

/* ---- the loop */
static void loop(int poll, double rate)
{
    uint64_t start = now_ns(), sequence = 0, last = start, end = 0;
    while (!end || last < end) {
        struct epoll_event ready[64];
        for (int burst = 0; !stopping && burst < 64; burst++, sequence++) {
            if (start + (uint64_t)((double)sequence * (double)SECOND / rate) > now_ns())
                break;
            send_udp(&channels[sequence % SOCKETS]);
        }
        if (tcp.interval_ns)
            tcp_tick(now_ns());
        int count = epoll_wait(poll, ready, 64, 1);
        for (int i = 0; i < count; i++) {
            if (ready[i].data.u32 == SOCKETS)
                tcp_event(ready[i].events);
            else
                receive_udp(&channels[ready[i].data.u32]);
        }
        uint64_t now = now_ns();
        note_stall(&stalls[MAX_CORES], last + 1000000, now, 255);
        last = now;
        if (stopping && !end)
            end = now + DRAIN_NS;
    }
}

static void write_log(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        die(path);
    fwrite(asked.all, sizeof *asked.all, asked.count, file);
    fwrite(work.all, sizeof *work.all, work.count, file);
    for (unsigned i = 0; i <= MAX_CORES; i++)
        fwrite(stalls[i].all, sizeof *stalls[i].all, stalls[i].count, file);
    if (fclose(file))
        die(path);
}

int main(int argc, char **argv)
{
    const char *path = NULL, *name = NULL;
    double rate = 1000;
    for (int o; (o = getopt(argc, argv, "p:n:r:i:o:")) != -1;)
        switch (o) {
        case 'p': server.sin_port = htons((uint16_t)atoi(optarg)); break;
        case 'n': name = optarg; break;
        case 'r': rate = atof(optarg); break;
        case 'i': tcp.interval_ns = (uint64_t)(atof(optarg) * 1e6); break;
        case 'o': path = optarg; break;
        default: return 2;
        }
    if (!server.sin_port || !path || !name || strlen(name) > 250 || rate <= 0)
        return 2;
    make_query(name);
    inet_pton(AF_INET, "127.0.0.1", &server.sin_addr);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    int poll = tcp.poll = epoll_create1(0), bytes = 1 << 20;
    for (uint32_t i = 0; i < SOCKETS; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        int fd = channels[i].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
        if (connect(fd, (struct sockaddr *)&server, sizeof server) || epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
            die("asker: socket");
    }
    cpu_set_t usable;
    sched_getaffinity(0, sizeof usable, &usable);
    pthread_t watchers[MAX_CORES + 1];
    unsigned watching = 0;
    for (unsigned core = 0; core < MAX_CORES; core++)
        if (CPU_ISSET(core, &usable) && !pthread_create(&watchers[watching], NULL, watch_core, (void *)(uintptr_t)core))
            watching++;
    if (!pthread_create(&watchers[watching], NULL, work_now_and_then, NULL))
        watching++;
    puts("ready");
    fflush(stdout);
    loop(poll, rate);
    for (unsigned i = 0; i < watching; i++)
        pthread_join(watchers[i], NULL);
    write_log(path);
    return 0;
}
