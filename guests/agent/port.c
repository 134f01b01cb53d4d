/*
 * virtio-serial ports: found by name, written in whole lines.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define PORTS_DIR "/sys/class/virtio-ports"
#define PORT_POLL_NS (5 * NS_PER_MS)
#define COMPLAIN_EVERY 1000

static void pause_ns(long ns)
{
    struct timespec ts = { .tv_nsec = ns };

    nanosleep(&ts, NULL);
}

static bool port_has_name(const char *port, const char *name)
{
    char path[512], found[128] = "";
    FILE *file;

    snprintf(path, sizeof(path), PORTS_DIR "/%s/name", port);
    file = fopen(path, "re");
    if (!file) {
        return false;
    }
    if (!fgets(found, sizeof(found), file)) {
        found[0] = '\0';
    }
    fclose(file);
    found[strcspn(found, "\n")] = '\0';
    return strcmp(found, name) == 0;
}

/* Nonblocking descriptor of the named port, or -1 while there is none */
static int port_try_open(const char *name)
{
    DIR *dir = opendir(PORTS_DIR);
    struct dirent *entry;
    char path[512];
    int fd = -1;

    if (!dir) {
        return -1;
    }
    while (fd < 0 && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.' && port_has_name(entry->d_name, name)) {
            snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
            fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        }
    }
    closedir(dir);
    return fd;
}

/* SPEC is a path, fd:N for an inherited descriptor, or NULL: find by NAME */
int port_open(const char *spec, const char *name)
{
    int fd;

    if (spec && strncmp(spec, "fd:", 3) == 0) {
        fd = atoi(spec + 3);
        if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
            return -1;
        }
        return fd;
    }
    if (spec) {
        return open(spec, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    }
    for (unsigned tries = 1; (fd = port_try_open(name)) < 0; tries++) {
        if (tries % COMPLAIN_EVERY == 0) {
            fprintf(stderr, "pageflip-agent: still no port %s\n", name);
        }
        pause_ns(PORT_POLL_NS);
    }
    return fd;
}

/*
 * Write all of LINE.  With MAY_DROP a line that cannot be started now is
 * dropped and false returned, but one that was started is always ended:
 * the host must never see half a line.
 */
bool port_write_line(int fd, const char *line, size_t len, bool may_drop)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = write(fd, line + done, len - done);

        if (n > 0) {
            done += n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && errno != EAGAIN) {
            return false;
        } else if (may_drop && done == 0) {
            return false;
        } else {
            struct pollfd wait = { .fd = fd, .events = POLLOUT };

            /* A port nobody listens to polls as hung up at once */
            if (poll(&wait, 1, 100) != 0 && !(wait.revents & POLLOUT)) {
                pause_ns(PORT_POLL_NS);
            }
        }
    }
    return true;
}
