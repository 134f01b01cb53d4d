/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "protocol.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const uint8_t *take(struct reader *reader, uint64_t size)
{
    const uint8_t *at = reader->at;

    if (reader->bad || size > (uint64_t)(reader->end - at)) {
        reader->bad = true;
        return NULL;
    }
    reader->at += size;
    return at;
}

uint64_t read_number(struct reader *reader)
{
    const uint8_t *at = take(reader, sizeof(uint64_t));
    uint64_t number = 0;

    if (at) {
        memcpy(&number, at, sizeof(number));
    }
    return number;
}

const char *read_text(struct reader *reader, size_t most)
{
    uint64_t size = read_number(reader);
    const uint8_t *at;

    if (!size || size > most) {
        reader->bad = true;
    }
    at = take(reader, size);
    if (!at || memchr(at, 0, size) != at + size - 1) {
        reader->bad = true;
        return "";
    }
    return (const char *)at;
}

static void put(struct writer *writer, const void *data, size_t size)
{
    if (writer->bad || size > writer->size - writer->used) {
        writer->bad = true;
        return;
    }
    memcpy(writer->data + writer->used, data, size);
    writer->used += size;
}

void write_number(struct writer *writer, uint64_t number)
{
    put(writer, &number, sizeof(number));
}

void write_text(struct writer *writer, const char *text)
{
    size_t size = strlen(text) + 1;

    write_number(writer, size);
    put(writer, text, size);
}

int frame_check(const struct frame *frame, struct error *error)
{
    if (frame->magic != PROTOCOL_MAGIC) {
        return fail(error, "this is no frame of the protocol (magic %#x)", frame->magic);
    }
    if (frame->version != PROTOCOL_VERSION) {
        return fail(error, "a frame of version %d; this helper speaks version %d", frame->version,
                    PROTOCOL_VERSION);
    }
    if (frame->length > PROTOCOL_MOST) {
        return fail(error, "a frame of %u bytes; the most is %u", frame->length, PROTOCOL_MOST);
    }
    return 0;
}

/* Returns 1 for all of it, 0 when the stream ends before it begins, or -1. */
static int receive(int fd, void *data, size_t size, struct error *error)
{
    size_t have = 0;
    ssize_t got;

    while (have < size) {
        got = read(fd, (uint8_t *)data + have, size - have);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return fail_errno(error, "the lab's end of the socket");
        }
        if (got == 0) {
            return have ? fail(error, "a frame that ends after %zu bytes", have) : 0;
        }
        have += got;
    }
    return 1;
}

int frame_receive(int fd, struct frame *frame, uint8_t *payload, struct error *error)
{
    int got = receive(fd, frame, sizeof(*frame), error);

    if (got <= 0) {
        return got;
    }
    if (frame_check(frame, error)) {
        return -1;
    }
    if (!frame->length) {
        return 1;
    }
    got = receive(fd, payload, frame->length, error);
    return got ? got : fail(error, "a frame without its payload");
}

static int send_all(int fd, const void *data, size_t size, struct error *error)
{
    size_t sent = 0;
    ssize_t put;

    while (sent < size) {
        put = write(fd, (const uint8_t *)data + sent, size - sent);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return fail_errno(error, "the lab's end of the socket");
        }
        sent += put;
    }
    return 0;
}

int frame_answer(int fd, const struct frame *frame, const struct writer *writer,
                 struct error *error)
{
    struct frame answer = *frame;

    if (writer->bad) {
        return fail(error, "an answer that does not fit into %zu bytes", writer->size);
    }
    answer.kind |= PROTOCOL_REPLY;
    answer.length = writer->used;
    if (send_all(fd, &answer, sizeof(answer), error)) {
        return -1;
    }
    return send_all(fd, writer->data, writer->used, error);
}
