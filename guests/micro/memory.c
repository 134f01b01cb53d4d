/*
 * The memory under test: all RAM above the payload in frames of 2 MiB,
 * mapped in one piece whatever holes the board has.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "micro.h"

#define FRAME           (2ULL << 20)
#define FRAMES_PER_TABLE 512
#define TABLES          64              /* of 1 GiB each */
#define POOL_START      ((uint64_t)POOL_PML4_SLOT << 39)
#define PTE_TABLE       0x07
#define PTE_2M          0x87
#define MULTIBOOT_HAS_MAP (1u << 6)
#define MULTIBOOT_MAP_LENGTH 11         /* in words of 32 bits */
#define MULTIBOOT_MAP_ADDRESS 12
#define MULTIBOOT_RAM   1

typedef struct __attribute__((packed)) MapEntry {
    uint32_t size;                      /* of what follows it */
    uint64_t start;
    uint64_t length;
    uint32_t type;
} MapEntry;

static uint64_t *table;
static uint64_t frames, ram_bytes, mapped_bytes;
static uint64_t scratch, scratch_end;

static uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

void *memory_scratch(size_t bytes)
{
    void *start = (void *)scratch;

    scratch += round_up(bytes, PATTERN_PAGE);
    if (scratch > scratch_end) {
        panic("out of scratch memory by", scratch - scratch_end);
    }
    return memset(start, 0, bytes);
}

static void add_frame(uint64_t start)
{
    if (frames % FRAMES_PER_TABLE == 0) {
        table = memory_scratch(FRAMES_PER_TABLE * sizeof(*table));
        pool_pdpt[frames / FRAMES_PER_TABLE] = (uint64_t)table | PTE_TABLE;
    }
    table[frames++ % FRAMES_PER_TABLE] = start | PTE_2M;
}

static void add_ram(uint64_t start, uint64_t end)
{
    ram_bytes += end - start;
    start = round_up(start < scratch_end ? scratch_end : start, FRAME);
    while (start + FRAME <= end && frames < TABLES * FRAMES_PER_TABLE) {
        add_frame(start);
        start += FRAME;
    }
}

void memory_init(const uint32_t *multiboot)
{
    uint64_t at = multiboot[MULTIBOOT_MAP_ADDRESS];
    uint64_t end = at + multiboot[MULTIBOOT_MAP_LENGTH];

    if (!(multiboot[0] & MULTIBOOT_HAS_MAP)) {
        panic("no memory map", multiboot[0]);
    }
    /* What is left of the payload's own last frame */
    scratch = round_up((uint64_t)payload_end, PATTERN_PAGE);
    scratch_end = round_up(scratch, FRAME);
    while (at < end) {
        const MapEntry *entry = (const MapEntry *)at;

        if (entry->type == MULTIBOOT_RAM) {
            add_ram(entry->start, entry->start + entry->length);
        }
        at += entry->size + sizeof(entry->size);
    }
}

uint64_t memory_total(void)
{
    return ram_bytes;
}

uint64_t memory_available(void)
{
    return frames * FRAME - mapped_bytes;
}

bool memory_map(Region *region, size_t pages)
{
    uint64_t bytes = pages * PATTERN_PAGE;
    uint8_t *pool = (uint8_t *)POOL_START;

    if (bytes + region_overhead(pages) > frames * FRAME) {
        return false;
    }
    mapped_bytes = bytes + region_overhead(pages);
    memset(pool + bytes, 0, region_overhead(pages));
    region_init(region, (uint64_t *)pool, pool + bytes, pages);
    return true;
}

void memory_unmap(Region *region)
{
    mapped_bytes = 0;
    *region = (Region) { };
}
