/*
 * A reader for one flat JSON object: no nesting, a few members, nothing
 * copied.  All that the protocol needs, and nothing that could overflow.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "micro.h"

typedef struct Reader {
    const char *at;
    const char *end;
} Reader;

static void skip_space(Reader *reader)
{
    while (reader->at < reader->end &&
           (*reader->at == ' ' || *reader->at == '\t' ||
            *reader->at == '\r' || *reader->at == '\n')) {
        reader->at++;
    }
}

static bool take(Reader *reader, char wanted)
{
    if (reader->at == reader->end || *reader->at != wanted) {
        return false;
    }
    reader->at++;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_hex(char c)
{
    return is_digit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

static bool take_escape(Reader *reader)
{
    char c = reader->at < reader->end ? *reader->at++ : '\0';

    if (c == 'u') {
        for (unsigned i = 0; i < 4; i++) {
            if (reader->at == reader->end || !is_hex(*reader->at++)) {
                return false;
            }
        }
        return true;
    }
    return c == '"' || c == '\\' || c == '/' || c == 'b' || c == 'f' ||
           c == 'n' || c == 'r' || c == 't';
}

/* ASCII only: what is echoed must be text, whatever came */
static bool take_string(Reader *reader)
{
    if (!take(reader, '"')) {
        return false;
    }
    while (reader->at < reader->end) {
        char c = *reader->at++;

        if (c == '"') {
            return true;
        }
        if (c < ' ' || c > '~' || (c == '\\' && !take_escape(reader))) {
            return false;
        }
    }
    return false;
}

static bool take_digits(Reader *reader)
{
    const char *start = reader->at;

    while (reader->at < reader->end && is_digit(*reader->at)) {
        reader->at++;
    }
    return reader->at > start;
}

static bool take_number(Reader *reader)
{
    take(reader, '-');
    if (!take(reader, '0') && !take_digits(reader)) {
        return false;
    }
    if (take(reader, '.') && !take_digits(reader)) {
        return false;
    }
    if (take(reader, 'e') || take(reader, 'E')) {
        if (!take(reader, '+')) {
            take(reader, '-');
        }
        return take_digits(reader);
    }
    return true;
}

static bool take_word(Reader *reader, const char *word)
{
    size_t len = strlen(word);

    if ((size_t)(reader->end - reader->at) < len ||
        memcmp(reader->at, word, len)) {
        return false;
    }
    reader->at += len;
    return true;
}

static bool take_value(Reader *reader)
{
    if (reader->at < reader->end && *reader->at == '"') {
        return take_string(reader);
    }
    return take_word(reader, "true") || take_word(reader, "false") ||
           take_word(reader, "null") || take_number(reader);
}

static bool same_key(const JsonMember *a, const char *key, size_t len)
{
    return a->key_len == len && memcmp(a->key, key, len) == 0;
}

static const char *take_member(Reader *reader, JsonObject *object)
{
    JsonMember member;

    skip_space(reader);
    member.key = reader->at + 1;
    if (!take_string(reader)) {
        return "not a JSON object";
    }
    member.key_len = reader->at - 1 - member.key;
    skip_space(reader);
    if (!take(reader, ':')) {
        return "not a JSON object";
    }
    skip_space(reader);
    member.value = reader->at;
    if (!take_value(reader)) {
        return "not a JSON object of plain values";
    }
    member.value_len = reader->at - member.value;
    for (unsigned i = 0; i < object->count; i++) {
        if (same_key(&object->members[i], member.key, member.key_len)) {
            return "a key comes twice";
        }
    }
    if (object->count == JSON_MEMBERS_MAX) {
        return "too many members";
    }
    object->members[object->count++] = member;
    skip_space(reader);
    return NULL;
}

const char *json_read(JsonObject *object, const char *line, size_t len)
{
    Reader reader = { line, line + len };
    const char *error;

    object->count = 0;
    skip_space(&reader);
    if (!take(&reader, '{')) {
        return "not a JSON object";
    }
    skip_space(&reader);
    if (!take(&reader, '}')) {
        do {
            error = take_member(&reader, object);
            if (error) {
                return error;
            }
        } while (take(&reader, ','));
        if (!take(&reader, '}')) {
            return "not a JSON object";
        }
    }
    skip_space(&reader);
    return reader.at == reader.end ? NULL : "not a JSON object";
}

const JsonMember *json_find(const JsonObject *object, const char *key)
{
    for (unsigned i = 0; i < object->count; i++) {
        if (same_key(&object->members[i], key, strlen(key))) {
            return &object->members[i];
        }
    }
    return NULL;
}

bool json_is(const JsonMember *member, const char *string)
{
    size_t len = strlen(string);

    return member && member->value_len == len + 2 &&
           member->value[0] == '"' &&
           memcmp(member->value + 1, string, len) == 0;
}

bool json_is_whole(const JsonMember *member)
{
    size_t at = member->value[0] == '-';

    if (at == member->value_len) {
        return false;
    }
    while (at < member->value_len && is_digit(member->value[at])) {
        at++;
    }
    return at == member->value_len;
}

bool json_number(const JsonMember *member, uint64_t max, uint64_t *number)
{
    uint64_t n = 0;

    if (!member || !json_is_whole(member) || member->value[0] == '-') {
        return false;
    }
    for (size_t i = 0; i < member->value_len; i++) {
        unsigned digit = member->value[i] - '0';

        if (n > (max - digit) / 10 || digit > max) {
            return false;
        }
        n = n * 10 + digit;
    }
    *number = n;
    return true;
}
