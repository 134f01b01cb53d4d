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
#include "pagemap.h"
#include "remote.h"

#define ENTRIES 32768

struct shared_page {
    size_t block;
    uint64_t at;
    uint8_t data[PAGE];
};

bool shared_is(const struct mapping *mapping)
{
    return !(mapping->flags & MAPPING_PRIVATE) && mapping->flags & MAPPING_FILE;
}

int shared_descriptor(pid_t pid, const struct mapping *mapping, struct error *error)
{
    char path[64], name[128];
    struct stat wanted, status;
    struct dirent *entry;
    int found = -1;
    DIR *directory;

    /* Of a file in an overlay, or in btrfs, smaps tells another device than stat(2). */
    snprintf(name, sizeof(name), "/proc/%d/map_files/%lx-%lx", pid, (unsigned long)mapping->start,
             (unsigned long)mapping->end);
    if (stat(name, &wanted)) {
        return fail_errno(error, "%s", name);
    }
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    directory = opendir(path);
    if (!directory) {
        return fail_errno(error, "%s", path);
    }
    while (found < 0 && (entry = readdir(directory))) {
        snprintf(name, sizeof(name), "%s/%.32s", path, entry->d_name);
        if (atoi(entry->d_name) > STDERR_FILENO && !stat(name, &status) &&
            S_ISREG(status.st_mode) && status.st_ino == wanted.st_ino &&
            status.st_dev == wanted.st_dev) {
            found = atoi(entry->d_name);
        }
    }
    closedir(directory);
    return found < 0 ? fail(error, "process %d has no descriptor of the memory at %#lx", pid,
                            (unsigned long)mapping->start)
                     : found;
}

/* Keeps what a page of the file was. */
static int keep(struct shared_undo *undo, size_t block, uint64_t at, const uint8_t *data,
                struct error *error)
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
    memcpy(undo->pages[undo->count].data, data, PAGE);
    undo->count++;
    return 0;
}

/*
 * Looks at a page that is the new QEMU's own, and writes it to the file unless `undo` is NULL.
 * Returns whether it is another one than the file's, or -1.  Before Linux 6.11 the pages of a
 * file's huge page seem to be its own although it has only read them.
 */
static int see_to(struct shared_undo *undo, const struct shared_block *block, int file,
                  uint64_t at, struct error *error)
{
    uint8_t mine[PAGE], theirs[PAGE];

    if (remote_read(block->new, block->address + at, mine, PAGE, error)) {
        return -1;
    }
    if (pread(file, theirs, PAGE, block->offset + at) != PAGE) {
        return fail_errno(error, "cannot read guest memory at %#lx of its file",
                          (unsigned long)(block->offset + at));
    }
    if (!memcmp(mine, theirs, PAGE)) {
        return 0;
    }
    if (undo && (keep(undo, block->number, block->offset + at, theirs, error) ||
                 pwrite(file, mine, PAGE, block->offset + at) != PAGE)) {
        return error->set ? -1 : fail_errno(error, "cannot write guest memory to its file");
    }
    return 1;
}

static int open_file(const struct shared_block *block, int how, struct error *error)
{
    char path[64];
    int opened;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", block->old, block->old_fd);
    opened = open(path, how | O_CLOEXEC);
    return opened < 0 ? fail_errno(error, "%s", path) : opened;
}

/* Sees to all pages that the new QEMU has of its own. */
static int64_t see_to_all(struct shared_undo *undo, const struct shared_block *block, int file,
                          struct error *error)
{
    static uint64_t entries[ENTRIES];
    int pagemap = pagemap_open(block->new, error);
    int64_t differing = 0;

    for (uint64_t at = 0; at < block->size && !error->set; at += ENTRIES * PAGE) {
        uint64_t left = (block->size - at) / PAGE, some = left < ENTRIES ? left : ENTRIES;

        pagemap_read(pagemap, block->address + at, entries, some, error);
        for (size_t i = 0; i < some && !error->set; i++) {
            if (entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) &&
                !(entries[i] & PAGEMAP_OF_FILE)) {
                differing += see_to(undo, block, file, at + i * PAGE, error);
            }
        }
    }
    if (pagemap >= 0) {
        close(pagemap);
    }
    return error->set ? -1 : differing;
}

int64_t shared_count(const struct shared_block *block, struct error *error)
{
    int file = open_file(block, O_RDONLY, error);
    int64_t found = file < 0 ? -1 : see_to_all(NULL, block, file, error);

    if (file >= 0) {
        close(file);
    }
    return found;
}

int shared_write(struct shared_undo *undo, const struct shared_block *block, struct error *error)
{
    int file = open_file(block, O_RDWR, error);

    if (file < 0) {
        return -1;
    }
    undo->fd[block->number] = file;
    return see_to_all(undo, block, file, error) < 0 ? -1 : 0;
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
