/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pagemap.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "elf.h"

int pagemap_open(pid_t pid, struct error *error)
{
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? fail_errno(error, "%s", path) : fd;
}

int pagemap_read(int fd, uint64_t address, uint64_t *entries, size_t count, struct error *error)
{
    ssize_t size = count * sizeof(*entries);

    if (pread(fd, entries, size, address / PAGE * sizeof(*entries)) != size) {
        return fail_errno(error, "cannot read the page frames at %#lx", (unsigned long)address);
    }
    return 0;
}
