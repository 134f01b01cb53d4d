/*
 * The legacy virtio-pci transport, polled: what QEMU's transitional
 * devices on a root bus offer through one range of I/O ports.
 *
 * The order of buffers is fixed: slot N of a queue is descriptor N is
 * buffer N, lent and taken back in a ring.  That holds for devices that
 * return buffers in the order they got them, as virtio-serial does.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "micro.h"

#define PCI_SLOTS       32
#define PCI_COMMAND     0x04
#define PCI_COMMAND_IO_MASTER 0x05
#define PCI_BAR0        0x10
#define PCI_NOBODY      0xffffffff
#define VENDOR_VIRTIO   0x1af4

#define VIRTIO_FEATURES 4
#define VIRTIO_QUEUE_PAGE 8
#define VIRTIO_QUEUE_SIZE 12
#define VIRTIO_QUEUE_SELECT 14
#define VIRTIO_QUEUE_NOTIFY 16
#define VIRTIO_STATUS   18
#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER   2
#define STATUS_DRIVER_OK 4

#define RING_PAGE       4096
#define DESC_WRITE      2
#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY  1

typedef struct VirtDesc {
    uint64_t address;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} VirtDesc;

typedef struct VirtAvail {
    uint16_t flags;
    uint16_t index;
    uint16_t ring[];
} VirtAvail;

typedef struct VirtUsed {
    uint16_t flags;
    uint16_t index;
    struct {
        uint32_t id;
        uint32_t len;
    } ring[];
} VirtUsed;

uint16_t virtio_find(uint16_t device_id)
{
    uint32_t wanted = (uint32_t)device_id << 16 | VENDOR_VIRTIO;

    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (pci_read(slot, 0) == wanted) {
            uint32_t bar = pci_read(slot, PCI_BAR0);

            pci_write(slot, PCI_COMMAND, PCI_COMMAND_IO_MASTER);
            return bar & 1 ? bar & ~3u : 0;
        }
    }
    return 0;
}

void virtio_begin(uint16_t io, uint32_t features)
{
    outb(io + VIRTIO_STATUS, 0);
    outb(io + VIRTIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    outl(io + VIRTIO_FEATURES, inl(io) & features);
}

void virtio_go(uint16_t io)
{
    outb(io + VIRTIO_STATUS,
         STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK);
}

static uint8_t *slot_buffer(const VirtQueue *queue, unsigned number)
{
    return queue->buffers + number % queue->slots * queue->slot_bytes;
}

void virtqueue_init(VirtQueue *queue, uint16_t io, uint16_t index,
                    uint16_t slots, size_t slot_bytes)
{
    size_t used_at;
    uint8_t *ring;

    outw(io + VIRTIO_QUEUE_SELECT, index);
    *queue = (VirtQueue) {
        .io = io, .index = index, .size = inw(io + VIRTIO_QUEUE_SIZE),
        .slots = slots, .slot_bytes = slot_bytes,
        .buffers = memory_scratch(slots * slot_bytes),
    };
    if (queue->size < slots) {
        panic("virtqueue of size", queue->size);
    }
    used_at = queue->size * sizeof(VirtDesc) + 6 + queue->size * 2;
    used_at = (used_at + RING_PAGE - 1) / RING_PAGE * RING_PAGE;
    ring = memory_scratch(used_at + 6 + queue->size * 8);
    queue->descriptors = (void *)ring;
    queue->available = (void *)(queue->descriptors + queue->size);
    queue->used = (void *)(ring + used_at);
    queue->available->flags = AVAIL_NO_INTERRUPT;
    outl(io + VIRTIO_QUEUE_PAGE, (uint64_t)ring / RING_PAGE);
}

static void kick(VirtQueue *queue)
{
    /* The host must see the index before we see whether it wants to know */
    __sync_synchronize();
    if (!(queue->used->flags & USED_NO_NOTIFY)) {
        outw(queue->io + VIRTIO_QUEUE_NOTIFY, queue->index);
    }
}

static void post(VirtQueue *queue, uint32_t len, uint16_t flags)
{
    unsigned slot = queue->posted % queue->slots;

    queue->descriptors[slot].address =
        (uint64_t)slot_buffer(queue, queue->posted);
    queue->descriptors[slot].len = len;
    queue->descriptors[slot].flags = flags;
    queue->available->ring[queue->posted % queue->size] = slot;
    asm volatile("" : : : "memory");
    queue->available->index = ++queue->posted;
}

void *virtqueue_room(VirtQueue *queue)
{
    uint16_t used = queue->used->index;

    return (uint16_t)(queue->posted - used) < queue->slots
           ? slot_buffer(queue, queue->posted) : NULL;
}

void virtqueue_send(VirtQueue *queue, size_t len)
{
    post(queue, len, 0);
    kick(queue);
}

bool virtqueue_drained(const VirtQueue *queue)
{
    return queue->used->index == queue->posted;
}

void virtqueue_lend(VirtQueue *queue)
{
    for (unsigned i = 0; i < queue->slots; i++) {
        post(queue, queue->slot_bytes, DESC_WRITE);
    }
    kick(queue);
}

const void *virtqueue_receive(VirtQueue *queue, size_t *len)
{
    uint32_t n;

    if (queue->used->index == queue->seen) {
        return NULL;
    }
    asm volatile("" : : : "memory");
    n = queue->used->ring[queue->seen % queue->size].len;
    *len = n < queue->slot_bytes ? n : queue->slot_bytes;
    return slot_buffer(queue, queue->seen);
}

void virtqueue_return(VirtQueue *queue)
{
    queue->seen++;
    post(queue, queue->slot_bytes, DESC_WRITE);
    kick(queue);
}
