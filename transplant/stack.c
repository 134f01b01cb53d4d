/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stack.h"

#include <elf.h>
#include <stdbool.h>
#include <string.h>

#ifndef AT_BASE_PLATFORM
#define AT_BASE_PLATFORM 24
#endif

/* A cursor that moves down through the image; `bad` when it has reached the bottom. */
struct cursor {
    uint8_t *image;
    size_t at;
    uint64_t bottom; /* the address of image[0] */
    bool bad;
};

static uint64_t push(struct cursor *cursor, const void *data, size_t size)
{
    if (cursor->bad || size > cursor->at) {
        cursor->bad = true;
        return 0;
    }
    cursor->at -= size;
    memcpy(cursor->image + cursor->at, data, size);
    return cursor->bottom + cursor->at;
}

/* What the program is told, of what the process was told that it is made from. */
static int adjust(const struct stack_input *input, uint64_t random, uint64_t platform,
                  uint64_t name, struct stack_layout *layout, struct error *error)
{
    const struct auxiliary *from = input->auxiliary;
    struct auxiliary *to = layout->auxiliary;
    size_t count = 0;

    for (size_t i = 0; i < STACK_AUXILIARY; i++) {
        uint64_t value = from[i].value;

        switch (from[i].type) {
        case AT_PHDR:
            value = input->program_headers;
            break;
        case AT_PHNUM:
            value = input->header_count;
            break;
        case AT_PHENT:
            value = sizeof(Elf64_Phdr);
            break;
        case AT_BASE:
            value = input->interpreter_base;
            break;
        case AT_ENTRY:
            value = input->entry;
            break;
        case AT_UID:
            value = input->ids[0];
            break;
        case AT_EUID:
            value = input->ids[1];
            break;
        case AT_GID:
            value = input->ids[2];
            break;
        case AT_EGID:
            value = input->ids[3];
            break;
        case AT_RANDOM:
            value = random;
            break;
        case AT_PLATFORM:
            value = platform;
            break;
        case AT_EXECFN:
            value = name;
            break;
        case AT_BASE_PLATFORM: /* points into the old stack, and x86 has none */
        case AT_EXECFD:
            continue;
        }
        to[count++] = (struct auxiliary){ from[i].type, value };
        if (from[i].type == AT_NULL) {
            layout->auxiliary_count = count;
            return 0;
        }
    }
    return fail(error, "the auxiliary vector of the process has no end");
}

int stack_build(const struct stack_input *input, uint8_t *image, size_t size, uint64_t top,
                struct stack_layout *layout, struct error *error)
{
    static uint64_t words[STACK_ARGUMENTS + STACK_ENVIRONMENT + 8 + 2 * STACK_AUXILIARY];
    static uint64_t arguments[STACK_ARGUMENTS], environment[STACK_ENVIRONMENT];
    struct cursor cursor = { image, size, top - size, false };
    size_t variables = 0, count = 0;
    uint64_t random, platform;
    const char *one, *end = input->environment + input->environment_size;

    memset(image, 0, size);
    memset(layout, 0, sizeof(*layout));
    if (!input->argument_count || input->argument_count > STACK_ARGUMENTS) {
        return fail(error, "a command line of %zu words", input->argument_count);
    }
    /* From the top: the environment, above the arguments, as ps(1) expects both. */
    push(&cursor, "\0\0\0\0\0\0\0", 8);
    layout->environment_end = cursor.bottom + cursor.at;
    for (one = input->environment; one < end; one += strlen(one) + 1) {
        if (!memchr(one, 0, end - one)) {
            return fail(error, "the environment of the process has no end");
        }
        if (variables == STACK_ENVIRONMENT) {
            return fail(error, "more than %d environment variables", STACK_ENVIRONMENT);
        }
        if (*one) {
            environment[variables++] = push(&cursor, one, strlen(one) + 1);
        }
    }
    layout->arguments_end = cursor.bottom + cursor.at;
    for (size_t i = input->argument_count; i-- > 0;) {
        arguments[i] = push(&cursor, input->arguments[i], strlen(input->arguments[i]) + 1);
    }
    layout->arguments_start = arguments[0];
    random = push(&cursor, input->random, sizeof(input->random));
    platform = push(&cursor, "x86_64", sizeof("x86_64"));
    if (adjust(input, random, platform, arguments[0], layout, error)) {
        return -1;
    }

    words[count++] = input->argument_count;
    for (size_t i = 0; i < input->argument_count; i++) {
        words[count++] = arguments[i];
    }
    words[count++] = 0;
    for (size_t i = 0; i < variables; i++) {
        words[count++] = environment[i];
    }
    words[count++] = 0;
    memcpy(&words[count], layout->auxiliary, layout->auxiliary_count * sizeof(struct auxiliary));
    count += 2 * layout->auxiliary_count;

    /* The stack pointer is a multiple of 16 at the entry. */
    if (!cursor.bad) {
        size_t below = cursor.at >= count * 8 ? (cursor.bottom + cursor.at - count * 8) % 16 : 0;

        cursor.at -= below < cursor.at ? below : 0;
    }
    layout->pointer = push(&cursor, words, count * 8);
    if (cursor.bad) {
        return fail(error, "command line and environment take more than %zu bytes", size);
    }
    return 0;
}
