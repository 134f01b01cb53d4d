/*
 * The control port: one JSON object a line in, one a line out.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "micro.h"

typedef struct Command {
    const char *name;
    void (*run)(const JsonObject *request, const char *id);
} Command;

static const char *const corrupt_modes[CORRUPT_MODES] = {
    [CORRUPT_FLIP] = "flip",
    [CORRUPT_ZERO] = "zero",
    [CORRUPT_STALE] = "stale",
    [CORRUPT_SWAP] = "swap",
    [CORRUPT_TABLE] = "table",
};

static char line[LINE_MAX_BYTES];
static size_t line_len;
static bool overlong;           /* throwing away up to the next newline */

static void describe(Text *text)
{
    text_string(text, ",\"version\":\"" AGENT_VERSION "\""
                      ",\"kernel\":\"micro\"");
    text_member(text, "page_size", PATTERN_PAGE);
    text_member(text, "mem_total_bytes", memory_total());
    text_member(text, "nproc", 1);
}

static void cmd_ping(const JsonObject *request, const char *id)
{
    Reply reply;

    (void)request;
    reply_begin(&reply, id);
    describe(&reply.text);
    reply_send(&reply);
}

static void cmd_status(const JsonObject *request, const char *id)
{
    Reply reply;

    (void)request;
    reply_begin(&reply, id);
    worker_report(&reply.text);
    heartbeat_report(&reply.text);
    text_member(&reply.text, "kernel_errors", stray_interrupts);
    text_string(&reply.text, stray_interrupts
                ? ",\"last_kernel_error\":\"an unexpected interrupt\""
                : ",\"last_kernel_error\":null");
    text_member(&reply.text, "kernel_log_lost", 0);
    text_member(&reply.text, "mem_available_bytes", memory_available());
    text_member(&reply.text, "uptime_ms", clock_recent() / NS_PER_MS);
    reply_send(&reply);
}

static void cmd_reset_clock(const JsonObject *request, const char *id)
{
    (void)request;
    heartbeat_reset_max_step();
    reply_ok(id);
}

/* A whole number from 0 to MAX under KEY; otherwise replies with ERROR */
static bool get_number(const JsonObject *request, const char *id,
                       const char *key, uint64_t max, const char *error,
                       uint64_t *number)
{
    if (!json_number(json_find(request, key), max, number)) {
        reply_error(id, error);
        return false;
    }
    return true;
}

static void cmd_fill(const JsonObject *request, const char *id)
{
    uint64_t bytes;

    if (get_number(request, id, "bytes", 1ULL << 44,
                   "bytes must be a whole number", &bytes)) {
        worker_fill(id, bytes);
    }
}

static void cmd_dirty(const JsonObject *request, const char *id)
{
    uint64_t rate;

    if (get_number(request, id, "rate", RATE_MAX,
                   "rate must be a whole number", &rate)) {
        worker_dirty(id, rate);
    }
}

static void cmd_pace(const JsonObject *request, const char *id)
{
    uint64_t rate;

    if (get_number(request, id, "verify_rate", RATE_MAX,
                   "verify_rate must be a whole number", &rate)) {
        worker_pace(id, rate);
    }
}

static void cmd_verify(const JsonObject *request, const char *id)
{
    (void)request;
    worker_verify(id);
}

static void cmd_corrupt(const JsonObject *request, const char *id)
{
    const JsonMember *name = json_find(request, "mode");
    CorruptMode mode = 0;
    uint64_t page;

    while (mode < CORRUPT_MODES && !json_is(name, corrupt_modes[mode])) {
        mode++;
    }
    if (mode == CORRUPT_MODES) {
        reply_error(id, "mode must be flip, zero, stale, swap or table");
    } else if (get_number(request, id, "page", UINT32_MAX,
                          "page must be a whole number", &page)) {
        worker_corrupt(id, page, mode);
    }
}

static void cmd_release(const JsonObject *request, const char *id)
{
    (void)request;
    worker_release(id);
}

static void cmd_poweroff(const JsonObject *request, const char *id)
{
    (void)request;
    reply_ok(id);
    control_flush();
    power_off();
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
    { "poweroff", cmd_poweroff },
};

/* The id as the JSON text to send back; false when it cannot be one */
static bool read_id(const JsonObject *request, char id[ID_MAX + 1])
{
    const JsonMember *member = json_find(request, "id");

    if (!member) {
        strcpy(id, "null");
        return true;
    }
    if (member->value_len > ID_MAX ||
        (member->value[0] != '"' && !json_is_whole(member))) {
        return false;
    }
    memcpy(id, member->value, member->value_len);
    id[member->value_len] = '\0';
    return true;
}

static void handle_line(void)
{
    JsonObject request;
    char id[ID_MAX + 1];
    const char *error = json_read(&request, line, line_len);
    const JsonMember *name;

    if (error) {
        reply_error("null", error);
        return;
    }
    if (!read_id(&request, id)) {
        reply_error("null", "id must be a whole number or a short string");
        return;
    }
    name = json_find(&request, "cmd");
    if (!name || name->value[0] != '"') {
        reply_error(id, "cmd is missing or not a string");
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (json_is(name, commands[i].name)) {
            commands[i].run(&request, id);
            return;
        }
    }
    reply_error(id, "unknown command");
}

void command_feed(const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (bytes[i] == '\n') {
            if (!overlong && line_len) {
                handle_line();
            }
            line_len = 0;
            overlong = false;
        } else if (overlong) {
            continue;
        } else if (line_len == LINE_MAX_BYTES) {
            overlong = true;
            reply_error("null", "line longer than 4096 bytes");
        } else {
            line[line_len++] = bytes[i];
        }
    }
}

void command_ready(void)
{
    Reply event;

    event_begin(&event, "ready");
    describe(&event.text);
    event_send(&event, false);
}
