/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Errors: what went wrong, in words that the lab can show.
 *
 * Whatever can fail takes a struct error, and returns -1 with the words in it.  The first error is
 * kept: what fails later fails because of it.
 */
#ifndef TRANSPLANT_ERROR_H
#define TRANSPLANT_ERROR_H

#include <stdbool.h>

struct error {
    bool set;
    char text[480];
};

/* Both return -1.  fail_errno() appends what errno stands for. */
int fail(struct error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
int fail_errno(struct error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
