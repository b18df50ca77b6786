/* What <sys/socket.h> has under _GNU_SOURCE, which Python.h may have decided about before us. */
#ifndef STANDOFF_MMSG_H
#define STANDOFF_MMSG_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#endif
