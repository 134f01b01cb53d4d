/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Other processes: their threads held by ptrace(2), their memory, and system calls that they make.
 *
 * remote_call() sets registers, steps, and reads the result.  It is for the child only, which ends
 * with this process (PTRACE_O_EXITKILL): in the old QEMU nothing is stepped (blob.h).
 */
#ifndef TRANSPLANT_REMOTE_H
#define TRANSPLANT_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "error.h"

/* A thread that is held; with `sticky` set, nothing more is done in it. */
struct remote {
    pid_t pid; /* the process, by which its memory is found */
    pid_t tid;
    uint64_t instruction; /* where there is an instruction syscall */
    struct user_regs_struct regs;
    uint64_t mask; /* blocked signals, by `regs` time */
    struct error *error;
};

/* Microseconds of the monotonic clock. */
uint64_t now_us(void);

/* PTRACE_SEIZE: from here on it is traced, and runs. */
int remote_seize(pid_t tid, long options, struct error *error);

/*
 * Stops a thread that is traced and running.  Signals that are on their way to it reach it first.
 * -1 as well when it ends meanwhile.
 */
int remote_interrupt(pid_t tid, struct error *error);

int remote_detach(pid_t tid, struct error *error);

/* Blocks all signals and keeps the registers, so that remote_call() may be used. */
int remote_begin(struct remote *remote);
/* Puts back what remote_begin() has kept. */
int remote_end(struct remote *remote);

/*
 * Lets a held thread make a system call.  A result that is an error's is one if `what` is not NULL,
 * which says what could not be done.
 */
long remote_call(struct remote *remote, const char *what, long number, long a, long b, long c,
                 long d, long e, long f);

/* Returns where the vdso of a process, at this address, has an instruction syscall; or 0. */
uint64_t remote_instruction(pid_t pid, uint64_t vdso, size_t size, struct error *error);

/* Whether a process that is not traced has ended: nobody is there, or a zombie. */
bool remote_has_ended(pid_t pid);
/* Which signal its parent gets when a process ends; 0 for none, -1 if nobody is there. */
int remote_exit_signal(pid_t pid);

/* How likely the kernel is to end a process when memory is short (proc_pid_oom_score_adj(5)). */
void set_oom_score(pid_t pid, int score);
int get_oom_score(pid_t pid);

int remote_read(pid_t pid, uint64_t address, void *data, size_t size, struct error *error);
int remote_write(pid_t pid, uint64_t address, const void *data, size_t size, struct error *error);

/* Threads of a process, held one and all. */
struct hold {
    pid_t pid;
    pid_t *tids;
    size_t count;
    size_t room;
};

/*
 * Stops every thread of a process, those that are made meanwhile as well.  `traced` is one that is
 * traced and running already, or 0.  If it fails, those that were stopped run again.
 */
int hold_all(struct hold *hold, pid_t pid, pid_t traced, struct error *error);
/* Lets them go, but for `keep`, which goes on being traced and held. */
void hold_release(struct hold *hold, pid_t keep);

#endif
