/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RAM blocks that are shared memory in a file without a name (memfd_create(2)).
 *
 * There is nothing to bring over: both QEMUs have the file.  But what the new QEMU writes while it
 * loads the devices must not be the guest's as long as that may go on under the old one.  So until
 * the commit it has a private mapping of the file, in which a page that it writes to becomes its
 * own; these are written to the file with the commit, and taken back if that fails after all.
 */
#ifndef TRANSPLANT_SHARED_H
#define TRANSPLANT_SHARED_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"
#include "maps.h"
#include "ramblock.h"

/* Whether the pages of a mapping are a file's, and everybody's that maps it. */
bool shared_is(const struct mapping *mapping);

/* Returns the descriptor that a process has of the file of a mapping, or -1. */
int shared_descriptor(pid_t pid, const struct mapping *mapping, struct error *error);

/* Pages of a file as they were before. */
struct shared_undo {
    int fd[BLOCKS]; /* 0: none */
    struct shared_page *pages;
    size_t count;
    size_t room;
};

/*
 * Writes the pages of a private mapping that are the new QEMU's own to the file, which the old one
 * has as a descriptor: `block` is the number of the RAM block, `address` and `offset` are where it
 * is in the new one and in the file.
 */
int shared_write(struct shared_undo *undo, size_t block, pid_t old, int old_fd, pid_t new,
                 uint64_t address, uint64_t offset, uint64_t size, struct error *error);

/* Takes that back, or, without `back`, forgets what it was. */
void shared_end(struct shared_undo *undo, bool back);

#endif
