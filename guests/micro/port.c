/*
 * The two ports of the virtio-serial device, found by name, as the agent
 * finds them on Linux.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "micro.h"

#define DEVICE_CONSOLE  0x1003
#define FEATURE_MULTIPORT (1u << 1)
#define QUEUE_CONTROL_IN 2
#define QUEUE_CONTROL_OUT 3
#define EVENTS_AT_ONCE  16
#define EVENT_BYTES     128
#define FIND_NS         (10 * NS_PER_SEC)

enum {
    EVENT_DEVICE_READY = 0,
    EVENT_PORT_ADD = 1,
    EVENT_PORT_READY = 3,
    EVENT_PORT_OPEN = 6,
    EVENT_PORT_NAME = 7,
};

typedef struct PortEvent {
    uint32_t port;
    uint16_t event;
    uint16_t value;
} PortEvent;

static uint16_t io;
static VirtQueue events_in, events_out;
static VirtQueue control_in, control_out, heartbeat_in, heartbeat_out;

static void tell(uint32_t port, uint16_t event, uint16_t value)
{
    PortEvent *slot = virtqueue_room(&events_out);

    if (!slot) {
        panic("no room for a port event", event);
    }
    *slot = (PortEvent) { .port = port, .event = event, .value = value };
    virtqueue_send(&events_out, sizeof(*slot));
}

/* Ports 0 and 1 have the control queues between them */
static uint16_t queue_of(uint32_t port)
{
    return port ? 2 + 2 * port : 0;
}

static bool is_name(const char *name, size_t len, const char *wanted)
{
    return len == strlen(wanted) && memcmp(name, wanted, len) == 0;
}

static void port_named(uint32_t port, const char *name, size_t len)
{
    while (len && name[len - 1] == '\0') {
        len--;
    }
    if (is_name(name, len, CONTROL_PORT) && !control_out.size) {
        virtqueue_init(&control_in, io, queue_of(port), 16, 512);
        virtqueue_init(&control_out, io, queue_of(port) + 1, 16, 1024);
        virtqueue_lend(&control_in);
        tell(port, EVENT_PORT_OPEN, 1);
    } else if (is_name(name, len, HEARTBEAT_PORT) && !heartbeat_out.size) {
        virtqueue_init(&heartbeat_in, io, queue_of(port), 2, 64);
        virtqueue_init(&heartbeat_out, io, queue_of(port) + 1, 64, 128);
        virtqueue_lend(&heartbeat_in);
        tell(port, EVENT_PORT_OPEN, 1);
    }
}

static void events_poll(void)
{
    const PortEvent *event;
    size_t len;

    while ((event = virtqueue_receive(&events_in, &len))) {
        if (event->event == EVENT_PORT_ADD) {
            tell(event->port, EVENT_PORT_READY, 1);
        } else if (event->event == EVENT_PORT_NAME && len > sizeof(*event)) {
            port_named(event->port, (const char *)(event + 1),
                       len - sizeof(*event));
        }
        virtqueue_return(&events_in);
    }
}

void ports_init(void)
{
    uint64_t deadline = clock_read() + FIND_NS;

    io = virtio_find(DEVICE_CONSOLE);
    if (!io) {
        panic("no virtio-serial device with I/O ports", io);
    }
    virtio_begin(io, FEATURE_MULTIPORT);
    virtqueue_init(&events_in, io, QUEUE_CONTROL_IN, EVENTS_AT_ONCE,
                   EVENT_BYTES);
    virtqueue_init(&events_out, io, QUEUE_CONTROL_OUT, EVENTS_AT_ONCE,
                   sizeof(PortEvent));
    virtio_go(io);
    virtqueue_lend(&events_in);
    tell(0, EVENT_DEVICE_READY, 1);
    while (!control_out.size || !heartbeat_out.size) {
        events_poll();
        if (clock_read() > deadline) {
            panic("the ports did not come up", control_out.size);
        }
    }
}

void ports_poll(void)
{
    const char *bytes;
    size_t len;

    events_poll();
    while ((bytes = virtqueue_receive(&control_in, &len))) {
        command_feed(bytes, len);
        virtqueue_return(&control_in);
    }
}

bool heartbeat_write(const char *line, size_t len)
{
    void *slot = virtqueue_room(&heartbeat_out);

    if (!slot || len > heartbeat_out.slot_bytes) {
        return false;
    }
    memcpy(slot, line, len);
    virtqueue_send(&heartbeat_out, len);
    return true;
}

void control_write(const char *line, size_t len, bool may_drop)
{
    void *slot;

    if (len > control_out.slot_bytes) {
        panic("a reply is too long", len);
    }
    while (!(slot = virtqueue_room(&control_out))) {
        if (may_drop) {
            return;
        }
        heartbeat_poll();
    }
    memcpy(slot, line, len);
    virtqueue_send(&control_out, len);
}

void control_flush(void)
{
    while (!virtqueue_drained(&control_out)) {
        heartbeat_poll();
    }
}
