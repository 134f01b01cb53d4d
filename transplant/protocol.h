/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How the lab and the helper talk: frames over a stream socket, one request at a time.
 *
 * A frame is a header of 16 bytes and at most PROTOCOL_MOST bytes of payload.  The payload is a
 * sequence of fields without tags, whose order is fixed for each kind of frame: numbers are
 * 64 bits, texts are a number, the length with the closing NUL, and that many bytes.  Everything is
 * little-endian.  A reply has the kind of its request with PROTOCOL_REPLY added, and begins with a
 * number: 0, or 1 and a text that says what went wrong.
 *
 * The other end of this is lab/transplant/channel.py, and the version has to be the same in both.
 */
#ifndef TRANSPLANT_PROTOCOL_H
#define TRANSPLANT_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define PROTOCOL_MAGIC 0x50465450u /* "PTFP" */
#define PROTOCOL_VERSION 3
#define PROTOCOL_REPLY 0x8000
#define PROTOCOL_MOST (1u << 20)

enum request {
    REQUEST_HELLO = 1,   /* what the helper is and may do */
    REQUEST_EXAMINE = 2, /* find the RAM of the old QEMU, and whatever stands against it */
    REQUEST_START = 3,   /* fork the old QEMU, and make the child the new one */
    REQUEST_ADOPT = 4,   /* move the memory under the RAM blocks of the new QEMU */
    REQUEST_DELTA = 5,   /* bring over what differs by now, or count it */
    REQUEST_HOLD = 6,    /* the old QEMU stands still; the new one gets its taps, and is nobody's */
    REQUEST_FINISH = 7,  /* end the old QEMU */
    REQUEST_ABANDON = 8, /* end the new QEMU, and leave the old one as it was */
    REQUEST_COLLAPSE = 9 /* put huge pages together again that the fork has split */
};

struct frame {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint32_t length;
    uint32_t serial;
};

/* Takes a payload apart.  `bad` is set by what is not there; everything read is then 0 or "". */
struct reader {
    const uint8_t *at;
    const uint8_t *end;
    bool bad;
};

uint64_t read_number(struct reader *reader);
/* A text of at most `most` bytes with its NUL, in place; it holds no other NUL. */
const char *read_text(struct reader *reader, size_t most);

/* Puts a payload together.  `bad` is set when it does not fit. */
struct writer {
    uint8_t *data;
    size_t used;
    size_t size;
    bool bad;
};

void write_number(struct writer *writer, uint64_t number);
void write_text(struct writer *writer, const char *text);

/* Whether a header is one that a request may have. */
int frame_check(const struct frame *frame, struct error *error);

/*
 * Receives a frame into `frame` and `payload` (PROTOCOL_MOST bytes).  Returns 1, 0 at the end of
 * the stream, or -1.
 */
int frame_receive(int fd, struct frame *frame, uint8_t *payload, struct error *error);

/* Sends the answer to `frame`. */
int frame_answer(int fd, const struct frame *frame, const struct writer *writer,
                 struct error *error);

#endif
