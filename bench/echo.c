/* echo: what the socket API alone can do for a UDP server on one core. recvmmsg, turn the query into an empty answer in
 * place, sendmmsg. A DNS server can be as fast as this at best; its ratio to this is what bench/run.py reports.
 *
 *     gcc -O2 -o echo echo.c
 *     taskset -c 0 ./echo 127.0.0.1 5300 [BATCH]
 *
 * Prints "ready" once it is bound; ends on SIGTERM. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_BATCH 256
#define MAX_PACKET 1500
#define HEADER 12
#define QR_AA 0x84 /* third byte of the header: an answer, authoritative */

static uint8_t packets[MAX_BATCH][MAX_PACKET];
static struct sockaddr_in peers[MAX_BATCH];
static struct iovec parts[MAX_BATCH];
static struct mmsghdr messages[MAX_BATCH];

static int bound_socket(const char *address, const char *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1, bytes = 4 << 20;
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1) {
        fprintf(stderr, "echo: not an IPv4 address: %s\n", address);
        exit(2);
    }
    /* As the server sets them: the comparison is about the work, not about the socket. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at)) {
        perror("echo: bind");
        exit(1);
    }
    return fd;
}

static int receive(int fd, unsigned batch)
{
    for (unsigned i = 0; i < batch; i++) {
        parts[i] = (struct iovec){packets[i], MAX_PACKET};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &parts[i], .msg_iovlen = 1};
    }
    return recvmmsg(fd, messages, batch, MSG_WAITFORONE, NULL);
}

static void answer(unsigned i)
{
    parts[i].iov_len = messages[i].msg_len;
    if (messages[i].msg_len >= HEADER) {
        packets[i][2] |= QR_AA;
        packets[i][3] = 0; /* NOERROR */
    }
}

static void send_all(int fd, unsigned count)
{
    for (unsigned done = 0; done < count;) {
        int sent = sendmmsg(fd, messages + done, count - done, 0);
        done += sent > 0 ? (unsigned)sent : 1; /* one that cannot be sent is left out */
    }
}

int main(int argc, char **argv)
{
    int batch = argc > 3 ? atoi(argv[3]) : 64;
    if (argc < 3 || batch < 1 || batch > MAX_BATCH) {
        fprintf(stderr, "usage: echo ADDRESS PORT [BATCH 1..%d]\n", MAX_BATCH);
        return 2;
    }
    int fd = bound_socket(argv[1], argv[2]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = receive(fd, (unsigned)batch);
        if (count < 0 && errno != EINTR && errno != ECONNREFUSED) {
            perror("echo: recvmmsg");
            return 1;
        }
        for (int i = 0; i < count; i++)
            answer((unsigned)i);
        if (count > 0)
            send_all(fd, (unsigned)count);
    }
}
