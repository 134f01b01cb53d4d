/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * transplant: takes a guest out of a QEMU that knows nothing of it, for another one.
 *
 *     transplant FD
 *
 * FD is one end of a socket pair; the lab has the other, and asks (protocol.h).  Whatever happens
 * to this process, at any instant, the old QEMU goes on as if nothing had been, and a new one that
 * has not been let go ends.  That is why it ends by itself where it takes too long (alarm(2)): its
 * end is always a way back.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "session.h"

/* How long a request may take, and how long the lab may take for the next one (s). */
#define REQUEST_S 60
#define FINISH_S 300
#define IDLE_S 300
/* The same while the old QEMU's threads are held. */
#define HELD_S 15
#define OOM_NEVER (-1000)

/* Waits for the lab, and meanwhile sees to the new QEMU's signals. */
static void wait_for_lab(int fd, struct session *session)
{
    struct pollfd lab = { .fd = fd, .events = POLLIN };
    struct error ignored = { 0 };
    sigset_t none;

    sigemptyset(&none);
    for (;;) {
        recipient_attend(&session->recipient, &ignored);
        if (ppoll(&lab, 1, NULL, &none) > 0) {
            return;
        }
    }
}

/* Takes in one request and answers it; returns 0 at the end of the stream, or for what is none. */
static int serve(int fd, struct session *session, uint8_t *payload, uint8_t *answer)
{
    struct writer writer = { .data = answer, .size = PROTOCOL_MOST };
    struct error error = { 0 }, broken = { 0 };
    struct reader reader = { .at = payload };
    struct frame frame;
    int got;

    session->error = &error;
    alarm(session->hold.count ? HELD_S : IDLE_S);
    wait_for_lab(fd, session);
    got = frame_receive(fd, &frame, payload, &broken);
    if (got <= 0) {
        if (got < 0) {
            fprintf(stderr, "transplant: %s\n", broken.text);
        }
        return 0;
    }
    reader.end = payload + frame.length;
    write_number(&writer, 0);
    alarm(frame.kind == REQUEST_FINISH || frame.kind == REQUEST_COLLAPSE ? FINISH_S : REQUEST_S);
    session_request(session, frame.kind, &reader, &writer);
    if (error.set) {
        writer.used = 0;
        write_number(&writer, 1);
        write_text(&writer, error.text);
    }
    if (frame_answer(fd, &frame, &writer, &broken)) {
        session_end(session);
        return 0;
    }
    return 1;
}

static void on_child(int number)
{
    (void)number;
}

int main(int argc, char **argv)
{
    static uint8_t payload[PROTOCOL_MOST], answer[PROTOCOL_MOST];
    static struct session session;
    struct sigaction action = { .sa_handler = on_child };
    sigset_t child;
    int fd = argc == 2 ? atoi(argv[1]) : 0;

    if (fd <= 2) {
        fprintf(stderr, "usage: transplant FD (see protocol.h; ./pageflip starts it)\n");
        return 2;
    }
    /* SIGCHLD ends ppoll(2), and comes at no other time. */
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    sigaction(SIGCHLD, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* When memory is short, somebody else is to go, and nothing of this is to wait for a disk. */
    set_oom_score(getpid(), OOM_NEVER);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    while (serve(fd, &session, payload, answer)) {
    }
    return 0;
}
