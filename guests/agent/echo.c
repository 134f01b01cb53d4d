/*
 * Echo servers, so that the host sees from outside what became of the
 * guest's network: datagrams go back as they come, and one TCP stream of
 * numbered words is checked on its way through.
 *
 * One thread owns the sockets.  The command thread only starts it, and
 * shares with it a mutex-guarded copy of the counters and the damage that
 * is to be done next.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

#define ECHO_PRIORITY 5
#define DATAGRAM_MAX 2048
#define CHUNK 16384
#define WORD 8
/* The kernel allows for twice as much; a small datagram costs 768 of it */
#define BUFFER_BYTES (4 << 20)

typedef struct Counters {
    uint64_t datagrams;
    uint64_t unanswered;        /* of these: could not be sent back */
    uint64_t connections;
    uint64_t tcp_bytes;
    uint64_t tcp_bad_bytes;
    uint64_t tcp_first_bad;     /* position in the stream */
} Counters;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Counters counters;
static EchoDamage damage = ECHO_DAMAGES;
static bool started;

/* From here on: the echo thread's own */
static int udp_fd, listen_fd, stream_fd = -1;
static unsigned char held[CHUNK + 1];   /* came in, not yet gone out */
static size_t held_len;
static uint64_t position;

/* The stream is big-endian words that count from 0: byte N of it */
static unsigned char expected_byte(uint64_t n)
{
    return (n / WORD) >> (8 * (WORD - 1 - n % WORD));
}

static void close_stream(void)
{
    if (stream_fd >= 0) {
        close(stream_fd);
    }
    stream_fd = -1;
    held_len = 0;
}

static void accept_stream(void)
{
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0) {
        return;
    }
    close_stream();             /* one at a time: the newest */
    stream_fd = fd;
    position = 0;
    pthread_mutex_lock(&lock);
    counters.connections++;
    pthread_mutex_unlock(&lock);
}

static void check_held(void)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < held_len; i++) {
        if (held[i] != expected_byte(position + i)) {
            if (counters.tcp_bad_bytes++ == 0) {
                counters.tcp_first_bad = position + i;
            }
        }
    }
    counters.tcp_bytes += held_len;
    pthread_mutex_unlock(&lock);
    position += held_len;
}

/* What a test asked for, once; true when it closed the stream */
static bool do_damage(void)
{
    EchoDamage kind;

    pthread_mutex_lock(&lock);
    kind = damage;
    damage = ECHO_DAMAGES;
    pthread_mutex_unlock(&lock);
    switch (kind) {
    case ECHO_FLIP:
        held[held_len / 2] ^= 0x10;
        break;
    case ECHO_DROP:
        held_len--;
        memmove(held, held + 1, held_len);
        break;
    case ECHO_DOUBLE:
        memmove(held + 1, held, held_len);
        held_len++;
        break;
    case ECHO_CLOSE:
        close_stream();
        return true;
    case ECHO_DAMAGES:
        break;
    }
    return false;
}

static void flush_held(void)
{
    ssize_t n = send(stream_fd, held, held_len, MSG_NOSIGNAL);

    if (n > 0) {
        held_len -= n;
        memmove(held, held + n, held_len);
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
        close_stream();
    }
}

/* Nothing is read while something is held: TCP itself holds the host back */
static void serve_stream(void)
{
    if (held_len == 0) {
        ssize_t n = recv(stream_fd, held, CHUNK, 0);

        if (n <= 0) {
            if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
                close_stream();
            }
            return;
        }
        held_len = n;
        check_held();
        if (do_damage()) {
            return;
        }
    }
    if (held_len) {
        flush_held();
    }
}

static void serve_datagrams(void)
{
    unsigned char bytes[DATAGRAM_MAX];
    struct sockaddr_in peer;
    socklen_t len = sizeof(peer);
    uint64_t taken = 0, unanswered = 0;
    ssize_t n;

    while ((n = recvfrom(udp_fd, bytes, sizeof(bytes), MSG_DONTWAIT,
                         (struct sockaddr *)&peer, &len)) >= 0) {
        if (sendto(udp_fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL,
                   (struct sockaddr *)&peer, len) < 0) {
            unanswered++;
        }
        taken++;
    }
    pthread_mutex_lock(&lock);
    counters.datagrams += taken;
    counters.unanswered += unanswered;
    pthread_mutex_unlock(&lock);
}

static void *echo_thread(void *opaque)
{
    (void)opaque;
    set_fifo_priority("echo", ECHO_PRIORITY);
    for (;;) {
        struct pollfd fds[] = {
            { .fd = udp_fd, .events = POLLIN },
            { .fd = listen_fd, .events = POLLIN },
            { .fd = stream_fd, .events = held_len ? POLLOUT : POLLIN },
        };

        if (poll(fds, 3, -1) < 0) {
            continue;
        }
        if (fds[0].revents) {
            serve_datagrams();
        }
        if (fds[2].revents) {
            serve_stream();
        }
        if (fds[1].revents) {
            accept_stream();
        }
    }
    return NULL;
}

static void make_room(int fd, int force, int ask)
{
    int bytes = BUFFER_BYTES;

    if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof(bytes))) {
        /* Not root: as much as anybody may have */
        setsockopt(fd, SOL_SOCKET, ask, &bytes, sizeof(bytes));
    }
}

/* A socket at a port that the kernel chose, or -1 */
static int bound(struct in_addr address, int type, unsigned *port)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = address };
    socklen_t len = sizeof(at);
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0 && (bind(fd, (struct sockaddr *)&at, len) ||
                    (type == SOCK_STREAM && listen(fd, 4)) ||
                    getsockname(fd, (struct sockaddr *)&at, &len))) {
        close(fd);
        return -1;
    }
    *port = ntohs(at.sin_port);
    return fd;
}

const char *echo_start(const char *address, unsigned prefix,
                       unsigned *udp_port, unsigned *tcp_port)
{
    struct in_addr in;
    pthread_t thread;
    const char *failed;

    if (started) {
        errno = EBUSY;
        return "the echo servers run already";
    }
    if (inet_pton(AF_INET, address, &in) != 1) {
        errno = EINVAL;
        return "address must be an IPv4 address";
    }
    if (prefix && (failed = interface_configure(in, prefix))) {
        return failed;
    }
    udp_fd = bound(in, SOCK_DGRAM, udp_port);
    /*
     * What came during a stall comes in one go and in interrupts, before
     * any thread runs: the default buffer loses all but 277 datagrams of it.
     */
    make_room(udp_fd, SO_RCVBUFFORCE, SO_RCVBUF);
    make_room(udp_fd, SO_SNDBUFFORCE, SO_SNDBUF);
    listen_fd = udp_fd < 0 ? -1 : bound(in, SOCK_STREAM, tcp_port);
    if (listen_fd < 0) {
        return "bind";
    }
    errno = pthread_create(&thread, NULL, echo_thread, NULL);
    if (errno) {
        return "pthread_create";
    }
    pthread_detach(thread);
    started = true;
    return NULL;
}

void echo_damage(EchoDamage kind)
{
    pthread_mutex_lock(&lock);
    damage = kind;
    pthread_mutex_unlock(&lock);
}

/* Datagrams for which the socket's buffer had no room */
static uint32_t dropped(void)
{
    uint32_t info[SK_MEMINFO_VARS] = { 0 };
    socklen_t len = sizeof(info);

    getsockopt(udp_fd, SOL_SOCKET, SO_MEMINFO, info, &len);
    return info[SK_MEMINFO_DROPS];
}

void echo_report(json_t *reply)
{
    json_t *echo;
    Counters now;

    pthread_mutex_lock(&lock);
    now = counters;
    pthread_mutex_unlock(&lock);
    echo = started ? json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
                               "datagrams", (json_int_t)now.datagrams,
                               "dropped", (json_int_t)dropped(),
                               "unanswered", (json_int_t)now.unanswered,
                               "connections", (json_int_t)now.connections,
                               "tcp_bytes", (json_int_t)now.tcp_bytes,
                               "tcp_bad_bytes", (json_int_t)now.tcp_bad_bytes,
                               "tcp_first_bad", now.tcp_bad_bytes
                               ? json_integer(now.tcp_first_bad) : json_null())
                   : json_null();
    json_object_set_new(reply, "echo", echo);
}
