/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a QEMU has the memory of its guest.
 *
 * The monitor's `info ramblock` names each RAM block, its offset, and its lengths; since QEMU 8.2
 * it says the address as well.  Before, the address is in struct RAMBlock (include/exec/ramblock.h
 * in QEMU), somewhere on the heap: the three numbers stand there one after another, the address two
 * words before them, and the name behind them.  Whatever is found has to be where a mapping begins
 * that looks like guest memory.  Two answers are none.
 */
#ifndef TRANSPLANT_RAMBLOCK_H
#define TRANSPLANT_RAMBLOCK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"
#include "maps.h"

#define BLOCKS 64
#define BLOCK_NAME 256 /* sizeof(RAMBlock.idstr) */

struct block {
    char name[BLOCK_NAME];
    uint64_t offset;
    uint64_t used;
    uint64_t most;    /* the length that it may grow to, and that is mapped */
    uint64_t address; /* in the process; 0 while it is not known */
    int file;         /* shared memory: the descriptor that the process has of it; else 0 */
    int place;        /* ... and the number that the new QEMU has the old one's by until then */
};

/*
 * Searches a piece of a heap for a block, and adds the addresses that it might have to `found`,
 * where there is room for `room`; returns how many there are now.  Pure.
 */
size_t ramblock_scan(const uint8_t *heap, size_t size, const struct block *block,
                     const struct maps *maps, uint64_t *found, size_t count, size_t room);

/* Whether a block may be at its address: all of its memory is there, and of the right kind. */
int ramblock_check(const struct block *block, const struct maps *maps, struct error *error);

/* Finds and checks all blocks of a process, whose mappings are in `maps`, and their files. */
int ramblock_find(pid_t pid, struct block *blocks, size_t count, const struct maps *maps,
                  struct error *error);

#endif
