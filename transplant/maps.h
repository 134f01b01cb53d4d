/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The mappings of a process, from /proc/PID/smaps (proc_pid_smaps(5)).
 */
#ifndef TRANSPLANT_MAPS_H
#define TRANSPLANT_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

enum mapping_flag {
    MAPPING_READ = 1 << 0,
    MAPPING_WRITE = 1 << 1,
    MAPPING_CODE = 1 << 2,
    MAPPING_PRIVATE = 1 << 3,
    MAPPING_FILE = 1 << 4,
    MAPPING_DONTFORK = 1 << 5,  /* dc */
    MAPPING_MERGEABLE = 1 << 6, /* mg */
    MAPPING_HUGEPAGE = 1 << 7,  /* hg */
    MAPPING_LOCKED = 1 << 8,    /* lo */
    MAPPING_POOL = 1 << 9,      /* ht: huge pages of the kernel's pool */
    MAPPING_WATCHED = 1 << 10,  /* um, uw, ui: userfaultfd(2) */
    MAPPING_DEVICE = 1 << 11,   /* io, pf */
    MAPPING_NODUMP = 1 << 12    /* dd */
};

struct mapping {
    uint64_t start;
    uint64_t end;
    uint64_t offset;
    uint64_t device, inode; /* of the file, as stat(2) has them; 0 without one */
    uint64_t huge_bytes; /* in anonymous huge pages */
    unsigned flags;
    char name[64]; /* cut off when it is longer; enough for those in brackets */
};

struct maps {
    struct mapping *list;
    size_t count;
    size_t room;
};

/* Takes in a line of smaps. */
int maps_line(struct maps *maps, const char *line, struct error *error);

/* Reads all of a process's mappings; `maps` may be used again, or is zero. */
int maps_read(struct maps *maps, pid_t pid, struct error *error);

void maps_free(struct maps *maps);

/* Returns the mapping that begins at an address, that holds it, or that has the name; or NULL. */
const struct mapping *maps_begin(const struct maps *maps, uint64_t address);
const struct mapping *maps_holding(const struct maps *maps, uint64_t address);
const struct mapping *maps_named(const struct maps *maps, const char *name);

#endif
