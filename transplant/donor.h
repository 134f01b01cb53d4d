/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The old QEMU: what stands against taking its guest, forking it, and clearing up in it.
 *
 * Nothing is done to it but by the blob (blob.h), and by stopping its threads.
 */
#ifndef TRANSPLANT_DONOR_H
#define TRANSPLANT_DONOR_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "blob.h"
#include "error.h"
#include "maps.h"
#include "ramblock.h"

struct donor {
    pid_t pid;
    bool filtered; /* seccomp(2) */
    uint64_t caught; /* signals with a handler, bit 0 is signal 1 */
    uint64_t ids[4];
    struct maps maps;
    struct block blocks[BLOCKS];
    size_t count;
    uint64_t cave; /* where the blob goes, and how much room there is */
    size_t cave_size;
    uint64_t held_us; /* how long its main thread was held for the fork */
    uint64_t fork_us;
};

/* Finds out everything, and refuses what is not known.  Changes nothing. */
int donor_examine(struct donor *donor, struct error *error);

/* Options of ptrace(2) without which its filter would kill it, or its child. */
long donor_options(const struct donor *donor);

/*
 * Forks it; returns the child, traced and stopped before its first instruction, with nothing but
 * the RAM blocks more than a child of fork(2) has.
 */
pid_t donor_fork(struct donor *donor, struct error *error);

/* Lets it take notice of children that have ended, and wipes the blob out. */
int donor_reap(struct donor *donor, struct error *error);

#endif
