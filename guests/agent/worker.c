/*
 * The one thread that touches the region: fills it, dirties it at the
 * chosen rate, and verifies it all the rest of the time.  It works in
 * small batches, and between two batches takes jobs from the queue.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent.h"
#include "pace.h"

/* About 0.1 ms of work under KVM, 0.5 ms under TCG */
#define BATCH_PAGES 64
#define QUEUE_LEN 16
#define PROGRESS_NS (250 * NS_PER_MS)
#define NAP_NS NS_PER_MS
/* Left to the guest's kernel and everything else when filling */
#define RESERVE_BYTES (16ULL << 20)

typedef struct Pass {
    json_t *id;             /* non-NULL while a fill or verify is going on */
    size_t next;
    size_t bad;
} Pass;

/* Copied out for the command thread, which must not see the region itself */
typedef struct Report {
    const char *state;
    size_t pages;
    uint64_t pages_checked;
    uint64_t pages_dirtied;
    uint64_t dirty_rate;
    uint64_t verify_rate;
    size_t bad_pages;
    size_t bad_table_chunks;
    json_t *first_bad;
} Report;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static Job queue[QUEUE_LEN];
static unsigned queue_len;
static Report report = { .state = "empty" };

/* From here on: the worker's own, no other thread reads it */
static Region region;
static Pass fill, verify;
static Pace dirty_pace, verify_pace;
static uint64_t pages_checked, pages_dirtied, last_progress_ns;
static size_t round_robin;

static const char *state_name(void)
{
    if (region.pages == 0) {
        return "empty";
    }
    if (fill.id) {
        return "filling";
    }
    return verify.id ? "verifying" : "running";
}

static void publish(void)
{
    json_t *first_bad = NULL;

    if (region.bad_page_count && !report.first_bad) {
        first_bad = reply_first_bad(&region);
    }
    pthread_mutex_lock(&lock);
    report.state = state_name();
    report.pages = region.pages;
    report.pages_checked = pages_checked;
    report.pages_dirtied = pages_dirtied;
    report.dirty_rate = dirty_pace.rate;
    report.verify_rate = verify_pace.rate;
    report.bad_pages = region.bad_page_count;
    report.bad_table_chunks = region.bad_chunk_count;
    if (first_bad) {
        report.first_bad = first_bad;
    } else if (!region.bad_page_count && report.first_bad) {
        json_decref(report.first_bad);
        report.first_bad = NULL;
    }
    pthread_mutex_unlock(&lock);
}

static void finish_pass(Pass *pass, json_t *body, const char *error)
{
    json_t *id = pass->id;

    pass->id = NULL;
    publish();              /* a status after the reply must include it */
    if (error) {
        json_decref(body);
        reply_error(id, "%s", error);
    } else {
        reply_ok(id, body);
    }
}

static void job_fill(Job *job)
{
    uint64_t available = meminfo_bytes("MemAvailable");
    uint64_t pages = job->value / PATTERN_PAGE;
    uint64_t need = pages * PATTERN_PAGE;

    if (region.pages) {
        reply_error(job->id, "the region is filled already: release it first");
    } else if (pages == 0 || pages > UINT32_MAX) {
        reply_error(job->id, "bytes must be from one page (%u) to 2^32 pages",
                    PATTERN_PAGE);
    } else if (need + region_overhead(pages) + RESERVE_BYTES > available) {
        reply_error(job->id, "not enough memory in the guest: %" PRIu64
                    " bytes asked for, %" PRIu64 " available, of which %llu"
                    " stay free", need, available, RESERVE_BYTES);
    } else if (!memory_map(&region, pages)) {
        reply_error(job->id, "the guest's kernel refused the mapping");
    } else {
        fill = (Pass) { .id = job->id };
        round_robin = 0;
        pages_checked = pages_dirtied = 0;
        pace_set(&dirty_pace, 0, clock_ns(CLOCK_MONOTONIC));
        last_progress_ns = clock_ns(CLOCK_MONOTONIC);
    }
}

static void job_verify(Job *job)
{
    if (verify.id) {
        reply_error(job->id, "a verify pass is going on already");
        return;
    }
    verify = (Pass) { .id = job->id };
}

static void job_corrupt(Job *job)
{
    const char *error = region_corrupt(&region, job->value, job->mode);

    if (error) {
        reply_error(job->id, "%s", error);
    } else {
        reply_ok(job->id, NULL);
    }
}

static void job_rate(Job *job, Pace *pace)
{
    pace_set(pace, job->value, clock_ns(CLOCK_MONOTONIC));
    publish();
    reply_ok(job->id, NULL);
}

static void job_release(Job *job)
{
    memory_unmap(&region);
    pace_set(&dirty_pace, 0, clock_ns(CLOCK_MONOTONIC));
    if (fill.id) {
        finish_pass(&fill, NULL, "released while filling");
    }
    if (verify.id) {
        finish_pass(&verify, NULL, "released while verifying");
    }
    publish();
    reply_ok(job->id, NULL);
}

static void run_job(Job *job)
{
    bool needs_region = job->kind == JOB_DIRTY || job->kind == JOB_VERIFY ||
                        job->kind == JOB_CORRUPT;

    if (needs_region && (region.pages == 0 || fill.id)) {
        reply_error(job->id, region.pages ? "the fill is not done yet"
                                          : "there is no region: fill first");
        return;
    }
    switch (job->kind) {
    case JOB_FILL:
        job_fill(job);
        break;
    case JOB_DIRTY:
        job_rate(job, &dirty_pace);
        break;
    case JOB_PACE:
        job_rate(job, &verify_pace);
        break;
    case JOB_VERIFY:
        job_verify(job);
        break;
    case JOB_CORRUPT:
        job_corrupt(job);
        break;
    case JOB_RELEASE:
        job_release(job);
        break;
    }
}

static void fill_batch(void)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC);

    for (unsigned i = 0; i < BATCH_PAGES && fill.next < region.pages; i++) {
        region_fill_page(&region, fill.next++);
    }
    if (fill.next == region.pages) {
        finish_pass(&fill, json_pack("{s:I}", "pages",
                                     (json_int_t)region.pages), NULL);
    } else if (now - last_progress_ns >= PROGRESS_NS) {
        last_progress_ns = now;
        send_event(json_pack("{s:s, s:I, s:I}", "event", "fill",
                             "done", (json_int_t)(fill.next * PATTERN_PAGE),
                             "total",
                             (json_int_t)(region.pages * PATTERN_PAGE)),
                   true);
    }
}

static void verify_batch(void)
{
    for (unsigned i = 0; i < BATCH_PAGES && verify.next < region.pages; i++) {
        verify.bad += !region_check_page(&region, verify.next++);
        pages_checked++;
    }
    if (verify.next == region.pages) {
        json_t *body = json_pack("{s:I, s:I, s:I}",
                                 "pages_checked", (json_int_t)verify.next,
                                 "bad", (json_int_t)verify.bad,
                                 "bad_table_chunks",
                                 (json_int_t)region.bad_chunk_count);

        finish_pass(&verify, body, NULL);
    }
}

static unsigned background_batch(void)
{
    unsigned count = verify_pace.rate ? pace_take(&verify_pace, BATCH_PAGES,
                                                  clock_ns(CLOCK_MONOTONIC))
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
    unsigned count = pace_take(&dirty_pace, BATCH_PAGES,
                               clock_ns(CLOCK_MONOTONIC));

    for (unsigned i = 0; i < count; i++) {
        pages_dirtied += region_dirty_next(&region);
    }
    return count;
}

static void work(void)
{
    unsigned done = 0;

    if (fill.id) {
        fill_batch();
    } else {
        done = dirty_batch();
        if (verify.id) {
            verify_batch();
        } else {
            done += background_batch();
            if (done == 0) {
                nanosleep(&(struct timespec) { .tv_nsec = NAP_NS }, NULL);
            }
        }
    }
    publish();
}

static void *worker_thread(void *opaque)
{
    (void)opaque;
    for (;;) {
        Job jobs[QUEUE_LEN];
        unsigned count;

        pthread_mutex_lock(&lock);
        while (queue_len == 0 && region.pages == 0) {
            pthread_cond_wait(&wake, &lock);
        }
        count = queue_len;
        memcpy(jobs, queue, count * sizeof(Job));
        queue_len = 0;
        pthread_mutex_unlock(&lock);
        for (unsigned i = 0; i < count; i++) {
            run_job(&jobs[i]);
        }
        if (region.pages) {
            work();
        }
    }
    return NULL;
}

void worker_start(void)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, worker_thread, NULL)) {
        perror("pageflip-agent: worker thread");
        exit(1);
    }
    pthread_detach(thread);
}

bool worker_submit(const Job *job)
{
    bool room;

    pthread_mutex_lock(&lock);
    room = queue_len < QUEUE_LEN;
    if (room) {
        queue[queue_len++] = *job;
        pthread_cond_signal(&wake);
    }
    pthread_mutex_unlock(&lock);
    return room;
}

static void put_integer(json_t *reply, const char *key, uint64_t value)
{
    json_object_set_new(reply, key, json_integer(value));
}

void worker_report(json_t *reply)
{
    pthread_mutex_lock(&lock);
    json_object_set_new(reply, "state", json_string(report.state));
    put_integer(reply, "pages", report.pages);
    put_integer(reply, "pages_checked", report.pages_checked);
    put_integer(reply, "bad_pages", report.bad_pages);
    put_integer(reply, "bad_table_chunks", report.bad_table_chunks);
    json_object_set_new(reply, "first_bad", report.first_bad
                        ? json_deep_copy(report.first_bad) : json_null());
    put_integer(reply, "pages_dirtied", report.pages_dirtied);
    put_integer(reply, "dirty_rate", report.dirty_rate);
    put_integer(reply, "verify_rate", report.verify_rate);
    pthread_mutex_unlock(&lock);
}
