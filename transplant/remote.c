/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "remote.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Results from here up to -1 are errors (the kernel's MAX_ERRNO). */
#define LOWEST_ERROR (-4095l)

uint64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

int remote_seize(pid_t tid, long options, struct error *error)
{
    if (ptrace(PTRACE_SEIZE, tid, 0, options)) {
        return fail_errno(error, "thread %d cannot be traced", tid);
    }
    return 0;
}

/* Waits until a thread stops; returns its status, or -1 when it has ended. */
static int wait_stop(pid_t tid, struct error *error)
{
    int status;
    pid_t got;

    do {
        got = waitpid(tid, &status, __WALL);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return fail_errno(error, "thread %d is gone", tid);
    }
    if (WIFSIGNALED(status)) {
        return fail(error, "thread %d was killed by signal %d", tid, WTERMSIG(status));
    }
    if (!WIFSTOPPED(status)) {
        return fail(error, "thread %d ended: exit status %d", tid, WEXITSTATUS(status));
    }
    return status;
}

int remote_interrupt(pid_t tid, struct error *error)
{
    int status;

    if (ptrace(PTRACE_INTERRUPT, tid, 0, 0)) {
        return fail_errno(error, "thread %d cannot be stopped", tid);
    }
    for (;;) {
        status = wait_stop(tid, error);
        if (status < 0) {
            return -1;
        }
        if (status >> 16 == PTRACE_EVENT_STOP) {
            return 0;
        }
        /* A signal that was faster: the thread gets it, and stops after that. */
        if (ptrace(PTRACE_CONT, tid, 0, status >> 16 ? 0 : WSTOPSIG(status))) {
            return fail_errno(error, "thread %d cannot be continued", tid);
        }
    }
}

int remote_detach(pid_t tid, struct error *error)
{
    return ptrace(PTRACE_DETACH, tid, 0, 0) ? fail_errno(error, "thread %d stays traced", tid) : 0;
}

int remote_begin(struct remote *remote)
{
    uint64_t all = ~0ull;

    if (ptrace(PTRACE_GETREGS, remote->tid, 0, &remote->regs) ||
        ptrace(PTRACE_GETSIGMASK, remote->tid, sizeof(remote->mask), &remote->mask) ||
        ptrace(PTRACE_SETSIGMASK, remote->tid, sizeof(all), &all)) {
        return fail_errno(remote->error, "the registers of thread %d", remote->tid);
    }
    return 0;
}

int remote_end(struct remote *remote)
{
    if (ptrace(PTRACE_SETREGS, remote->tid, 0, &remote->regs) ||
        ptrace(PTRACE_SETSIGMASK, remote->tid, sizeof(remote->mask), &remote->mask)) {
        return fail_errno(remote->error, "the registers of thread %d", remote->tid);
    }
    return 0;
}

/* Steps over the instruction syscall; events that come between do not count. */
static int step(struct remote *remote)
{
    int status;

    for (;;) {
        if (ptrace(PTRACE_SINGLESTEP, remote->tid, 0, 0)) {
            return fail_errno(remote->error, "thread %d does not step", remote->tid);
        }
        status = wait_stop(remote->tid, remote->error);
        if (status < 0) {
            return -1;
        }
        if (status >> 16) {
            continue;
        }
        if (WSTOPSIG(status) == SIGTRAP) {
            return 0;
        }
        return fail(remote->error, "thread %d got signal %d during a call that it was to make",
                    remote->tid, WSTOPSIG(status));
    }
}

long remote_call(struct remote *remote, const char *what, long number, long a, long b, long c,
                 long d, long e, long f)
{
    struct user_regs_struct regs = remote->regs;

    if (remote->error->set) {
        return -1;
    }
    regs.rdi = a;
    regs.rsi = b;
    regs.rdx = c;
    regs.r10 = d;
    regs.r8 = e;
    regs.r9 = f;
    regs.rip = remote->instruction;
    regs.rax = number;
    regs.orig_rax = -1; /* in no call that would have to be made again */
    regs.eflags &= ~0x100ul;
    if (ptrace(PTRACE_SETREGS, remote->tid, 0, &regs)) {
        return fail_errno(remote->error, "the registers of thread %d", remote->tid);
    }
    if (step(remote)) {
        return -1;
    }
    if (ptrace(PTRACE_GETREGS, remote->tid, 0, &regs) || regs.rip != remote->instruction + 2) {
        return fail(remote->error, "thread %d did not come back from a call", remote->tid);
    }
    if (what && (long)regs.rax < 0 && (long)regs.rax >= LOWEST_ERROR) {
        errno = -(long)regs.rax;
        return fail_errno(remote->error, "%s", what);
    }
    return regs.rax;
}

static int open_memory(pid_t pid, int how, struct error *error)
{
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    fd = open(path, how | O_CLOEXEC);
    return fd < 0 ? fail_errno(error, "%s", path) : fd;
}

int remote_read(pid_t pid, uint64_t address, void *data, size_t size, struct error *error)
{
    int fd = open_memory(pid, O_RDONLY, error);
    ssize_t got;

    if (fd < 0) {
        return -1;
    }
    got = pread(fd, data, size, address);
    close(fd);
    if (got != (ssize_t)size) {
        return fail_errno(error, "cannot read %zu bytes at %#lx of process %d", size,
                          (unsigned long)address, pid);
    }
    return 0;
}

int remote_write(pid_t pid, uint64_t address, const void *data, size_t size, struct error *error)
{
    int fd = open_memory(pid, O_WRONLY, error);
    ssize_t put;

    if (fd < 0) {
        return -1;
    }
    put = pwrite(fd, data, size, address);
    close(fd);
    if (put != (ssize_t)size) {
        return fail_errno(error, "cannot write %zu bytes at %#lx of process %d (proc_mem."
                                 "force_override?)", size, (unsigned long)address, pid);
    }
    return 0;
}

uint64_t remote_instruction(pid_t pid, uint64_t vdso, size_t size, struct error *error)
{
    uint8_t *code = malloc(size), *found = NULL;

    if (!code || remote_read(pid, vdso, code, size, error)) {
        fail(error, "cannot read the vdso of process %d", pid);
    } else if (!(found = memmem(code, size, "\x0f\x05", 2))) {
        fail(error, "the vdso of process %d makes no system calls", pid);
    }
    vdso += found ? found - code : 0;
    free(code);
    return found ? vdso : 0;
}

static bool held(const struct hold *hold, pid_t tid)
{
    for (size_t i = 0; i < hold->count; i++) {
        if (hold->tids[i] == tid) {
            return true;
        }
    }
    return false;
}

static int hold_one(struct hold *hold, pid_t tid, bool traced, struct error *error)
{
    struct error own = { 0 };

    if (hold->count == hold->room) {
        size_t room = hold->room ? 2 * hold->room : 64;
        pid_t *tids = realloc(hold->tids, room * sizeof(*tids));

        if (!tids) {
            return fail(error, "no memory for %zu threads", room);
        }
        hold->tids = tids;
        hold->room = room;
    }
    if (!traced && ptrace(PTRACE_SEIZE, tid, 0, 0)) {
        /* ESRCH: it has ended since it was listed. */
        return errno == ESRCH ? 0 : fail_errno(error, "thread %d cannot be traced", tid);
    }
    if (remote_interrupt(tid, &own)) {
        /* That one thread ends is no matter, as long as the process does not. */
        return tid == hold->pid ? fail(error, "%s", own.text) : 0;
    }
    hold->tids[hold->count++] = tid;
    return 0;
}

/* Holds what is listed and not held yet; returns how many that were, or -1. */
static int hold_listed(struct hold *hold, pid_t traced, struct error *error)
{
    size_t before = hold->count;
    struct dirent *entry;
    char path[64];
    DIR *tasks;

    snprintf(path, sizeof(path), "/proc/%d/task", hold->pid);
    tasks = opendir(path);
    if (!tasks) {
        return fail_errno(error, "%s", path);
    }
    while ((entry = readdir(tasks)) && !error->set) {
        pid_t tid = atoi(entry->d_name);

        if (tid > 0 && !held(hold, tid)) {
            hold_one(hold, tid, tid == traced, error);
        }
    }
    closedir(tasks);
    return error->set ? -1 : (int)(hold->count - before);
}

int hold_all(struct hold *hold, pid_t pid, pid_t traced, struct error *error)
{
    int more;

    hold->pid = pid;
    hold->count = 0;
    /* A thread that was not held yet may have made another one: until there is none. */
    do {
        more = hold_listed(hold, traced, error);
    } while (more > 0);
    if (more < 0) {
        hold_release(hold, 0);
        return -1;
    }
    return 0;
}

void hold_release(struct hold *hold, pid_t keep)
{
    for (size_t i = 0; i < hold->count; i++) {
        if (hold->tids[i] != keep) {
            ptrace(PTRACE_DETACH, hold->tids[i], 0, 0);
        }
    }
    hold->count = 0;
}

/* Returns a field of /proc/PID/stat (proc_pid_stat(5)), from the third on; `text` is its memory. */
static const char *stat_field(pid_t pid, int number, char *text, size_t size)
{
    char path[64];
    const char *field;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    file = fopen(path, "r");
    if (!file) {
        return NULL;
    }
    field = fgets(text, size, file) ? strrchr(text, ')') : NULL;
    fclose(file);
    for (int i = 2; field && i < number; i++) {
        field = strchr(field + 1, ' ');
    }
    return field ? field + 1 : NULL;
}

bool remote_has_ended(pid_t pid)
{
    char text[1024];
    const char *state = stat_field(pid, 3, text, sizeof(text)), *threads;

    if (!state || *state == 'X') {
        return true;
    }
    /* Its first thread is a zombie already while others give their memory back. */
    threads = *state == 'Z' ? stat_field(pid, 20, text, sizeof(text)) : NULL;
    return threads && atoi(threads) <= 1;
}

int remote_exit_signal(pid_t pid)
{
    char text[1024];
    const char *number = stat_field(pid, 38, text, sizeof(text));

    return number ? atoi(number) : -1;
}

void set_oom_score(pid_t pid, int score)
{
    char path[64];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", pid);
    file = fopen(path, "w");
    if (file) {
        fprintf(file, "%d", score);
        fclose(file);
    }
}

int get_oom_score(pid_t pid)
{
    int score = 0;
    char path[64];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", pid);
    file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%d", &score) != 1) {
            score = 0;
        }
        fclose(file);
    }
    return score;
}
