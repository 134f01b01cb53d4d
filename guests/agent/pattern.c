/*
 * Page pattern: splitmix64, seeded with page number and generation.
 *
 * splitmix64 is due to Guy L. Steele Jr., Doug Lea and Christine H.
 * Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014;
 * the constants are David Stafford's "Mix13", as in Sebastiano Vigna's
 * public-domain splitmix64.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "pattern.h"

#define GOLDEN_GAMMA 0x9e3779b97f4a7c15ULL
#define MIX_A 0xbf58476d1ce4e5b9ULL
#define MIX_B 0x94d049bb133111ebULL
/* Multiplicative inverses of MIX_A and MIX_B modulo 2^64 */
#define MIX_A_INVERSE 0x96de1b173f119089ULL
#define MIX_B_INVERSE 0x319642b2d24d8ec3ULL

uint64_t pattern_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * MIX_A;
    x = (x ^ (x >> 27)) * MIX_B;
    return x ^ (x >> 31);
}

static uint64_t unxorshift(uint64_t x, unsigned shift)
{
    uint64_t y = x;

    for (unsigned known = shift; known < 64; known += shift) {
        y = x ^ (y >> shift);
    }
    return y;
}

/* pattern_mix() loses nothing, so it can be run backwards */
static uint64_t pattern_unmix(uint64_t x)
{
    x = unxorshift(x, 31) * MIX_B_INVERSE;
    x = unxorshift(x, 27) * MIX_A_INVERSE;
    return unxorshift(x, 30);
}

/*
 * The seed goes through the mixer once before it becomes the state:
 * neighbouring pages and generations must not start close together on
 * the one orbit that all splitmix64 streams share.
 */
static uint64_t pattern_seed(uint32_t page, uint32_t generation)
{
    return pattern_mix(((uint64_t)page << 32) | generation);
}

uint64_t pattern_word(uint32_t page, uint32_t generation, unsigned word)
{
    return pattern_mix(pattern_seed(page, generation) +
                       (word + 1) * GOLDEN_GAMMA);
}

void pattern_write(uint64_t *words, uint32_t page, uint32_t generation)
{
    uint64_t state = pattern_seed(page, generation);

    for (unsigned i = 0; i < PATTERN_WORDS; i++) {
        state += GOLDEN_GAMMA;
        words[i] = pattern_mix(state);
    }
}

int pattern_check(const uint64_t *words, uint32_t page, uint32_t generation)
{
    uint64_t state = pattern_seed(page, generation);

    for (unsigned i = 0; i < PATTERN_WORDS; i++) {
        state += GOLDEN_GAMMA;
        if (words[i] != pattern_mix(state)) {
            return i;
        }
    }
    return -1;
}

bool pattern_identify(const uint64_t *words, uint32_t *page,
                      uint32_t *generation)
{
    uint64_t seed = pattern_unmix(words[0]) - GOLDEN_GAMMA;
    uint64_t key = pattern_unmix(seed);

    *page = key >> 32;
    *generation = key;
    return pattern_check(words, *page, *generation) < 0;
}
