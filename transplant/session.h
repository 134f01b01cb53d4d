/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One move, and the requests that it consists of.
 */
#ifndef TRANSPLANT_SESSION_H
#define TRANSPLANT_SESSION_H

#include "donor.h"
#include "error.h"
#include "protocol.h"
#include "recipient.h"
#include "remote.h"

struct session {
    struct donor donor;
    struct recipient recipient;
    struct hold hold;
    struct shared_undo shared;
    int oom_score; /* the old QEMU's own */
    struct error *error;
};

/* Nobody is there: what the new QEMU has written to shared memory is taken back. */
void session_end(struct session *session);

/*
 * Does what a request says, and writes what the answer has behind its first number; what goes wrong
 * is in session->error.
 */
void session_request(struct session *session, enum request request, struct reader *reader,
                     struct writer *writer);

#endif
