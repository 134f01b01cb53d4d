/*
 * Work at a chosen rate, without a burst after a standstill.
 * Freestanding: the caller says what time it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_PACE_H
#define PAGEFLIP_PACE_H

#include <stdint.h>

typedef struct Pace {
    uint64_t rate;          /* bytes per second; what 0 means the user says */
    uint64_t last_ns;
    uint64_t owed;          /* in units of bytes * NS_PER_SEC */
} Pace;

void pace_set(Pace *pace, uint64_t rate, uint64_t now);

/* Pages due by now, at most LIMIT; they count as done */
unsigned pace_take(Pace *pace, unsigned limit, uint64_t now);

#endif
