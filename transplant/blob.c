/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "blob.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

/* Of the kernel's own (include/linux/errno.h): a call that was interrupted and is made again. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

/*
 * What follows the code: nine registers, and the calls, 32 bytes each, ended by -1.  The flags that
 * a system call returns with are nobody's (rcx, r11 and the condition codes are clobbered by it).
 */
__asm__(".pushsection .rodata\n"
        ".balign 8\n"
        "blob_code:\n"
        "    lea blob_calls(%rip), %rbx\n"
        "1:  mov (%rbx), %rax\n"
        "    cmp $-1, %rax\n"
        "    je 4f\n"
        "    mov 8(%rbx), %rdi\n"
        "    mov 16(%rbx), %rsi\n"
        "    mov 24(%rbx), %rdx\n"
        "    xor %r10d, %r10d\n"
        "    xor %r8d, %r8d\n"
        "    xor %r9d, %r9d\n"
        "    syscall\n"
        "    cmpq $435, (%rbx)\n" /* BLOB_CLONE3 */
        "    jne 2f\n"
        "    test %rax, %rax\n"
        "    je 3f\n"
        "2:  add $32, %rbx\n"
        "    jmp 1b\n"
        /* The child: exit_group(0). */
        "3:  mov $231, %eax\n"
        "    xor %edi, %edi\n"
        "    syscall\n"
        "    hlt\n"
        "4:  mov blob_registers+0(%rip), %rbx\n"
        "    mov blob_registers+8(%rip), %rdi\n"
        "    mov blob_registers+16(%rip), %rsi\n"
        "    mov blob_registers+24(%rip), %rdx\n"
        "    mov blob_registers+32(%rip), %r10\n"
        "    mov blob_registers+40(%rip), %r8\n"
        "    mov blob_registers+48(%rip), %r9\n"
        "    mov blob_registers+56(%rip), %rax\n"
        "    jmp *blob_registers+64(%rip)\n"
        "    .balign 8\n"
        "blob_registers:\n"
        "    .fill 9, 8, 0\n"
        "blob_calls:\n"
        ".popsection\n");

extern const uint8_t blob_code[], blob_registers[], blob_calls[];

/* struct clone_args as clone3(2) had it first (CLONE_ARGS_SIZE_VER0): all of it 0. */
#define CLONE_ARGUMENTS 64

size_t blob_size(size_t count)
{
    return blob_calls - blob_code + (count + 1) * sizeof(struct blob_call) + CLONE_ARGUMENTS;
}

int blob_begins(const uint8_t *data, size_t size)
{
    size_t code = blob_registers - blob_code;

    return size >= code && !memcmp(data, blob_code, code);
}

/* Where the thread goes on, and with what in rax, if it is to make its call again. */
static void resume_at(const struct user_regs_struct *regs, uint64_t *rax, uint64_t *rip)
{
    *rax = regs->rax;
    *rip = regs->rip;
    switch (-(long)regs->rax) {
    case ERESTARTSYS:
    case ERESTARTNOINTR:
    case ERESTARTNOHAND:
        *rax = regs->orig_rax;
        *rip -= 2; /* the length of the instruction syscall */
        break;
    case ERESTART_RESTARTBLOCK:
        *rax = SYS_restart_syscall;
        *rip -= 2;
        break;
    }
}

long blob_build(uint8_t *image, size_t size, uint64_t address,
                const struct user_regs_struct *regs, const struct blob_call *calls, size_t count,
                struct error *error)
{
    uint64_t registers[9] = { regs->rbx, regs->rdi, regs->rsi, regs->rdx,
                              regs->r10, regs->r8,  regs->r9 };
    const struct blob_call end = { .number = -1ull };
    size_t at = blob_calls - blob_code, need = blob_size(count);

    if (need > size) {
        return fail(error, "the calls that have to be made take %zu bytes, and there is room for "
                           "%zu", need, size);
    }
    if ((long)regs->orig_rax < 0) {
        return fail(error, "the thread is in no system call");
    }
    resume_at(regs, &registers[7], &registers[8]);
    memset(image, 0, need);
    memcpy(image, blob_code, at);
    memcpy(image + (blob_registers - blob_code), registers, sizeof(registers));
    for (size_t i = 0; i < count; i++, at += sizeof(*calls)) {
        struct blob_call call = calls[i];

        if (call.number == BLOB_CLONE3) {
            call.arguments[0] = address + need - CLONE_ARGUMENTS;
            call.arguments[1] = CLONE_ARGUMENTS;
        }
        memcpy(image + at, &call, sizeof(call));
    }
    memcpy(image + at, &end, sizeof(end));
    return need;
}
