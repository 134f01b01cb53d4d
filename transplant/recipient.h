/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The new QEMU: a child of the old one that becomes another program without execve(2), and later
 * takes the memory that it was born with for its RAM blocks.
 *
 * Until recipient_let_go() it ends with this process.
 */
#ifndef TRANSPLANT_RECIPIENT_H
#define TRANSPLANT_RECIPIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "donor.h"
#include "elf.h"
#include "error.h"
#include "shared.h"

#define DESCRIPTORS 64

/* A descriptor that gets another number. */
struct replacement {
    int from;
    int to;
};

/* What it is to become; all of this is found out before the old QEMU is touched. */
struct program {
    const char *const *arguments; /* the first one is the file, by its full path */
    size_t argument_count;
    /* What it keeps besides 0, 1 and 2: which of the old QEMU's, and by which number, in order;
     * 2 may be among these. */
    struct replacement descriptors[DESCRIPTORS];
    size_t descriptor_count;
    struct elf_plan file;
    struct elf_plan linker; /* of the dynamic linker, if the file has one */
    char *environment;
    size_t environment_size;
    struct auxiliary *auxiliary;
};

struct recipient {
    pid_t pid;   /* 0 while there is none */
    bool traced; /* and ends with this process */
    bool ended;
    int status; /* of wait(2), once it has ended */
    struct block blocks[BLOCKS]; /* in the order of the donor's, once they are adopted */
    unsigned calls;
    uint64_t become_us;
    uint64_t adopt_us;
};

/* Reads the program as the old QEMU's file system has it; refuses what execve(2) would treat in a
 * special way (scripts, set-user-ID, file capabilities). */
int program_read(struct program *program, const struct donor *donor, struct error *error);
void program_free(struct program *program);

/* Turns the child, which is stopped, into the program, and lets it run. */
int recipient_become(struct recipient *recipient, const struct donor *donor,
                     const struct program *program, struct error *error);

/*
 * Finds the RAM blocks of the new QEMU (`blocks`, as its monitor has them) and moves the memory
 * that it was born with over them, each where the donor's block of the same name was.
 */
int recipient_adopt(struct recipient *recipient, const struct donor *donor,
                    const struct block *blocks, size_t count, struct error *error);

/* The RAM block of that number, which is shared memory. */
struct shared_block recipient_shared(const struct recipient *recipient, const struct donor *donor,
                                     size_t i);

/* Lets shared memory be the new QEMU's as well: what it has written there is the guest's then. */
int recipient_share(struct recipient *recipient, const struct donor *donor,
                    struct shared_undo *undo, struct error *error);

/* Gives descriptors of the new QEMU's other numbers; what had these is closed by that. */
int recipient_replace(struct recipient *recipient, const struct replacement *replacements,
                      size_t count, struct error *error);

/* Sees to its signals, if any are pending.  Returns -1 when it has ended, and says how. */
int recipient_attend(struct recipient *recipient, struct error *error);

/* From here on it belongs to nobody. */
int recipient_let_go(struct recipient *recipient, struct error *error);

/* Ends it, and waits until it has ended. */
void recipient_end(struct recipient *recipient);

#endif
