/*
 * From the boot loader to ring 3, and back for a trap or a nap.
 *
 * The payload itself runs in ring 3 (with every I/O port, interrupts off):
 * a KVM that has to emulate a guest's kernel, as a nested one may, still
 * runs its user mode at the speed of the processor.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "layout.h"

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 3               /* page aligned, memory map wanted */

#define CR0_PE_PG       0x80000001
#define CR4_PAE         0x00000020
#define MSR_EFER        0xc0000080
#define EFER_LME        0x00000100
#define PTE_TABLE       0x07            /* present, writable, user */
#define PTE_2M          0x87
#define RFLAGS_USER     0x0002          /* interrupts stay off */
#define TRAP_PROTECTION 13
#define OPCODE_HLT      0xf4
#define PIC_EOI         0x20

    .section .multiboot, "a"
    .align 4
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

    .text
    .code32
    .globl start
start:
    cli
    cld
    mov $kernel_stack_top, %esp
    mov %ebx, %edi                      /* the multiboot information */

    xor %ecx, %ecx                      /* the first GiB and the last of 4, */
1:  mov %ecx, %eax                      /* each at its own address */
    shl $21, %eax
    or $PTE_2M, %eax
    mov %eax, low_pd(, %ecx, 8)
    or $0xc0000000, %eax
    mov %eax, high_pd(, %ecx, 8)
    inc %ecx
    cmp $512, %ecx
    jne 1b
    movl $(low_pd + PTE_TABLE), identity_pdpt
    movl $(high_pd + PTE_TABLE), identity_pdpt + 24
    movl $(identity_pdpt + PTE_TABLE), pml4
    movl $(pool_pdpt + PTE_TABLE), pml4 + POOL_PML4_SLOT * 8

    mov %cr4, %eax
    or $CR4_PAE, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov %cr0, %eax
    or $CR0_PE_PG, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $KERNEL_CS, $start64

    .code64
start64:
    mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %edi, %edi                      /* clears the upper half */
    call kernel_init

    mov $USER_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    pushq $USER_DS
    pushq $user_stack_top - 8           /* as if called */
    pushq $RFLAGS_USER
    pushq $USER_CS
    pushq $micro_main
    iretq

/*
 * hlt in ring 3 is a general protection fault, and this guest's system
 * call: sleep until the timer ticks.  (int $N would do on a processor; a
 * KVM that emulates does not know it.)
 */
nap_or_fault:
    push %rax
    mov 16(%rsp), %rax                  /* above the error code: rip */
    cmpb $OPCODE_HLT, (%rax)
    jne fault
    sti
    hlt
    cli
    incq 16(%rsp)
    pop %rax
    add $8, %rsp
    iretq
fault:
    pop %rax
    push $TRAP_PROTECTION
    jmp trap_common

    .globl irq_timer
irq_timer:
    push %rax
    mov $PIC_EOI, %al
    out %al, $PIC1_COMMAND
    pop %rax
    iretq

    .globl irq_stray
irq_stray:
    push %rax
    incl stray_interrupts
    mov $PIC_EOI, %al
    out %al, $PIC2_COMMAND
    out %al, $PIC1_COMMAND
    pop %rax
    iretq

/* Exceptions: every one is fatal, and said on the log */
    .altmacro
    .macro trap_entry n
trap_\n:
    .if \n == TRAP_PROTECTION
    jmp nap_or_fault
    .endif
    .if \n == 8 || (\n >= 10 && \n <= 14) || \n == 17 || \n == 21
    .else
    push $0                             /* where others have an error code */
    .endif
    push $\n
    jmp trap_common
    .endm
    .macro trap_address n
    .quad trap_\n
    .endm

    .set i, 0
    .rept TRAPS
    trap_entry %i
    .set i, i + 1
    .endr

trap_common:
    mov %rsp, %rdi
    and $-16, %rsp
    call panic_trap

    .section .rodata
    .globl trap_entries
trap_entries:
    .set i, 0
    .rept TRAPS
    trap_address %i
    .set i, i + 1
    .endr

    .data
    .align 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* KERNEL_CS */
    .quad 0x00cf93000000ffff            /* KERNEL_DS */
    .quad 0x00cff3000000ffff            /* USER_DS */
    .quad 0x00affb000000ffff            /* USER_CS */
    .quad 0, 0                          /* TSS_SELECTOR, by kernel_init() */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .bss
    .align 4096
pml4:           .skip 4096
identity_pdpt:  .skip 4096
low_pd:         .skip 4096
high_pd:        .skip 4096
    .globl pool_pdpt
pool_pdpt:      .skip 4096
    .skip 4096
    .globl kernel_stack_top
kernel_stack_top:
    .skip 16384
user_stack_top:

    .section .note.GNU-stack, "", @progbits
