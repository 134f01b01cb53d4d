/*
 * What the agent asks the guest's kernel: clocks, memory, its log.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define KMSG_LEVEL_MASK 7
#define KMSG_LEVEL_ERR 3
#define KMSG_FACILITY_SHIFT 3

static uint64_t kernel_errors;
static uint64_t kernel_log_lost;
static char last_error[256];

uint64_t clock_ns(int clock_id)
{
    struct timespec ts;

    clock_gettime(clock_id, &ts);
    return ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}

/* KEY of /proc/meminfo in bytes; 0 when there is none */
uint64_t meminfo_bytes(const char *key)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t kib = 0;
    size_t len = strlen(key);

    if (!file) {
        return 0;
    }
    while (fgets(line, sizeof(line), file)) {
        if (strncmp(line, key, len) == 0 && line[len] == ':') {
            kib = strtoull(line + len + 1, NULL, 10);
            break;
        }
    }
    fclose(file);
    return kib * 1024;
}

/* Best effort: without the privilege the lab still works, with more jitter */
void set_fifo_priority(const char *who, int priority)
{
    struct sched_param param = { .sched_priority = priority };
    int rc = pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);

    if (rc) {
        fprintf(stderr, "pageflip-agent: %s without SCHED_FIFO: %s\n",
                who, strerror(rc));
    }
}

/* Positioned after the newest record: errors from before are not ours */
int kmsg_open(void)
{
    int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

    if (fd >= 0 && lseek(fd, 0, SEEK_END) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A record reads "PRIORITY,SEQUENCE,TIME,FLAGS[,...];TEXT\nKEY=VALUE..." */
static void kmsg_record(const char *record)
{
    unsigned long priority = strtoul(record, NULL, 10);
    const char *text = strchr(record, ';');
    size_t len;

    if (!text || priority >> KMSG_FACILITY_SHIFT != 0 ||
        (priority & KMSG_LEVEL_MASK) > KMSG_LEVEL_ERR) {
        return;
    }
    kernel_errors++;
    len = strcspn(++text, "\n");
    if (len >= sizeof(last_error)) {
        len = sizeof(last_error) - 1;
    }
    for (size_t i = 0; i < len; i++) {
        /* JSON wants UTF-8 and the kernel promises none */
        last_error[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
    }
    last_error[len] = '\0';
}

void kmsg_drain(int fd)
{
    char record[8192];

    for (;;) {
        ssize_t n = read(fd, record, sizeof(record) - 1);

        if (n > 0) {
            record[n] = '\0';
            kmsg_record(record);
        } else if (n < 0 && errno == EPIPE) {
            kernel_log_lost++;      /* overwritten before we came */
        } else if (n == 0 || errno != EINTR) {
            return;
        }
    }
}

void kmsg_report(json_t *reply)
{
    json_object_set_new(reply, "kernel_errors", json_integer(kernel_errors));
    json_object_set_new(reply, "kernel_log_lost",
                        json_integer(kernel_log_lost));
    json_object_set_new(reply, "last_kernel_error",
                        kernel_errors ? json_string(last_error) : json_null());
}
