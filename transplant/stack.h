/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The stack that a program begins with: arguments, environment, auxiliary vector.  Pure.
 */
#ifndef TRANSPLANT_STACK_H
#define TRANSPLANT_STACK_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define STACK_ARGUMENTS 1024
#define STACK_ENVIRONMENT 2048
#define STACK_AUXILIARY 64

struct auxiliary {
    uint64_t type;
    uint64_t value;
};

struct stack_input {
    const char *const *arguments;
    size_t argument_count;
    const char *environment; /* as in /proc/PID/environ: each ends with a NUL */
    size_t environment_size;
    const struct auxiliary *auxiliary; /* as the process had it, up to AT_NULL */
    uint8_t random[16];
    uint64_t program_headers;
    uint64_t header_count;
    uint64_t interpreter_base; /* 0 without one */
    uint64_t entry;
    uint64_t ids[4]; /* uid, effective uid, gid, effective gid */
};

struct stack_layout {
    uint64_t pointer; /* the stack pointer at the program's entry */
    uint64_t arguments_start;
    uint64_t arguments_end; /* where the environment begins */
    uint64_t environment_end;
    size_t auxiliary_count; /* with AT_NULL */
    struct auxiliary auxiliary[STACK_AUXILIARY];
};

/*
 * Fills `image`, which will be the top `size` bytes of a stack that ends at the address `top`
 * (x86-64 psABI, 3.4.1).
 */
int stack_build(const struct stack_input *input, uint8_t *image, size_t size, uint64_t top,
                struct stack_layout *layout, struct error *error);

#endif
