/*
 * Fills the memory under test, dirties it at the chosen rate, and verifies
 * it all the rest of the time: a few pages a turn.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "micro.h"
#include "pace.h"

/* Some 50 us of work under TCG: a beat is never late by more */
#define BATCH_PAGES 4
#define PROGRESS_NS (250 * NS_PER_MS)

typedef struct Pass {
    bool active;
    char id[ID_MAX + 1];
    size_t next;
    size_t bad;
} Pass;

static Region region;
static Pass fill, verify;
static Pace dirty_pace, verify_pace;
static uint64_t pages_checked, pages_dirtied, last_progress_ns;
static size_t round_robin;

static void begin(Pass *pass, const char *id)
{
    *pass = (Pass) { .active = true };
    strcpy(pass->id, id);
}

static void give_up(Pass *pass, const char *error)
{
    if (pass->active) {
        pass->active = false;
        reply_error(pass->id, error);
    }
}

static bool ready(const char *id)
{
    if (region.pages == 0) {
        reply_error(id, "there is no region: fill first");
    } else if (fill.active) {
        reply_error(id, "the fill is not done yet");
    }
    return region.pages && !fill.active;
}

void worker_fill(const char *id, uint64_t bytes)
{
    uint64_t pages = bytes / PATTERN_PAGE;

    if (region.pages) {
        reply_error(id, "the region is filled already: release it first");
    } else if (pages == 0 || pages > UINT32_MAX) {
        reply_error(id, "bytes must be from one page to 2^32 pages");
    } else if (!memory_map(&region, pages)) {
        reply_error(id, "not enough memory in the guest");
    } else {
        begin(&fill, id);
        round_robin = 0;
        pages_checked = pages_dirtied = 0;
        pace_set(&dirty_pace, 0, clock_recent());
        last_progress_ns = clock_recent();
    }
}

void worker_dirty(const char *id, uint64_t rate)
{
    if (ready(id)) {
        pace_set(&dirty_pace, rate, clock_recent());
        reply_ok(id);
    }
}

void worker_pace(const char *id, uint64_t rate)
{
    pace_set(&verify_pace, rate, clock_recent());
    reply_ok(id);
}

void worker_verify(const char *id)
{
    if (!ready(id)) {
        return;
    }
    if (verify.active) {
        reply_error(id, "a verify pass is going on already");
    } else {
        begin(&verify, id);
    }
}

void worker_corrupt(const char *id, uint64_t page, CorruptMode mode)
{
    const char *error;

    if (!ready(id)) {
        return;
    }
    error = region_corrupt(&region, page, mode);
    if (error) {
        reply_error(id, error);
    } else {
        reply_ok(id);
    }
}

void worker_release(const char *id)
{
    memory_unmap(&region);
    pace_set(&dirty_pace, 0, clock_recent());
    give_up(&fill, "released while filling");
    give_up(&verify, "released while verifying");
    reply_ok(id);
}

static void fill_batch(void)
{
    Reply reply;

    for (unsigned i = 0; i < BATCH_PAGES && fill.next < region.pages; i++) {
        region_fill_page(&region, fill.next++);
    }
    if (fill.next == region.pages) {
        fill.active = false;
        reply_begin(&reply, fill.id);
        text_member(&reply.text, "pages", region.pages);
        reply_send(&reply);
    } else if (clock_recent() - last_progress_ns >= PROGRESS_NS) {
        last_progress_ns = clock_recent();
        event_begin(&reply, "fill");
        text_member(&reply.text, "done", fill.next * PATTERN_PAGE);
        text_member(&reply.text, "total", region.pages * PATTERN_PAGE);
        event_send(&reply, true);
    }
}

static void verify_batch(void)
{
    Reply reply;

    for (unsigned i = 0; i < BATCH_PAGES && verify.next < region.pages; i++) {
        verify.bad += !region_check_page(&region, verify.next++);
        pages_checked++;
    }
    if (verify.next == region.pages) {
        verify.active = false;
        reply_begin(&reply, verify.id);
        text_member(&reply.text, "pages_checked", verify.next);
        text_member(&reply.text, "bad", verify.bad);
        text_member(&reply.text, "bad_table_chunks", region.bad_chunk_count);
        reply_send(&reply);
    }
}

static unsigned background_batch(void)
{
    unsigned count = verify_pace.rate
                     ? pace_take(&verify_pace, BATCH_PAGES, clock_recent())
                     : BATCH_PAGES;

    for (unsigned i = 0; i < count; i++) {
        region_check_page(&region, round_robin);
        round_robin = round_robin + 1 < region.pages ? round_robin + 1 : 0;
    }
    pages_checked += count;
    return count;
}

static unsigned dirty_batch(void)
{
    unsigned count = pace_take(&dirty_pace, BATCH_PAGES, clock_recent());

    for (unsigned i = 0; i < count; i++) {
        pages_dirtied += region_dirty_next(&region);
    }
    return count;
}

bool worker_step(void)
{
    unsigned done;

    if (region.pages == 0) {
        return false;
    }
    if (fill.active) {
        fill_batch();
        return true;
    }
    done = dirty_batch();
    if (verify.active) {
        verify_batch();
        return true;
    }
    return done + background_batch() > 0;
}

static const char *state_name(void)
{
    if (region.pages == 0) {
        return "empty";
    }
    if (fill.active) {
        return "filling";
    }
    return verify.active ? "verifying" : "running";
}

static void report_first_bad(Text *text)
{
    const FirstBad *bad = &region.first_bad;

    text_string(text, ",\"first_bad\":");
    if (region.bad_page_count == 0) {
        text_string(text, "null");
        return;
    }
    text_string(text, "{\"kind\":\"");
    text_string(text, bad->kind);
    text_string(text, "\",\"want\":\"");
    text_hex(text, bad->want);
    text_string(text, "\",\"got\":\"");
    text_hex(text, bad->got);
    text_string(text, "\"");
    text_member(text, "page", bad->page);
    text_member(text, "word", bad->word);
    /* stale or moved: it is known what it was written as */
    if (bad->kind[0] == 's' || bad->kind[0] == 'm') {
        text_member(text, "found_page", bad->found_page);
        text_member(text, "found_generation", bad->found_generation);
    }
    text_string(text, "}");
}

void worker_report(Text *text)
{
    text_string(text, ",\"state\":\"");
    text_string(text, state_name());
    text_string(text, "\"");
    text_member(text, "pages", region.pages);
    text_member(text, "pages_checked", pages_checked);
    text_member(text, "pages_dirtied", pages_dirtied);
    text_member(text, "bad_pages", region.bad_page_count);
    text_member(text, "bad_table_chunks", region.bad_chunk_count);
    report_first_bad(text);
    text_member(text, "dirty_rate", dirty_pace.rate);
    text_member(text, "verify_rate", verify_pace.rate);
}
