/*
 * The content every page must have: a function of page number and
 * generation, and nothing else.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_PATTERN_H
#define PAGEFLIP_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#define PATTERN_PAGE 4096u
#define PATTERN_WORDS (PATTERN_PAGE / sizeof(uint64_t))

uint64_t pattern_mix(uint64_t x);
uint64_t pattern_word(uint32_t page, uint32_t generation, unsigned word);
void pattern_write(uint64_t *words, uint32_t page, uint32_t generation);

/* The first word that differs, or -1 when the page is what it must be */
int pattern_check(const uint64_t *words, uint32_t page, uint32_t generation);

/*
 * The (page, generation) a whole page was written for, if it is an
 * intact page at all: tells a stale or misplaced page from noise.
 */
bool pattern_identify(const uint64_t *words, uint32_t *page,
                      uint32_t *generation);

#endif
