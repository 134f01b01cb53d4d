/*
 * A guest of one file: boots from -kernel, speaks the agent's protocol,
 * and needs nothing that a nested KVM could lack.
 *
 * One thread of control, polling: the heartbeat, the two ports and the
 * memory under test take turns.  Only the turn of the memory is long, and
 * it is cut into pieces of a few pages.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_MICRO_H
#define PAGEFLIP_MICRO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"
#include "protocol.h"
#include "region.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline void outb(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;

    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t value;

    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;

    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Sleep until the timer ticks, half a millisecond at most */
static inline void nap(void)
{
    asm volatile("hlt" : : : "memory");
}

/* boot.S and link.ld, and what they call */
typedef struct TrapFrame {
    uint64_t vector;
    uint64_t error;
    uint64_t rip;
} TrapFrame;

extern uint64_t gdt[];
extern uint64_t pool_pdpt[];
extern const uint64_t trap_entries[TRAPS];
extern char kernel_stack_top[], irq_timer[], irq_stray[], payload_end[];
void kernel_init(const uint32_t *multiboot);
void panic_trap(const TrapFrame *frame);
void micro_main(void);

/* text.c: text into a buffer that never overflows */
typedef struct Text {
    char *bytes;
    size_t len;
    size_t size;
} Text;

void text_bytes(Text *text, const char *bytes, size_t len);
void text_string(Text *text, const char *string);
void text_number(Text *text, uint64_t n);
void text_hex(Text *text, uint64_t n);
/* ,"key":number */
void text_member(Text *text, const char *key, uint64_t n);

/* machine.c: the processor's tables, the log, the end */
extern uint32_t stray_interrupts;
void log_line(const char *what, uint64_t n);
void panic(const char *what, uint64_t n) __attribute__((noreturn));
void power_off(void);
uint32_t pci_read(unsigned slot, unsigned offset);
void pci_write(unsigned slot, unsigned offset, uint32_t value);

/* memory.c: what multiboot says there is, mapped in one piece */
void memory_init(const uint32_t *multiboot);
/*
 * Zeroed memory for good, page aligned.  Not in .bss: a boot loader copies
 * that too, byte by byte, which takes seconds where KVM emulates.
 */
void *memory_scratch(size_t bytes);
uint64_t memory_total(void);
uint64_t memory_available(void);
bool memory_map(Region *region, size_t pages);
void memory_unmap(Region *region);

/* clock.c: all in nanoseconds, standing still while the VM does */
void clock_init(void);
uint64_t clock_read(void);
/* The time of the last clock_read(): costs nothing */
uint64_t clock_recent(void);
/* False while DEADLINE is surely not reached; does not leave the guest */
bool clock_may_have_reached(uint64_t deadline);
uint64_t clock_real(uint64_t mono);

/* virtio.c: one queue of a legacy virtio-pci device */
typedef struct VirtQueue {
    uint16_t io;
    uint16_t index;
    uint16_t size;
    uint16_t slots;             /* buffers in use, one descriptor each */
    uint16_t posted;
    uint16_t seen;
    size_t slot_bytes;
    uint8_t *buffers;
    /* volatile: the device reads and writes these, too */
    volatile struct VirtDesc *descriptors;
    volatile struct VirtAvail *available;
    volatile struct VirtUsed *used;
} VirtQueue;

uint16_t virtio_find(uint16_t device_id);
void virtio_begin(uint16_t io, uint32_t features);
void virtio_go(uint16_t io);
void virtqueue_init(VirtQueue *queue, uint16_t io, uint16_t index,
                    uint16_t slots, size_t slot_bytes);
/* For a queue to the host: room for a buffer, or NULL; then send it */
void *virtqueue_room(VirtQueue *queue);
void virtqueue_send(VirtQueue *queue, size_t len);
bool virtqueue_drained(const VirtQueue *queue);
/* For a queue from the host: lend all buffers; what came; lend it again */
void virtqueue_lend(VirtQueue *queue);
const void *virtqueue_receive(VirtQueue *queue, size_t *len);
void virtqueue_return(VirtQueue *queue);

/* port.c: the two named ports of the virtio-serial device */
void ports_init(void);
void ports_poll(void);
bool heartbeat_write(const char *line, size_t len);
/* Waits for room unless it may drop */
void control_write(const char *line, size_t len, bool may_drop);
void control_flush(void);

/* heartbeat.c */
void heartbeat_init(void);
/* True when it did something; must be called often */
bool heartbeat_poll(void);
void heartbeat_report(Text *text);
void heartbeat_reset_max_step(void);

/* json.c: one flat object */
#define JSON_MEMBERS_MAX 16

typedef struct JsonMember {
    const char *key;            /* between the quotes, escapes as they came */
    size_t key_len;
    const char *value;          /* a string with its quotes */
    size_t value_len;
} JsonMember;

typedef struct JsonObject {
    JsonMember members[JSON_MEMBERS_MAX];
    unsigned count;
} JsonObject;

/* NULL, or what is wrong with the line */
const char *json_read(JsonObject *object, const char *line, size_t len);
const JsonMember *json_find(const JsonObject *object, const char *key);
bool json_is(const JsonMember *member, const char *string);
bool json_is_whole(const JsonMember *member);
/* A whole number from 0 to MAX */
bool json_number(const JsonMember *member, uint64_t max, uint64_t *number);

/* reply.c: the answers; ID is JSON text */
#define ID_MAX 68

typedef struct Reply {
    Text text;
    char bytes[1024];
} Reply;

void reply_begin(Reply *reply, const char *id);
void reply_send(Reply *reply);
void reply_ok(const char *id);
void reply_error(const char *id, const char *error);
void event_begin(Reply *reply, const char *name);
void event_send(Reply *reply, bool may_drop);

/* command.c */
void command_ready(void);
void command_feed(const char *bytes, size_t len);

/* worker.c: the memory under test */
void worker_fill(const char *id, uint64_t bytes);
void worker_dirty(const char *id, uint64_t rate);
void worker_pace(const char *id, uint64_t rate);
void worker_verify(const char *id);
void worker_corrupt(const char *id, uint64_t page, CorruptMode mode);
void worker_release(const char *id);
void worker_report(Text *text);
/* A piece of the work that there is; false when there is none just now */
bool worker_step(void);

#endif
