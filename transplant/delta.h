/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between the memory of two QEMUs of which one was forked from the other.
 *
 * /proc/PID/pagemap says which page frame is where.  The same frame in both is the same page: none
 * of them has written there since the fork.  Everything else is taken as different, whatever the
 * reason: the guest wrote, the new QEMU wrote, the kernel moved or swapped a page meanwhile.
 */
#ifndef TRANSPLANT_DELTA_H
#define TRANSPLANT_DELTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

struct range {
    uint64_t from; /* address in the old process */
    uint64_t to;   /* and in the new one */
    uint64_t size;
};

struct delta {
    uint64_t pages;
    uint64_t absent;    /* in neither of both: never touched */
    uint64_t different;
    uint64_t mismatched; /* by delta_verify() */
};

/* Whether two entries of pagemap (admin-guide/mm/pagemap.rst) may be different pages.  Pure. */
bool delta_differs(uint64_t old, uint64_t new);

/* Counts what differs, and with `copy` brings it over; adds to `delta`, one for each range. */
int delta_run(pid_t old, pid_t new, const struct range *ranges, size_t count, bool copy,
              struct delta *delta, struct error *error);

/* Compares the contents of every page that is in one of both, and counts those that differ. */
int delta_verify(pid_t old, pid_t new, const struct range *ranges, size_t count,
                 struct delta *delta, struct error *error);

/*
 * Lets the kernel put huge pages together where the fork has split them: units of 2 MiB all of
 * whose pages are there (MADV_COLLAPSE, Linux 6.1).  Returns how many there are now.
 */
uint64_t delta_collapse(pid_t pid, uint64_t start, uint64_t size);

#endif
