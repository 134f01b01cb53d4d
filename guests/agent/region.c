/*
 * Pages, generations, and the finding of what does not belong.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "region.h"

/* Table entries that one checksum covers: one 4 KiB page of the table */
#define CHUNK_PAGES (PATTERN_PAGE / sizeof(uint32_t))
/* More wrong words than this in a page and it is not a flipped bit */
#define FLIPPED_WORDS_MAX 8

static bool is_set(const uint8_t *map, size_t i)
{
    return map[i / 8] & (1u << (i % 8));
}

static void set_bit(uint8_t *map, size_t i)
{
    map[i / 8] |= 1u << (i % 8);
}

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static size_t chunks_of(size_t pages)
{
    return round_up(pages, CHUNK_PAGES) / CHUNK_PAGES;
}

size_t region_overhead(size_t pages)
{
    size_t chunks = chunks_of(pages);

    return round_up(chunks * CHUNK_PAGES * sizeof(uint32_t) +
                    chunks * sizeof(uint64_t) +
                    round_up(pages, 64) / 8 + round_up(chunks, 64) / 8,
                    PATTERN_PAGE);
}

/* What one entry adds to the checksum: its place counts, so swaps show */
static uint64_t entry_sum(size_t page, uint32_t generation)
{
    return pattern_mix(((uint64_t)page << 32 | generation) + 1);
}

static uint64_t chunk_sum(const Region *region, size_t chunk)
{
    uint64_t sum = 0;
    size_t first = chunk * CHUNK_PAGES;

    for (size_t i = first; i < first + CHUNK_PAGES; i++) {
        sum ^= entry_sum(i, region->generations[i]);
    }
    return sum;
}

static void carve_tables(Region *region, void *tables)
{
    uint8_t *at = tables;

    region->generations = (uint32_t *)at;
    at += region->chunks * CHUNK_PAGES * sizeof(uint32_t);
    region->chunk_sums = (uint64_t *)at;
    at += region->chunks * sizeof(uint64_t);
    region->bad_pages = at;
    at += round_up(region->pages, 64) / 8;
    region->bad_chunks = at;
}

void region_init(Region *region, uint64_t *words, void *tables, size_t pages)
{
    memset(region, 0, sizeof(*region));
    region->words = words;
    region->pages = pages;
    region->chunks = chunks_of(pages);
    carve_tables(region, tables);
    for (size_t i = 0; i < region->chunks; i++) {
        region->chunk_sums[i] = chunk_sum(region, i);
    }
    while ((size_t)1 << region->permutation_bits < pages) {
        region->permutation_bits++;
    }
}

static uint64_t *page_words(const Region *region, size_t page)
{
    return region->words + page * PATTERN_WORDS;
}

static void write_generation(Region *region, size_t page, uint32_t generation)
{
    region->chunk_sums[page / CHUNK_PAGES] ^=
        entry_sum(page, region->generations[page]) ^
        entry_sum(page, generation);
    region->generations[page] = generation;
    pattern_write(page_words(region, page), page, generation);
}

/* Generations start at 1: a zeroed table is then never a valid one */
void region_fill_page(Region *region, size_t page)
{
    write_generation(region, page, 1);
}

static void classify(const Region *region, FirstBad *bad)
{
    const uint64_t *words = page_words(region, bad->page);
    uint32_t generation = region->generations[bad->page];
    unsigned wrong = 0, zero = 0;

    if (pattern_identify(words, &bad->found_page, &bad->found_generation)) {
        bad->kind = bad->found_page == bad->page ? "stale" : "moved";
        return;
    }
    for (unsigned i = 0; i < PATTERN_WORDS; i++) {
        wrong += words[i] != pattern_word(bad->page, generation, i);
        zero += words[i] == 0;
    }
    if (zero == PATTERN_WORDS) {
        bad->kind = "zero";
    } else {
        bad->kind = wrong <= FLIPPED_WORDS_MAX ? "flipped" : "garbage";
    }
}

static void note_bad_page(Region *region, size_t page, unsigned word)
{
    if (is_set(region->bad_pages, page)) {
        return;
    }
    set_bit(region->bad_pages, page);
    if (region->bad_page_count++ == 0) {
        FirstBad *bad = &region->first_bad;

        bad->page = page;
        bad->word = word;
        bad->got = page_words(region, page)[word];
        bad->want = pattern_word(page, region->generations[page], word);
        classify(region, bad);
    }
}

static void check_chunk(Region *region, size_t chunk)
{
    if (chunk_sum(region, chunk) != region->chunk_sums[chunk] &&
        !is_set(region->bad_chunks, chunk)) {
        set_bit(region->bad_chunks, chunk);
        region->bad_chunk_count++;
    }
}

bool region_check_page(Region *region, size_t page)
{
    int word;

    if (page % CHUNK_PAGES == 0) {
        check_chunk(region, page / CHUNK_PAGES);
    }
    word = pattern_check(page_words(region, page), page,
                         region->generations[page]);
    if (word >= 0) {
        note_bad_page(region, page, word);
    }
    return word < 0;
}

/*
 * A permutation of [0, 2^bits): each step loses nothing, so every page
 * comes once in a round, with no pattern a prefetcher or a dirty bitmap
 * could gain from.
 */
static uint64_t permute(uint64_t x, unsigned bits, uint64_t round)
{
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    unsigned shift = bits / 2 + 1;

    x = (x + pattern_mix(round)) & mask;
    for (unsigned i = 0; i < 3; i++) {
        x = (x * 0xbf58476d1ce4e5b9ULL) & mask;
        x ^= x >> shift;
    }
    return x;
}

static size_t next_dirty_page(Region *region)
{
    unsigned bits = region->permutation_bits;
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    uint64_t page;

    do {
        uint64_t step = region->permutation_step++;

        page = permute(step & mask, bits, step >> bits);
    } while (page >= region->pages);
    return page;
}

bool region_dirty_next(Region *region)
{
    size_t page = next_dirty_page(region);

    /* A bad page is evidence: it is left as it was found */
    if (is_set(region->bad_pages, page) || !region_check_page(region, page)) {
        return false;
    }
    write_generation(region, page, region->generations[page] + 1);
    return true;
}

static void swap_pages(uint64_t *a, uint64_t *b)
{
    for (unsigned i = 0; i < PATTERN_WORDS; i++) {
        uint64_t word = a[i];

        a[i] = b[i];
        b[i] = word;
    }
}

const char *region_corrupt(Region *region, size_t page, CorruptMode mode)
{
    uint64_t *words;
    size_t other;

    if (page >= region->pages) {
        return "no such page";
    }
    words = page_words(region, page);
    other = page + 1 < region->pages ? page + 1 : 0;
    switch (mode) {
    case CORRUPT_FLIP:
        words[PATTERN_WORDS / 2] ^= 1ULL << 40;
        return NULL;
    case CORRUPT_ZERO:
        memset(words, 0, PATTERN_PAGE);
        return NULL;
    case CORRUPT_STALE:
        pattern_write(words, page, region->generations[page] - 1);
        return NULL;
    case CORRUPT_SWAP:
        if (other == page) {
            return "a swap needs two pages";
        }
        swap_pages(words, page_words(region, other));
        return NULL;
    case CORRUPT_TABLE:
        region->generations[page] ^= 1u << 20;
        return NULL;
    case CORRUPT_MODES:
        break;
    }
    return "no such mode";
}
