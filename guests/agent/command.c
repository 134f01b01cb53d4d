/*
 * The control port: one JSON object a line in, one a line out.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define COMMAND_PRIORITY 5
#define UNCONNECTED_POLL_NS (10 * NS_PER_MS)

typedef struct Command {
    const char *name;
    void (*run)(json_t *request, json_t *id);
} Command;

typedef struct LineReader {
    char bytes[LINE_MAX_BYTES];
    size_t len;
    bool overlong;          /* throwing away up to the next newline */
} LineReader;

static bool in_guest;
static const char *const corrupt_modes[CORRUPT_MODES] = {
    [CORRUPT_FLIP] = "flip",
    [CORRUPT_ZERO] = "zero",
    [CORRUPT_STALE] = "stale",
    [CORRUPT_SWAP] = "swap",
    [CORRUPT_TABLE] = "table",
};

static const char *const echo_damages[ECHO_DAMAGES] = {
    [ECHO_FLIP] = "flip",
    [ECHO_DROP] = "drop",
    [ECHO_DOUBLE] = "double",
    [ECHO_CLOSE] = "close",
};

static json_t *describe(void)
{
    struct utsname uts;

    uname(&uts);
    return json_pack("{s:s, s:I, s:s, s:I, s:i}", "version", AGENT_VERSION,
                     "page_size", (json_int_t)sysconf(_SC_PAGESIZE),
                     "kernel", uts.release, "mem_total_bytes",
                     (json_int_t)meminfo_bytes("MemTotal"),
                     "nproc", get_nprocs());
}

static void cmd_ping(json_t *request, json_t *id)
{
    (void)request;
    reply_ok(id, describe());
}

static void cmd_status(json_t *request, json_t *id)
{
    json_t *body = json_object();

    (void)request;
    worker_report(body);
    heartbeat_report(body);
    kmsg_report(body);
    echo_report(body);
    json_object_set_new(body, "mem_available_bytes",
                        json_integer(meminfo_bytes("MemAvailable")));
    json_object_set_new(body, "uptime_ms",
                        json_integer(clock_ns(CLOCK_BOOTTIME) / NS_PER_MS));
    reply_ok(id, body);
}

static void cmd_reset_clock(json_t *request, json_t *id)
{
    (void)request;
    heartbeat_reset_max_step();
    reply_ok(id, NULL);
}

static void submit(Job job, json_t *id)
{
    job.id = id;
    if (!worker_submit(&job)) {
        reply_error(id, "too many commands are waiting");
    }
}

/* A whole number from 0 to MAX under KEY; otherwise replies with the error */
static bool get_number(json_t *request, json_t *id, const char *key,
                       json_int_t max, uint64_t *value)
{
    json_t *number = json_object_get(request, key);
    json_int_t n = json_integer_value(number);

    if (!json_is_integer(number) || n < 0 || n > max) {
        reply_error(id, "%s must be a whole number from 0 to %lld", key,
                    (long long)max);
        return false;
    }
    *value = n;
    return true;
}

static void cmd_fill(json_t *request, json_t *id)
{
    Job job = { .kind = JOB_FILL };

    if (get_number(request, id, "bytes", 1LL << 44, &job.value)) {
        submit(job, id);
    }
}

static void cmd_dirty(json_t *request, json_t *id)
{
    Job job = { .kind = JOB_DIRTY };

    if (get_number(request, id, "rate", RATE_MAX, &job.value)) {
        submit(job, id);
    }
}

static void cmd_pace(json_t *request, json_t *id)
{
    Job job = { .kind = JOB_PACE };

    if (get_number(request, id, "verify_rate", RATE_MAX, &job.value)) {
        submit(job, id);
    }
}

static void cmd_verify(json_t *request, json_t *id)
{
    (void)request;
    submit((Job) { .kind = JOB_VERIFY }, id);
}

static void cmd_corrupt(json_t *request, json_t *id)
{
    const char *mode = json_string_value(json_object_get(request, "mode"));
    Job job = { .kind = JOB_CORRUPT };

    while (job.mode < CORRUPT_MODES &&
           (!mode || strcmp(mode, corrupt_modes[job.mode]))) {
        job.mode++;
    }
    if (job.mode == CORRUPT_MODES) {
        reply_error(id, "mode must be flip, zero, stale, swap or table");
    } else if (get_number(request, id, "page", UINT32_MAX, &job.value)) {
        submit(job, id);
    }
}

static void cmd_release(json_t *request, json_t *id)
{
    (void)request;
    submit((Job) { .kind = JOB_RELEASE }, id);
}

static void cmd_echo(json_t *request, json_t *id)
{
    const char *address = json_string_value(json_object_get(request,
                                                            "address"));
    unsigned udp_port, tcp_port;
    uint64_t prefix = 0;
    const char *failed;

    if (!address) {
        reply_error(id, "address is missing or not a string");
        return;
    }
    if (json_object_get(request, "prefix") &&
        !get_number(request, id, "prefix", 32, &prefix)) {
        return;
    }
    failed = echo_start(address, prefix, &udp_port, &tcp_port);
    if (failed) {
        reply_error(id, "%s: %s", failed, strerror(errno));
    } else {
        reply_ok(id, json_pack("{s:i, s:i}", "udp_port", (int)udp_port,
                               "tcp_port", (int)tcp_port));
    }
}

static void cmd_echo_damage(json_t *request, json_t *id)
{
    const char *mode = json_string_value(json_object_get(request, "mode"));
    EchoDamage kind = 0;

    while (kind < ECHO_DAMAGES &&
           (!mode || strcmp(mode, echo_damages[kind]))) {
        kind++;
    }
    if (kind == ECHO_DAMAGES) {
        reply_error(id, "mode must be flip, drop, double or close");
    } else {
        echo_damage(kind);
        reply_ok(id, NULL);
    }
}

static void cmd_poweroff(json_t *request, json_t *id)
{
    (void)request;
    reply_ok(id, NULL);
    if (in_guest) {
        sync();
        /* The reply is on its way: let the host have it */
        nanosleep(&(struct timespec) { .tv_nsec = 50 * NS_PER_MS }, NULL);
        reboot(RB_POWER_OFF);
    }
    exit(0);
}

static const Command commands[] = {
    { "ping", cmd_ping },
    { "fill", cmd_fill },
    { "dirty", cmd_dirty },
    { "pace", cmd_pace },
    { "verify", cmd_verify },
    { "status", cmd_status },
    { "reset_clock", cmd_reset_clock },
    { "corrupt", cmd_corrupt },
    { "release", cmd_release },
    { "echo", cmd_echo },
    { "echo_damage", cmd_echo_damage },
    { "poweroff", cmd_poweroff },
};

static void run_command(json_t *request, json_t *id)
{
    const char *name = json_string_value(json_object_get(request, "cmd"));

    if (!name) {
        reply_error(id, "cmd is missing or not a string");
        return;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            commands[i].run(request, id);
            return;
        }
    }
    reply_error(id, "unknown command");
}

static void handle_line(const char *line, size_t len)
{
    json_error_t error;
    json_t *request, *id;

    if (len == 0) {
        return;
    }
    request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(request)) {
        json_decref(request);
        reply_error(json_null(), "not a JSON object");
        return;
    }
    id = json_object_get(request, "id");
    if (id && !json_is_integer(id) && !json_is_string(id)) {
        reply_error(json_null(), "id must be a whole number or a string");
    } else {
        /* A copy: the worker lets go of it in its own time */
        run_command(request, id ? json_deep_copy(id) : json_null());
    }
    json_decref(request);
}

static void feed(LineReader *reader, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (bytes[i] == '\n') {
            if (!reader->overlong) {
                handle_line(reader->bytes, reader->len);
            }
            reader->len = 0;
            reader->overlong = false;
        } else if (reader->overlong) {
            continue;
        } else if (reader->len == LINE_MAX_BYTES) {
            reader->overlong = true;
            reply_error(json_null(), "line longer than %d bytes",
                        LINE_MAX_BYTES);
        } else {
            reader->bytes[reader->len++] = bytes[i];
        }
    }
}

/* False at the end of input: on a virtio port nobody is connected just now */
static bool read_some(int fd, LineReader *reader)
{
    char bytes[LINE_MAX_BYTES];
    ssize_t n = read(fd, bytes, sizeof(bytes));

    if (n > 0) {
        feed(reader, bytes, n);
        return true;
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

void command_loop(int control_fd, bool guest)
{
    static LineReader reader;
    struct pollfd fds[2] = {
        { .fd = control_fd, .events = POLLIN },
        { .fd = kmsg_open(), .events = POLLIN },
    };

    in_guest = guest;
    set_fifo_priority("commands", COMMAND_PRIORITY);
    json_t *ready = describe();
    json_object_set_new(ready, "event", json_string("ready"));
    send_event(ready, false);
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR) {
            perror("pageflip-agent: poll");
            return;
        }
        if (fds[1].revents) {
            kmsg_drain(fds[1].fd);
        }
        if (fds[0].revents && !read_some(control_fd, &reader)) {
            if (!in_guest) {
                return;
            }
            nanosleep(&(struct timespec) { .tv_nsec = UNCONNECTED_POLL_NS },
                      NULL);
        }
    }
}
