/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RAM blocks that are shared memory in a file, with or without a name (memfd_create(2)).
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

/* A RAM block of both QEMUs. */
struct shared_block {
    size_t number;
    pid_t old;
    int old_fd;
    pid_t new;
    uint64_t address; /* in the new one, where the mapping is private */
    uint64_t offset;  /* in the file */
    uint64_t size;
};

/* Returns how many pages the new QEMU has written to that differ from the file's; or -1. */
int64_t shared_count(const struct shared_block *block, struct error *error);

/* Writes these to the file, and keeps what was there. */
int shared_write(struct shared_undo *undo, const struct shared_block *block, struct error *error);

/* Takes that back, or, without `back`, forgets what it was. */
void shared_end(struct shared_undo *undo, bool back);

#endif
