/*
 * Time.  The HPET stands still while the VM does and is migrated with it,
 * under every accelerator, so it is the guest's monotonic clock; but to
 * read it leaves the guest.  The TSC costs nothing and may jump when the
 * guest moves: it only says when a look at the HPET is due.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "micro.h"

/* volatile: registers of a device */
#define HPET            ((volatile uint32_t *)0xfed00000)
#define HPET_PERIOD     1               /* in words of 32 bits */
#define HPET_CONFIG     4
#define HPET_COUNTER    60
#define HPET_ENABLE     1
#define FS_PER_NS       1000000
#define RTC_INDEX       0x70
#define RTC_DATA        0x71
#define RTC_STATUS_A    10
#define RTC_STATUS_B    11
#define RTC_CENTURY     0x32
#define RTC_UPDATING    0x80
#define RTC_BINARY      0x04

static uint64_t ns_per_tick;
static uint32_t last_counter;
static uint64_t mono_ns;
static uint64_t last_tsc;
static uint64_t cycles_per_ms;

/* What clock_real() adds, and when it last asked the RTC */
static uint64_t real_offset;
static uint64_t real_checked;

static uint64_t read_tsc(void)
{
    uint32_t low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/* Learn the TSC's pace from every look, but not from one across a jump */
static void learn(uint64_t cycles, uint64_t ns)
{
    uint64_t pace;

    if (ns < NS_PER_MS / 4 || ns > 16 * NS_PER_MS || cycles >> 40) {
        return;
    }
    pace = cycles * NS_PER_MS / ns;
    if (pace < 2 * cycles_per_ms) {
        cycles_per_ms = (cycles_per_ms * 7 + pace) / 8;
    }
}

/* 32 bits of the counter last 43 s: far longer than between two reads */
uint64_t clock_read(void)
{
    uint32_t counter = HPET[HPET_COUNTER];
    uint64_t tsc = read_tsc();
    uint64_t ns = (uint32_t)(counter - last_counter) * ns_per_tick;

    learn(tsc - last_tsc, ns);
    last_counter = counter;
    last_tsc = tsc;
    mono_ns += ns;
    return mono_ns;
}

uint64_t clock_recent(void)
{
    return mono_ns;
}

bool clock_may_have_reached(uint64_t deadline)
{
    /* One look too many is harmless: backwards reads as far ahead */
    uint64_t cycles = read_tsc() - last_tsc;

    return deadline <= mono_ns ||
           cycles >= (deadline - mono_ns) * cycles_per_ms / NS_PER_MS;
}

static unsigned rtc_read(unsigned reg)
{
    outb(RTC_INDEX, reg);
    return inb(RTC_DATA);
}

static unsigned rtc_number(unsigned reg, bool binary)
{
    unsigned n = rtc_read(reg);

    return binary ? n : (n >> 4) * 10 + (n & 15);
}

/* Days from 1970-01-01, by the Gregorian calendar from a 1 March on */
static uint64_t days_since_epoch(unsigned year, unsigned month, unsigned day)
{
    unsigned y = month > 2 ? year : year - 1;
    unsigned m = month > 2 ? month - 3 : month + 9;

    return 365ULL * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 +
           day - 1 - 719468;
}

static uint64_t rtc_seconds(void)
{
    bool binary = rtc_read(RTC_STATUS_B) & RTC_BINARY;
    unsigned second, minute, hour, day, month, year;

    do {
        while (rtc_read(RTC_STATUS_A) & RTC_UPDATING) {
            /* less than 2 ms */
        }
        second = rtc_number(0, binary);
        minute = rtc_number(2, binary);
        hour = rtc_number(4, binary);
        day = rtc_number(7, binary);
        month = rtc_number(8, binary);
        year = rtc_number(9, binary) + 100 * rtc_number(RTC_CENTURY, binary);
    } while (second != rtc_number(0, binary));
    return ((days_since_epoch(year, month, day) * 24 + hour) * 60 + minute) *
           60 + second;
}

/*
 * The RTC counts seconds, the HPET what is between.  Behind the RTC (the
 * VM stood still) real time steps forward; less than a second ahead of it
 * is what its grain allows, more is a clock that went back.
 */
uint64_t clock_real(uint64_t mono)
{
    if (mono - real_checked >= NS_PER_SEC) {
        uint64_t rtc = rtc_seconds() * NS_PER_SEC;
        uint64_t real = mono + real_offset;

        real_checked = mono;
        if (real < rtc || real >= rtc + 2 * NS_PER_SEC) {
            real_offset = rtc - mono;
        }
    }
    return mono + real_offset;
}

void clock_init(void)
{
    uint64_t start;

    HPET[HPET_CONFIG] |= HPET_ENABLE;
    ns_per_tick = HPET[HPET_PERIOD] / FS_PER_NS;
    if (ns_per_tick == 0) {
        panic("no HPET, period", HPET[HPET_PERIOD]);
    }
    last_counter = HPET[HPET_COUNTER];
    last_tsc = read_tsc();
    start = last_tsc;
    while (clock_read() < 4 * NS_PER_MS) {
        /* the first guess is exact enough: learn() improves on it */
    }
    cycles_per_ms = (last_tsc - start) / 4;
    real_offset = rtc_seconds() * NS_PER_SEC - mono_ns;
    real_checked = mono_ns;
}
