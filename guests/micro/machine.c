/*
 * The processor's tables and the few devices of the board itself.
 *
 * kernel_init() and panic_trap() are called in ring 0.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "micro.h"

#define COM1            0x3f8
#define PCI_ADDRESS     0xcf8
#define PCI_DATA        0xcfc
#define PIC1_DATA       0x21
#define PIC2_DATA       0xa1
#define PIT_CHANNEL0    0x40
#define PIT_MODE        0x43
#define PIT_RATE_GENERATOR 0x34
/* 1193182 Hz divided to 2 kHz: a nap then ends before a beat is late */
#define PIT_DIVISOR     597
#define GATE_INTERRUPT  0x8e
#define IO_PORTS        65536
#define LPC_SLOT        0x1f
#define LPC_PMBASE      0x40
#define PM1_CONTROL     4
#define PM1_SLEEP_S5    0x2000

typedef struct Gate {
    uint16_t offset_low;
    uint16_t selector;
    uint8_t stack;
    uint8_t type;
    uint16_t offset_middle;
    uint32_t offset_high;
    uint32_t zero;
} Gate;

typedef struct __attribute__((packed)) TaskState {
    uint32_t reserved;
    uint64_t rsp[3];
    uint64_t others[9];
    uint16_t more;
    uint16_t io_map_offset;
    uint8_t io_map[IO_PORTS / 8 + 1];
} TaskState;

typedef struct __attribute__((packed)) TablePointer {
    uint16_t limit;
    uint64_t base;
} TablePointer;

uint32_t stray_interrupts;

static Gate idt[IRQ_VECTOR + IRQS] __attribute__((aligned(16)));
static TaskState task_state;

void log_line(const char *what, uint64_t n)
{
    char bytes[128];
    Text text = { .bytes = bytes, .size = sizeof(bytes) };

    text_string(&text, "micro: ");
    text_string(&text, what);
    text_string(&text, " ");
    text_hex(&text, n);
    text_string(&text, "\r\n");
    for (size_t i = 0; i < text.len; i++) {
        outb(COM1, bytes[i]);
    }
}

/* The QEMU ends with the guest: that is seen sooner than silence */
void panic(const char *what, uint64_t n)
{
    log_line("panic:", 0);
    log_line(what, n);
    power_off();
    for (;;) {
        /* whatever the board did not turn off */
    }
}

void panic_trap(const TrapFrame *frame)
{
    log_line("exception", frame->vector);
    log_line("error code", frame->error);
    panic("at", frame->rip);
}

static void gate(unsigned vector, const char *entry)
{
    uint64_t offset = (uint64_t)entry;

    idt[vector] = (Gate) {
        .offset_low = offset,
        .selector = KERNEL_CS,
        .type = GATE_INTERRUPT,
        .offset_middle = offset >> 16,
        .offset_high = offset >> 32,
    };
}

static void tables_init(void)
{
    uint64_t base = (uint64_t)&task_state;
    TablePointer pointer = { sizeof(idt) - 1, (uint64_t)idt };

    for (unsigned i = 0; i < TRAPS; i++) {
        gate(i, (const char *)trap_entries[i]);
    }
    for (unsigned i = 0; i < IRQS; i++) {
        gate(IRQ_VECTOR + i, i ? irq_stray : irq_timer);
    }
    asm volatile("lidt %0" : : "m"(pointer));

    task_state.rsp[0] = (uint64_t)kernel_stack_top;
    /* Every port is ring 3's: a bit that is clear, and the end marked */
    task_state.io_map_offset = offsetof(TaskState, io_map);
    task_state.io_map[IO_PORTS / 8] = 0xff;
    gdt[TSS_SELECTOR / 8] = (sizeof(task_state) - 1) |
                            (base & 0xffffff) << 16 | 0x89ULL << 40 |
                            (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}

/* Only the timer may interrupt, and only during a nap */
static void timer_init(void)
{
    static const uint8_t setup[][2] = {
        { PIC1_COMMAND, 0x11 }, { PIC2_COMMAND, 0x11 },
        { PIC1_DATA, IRQ_VECTOR }, { PIC2_DATA, IRQ_VECTOR + 8 },
        { PIC1_DATA, 4 }, { PIC2_DATA, 2 },
        { PIC1_DATA, 1 }, { PIC2_DATA, 1 },
        { PIC1_DATA, 0xfe }, { PIC2_DATA, 0xff },
        { PIT_MODE, PIT_RATE_GENERATOR },
        { PIT_CHANNEL0, PIT_DIVISOR & 0xff },
        { PIT_CHANNEL0, PIT_DIVISOR >> 8 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(setup); i++) {
        outb(setup[i][0], setup[i][1]);
    }
}

void kernel_init(const uint32_t *multiboot)
{
    tables_init();
    timer_init();
    memory_init(multiboot);
}

uint32_t pci_read(unsigned slot, unsigned offset)
{
    outl(PCI_ADDRESS, 0x80000000u | slot << 11 | offset);
    return inl(PCI_DATA);
}

void pci_write(unsigned slot, unsigned offset, uint32_t value)
{
    outl(PCI_ADDRESS, 0x80000000u | slot << 11 | offset);
    outl(PCI_DATA, value);
}

void power_off(void)
{
    uint16_t pm_base = pci_read(LPC_SLOT, LPC_PMBASE) & 0xff80;

    outw(pm_base + PM1_CONTROL, PM1_SLEEP_S5);
}
