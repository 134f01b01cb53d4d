/*
 * Numbers that the assembly and the C side must agree on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_MICRO_LAYOUT_H
#define PAGEFLIP_MICRO_LAYOUT_H

#define KERNEL_CS       0x08
#define KERNEL_DS       0x10
#define USER_DS         0x1b
#define USER_CS         0x23
#define TSS_SELECTOR    0x28

#define TRAPS           32
#define IRQ_VECTOR      32
#define IRQS            16

#define PIC1_COMMAND    0x20
#define PIC2_COMMAND    0xa0

/* Where the memory under test is mapped, in one piece: at 1 TiB */
#define POOL_PML4_SLOT  2

#endif
