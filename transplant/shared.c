/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "shared.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "elf.h"
#include "remote.h"

/* Documentation/admin-guide/mm/pagemap.rst */
#define PRESENT (1ull << 63)
#define SWAPPED (1ull << 62)
#define OF_FILE (1ull << 61)
#define ENTRIES 32768

struct shared_page {
    size_t block;
    uint64_t at;
    uint8_t data[PAGE];
};

bool shared_is(const struct mapping *mapping)
{
    return !(mapping->flags & MAPPING_PRIVATE) && mapping->flags & MAPPING_FILE &&
           !strncmp(mapping->name, "/memfd:", 7);
}

int shared_descriptor(pid_t pid, const struct mapping *mapping, struct error *error)
{
    char path[64], name[128];
    struct dirent *entry;
    struct stat status;
    int found = -1;
    DIR *directory;

    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    directory = opendir(path);
    if (!directory) {
        return fail_errno(error, "%s", path);
    }
    while (found < 0 && (entry = readdir(directory))) {
        snprintf(name, sizeof(name), "%s/%.32s", path, entry->d_name);
        if (entry->d_name[0] != '.' && !stat(name, &status) && S_ISREG(status.st_mode) &&
            status.st_ino == mapping->inode && status.st_dev == mapping->device) {
            found = atoi(entry->d_name);
        }
    }
    closedir(directory);
    return found < 0 ? fail(error, "process %d has no descriptor of the memory at %#lx", pid,
                            (unsigned long)mapping->start)
                     : found;
}

/* Keeps a page of the file as it is. */
static int keep(struct shared_undo *undo, size_t block, uint64_t at, struct error *error)
{
    if (undo->count == undo->room) {
        size_t room = undo->room ? 2 * undo->room : 64;
        struct shared_page *pages = realloc(undo->pages, room * sizeof(*pages));

        if (!pages) {
            return fail(error, "no memory to keep %zu pages", room);
        }
        undo->pages = pages;
        undo->room = room;
    }
    undo->pages[undo->count].block = block;
    undo->pages[undo->count].at = at;
    if (pread(undo->fd[block], undo->pages[undo->count].data, PAGE, at) != PAGE) {
        return fail_errno(error, "cannot read guest memory at %#lx of its file",
                          (unsigned long)at);
    }
    undo->count++;
    return 0;
}

static int write_page(struct shared_undo *undo, size_t block, pid_t new, uint64_t address,
                      uint64_t at, struct error *error)
{
    uint8_t data[PAGE];

    if (remote_read(new, address, data, PAGE, error) || keep(undo, block, at, error)) {
        return -1;
    }
    if (pwrite(undo->fd[block], data, PAGE, at) != PAGE) {
        return fail_errno(error, "cannot write guest memory at %#lx of its file",
                          (unsigned long)at);
    }
    return 0;
}

int shared_write(struct shared_undo *undo, size_t block, pid_t old, int old_fd, pid_t new,
                 uint64_t address, uint64_t offset, uint64_t size, struct error *error)
{
    static uint64_t entries[ENTRIES];
    char path[64];
    int pagemap;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", old, old_fd);
    undo->fd[block] = open(path, O_RDWR | O_CLOEXEC);
    if (undo->fd[block] < 0) {
        undo->fd[block] = 0;
        return fail_errno(error, "%s", path);
    }
    snprintf(path, sizeof(path), "/proc/%d/pagemap", new);
    pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (pagemap < 0) {
        return fail_errno(error, "%s", path);
    }
    for (uint64_t at = 0; at < size && !error->set; at += ENTRIES * PAGE) {
        size_t some = (size - at) / PAGE < ENTRIES ? (size - at) / PAGE : ENTRIES;
        ssize_t bytes = some * sizeof(*entries);

        if (pread(pagemap, entries, bytes, (address + at) / PAGE * sizeof(*entries)) != bytes) {
            fail_errno(error, "cannot read the page frames at %#lx", (unsigned long)address);
        }
        for (size_t i = 0; i < some && !error->set; i++) {
            if (entries[i] & (PRESENT | SWAPPED) && !(entries[i] & OF_FILE)) {
                write_page(undo, block, new, address + at + i * PAGE, offset + at + i * PAGE,
                           error);
            }
        }
    }
    close(pagemap);
    return error->set ? -1 : 0;
}

void shared_end(struct shared_undo *undo, bool back)
{
    for (size_t i = 0; back && i < undo->count; i++) {
        const struct shared_page *page = &undo->pages[i];

        if (pwrite(undo->fd[page->block], page->data, PAGE, page->at) != PAGE) {
            fprintf(stderr, "guest memory at %#lx of its file was not written back\n",
                    (unsigned long)page->at);
        }
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        if (undo->fd[i]) {
            close(undo->fd[i]);
        }
    }
    free(undo->pages);
    memset(undo, 0, sizeof(*undo));
}
