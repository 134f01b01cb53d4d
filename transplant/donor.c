/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "donor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "elf.h"
#include "remote.h"

/* The user's code segment of a 64-bit program. */
#define CODE_SEGMENT 0x33
/* How often the main thread is looked at until it stands in a system call, and in between (us). */
#define TRIES 500
#define BETWEEN_US 200
/* How long a fork may take; a large guest with small pages takes 25 ms for each GiB (us). */
#define FORK_US 10000000
#define BLOB_MOST 4096
/* How long a child that was killed may take to end; it has memory to give back (us). */
#define END_US 5000000

static int status_line(struct donor *donor, const char *line, struct error *error)
{
    uint64_t number;
    unsigned ids[3];
    char letter;

    if (sscanf(line, "State: %c", &letter) == 1 && strchr("TtZX", letter)) {
        return fail(error, "it does not run (state %c)", letter);
    }
    if (sscanf(line, "Tgid: %" SCNu64, &number) == 1 && (pid_t)number != donor->pid) {
        return fail(error, "it is a thread of process %d", (int)number);
    }
    if (sscanf(line, "TracerPid: %" SCNu64, &number) == 1 && number) {
        return fail(error, "process %d traces it (a debugger?)", (int)number);
    }
    if (sscanf(line, "VmLck: %" SCNu64, &number) == 1 && number) {
        return fail(error, "%" PRIu64 " KiB of it are locked in memory (mlock)", number);
    }
    if (!strncmp(line, "x86_Thread_features:", 20) && strstr(line, "shstk")) {
        return fail(error, "it runs with a shadow stack");
    }
    if (sscanf(line, "Seccomp: %" SCNu64, &number) == 1) {
        donor->filtered = number;
    }
    if (sscanf(line, "SigCgt: %" SCNx64, &number) == 1) {
        donor->caught = number;
    }
    if (sscanf(line, "Uid: %u %u", &ids[0], &ids[1]) == 2) {
        donor->ids[0] = ids[0];
        donor->ids[1] = ids[1];
    }
    if (sscanf(line, "Gid: %u %u", &ids[0], &ids[1]) == 2) {
        donor->ids[2] = ids[0];
        donor->ids[3] = ids[1];
    }
    return 0;
}

static int read_status(struct donor *donor, struct error *error)
{
    char path[64], line[512];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/status", donor->pid);
    file = fopen(path, "r");
    if (!file) {
        return fail_errno(error, "%s", path);
    }
    while (fgets(line, sizeof(line), file) && !status_line(donor, line, error)) {
    }
    fclose(file);
    return error->set ? -1 : 0;
}

/* KSM gives a page to several owners; the child would need one of its own for each. */
static int check_merged(const struct donor *donor, struct error *error)
{
    char path[64];
    long merged = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", donor->pid);
    file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%ld", &merged) != 1) {
            merged = 0;
        }
        fclose(file);
    }
    return merged ? fail(error, "KSM has merged %ld pages of it", merged) : 0;
}

/*
 * Looks at the end of a mapping of code: behind the code itself, in its last page, there is nothing
 * that anybody uses.  Remembers the longest such place.
 */
static void consider(struct donor *donor, const struct mapping *mapping)
{
    uint8_t head[ELF_HEAD], tail[PAGE];
    struct error ignored = { 0 };
    uint64_t code_end, from;
    char path[96];
    size_t used, room;
    ssize_t got;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, donor->pid,
             mapping->start, mapping->end);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    got = pread(fd, head, sizeof(head), 0);
    close(fd);
    code_end = got > 0 ? elf_code_end(head, got, mapping->offset) : 0;
    if (code_end <= mapping->offset ||
        PAGE_UP(code_end - mapping->offset) != mapping->end - mapping->start) {
        return;
    }
    from = (mapping->start + (code_end - mapping->offset) + 63) & ~63ull;
    room = from < mapping->end ? mapping->end - from : 0;
    if (room <= donor->cave_size ||
        remote_read(donor->pid, mapping->end - PAGE, tail, sizeof(tail), &ignored)) {
        return;
    }
    for (used = PAGE; used > PAGE - room && !tail[used - 1]; used--) {
    }
    /* What is not clear is either not ours, or what a helper left that has ended in the middle. */
    if (used == PAGE - room || blob_begins(tail + PAGE - room, room)) {
        donor->cave = from;
        donor->cave_size = room;
    }
}

static int find_cave(struct donor *donor, struct error *error)
{
    const unsigned wanted = MAPPING_READ | MAPPING_CODE | MAPPING_PRIVATE | MAPPING_FILE;
    size_t need = blob_size(2 * donor->count + 1);

    donor->cave = donor->cave_size = 0;
    for (size_t i = 0; i < donor->maps.count; i++) {
        if ((donor->maps.list[i].flags & (wanted | MAPPING_WRITE)) == wanted) {
            consider(donor, &donor->maps.list[i]);
        }
    }
    if (donor->cave_size < need) {
        return fail(error, "there is no room in it for %zu bytes of code (%zu at most)", need,
                    donor->cave_size);
    }
    return 0;
}

int donor_examine(struct donor *donor, struct error *error)
{
    if (read_status(donor, error) || check_merged(donor, error) ||
        maps_read(&donor->maps, donor->pid, error)) {
        return -1;
    }
    if (!maps_named(&donor->maps, "[vdso]")) {
        return fail(error, "it has no vdso");
    }
    if (ramblock_find(donor->pid, donor->blocks, donor->count, &donor->maps, error)) {
        return -1;
    }
    return find_cave(donor, error);
}

long donor_options(const struct donor *donor)
{
    return donor->filtered ? PTRACE_O_SUSPEND_SECCOMP : 0;
}

/* Stops the main thread when it stands in a system call, and reads its registers. */
static int stop_in_call(pid_t pid, struct user_regs_struct *regs, struct error *error)
{
    for (int tries = 0; tries < TRIES; tries++) {
        if (remote_interrupt(pid, error)) {
            return -1;
        }
        if (ptrace(PTRACE_GETREGS, pid, 0, regs)) {
            return fail_errno(error, "the registers of thread %d", pid);
        }
        if (regs->cs != CODE_SEGMENT) {
            return fail(error, "it is no 64-bit program");
        }
        if ((long)regs->orig_rax >= 0) {
            return 0;
        }
        if (ptrace(PTRACE_CONT, pid, 0, 0)) {
            return fail_errno(error, "thread %d cannot be continued", pid);
        }
        usleep(BETWEEN_US);
    }
    return fail(error, "its main thread was in no system call, %d times in a row", TRIES);
}

/* Whether the thread is still on its way through the blob. */
static bool in_cave(const struct donor *donor)
{
    char path[64], text[256] = "";
    unsigned long at = 0;
    const char *last;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/syscall", donor->pid);
    file = fopen(path, "r");
    if (file) {
        if (!fgets(text, sizeof(text), file)) {
            text[0] = 0;
        }
        fclose(file);
    }
    last = strrchr(text, ' ');
    /* "running", or a call with its arguments, the stack pointer, and where it is. */
    if (!last || sscanf(last, " %lx", &at) != 1) {
        return true;
    }
    return at >= donor->cave && at < donor->cave + donor->cave_size;
}

/* Makes the calls in the thread, which is stopped; with PTRACE_SETREGS it is under way. */
static int inject(struct donor *donor, const struct user_regs_struct *regs,
                  const struct blob_call *calls, size_t count, struct error *error)
{
    struct user_regs_struct there = *regs;
    uint8_t image[BLOB_MOST];
    long size = blob_build(image, donor->cave_size < sizeof(image) ? donor->cave_size
                                                                   : sizeof(image),
                           donor->cave, regs, calls, count, error);

    if (size < 0) {
        return -1;
    }
    if (regs->rip >= donor->cave && regs->rip < donor->cave + donor->cave_size) {
        return fail(error, "its main thread is on its way through the code of another helper");
    }
    if (remote_write(donor->pid, donor->cave, image, size, error)) {
        return -1;
    }
    there.rip = donor->cave;
    there.rax = 0;
    there.orig_rax = -1;
    if (ptrace(PTRACE_SETREGS, donor->pid, 0, &there) || ptrace(PTRACE_CONT, donor->pid, 0, 0)) {
        return fail_errno(error, "the registers of thread %d", donor->pid);
    }
    return 0;
}

/*
 * Waits until the thread has been through the blob, or has forked: returns the child then, and the
 * thread is stopped; otherwise 0, and it runs.
 */
static pid_t wait_through(struct donor *donor, struct error *error)
{
    uint64_t end = now_us() + FORK_US;
    unsigned long child = 0;
    int status;

    for (unsigned looks = 0; now_us() < end; looks++) {
        pid_t got = waitpid(donor->pid, &status, __WALL | WNOHANG);

        if (got < 0 || (got > 0 && !WIFSTOPPED(status))) {
            return fail(error, "it has ended meanwhile");
        }
        if (got == 0) {
            if (looks > 20 && !in_cave(donor)) {
                return 0;
            }
            usleep(50);
            continue;
        }
        if (status >> 16 == PTRACE_EVENT_CLONE || status >> 16 == PTRACE_EVENT_FORK) {
            if (ptrace(PTRACE_GETEVENTMSG, donor->pid, 0, &child)) {
                return fail_errno(error, "the child that it forked");
            }
            return child;
        }
        ptrace(PTRACE_CONT, donor->pid, 0, status >> 16 ? 0 : WSTOPSIG(status));
    }
    return fail(error, "it did not fork within %d s", FORK_US / 1000000);
}

/* The child stops by itself, and is no member of anything that outlives this process. */
static int take_child(struct donor *donor, pid_t child, struct error *error)
{
    long options = PTRACE_O_EXITKILL | donor_options(donor);
    int status;

    if (waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status)) {
        return fail(error, "the child has ended before it began");
    }
    if (ptrace(PTRACE_SETOPTIONS, child, 0, options)) {
        return fail_errno(error, "the child stays a danger");
    }
    return 0;
}

static size_t fork_calls(const struct donor *donor, struct blob_call *calls)
{
    size_t count = 0, n = donor->count;

    for (size_t i = 0; i < 2 * n + 1; i++) {
        const struct block *block = &donor->blocks[i < n ? i : i - n - 1];

        if (i != n && block->file) {
            continue; /* its descriptor is inherited */
        }
        calls[count++] = i == n ? (struct blob_call){ .number = BLOB_CLONE3 }
                                : (struct blob_call){ SYS_madvise,
                                                      { block->address, PAGE_UP(block->most),
                                                        i < n ? MADV_DOFORK : MADV_DONTFORK } };
    }
    return count;
}

pid_t donor_fork(struct donor *donor, struct error *error)
{
    static struct blob_call calls[2 * BLOCKS + 1];
    long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | donor_options(donor);
    size_t count = fork_calls(donor, calls);
    struct user_regs_struct regs;
    struct error ignored = { 0 };
    uint64_t begun = now_us(), forking;
    pid_t child = 0;

    if (remote_seize(donor->pid, donor_options(donor), error)) {
        return -1;
    }
    if (!stop_in_call(donor->pid, &regs, error)) {
        forking = now_us();
        /* Not before it is stopped: a thread that QEMU starts meanwhile would be traced as well. */
        if (ptrace(PTRACE_SETOPTIONS, donor->pid, 0, options)) {
            fail_errno(error, "the options of thread %d", donor->pid);
        } else if (!inject(donor, &regs, calls, count, error)) {
            child = wait_through(donor, error);
            donor->fork_us = now_us() - forking;
        }
    }
    /* A thread that runs can only be let go once it has been stopped again. */
    if (child <= 0) {
        remote_interrupt(donor->pid, &ignored);
    }
    remote_detach(donor->pid, &ignored);
    donor->held_us = now_us() - begun;
    if (child > 0 && take_child(donor, child, error)) {
        kill(child, SIGKILL);
        return -1;
    }
    if (!child && !error->set) {
        return fail(error, "it cannot fork (a limit of processes or memory, or a filter that "
                           "cannot be suspended)");
    }
    return error->set ? -1 : child;
}

/* Wipes the blob out, if the thread, which is stopped, is through with it. */
static int wipe(struct donor *donor, struct error *error)
{
    static const uint8_t nothing[BLOB_MOST];
    struct user_regs_struct regs;
    size_t size = blob_size(2 * donor->count + 1);

    if (ptrace(PTRACE_GETREGS, donor->pid, 0, &regs)) {
        return fail_errno(error, "the registers of thread %d", donor->pid);
    }
    if (regs.rip >= donor->cave && regs.rip < donor->cave + donor->cave_size) {
        return fail(error, "its main thread is not through with the code that was put there");
    }
    return remote_write(donor->pid, donor->cave, nothing, size < sizeof(nothing) ? size
                                                                                 : sizeof(nothing),
                        error);
}

/* How many children of its main thread are there, or are still ending, whose end it is not told. */
static size_t count_children(const struct donor *donor, bool ending)
{
    char path[64];
    size_t count = 0;
    FILE *file;
    int child;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", donor->pid, donor->pid);
    file = fopen(path, "r");
    while (file && fscanf(file, "%d", &child) == 1) {
        count += !remote_exit_signal(child) && !(ending && remote_has_ended(child));
    }
    if (file) {
        fclose(file);
    }
    return count;
}

/* Whether there is nothing of a helper's in it, neither a child nor code. */
static bool is_clean(const struct donor *donor)
{
    static const uint8_t nothing[BLOB_MOST];
    uint8_t code[BLOB_MOST];
    struct error ignored = { 0 };
    size_t size = donor->cave_size < sizeof(code) ? donor->cave_size : sizeof(code);

    return !count_children(donor, false) &&
           !remote_read(donor->pid, donor->cave, code, size, &ignored) &&
           !memcmp(code, nothing, size);
}

int donor_reap(struct donor *donor, struct error *error)
{
    /* Only children whose end sends no SIGCHLD (__WCLONE): QEMU itself has none. */
    const struct blob_call call = { SYS_wait4, { -1, 0, WNOHANG | __WCLONE } };
    const struct blob_call calls[] = { call, call, call };
    struct user_regs_struct regs;
    struct error ignored = { 0 };

    /* The child of a helper that was killed may not have ended yet, and would stay a zombie. */
    for (uint64_t end = now_us() + END_US; count_children(donor, true) && now_us() < end;) {
        usleep(1000);
    }
    if (is_clean(donor)) {
        return 0;
    }
    if (remote_seize(donor->pid, donor_options(donor), error)) {
        return -1;
    }
    if (!stop_in_call(donor->pid, &regs, error) && !inject(donor, &regs, calls, 3, error)) {
        wait_through(donor, error);
        if (!remote_interrupt(donor->pid, error)) {
            wipe(donor, error);
        }
    }
    remote_detach(donor->pid, &ignored);
    return error->set ? -1 : 0;
}
