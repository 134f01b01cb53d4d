/*
 * Memory for the region, from the guest's kernel.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "agent.h"

#define HUGE_PAGE (2u << 20)

typedef struct Mapping {
    void *start;
    size_t len;
} Mapping;

static Mapping pages_map, tables_map;

static bool map_anonymous(Mapping *map, size_t len)
{
    map->start = mmap(NULL, len, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    map->len = len;
    if (map->start == MAP_FAILED) {
        map->start = NULL;
    }
    return map->start;
}

static void unmap(Mapping *map)
{
    if (map->start) {
        munmap(map->start, map->len);
    }
    *map = (Mapping) { };
}

bool memory_map(Region *region, size_t pages)
{
    uintptr_t start;

    /* Room to align: only aligned 2 MiB can become huge pages in the guest */
    if (!map_anonymous(&pages_map, pages * PATTERN_PAGE + HUGE_PAGE) ||
        !map_anonymous(&tables_map, region_overhead(pages))) {
        memory_unmap(region);
        return false;
    }
    start = ((uintptr_t)pages_map.start + HUGE_PAGE - 1) / HUGE_PAGE *
            HUGE_PAGE;
    /* Fewer faults while filling; without THP in the guest nothing is lost */
    madvise((void *)start, pages * PATTERN_PAGE, MADV_HUGEPAGE);
    region_init(region, (uint64_t *)start, tables_map.start, pages);
    return true;
}

void memory_unmap(Region *region)
{
    unmap(&pages_map);
    unmap(&tables_map);
    *region = (Region) { };
}
