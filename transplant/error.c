/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int put(struct error *error, int number, const char *format, va_list arguments)
{
    size_t used;

    if (error->set) {
        return -1;
    }
    error->set = true;
    vsnprintf(error->text, sizeof(error->text), format, arguments);
    if (number) {
        used = strlen(error->text);
        snprintf(error->text + used, sizeof(error->text) - used, ": %s", strerror(number));
    }
    return -1;
}

int fail(struct error *error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    put(error, 0, format, arguments);
    va_end(arguments);
    return -1;
}

int fail_errno(struct error *error, const char *format, ...)
{
    int number = errno;
    va_list arguments;

    va_start(arguments, format);
    put(error, number, format, arguments);
    va_end(arguments);
    return -1;
}
