/* Stream sockets and epoll for server/_stream.pyx. */
#ifndef STANDOFF_STREAM_H
#define STANDOFF_STREAM_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* epoll_event is packed on x86-64: `data` is set and read here only. */
static inline int epoll_set(int epoll, int operation, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data = {.u64 = data}};
    return epoll_ctl(epoll, operation, fd, &event);
}

static inline uint64_t epoll_data(const struct epoll_event *event)
{
    return event->data.u64;
}
#endif
