/*
 * Text without a C library, and the memory functions that the compiler
 * counts on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "micro.h"

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;

    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memset(void *to, int byte, size_t n)
{
    void *start = to;

    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;

    for (size_t i = 0; i < n; i++) {
        if (x[i] != y[i]) {
            return x[i] - y[i];
        }
    }
    return 0;
}

char *strcpy(char *to, const char *from)
{
    return memcpy(to, from, strlen(from) + 1);
}

size_t strlen(const char *s)
{
    size_t n = 0;

    while (s[n]) {
        n++;
    }
    return n;
}

void text_bytes(Text *text, const char *bytes, size_t len)
{
    if (len > text->size - text->len) {
        len = text->size - text->len;
    }
    memcpy(text->bytes + text->len, bytes, len);
    text->len += len;
}

void text_string(Text *text, const char *string)
{
    text_bytes(text, string, strlen(string));
}

void text_number(Text *text, uint64_t n)
{
    char digits[20];
    size_t at = sizeof(digits);

    do {
        digits[--at] = '0' + n % 10;
        n /= 10;
    } while (n);
    text_bytes(text, digits + at, sizeof(digits) - at);
}

void text_hex(Text *text, uint64_t n)
{
    text_string(text, "0x");
    for (int shift = 60; shift >= 0; shift -= 4) {
        text_bytes(text, &"0123456789abcdef"[n >> shift & 15], 1);
    }
}

void text_member(Text *text, const char *key, uint64_t n)
{
    text_string(text, ",\"");
    text_string(text, key);
    text_string(text, "\":");
    text_number(text, n);
}
