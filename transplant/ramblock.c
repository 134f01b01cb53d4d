/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ramblock.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "elf.h"
#include "remote.h"
#include "shared.h"

/* struct RAMBlock: host, two words before offset; idstr, some words behind max_length. */
#define HOST_BEFORE 16
#define NAME_BEHIND 128
/* What is larger is no heap: the kernel and the initrd that a guest was started with may be in one. */
#define HEAP_MOST (1ull << 30)
/* It is searched in pieces.  A structure that ends in the next one is in this one's end as well. */
#define PIECE (4ull << 20)
#define OVERLAP (HOST_BEFORE + NAME_BEHIND + BLOCK_NAME)
#define CANDIDATES 8

size_t ramblock_scan(const uint8_t *heap, size_t size, const struct block *block,
                     const struct maps *maps, uint64_t *found, size_t count, size_t room)
{
    const uint64_t numbers[3] = { block->offset, block->used, block->most };
    size_t name = strlen(block->name) + 1;
    const uint8_t *at = heap, *end = heap + size;

    while ((at = memmem(at, end - at, block->name, name))) {
        size_t behind = at - heap < NAME_BEHIND ? (size_t)(at - heap) : NAME_BEHIND;
        const uint8_t *three = memmem(at - behind, behind, numbers, sizeof(numbers));
        uint64_t address;

        at++;
        if (!three || three - heap < HOST_BEFORE) {
            continue;
        }
        memcpy(&address, three - HOST_BEFORE, sizeof(address));
        if (!maps_begin(maps, address) || count == room) {
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            if (found[i] == address) {
                address = 0;
            }
        }
        if (address) {
            found[count++] = address;
        }
    }
    return count;
}

int ramblock_check(const struct block *block, const struct maps *maps, struct error *error)
{
    const unsigned wanted = MAPPING_READ | MAPPING_WRITE | MAPPING_DONTFORK;
    uint64_t at = block->address, end = at + PAGE_UP(block->most);
    const struct mapping *mapping = maps_begin(maps, at), *first = mapping;

    if (!mapping) {
        return fail(error, "RAM block %s is not at %#lx: no mapping begins there", block->name,
                    (unsigned long)at);
    }
    for (; at < end; at = mapping->end) {
        mapping = maps_holding(maps, at);
        if (!mapping) {
            return fail(error, "RAM block %s is longer than what is mapped", block->name);
        }
        if (shared_is(mapping) ? mapping->inode != first->inode ||
                                     mapping->offset - first->offset != at - block->address
                               : shared_is(first) || !(mapping->flags & MAPPING_PRIVATE) ||
                                     mapping->flags & MAPPING_FILE) {
            return fail(error, "RAM block %s is a private mapping of a file, or shared and not "
                               "one piece of one", block->name);
        }
        if (mapping->flags & MAPPING_POOL) {
            return fail(error, "RAM block %s is of the kernel's pool of huge pages", block->name);
        }
        if (mapping->flags & MAPPING_LOCKED) {
            return fail(error, "RAM block %s is locked in memory (mlock)", block->name);
        }
        if (mapping->flags & (MAPPING_WATCHED | MAPPING_DEVICE)) {
            return fail(error, "RAM block %s is watched by userfaultfd, or a device's",
                        block->name);
        }
        if ((mapping->flags & wanted) != wanted) {
            return fail(error, "RAM block %s does not look like guest memory (flags %#x)",
                        block->name, mapping->flags);
        }
    }
    return 0;
}

static bool is_heap(const struct mapping *mapping)
{
    const unsigned wanted = MAPPING_READ | MAPPING_WRITE | MAPPING_PRIVATE;
    const unsigned unwanted = MAPPING_FILE | MAPPING_DONTFORK | MAPPING_CODE | MAPPING_DEVICE;

    return (mapping->flags & (wanted | unwanted)) == wanted &&
           mapping->end - mapping->start <= HEAP_MOST;
}

/* Searches a process's heaps for those blocks whose address is not known. */
static int search(pid_t pid, struct block *blocks, size_t count, const struct maps *maps,
                  uint64_t (*found)[CANDIDATES], size_t *counts, struct error *error)
{
    uint8_t *heap = malloc(PIECE + OVERLAP);

    if (!heap) {
        return fail(error, "no memory to read the heap, %llu bytes at a time", PIECE + OVERLAP);
    }
    for (size_t i = 0; i < maps->count; i++) {
        const struct mapping *mapping = &maps->list[i];

        if (!is_heap(mapping)) {
            continue;
        }
        for (uint64_t at = mapping->start; at < mapping->end; at += PIECE) {
            uint64_t left = mapping->end - at;
            size_t size = left < PIECE + OVERLAP ? left : PIECE + OVERLAP;
            struct error own = { 0 };

            if (remote_read(pid, at, heap, size, &own)) {
                break; /* it was just unmapped, so there is no RAM block in it */
            }
            for (size_t k = 0; k < count; k++) {
                if (!blocks[k].address) {
                    counts[k] = ramblock_scan(heap, size, &blocks[k], maps, found[k], counts[k],
                                              CANDIDATES);
                }
            }
        }
    }
    free(heap);
    return 0;
}

int ramblock_find(pid_t pid, struct block *blocks, size_t count, const struct maps *maps,
                  struct error *error)
{
    static uint64_t found[BLOCKS][CANDIDATES];
    size_t counts[BLOCKS] = { 0 }, unknown = 0;
    const struct mapping *mapping;

    for (size_t k = 0; k < count; k++) {
        unknown += !blocks[k].address;
    }
    if (unknown && search(pid, blocks, count, maps, found, counts, error)) {
        return -1;
    }
    for (size_t k = 0; k < count; k++) {
        if (!blocks[k].address && counts[k] != 1) {
            return fail(error, "RAM block %s: %zu addresses were found for it in process %d",
                        blocks[k].name, counts[k], pid);
        }
        blocks[k].address = blocks[k].address ? blocks[k].address : found[k][0];
        if (ramblock_check(&blocks[k], maps, error)) {
            return -1;
        }
        blocks[k].file = 0;
        mapping = maps_begin(maps, blocks[k].address);
        if (shared_is(mapping)) {
            blocks[k].file = shared_descriptor(pid, mapping, error);
            if (blocks[k].file < 0) {
                return -1;
            }
        }
        for (size_t other = 0; other < k; other++) {
            if (blocks[other].address == blocks[k].address) {
                return fail(error, "RAM blocks %s and %s have one address", blocks[other].name,
                            blocks[k].name);
            }
        }
    }
    return 0;
}
