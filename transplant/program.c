/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the new QEMU is made from: its file, and what the old one was started with.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "recipient.h"
#include "stack.h"

/* The most of /proc/PID/environ that is taken over (execve(2)'s own limit for a variable). */
#define ENVIRONMENT_MOST (128u << 10)

/* The largest program that is read as a whole: no emulator is half of it. */
#define PROGRAM_MOST (256u << 20)

/*
 * Plans a program that names its interpreter far from its beginning: a tool that sets another, longer
 * name (patchelf) puts it behind everything else.
 */
static int plan_whole(int fd, off_t size, struct elf_plan *plan)
{
    struct error ignored = { 0 };
    uint8_t *data = size > 0 && size <= PROGRAM_MOST ? malloc(size) : NULL;
    off_t have = 0;
    ssize_t got = 1;
    int result = -1;

    while (data && have < size && got > 0) {
        got = pread(fd, data + have, size - have, have);
        have += got > 0 ? got : 0;
    }
    if (data && have == size) {
        result = elf_plan(data, size, plan, &ignored);
    }
    free(data);
    return result;
}

/* Plans one file of the old QEMU's file system. */
static int read_file(pid_t pid, const char *path, struct elf_plan *plan, struct error *error)
{
    char place[64], ignored[8];
    struct open_how how = { .flags = O_RDONLY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT };
    struct error own = { 0 };
    uint8_t head[ELF_HEAD];
    struct stat status;
    ssize_t got = -1;
    int root, fd;

    if (path[0] != '/') {
        return fail(error, "%.200s: not a full path", path);
    }
    snprintf(place, sizeof(place), "/proc/%d/root", pid);
    root = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) {
        return fail_errno(error, "%s", place);
    }
    /* What a symbolic link in there names is in there as well, as it is for the new QEMU. */
    fd = syscall(SYS_openat2, root, path, &how, sizeof(how));
    if (fd < 0) {
        fail_errno(error, "%s", path);
        close(root);
        return -1;
    }
    close(root);
    if (fstat(fd, &status)) {
        fail_errno(error, "%s", path);
    } else if (!S_ISREG(status.st_mode) || !(status.st_mode & 0111)) {
        fail(error, "%s: it is no program", path);
    } else if (status.st_mode & (S_ISUID | S_ISGID)) {
        fail(error, "%s: it is set-user-ID or set-group-ID", path);
    } else if (fgetxattr(fd, "security.capability", ignored, 0) > 0) {
        fail(error, "%s: it has capabilities of its own", path);
    } else if ((got = pread(fd, head, sizeof(head), 0)) < 0) {
        fail_errno(error, "%s", path);
    } else if (elf_plan(head, got, plan, &own) && plan_whole(fd, status.st_size, plan)) {
        fail(error, "%s: %s", path, own.text);
    }
    close(fd);
    return error->set ? -1 : 0;
}

static void *read_proc(pid_t pid, const char *name, size_t most, size_t *size,
                       struct error *error)
{
    uint8_t *data = calloc(1, most);
    char path[64];
    size_t have = 0;
    ssize_t got;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (!data || fd < 0) {
        fail_errno(error, "%s", path);
        free(data);
        return NULL;
    }
    while (have < most && (got = read(fd, data + have, most - have)) > 0) {
        have += got;
    }
    close(fd);
    *size = have;
    return data;
}

int program_read(struct program *program, const struct donor *donor, struct error *error)
{
    size_t ignored;

    if (read_file(donor->pid, program->arguments[0], &program->file, error)) {
        return -1;
    }
    if (program->file.interpreter[0]) {
        if (read_file(donor->pid, program->file.interpreter, &program->linker, error)) {
            return -1;
        }
        if (program->linker.interpreter[0] || !program->linker.position_independent) {
            return fail(error, "%s: a dynamic linker of an unknown kind",
                        program->file.interpreter);
        }
    }
    program->environment = read_proc(donor->pid, "environ", ENVIRONMENT_MOST,
                                     &program->environment_size, error);
    if (!program->environment) {
        return -1;
    }
    if (program->environment_size == ENVIRONMENT_MOST) {
        return fail(error, "its environment is larger than %u bytes", ENVIRONMENT_MOST);
    }
    /* One entry more than can be used, which stays AT_NULL. */
    program->auxiliary = read_proc(donor->pid, "auxv",
                                   STACK_AUXILIARY * sizeof(*program->auxiliary), &ignored, error);
    return program->auxiliary ? 0 : -1;
}

void program_free(struct program *program)
{
    free(program->environment);
    free(program->auxiliary);
    program->environment = NULL;
    program->auxiliary = NULL;
}
