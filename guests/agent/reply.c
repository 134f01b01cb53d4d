/*
 * Everything the guest says on the control port: one JSON object a line.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

static pthread_mutex_t control_lock = PTHREAD_MUTEX_INITIALIZER;
static int control_fd = -1;

void reply_init(int fd)
{
    control_fd = fd;
}

static void send_object(json_t *object, bool may_drop)
{
    char *text = json_dumps(object, JSON_COMPACT);
    size_t len;

    json_decref(object);
    if (!text) {
        fputs("pageflip-agent: out of memory for a reply\n", stderr);
        return;
    }
    len = strlen(text);
    text[len] = '\n';       /* takes the place of the terminator */
    pthread_mutex_lock(&control_lock);
    port_write_line(control_fd, text, len + 1, may_drop);
    pthread_mutex_unlock(&control_lock);
    free(text);
}

void reply_ok(json_t *id, json_t *body)
{
    json_t *reply = json_pack("{s:o, s:b}", "id", id, "ok", 1);

    if (body) {
        json_object_update(reply, body);
        json_decref(body);
    }
    send_object(reply, false);
}

void reply_error(json_t *id, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    send_object(json_pack("{s:o, s:b, s:s}", "id", id, "ok", 0,
                          "error", text), false);
}

void send_event(json_t *event, bool may_drop)
{
    send_object(event, may_drop);
}

/* 64-bit words do not fit JSON's signed integers: they go as hex text */
json_t *reply_first_bad(const Region *region)
{
    const FirstBad *bad = &region->first_bad;
    char want[24], got[24];
    json_t *object;

    if (region->bad_page_count == 0) {
        return json_null();
    }
    snprintf(want, sizeof(want), "0x%016" PRIx64, bad->want);
    snprintf(got, sizeof(got), "0x%016" PRIx64, bad->got);
    object = json_pack("{s:I, s:i, s:s, s:s, s:s}",
                       "page", (json_int_t)bad->page, "word", (int)bad->word,
                       "want", want, "got", got, "kind", bad->kind);
    if (strcmp(bad->kind, "stale") == 0 || strcmp(bad->kind, "moved") == 0) {
        json_object_set_new(object, "found_page",
                            json_integer(bad->found_page));
        json_object_set_new(object, "found_generation",
                            json_integer(bad->found_generation));
    }
    return object;
}
