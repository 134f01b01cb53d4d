/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The code that runs inside of the old QEMU.  It needs nobody once it has begun.
 *
 * A tracer that sets registers, steps, and puts them back leaves a process in pieces if it dies
 * between two of these.  So a piece of position-independent code and the list of system calls that
 * it is to make are put where no code of the process's own is, and one PTRACE_SETREGS sends a
 * thread there.  It makes the calls, loads the registers that they have used, and jumps back,
 * whether anybody is looking or not.  It uses no stack and writes to no memory.
 *
 * A child that it has forked ends at once, unless the tracer is there to take it.
 *
 * Pure: this only builds the image.
 */
#ifndef TRANSPLANT_BLOB_H
#define TRANSPLANT_BLOB_H

#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

#include "error.h"

/* clone3(2), and not clone(2): a filter that lets no child be made refuses the one with an error
 * (QEMU's -sandbox on,spawn=deny), and kills for the other.  If the tracer dies, and with it
 * PTRACE_O_SUSPEND_SECCOMP, there is no child, and nothing else has happened. */
#define BLOB_CLONE3 435

struct blob_call {
    uint64_t number;
    uint64_t arguments[3]; /* the other three are 0 */
};

/*
 * Builds the image that is to be at `address`, with `regs` as they are when the thread stands in a
 * system call; a call that is to be made again is.  `calls` may have one BLOB_CLONE3, whose
 * arguments are filled in: a child like fork(2)'s, but its end sends no signal.  Returns its size,
 * or -1.
 */
long blob_build(uint8_t *image, size_t size, uint64_t address,
                const struct user_regs_struct *regs, const struct blob_call *calls, size_t count,
                struct error *error);

/* Returns the size of an image with `count` calls. */
size_t blob_size(size_t count);

/* Whether an image begins here: one that was left by a helper that has ended. */
int blob_begins(const uint8_t *data, size_t size);

#endif
