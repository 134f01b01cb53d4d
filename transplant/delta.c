/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "delta.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "elf.h"
#include "pagemap.h"
#include "remote.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Entries that are read at once, and pages that are copied at once. */
#define ENTRIES 32768
#define PAGES 512
#define HUGE (PAGES * PAGE)

static uint64_t old_entries[ENTRIES], new_entries[ENTRIES];
static uint8_t old_data[HUGE], new_data[HUGE];

static bool there(uint64_t entry)
{
    return entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED);
}

bool delta_differs(uint64_t old, uint64_t new)
{
    const uint64_t telling = PAGEMAP_PRESENT | PAGEMAP_SWAPPED | PAGEMAP_FRAME;

    if (!there(old) && !there(new)) {
        return false;
    }
    /* Without the right to know it, every frame is 0: never the same. */
    return (old & telling) != (new & telling) || !(old & PAGEMAP_FRAME);
}

/*
 * By /proc/PID/mem, and not by process_vm_readv(2): that pins the pages, and the kernel gives each
 * owner of a page a copy of its own before one of them may be pinned.
 */
static int fetch(pid_t pid, uint64_t address, uint8_t *data, size_t size, struct error *error)
{
    return remote_read(pid, address, data, size, error);
}

static int copy_pages(pid_t old, pid_t new, uint64_t from, uint64_t to, size_t size,
                      struct error *error)
{
    struct iovec here = { old_data, size }, far = { (void *)to, size };

    if (fetch(old, from, old_data, size, error)) {
        return -1;
    }
    if (process_vm_writev(new, &here, 1, &far, 1, 0) != (ssize_t)size) {
        return fail_errno(error, "cannot write guest memory at %#lx", (unsigned long)to);
    }
    return 0;
}

static int compare_pages(pid_t old, pid_t new, uint64_t from, uint64_t to, size_t pages,
                         struct delta *delta, struct error *error)
{
    if (fetch(old, from, old_data, pages * PAGE, error) ||
        fetch(new, to, new_data, pages * PAGE, error)) {
        return -1;
    }
    for (size_t i = 0; i < pages; i++) {
        delta->mismatched += !!memcmp(old_data + i * PAGE, new_data + i * PAGE, PAGE);
    }
    return 0;
}

enum work { COUNT, COPY, COMPARE };

static bool wanted(enum work work, size_t i)
{
    return work == COMPARE ? there(old_entries[i]) || there(new_entries[i])
                           : delta_differs(old_entries[i], new_entries[i]);
}

/* Does the work for the entries that have been read; `from` and `to` are the first one's. */
static int work_on(enum work work, pid_t old, pid_t new, uint64_t from, uint64_t to, size_t count,
                   struct delta *delta, struct error *error)
{
    size_t i = 0, end;
    int result = 0;

    while (i < count && !result) {
        if (!wanted(work, i)) {
            delta->absent += !there(old_entries[i]) && !there(new_entries[i]);
            i++;
            continue;
        }
        for (end = i; end < count && end - i < PAGES && wanted(work, end); end++) {
        }
        if (work == COPY) {
            result = copy_pages(old, new, from + i * PAGE, to + i * PAGE, (end - i) * PAGE, error);
        } else if (work == COMPARE) {
            result = compare_pages(old, new, from + i * PAGE, to + i * PAGE, end - i, delta, error);
        }
        delta->different += work == COMPARE ? 0 : end - i;
        i = end;
    }
    return result;
}

static int run(enum work work, pid_t old, pid_t new, const struct range *ranges, size_t count,
               struct delta *delta, struct error *error)
{
    int old_fd = pagemap_open(old, error);
    int new_fd = old_fd < 0 ? -1 : pagemap_open(new, error);

    for (size_t k = 0; k < count && new_fd >= 0 && !error->set; k++) {
        uint64_t pages = ranges[k].size / PAGE;

        delta[k].pages = pages;
        for (uint64_t at = 0; at < pages && !error->set; at += ENTRIES) {
            size_t some = pages - at < ENTRIES ? pages - at : ENTRIES;
            uint64_t from = ranges[k].from + at * PAGE, to = ranges[k].to + at * PAGE;

            if (!pagemap_read(old_fd, from, old_entries, some, error) &&
                !pagemap_read(new_fd, to, new_entries, some, error)) {
                work_on(work, old, new, from, to, some, &delta[k], error);
            }
        }
    }
    if (old_fd >= 0) {
        close(old_fd);
    }
    if (new_fd >= 0) {
        close(new_fd);
    }
    return error->set ? -1 : 0;
}

int delta_run(pid_t old, pid_t new, const struct range *ranges, size_t count, bool copy,
              struct delta *delta, struct error *error)
{
    return run(copy ? COPY : COUNT, old, new, ranges, count, delta, error);
}

int delta_verify(pid_t old, pid_t new, const struct range *ranges, size_t count,
                 struct delta *delta, struct error *error)
{
    return run(COMPARE, old, new, ranges, count, delta, error);
}

uint64_t delta_collapse(pid_t pid, uint64_t start, uint64_t size)
{
    struct error error = { 0 };
    int pidfd = syscall(SYS_pidfd_open, pid, 0), fd = pagemap_open(pid, &error);
    uint64_t done = 0, end = start + size;

    start = (start + HUGE - 1) & ~(HUGE - 1);
    for (uint64_t at = start; pidfd >= 0 && fd >= 0 && at + HUGE <= end; at += HUGE) {
        struct iovec unit = { (void *)at, HUGE };
        bool whole = !pagemap_read(fd, at, new_entries, PAGES, &error);

        for (size_t i = 0; i < PAGES && whole; i++) {
            whole = new_entries[i] & PAGEMAP_PRESENT;
        }
        if (whole && syscall(SYS_process_madvise, pidfd, &unit, 1, MADV_COLLAPSE, 0) < 0 &&
            (errno == EINVAL || errno == EPERM || errno == ESRCH)) {
            break; /* a kernel that cannot, or nobody there */
        }
        done += whole;
    }
    if (pidfd >= 0) {
        close(pidfd);
    }
    if (fd >= 0) {
        close(fd);
    }
    return done;
}
