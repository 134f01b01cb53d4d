/*
 * In-guest half of the lab: proves that memory, clocks and the kernel
 * log of a guest survived while its QEMU was replaced.
 *
 * Threads: the heartbeat owns the heartbeat port; the worker owns the
 * memory region; the command thread (main) owns the reading side of the
 * control port; the echo thread owns the network's sockets.  They share
 * only what is named here: mutex-guarded copies of the worker's and the
 * echo thread's counters, atomic heartbeat counters, and the locked
 * writing side of the control port.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_AGENT_H
#define PAGEFLIP_AGENT_H

#include <jansson.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"
#include "region.h"

/* sysinfo.c */
uint64_t clock_ns(int clock_id);
uint64_t meminfo_bytes(const char *key);
int kmsg_open(void);
void kmsg_drain(int fd);
void kmsg_report(json_t *reply);
void set_fifo_priority(const char *who, int priority);

/* port.c: opening the two ports, writing whole lines */
int port_open(const char *spec, const char *name);
bool port_write_line(int fd, const char *line, size_t len, bool may_drop);

/* reply.c: the only writer of the control port; consumes id and body */
void reply_init(int control_fd);
void reply_ok(json_t *id, json_t *body);
void reply_error(json_t *id, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void send_event(json_t *event, bool may_drop);

json_t *reply_first_bad(const Region *region);

/* heartbeat.c */
void heartbeat_start(int fd);
void heartbeat_report(json_t *reply);
void heartbeat_reset_max_step(void);

/* memory.c: a region in memory of the guest's own */
bool memory_map(Region *region, size_t pages);
void memory_unmap(Region *region);

/* worker.c */
typedef enum JobKind {
    JOB_FILL,
    JOB_DIRTY,
    JOB_PACE,
    JOB_VERIFY,
    JOB_CORRUPT,
    JOB_RELEASE,
} JobKind;

typedef struct Job {
    JobKind kind;
    json_t *id;
    uint64_t value;     /* bytes, bytes per second, or page number */
    CorruptMode mode;
} Job;

void worker_start(void);
/* Takes the job's id over; false (and the id stays) when the queue is full */
bool worker_submit(const Job *job);
void worker_report(json_t *reply);

/* interface.c */
/*
 * Give the first Ethernet interface ADDRESS/PREFIX.
 * Returns NULL, or what failed, with errno set.
 */
const char *interface_configure(struct in_addr address, unsigned prefix);

/* echo.c: what the host reaches over the guest's network */
typedef enum EchoDamage {
    ECHO_FLIP,
    ECHO_DROP,
    ECHO_DOUBLE,
    ECHO_CLOSE,
    ECHO_DAMAGES,
} EchoDamage;

/*
 * Serve at ADDRESS; with a PREFIX the first Ethernet interface gets it.
 * Returns NULL, or what failed, with errno set.
 */
const char *echo_start(const char *address, unsigned prefix,
                       unsigned *udp_port, unsigned *tcp_port);
/* Damages what the TCP stream carries next */
void echo_damage(EchoDamage kind);
void echo_report(json_t *reply);

/* command.c */
void command_loop(int control_fd, bool in_guest);

#endif
