/*
 * What goes out on the control port: one JSON object a line.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "micro.h"

static void begin(Reply *reply)
{
    reply->text = (Text) {
        .bytes = reply->bytes, .size = sizeof(reply->bytes),
    };
}

static void end(Reply *reply, bool may_drop)
{
    text_string(&reply->text, "}\n");
    control_write(reply->bytes, reply->text.len, may_drop);
}

void reply_begin(Reply *reply, const char *id)
{
    begin(reply);
    text_string(&reply->text, "{\"id\":");
    text_string(&reply->text, id);
    text_string(&reply->text, ",\"ok\":true");
}

void reply_send(Reply *reply)
{
    end(reply, false);
}

void reply_ok(const char *id)
{
    Reply reply;

    reply_begin(&reply, id);
    reply_send(&reply);
}

void reply_error(const char *id, const char *error)
{
    Reply reply;

    begin(&reply);
    text_string(&reply.text, "{\"id\":");
    text_string(&reply.text, id);
    text_string(&reply.text, ",\"ok\":false,\"error\":\"");
    text_string(&reply.text, error);
    text_string(&reply.text, "\"");
    reply_send(&reply);
}

void event_begin(Reply *reply, const char *name)
{
    begin(reply);
    text_string(&reply->text, "{\"event\":\"");
    text_string(&reply->text, name);
    text_string(&reply->text, "\"");
}

void event_send(Reply *reply, bool may_drop)
{
    end(reply, may_drop);
}
