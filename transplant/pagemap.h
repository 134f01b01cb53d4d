/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the pages of a process are: /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
 */
#ifndef TRANSPLANT_PAGEMAP_H
#define TRANSPLANT_PAGEMAP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_OF_FILE (1ull << 61) /* or shared */
#define PAGEMAP_FRAME ((1ull << 55) - 1)

int pagemap_open(pid_t pid, struct error *error);

/* Reads the entries of so many pages, from an address on. */
int pagemap_read(int fd, uint64_t address, uint64_t *entries, size_t count, struct error *error);

#endif
