/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "maps.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

static const struct {
    char name[3];
    unsigned flag;
} flag_names[] = {
    { "dc", MAPPING_DONTFORK }, { "mg", MAPPING_MERGEABLE }, { "hg", MAPPING_HUGEPAGE },
    { "lo", MAPPING_LOCKED },   { "ht", MAPPING_POOL },      { "um", MAPPING_WATCHED },
    { "uw", MAPPING_WATCHED },  { "ui", MAPPING_WATCHED },   { "io", MAPPING_DEVICE },
    { "pf", MAPPING_DEVICE },   { "dd", MAPPING_NODUMP },
};

static unsigned permissions(const char *text)
{
    return (text[0] == 'r' ? MAPPING_READ : 0) | (text[1] == 'w' ? MAPPING_WRITE : 0) |
           (text[2] == 'x' ? MAPPING_CODE : 0) | (text[3] == 'p' ? MAPPING_PRIVATE : 0);
}

static int add(struct maps *maps, const struct mapping *mapping, struct error *error)
{
    if (maps->count == maps->room) {
        size_t room = maps->room ? 2 * maps->room : 1024;
        struct mapping *list = realloc(maps->list, room * sizeof(*list));

        if (!list) {
            return fail(error, "no memory for %zu mappings", room);
        }
        maps->list = list;
        maps->room = room;
    }
    maps->list[maps->count++] = *mapping;
    return 0;
}

static void flags_of(struct mapping *mapping, const char *words)
{
    for (size_t i = 0; i < sizeof(flag_names) / sizeof(flag_names[0]); i++) {
        const char *found = strstr(words, flag_names[i].name);

        /* Each is a word of two letters with a space on both sides. */
        if (found && found > words && found[-1] == ' ' && (found[2] == ' ' || found[2] == '\n')) {
            mapping->flags |= flag_names[i].flag;
        }
    }
}

int maps_line(struct maps *maps, const char *line, struct error *error)
{
    struct mapping *last = maps->count ? &maps->list[maps->count - 1] : NULL;
    struct mapping mapping = { 0 };
    unsigned major, minor;
    uint64_t kilobytes;
    char text[8];
    int name = 0;

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &mapping.start,
               &mapping.end, text, &mapping.offset, &major, &minor, &mapping.inode, &name) == 7) {
        if (strlen(text) != 4 || mapping.start >= mapping.end) {
            return fail(error, "a mapping that is none: %.80s", line);
        }
        mapping.flags = permissions(text) | (mapping.inode ? MAPPING_FILE : 0);
        mapping.device = makedev(major, minor);
        snprintf(mapping.name, sizeof(mapping.name), "%.*s", (int)strcspn(line + name, "\n"),
                 line + name);
        return add(maps, &mapping, error);
    }
    if (last && sscanf(line, "AnonHugePages: %" SCNu64, &kilobytes) == 1) {
        last->huge_bytes = kilobytes * 1024;
    } else if (last && !strncmp(line, "VmFlags:", 8)) {
        flags_of(last, line + 7);
    }
    return 0;
}

int maps_read(struct maps *maps, pid_t pid, struct error *error)
{
    char path[64], *line = NULL;
    size_t size = 0;
    FILE *file;

    maps->count = 0;
    snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
    file = fopen(path, "r");
    if (!file) {
        return fail_errno(error, "%s", path);
    }
    while (getline(&line, &size, file) > 0) {
        if (maps_line(maps, line, error)) {
            break;
        }
    }
    free(line);
    fclose(file);
    if (!maps->count) {
        return fail(error, "process %d has no memory: it has ended", pid);
    }
    return error->set ? -1 : 0;
}

void maps_free(struct maps *maps)
{
    free(maps->list);
    memset(maps, 0, sizeof(*maps));
}

const struct mapping *maps_holding(const struct maps *maps, uint64_t address)
{
    for (size_t i = 0; i < maps->count; i++) {
        if (address >= maps->list[i].start && address < maps->list[i].end) {
            return &maps->list[i];
        }
    }
    return NULL;
}

const struct mapping *maps_begin(const struct maps *maps, uint64_t address)
{
    const struct mapping *found = maps_holding(maps, address);

    return found && found->start == address ? found : NULL;
}

const struct mapping *maps_named(const struct maps *maps, const char *name)
{
    for (size_t i = 0; i < maps->count; i++) {
        if (!strcmp(maps->list[i].name, name)) {
            return &maps->list[i];
        }
    }
    return NULL;
}
