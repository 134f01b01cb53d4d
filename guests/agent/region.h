/*
 * The memory under test: pages with a known content, and the table that
 * says which generation each of them has.  Freestanding: whoever has the
 * memory hands it in.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_REGION_H
#define PAGEFLIP_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pattern.h"

typedef enum CorruptMode {
    CORRUPT_FLIP,
    CORRUPT_ZERO,
    CORRUPT_STALE,
    CORRUPT_SWAP,
    CORRUPT_TABLE,
    CORRUPT_MODES,
} CorruptMode;

typedef struct FirstBad {
    uint32_t page;
    unsigned word;
    uint64_t want;
    uint64_t got;
    const char *kind;       /* zero, stale, moved, flipped or garbage */
    uint32_t found_page;    /* what a stale or moved page was written as */
    uint32_t found_generation;
} FirstBad;

typedef struct Region {
    uint64_t *words;
    size_t pages;
    size_t chunks;
    uint32_t *generations;
    uint64_t *chunk_sums;
    uint8_t *bad_pages;     /* bitmaps: each page and chunk counts once */
    uint8_t *bad_chunks;
    size_t bad_page_count;
    size_t bad_chunk_count;
    FirstBad first_bad;
    unsigned permutation_bits;
    uint64_t permutation_step;
} Region;

/* Bytes of tables that N pages need on top of the pages themselves */
size_t region_overhead(size_t pages);

/* TABLES has region_overhead() bytes, all zero; WORDS need not be */
void region_init(Region *region, uint64_t *words, void *tables, size_t pages);
void region_fill_page(Region *region, size_t page);

/* Compare one page (and its part of the table); true when it is intact */
bool region_check_page(Region *region, size_t page);

/* Check the next page of the pseudo-random order, then rewrite it */
bool region_dirty_next(Region *region);

/* Damage PAGE behind the table's back; NULL or why it cannot be done */
const char *region_corrupt(Region *region, size_t page, CorruptMode mode);

#endif
