/*
 * Work at a chosen rate.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pace.h"
#include "pattern.h"
#include "protocol.h"

/* A rate owes at most this much: after a pause no burst makes up for it */
#define BACKLOG_NS (100 * NS_PER_MS)

void pace_set(Pace *pace, uint64_t rate, uint64_t now)
{
    pace->rate = rate;
    pace->last_ns = now;
    pace->owed = 0;
}

unsigned pace_take(Pace *pace, unsigned limit, uint64_t now)
{
    const uint64_t page_cost = PATTERN_PAGE * NS_PER_SEC;
    uint64_t elapsed = now > pace->last_ns ? now - pace->last_ns : 0;
    uint64_t pages;

    if (elapsed > BACKLOG_NS) {
        elapsed = BACKLOG_NS;
    }
    pace->last_ns = now;
    pace->owed += pace->rate * elapsed;
    if (pace->owed > pace->rate * BACKLOG_NS + page_cost) {
        pace->owed = pace->rate * BACKLOG_NS + page_cost;
    }
    pages = pace->owed / page_cost;
    if (pages > limit) {
        pages = limit;
    }
    pace->owed -= pages * page_cost;
    return pages;
}
