/*
 * One line each millisecond, so that the host can see from outside for
 * how long the guest stood still; and the guest's own view of the same.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define TICK_NS NS_PER_MS
#define HEARTBEAT_PRIORITY 10

typedef struct Heartbeat {
    int fd;
    char line[128];
    size_t len;             /* of the line being written, 0 when none is */
    size_t done;
    uint64_t last_mono_ns;
    uint64_t last_real_ns;
} Heartbeat;

static _Atomic uint64_t beats;
static _Atomic uint64_t skipped;
static _Atomic uint64_t max_step_ns;
static _Atomic uint64_t clock_went_back;

/* True when nothing is left to write */
static bool flush_line(Heartbeat *hb)
{
    while (hb->done < hb->len) {
        ssize_t n = write(hb->fd, hb->line + hb->done, hb->len - hb->done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        hb->done += n;
    }
    hb->len = hb->done = 0;
    return true;
}

/* Put a line back when not a byte of it went out: that beat is skipped */
static bool send_beat(Heartbeat *hb, uint64_t n, uint64_t mono, uint64_t real)
{
    if (!flush_line(hb)) {
        return false;
    }
    hb->len = snprintf(hb->line, sizeof(hb->line),
                       "{\"n\":%" PRIu64 ",\"mono_ns\":%" PRIu64
                       ",\"real_ns\":%" PRIu64 "}\n", n, mono, real);
    if (!flush_line(hb) && hb->done == 0) {
        hb->len = 0;
        return false;
    }
    return true;
}

static void watch_clocks(Heartbeat *hb, uint64_t mono, uint64_t real)
{
    if (mono < hb->last_mono_ns || real < hb->last_real_ns) {
        atomic_fetch_add(&clock_went_back, 1);
    } else if (mono - hb->last_mono_ns > atomic_load(&max_step_ns)) {
        atomic_store(&max_step_ns, mono - hb->last_mono_ns);
    }
    hb->last_mono_ns = mono;
    hb->last_real_ns = real;
}

static void *heartbeat_thread(void *opaque)
{
    Heartbeat *hb = opaque;
    uint64_t next;

    set_fifo_priority("heartbeat", HEARTBEAT_PRIORITY);
    hb->last_mono_ns = next = clock_ns(CLOCK_MONOTONIC);
    hb->last_real_ns = clock_ns(CLOCK_REALTIME);
    for (uint64_t n = 1;; n++) {
        uint64_t mono, real;
        struct timespec until;

        next += TICK_NS;
        until.tv_sec = next / NS_PER_SEC;
        until.tv_nsec = next % NS_PER_SEC;
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)) {
            /* interrupted: the deadline is absolute, sleep again */
        }
        mono = clock_ns(CLOCK_MONOTONIC);
        real = clock_ns(CLOCK_REALTIME);
        watch_clocks(hb, mono, real);
        if (send_beat(hb, n, mono, real)) {
            atomic_fetch_add(&beats, 1);
        } else {
            atomic_fetch_add(&skipped, 1);
        }
        /* After a gap start afresh: a burst would hide it from the host */
        if (mono > next + TICK_NS) {
            next = mono;
        }
    }
    return NULL;
}

void heartbeat_start(int fd)
{
    static Heartbeat hb;
    pthread_t thread;

    hb.fd = fd;
    if (pthread_create(&thread, NULL, heartbeat_thread, &hb)) {
        perror("pageflip-agent: heartbeat thread");
        exit(1);
    }
    pthread_detach(thread);
}

void heartbeat_report(json_t *reply)
{
    json_object_set_new(reply, "heartbeats",
                        json_integer(atomic_load(&beats)));
    json_object_set_new(reply, "heartbeats_skipped",
                        json_integer(atomic_load(&skipped)));
    json_object_set_new(reply, "max_step_ns",
                        json_integer(atomic_load(&max_step_ns)));
    json_object_set_new(reply, "clock_went_back",
                        json_integer(atomic_load(&clock_went_back)));
}

void heartbeat_reset_max_step(void)
{
    atomic_store(&max_step_ns, 0);
}
