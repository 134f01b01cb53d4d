/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What it takes to map a program: planned from its headers, as execve(2) would.  Pure.
 */
#ifndef TRANSPLANT_ELF_H
#define TRANSPLANT_ELF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define ELF_SEGMENTS 16
#define ELF_HEAD 4096
#define PAGE 4096ull
#define PAGE_DOWN(x) ((x) & ~(PAGE - 1))
#define PAGE_UP(x) PAGE_DOWN((x) + PAGE - 1)

/* A part of the program; addresses are the file's own, before the bias is added. */
struct elf_segment {
    uint64_t file_offset; /* whole pages, like the addresses */
    uint64_t start;
    uint64_t file_end;  /* up to here it is mapped from the file */
    uint64_t zero_from; /* from here to file_end the last page has to be cleared; 0: nothing */
    uint64_t end;       /* from file_end on it is anonymous memory */
    int protection;     /* PROT_* */
};

struct elf_plan {
    bool position_independent;
    uint16_t header_count;
    uint64_t entry;
    uint64_t headers; /* where the program finds its own headers */
    uint64_t low;
    uint64_t high;
    uint64_t data_end; /* the last byte of the last segment, not rounded */
    size_t count;
    struct elf_segment segments[ELF_SEGMENTS];
    char interpreter[256]; /* "" for a static program */
};

/* Plans the x86-64 program whose file begins with `head`; whatever is unknown is refused. */
int elf_plan(const uint8_t *head, size_t size, struct elf_plan *plan, struct error *error);

/* Returns where the file's executable segment ends that holds `offset`; 0 when there is none. */
uint64_t elf_code_end(const uint8_t *head, size_t size, uint64_t offset);

#endif
