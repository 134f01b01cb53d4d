/*
 * What a guest on KVM pays for when its memory gets a new owner.
 *
 *     cc -O2 -o memory tests/kvm/memory.c && ./memory MIB ROUNDS [4k]
 *
 * A guest program in ring 3 writes to each of its pages, again and again, and
 * says so after each pass.  Timed are, in turn: a pass of a VM that has had its
 * memory for long; one after the memory got a second VM (which is what an
 * upgrade does); one of the first VM after its memory was moved to another
 * address (which is what keeping the descriptors would do, as long as the new
 * QEMU has its own addresses); and what it takes to create a VM and a vCPU.
 * The exit code is 77 where KVM cannot be used, or does not run such a program.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { UNSUPPORTED = 77 };
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, CODE = 0x8000, FIRST = 0x200000 };

struct vm {
    int fd, cpu;
    struct kvm_run *run;
};

static int kvm;
static uint64_t size;

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void must(int result, const char *what)
{
    if (result < 0) {
        err(1, "%s", what);
    }
}

static void give(struct vm *vm, uint8_t *memory)
{
    struct kvm_userspace_memory_region slot = {
        .memory_size = size, .userspace_addr = (uintptr_t)memory,
    };
    struct kvm_userspace_memory_region none = { .memory_size = 0 };

    ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &none);
    must(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
}

static struct kvm_segment segment(int type, int l)
{
    return (struct kvm_segment) {
        .limit = 0xffffffff, .selector = type == 11 ? 0x23 : 0x1b, .present = 1,
        .type = type, .dpl = 3, .db = !l, .s = 1, .l = l, .g = 1,
    };
}

static struct vm create(uint8_t *memory)
{
    struct vm vm;
    struct kvm_sregs s;
    struct kvm_regs r = { .rip = CODE, .rflags = 0x3002, .rbx = size };
    struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entry[128]; } cpuid = {
        .head.nent = 128,
    };

    must(vm.fd = ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000ul);
    give(&vm, memory);
    must(vm.cpu = ioctl(vm.fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    vm.run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
                  MAP_SHARED, vm.cpu, 0);
    if (vm.run == MAP_FAILED) {
        err(1, "the vCPU's state");
    }
    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
    must(ioctl(vm.cpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
    must(ioctl(vm.cpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    s.cr3 = PML4;
    s.cr4 |= 0x20;
    s.cr0 |= 0x80000001;
    s.efer |= 0x500;
    s.cs = segment(11, 1);
    s.ds = s.es = s.fs = s.gs = s.ss = segment(3, 0);
    must(ioctl(vm.cpu, KVM_SET_SREGS, &s), "KVM_SET_SREGS");
    must(ioctl(vm.cpu, KVM_SET_REGS, &r), "KVM_SET_REGS");
    return vm;
}

static double pass_ms(struct vm *vm)
{
    double start = now_ms();

    must(ioctl(vm->cpu, KVM_RUN, 0), "KVM_RUN");
    if (vm->run->exit_reason != KVM_EXIT_IO) {
        errx(vm->run->exit_reason == KVM_EXIT_INTERNAL_ERROR ? UNSUPPORTED : 1,
             "the guest ended with exit %d", vm->run->exit_reason);
    }
    return now_ms() - start;
}

static void destroy(struct vm *vm)
{
    munmap(vm->run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    close(vm->cpu);
    close(vm->fd);
}

/* Each page table maps 2 MiB to itself, for ring 3 */
static void fill(uint8_t *memory)
{
    /* L: mov $FIRST, %eax; M: incq (%rax); add $4096, %rax; cmp %rbx, %rax; jb M;
     *    out %al, $0x10; jmp L */
    static const uint8_t code[] = {
        0xb8, 0x00, 0x00, 0x20, 0x00, 0x48, 0xff, 0x00, 0x48, 0x05, 0x00, 0x10, 0x00, 0x00,
        0x48, 0x39, 0xd8, 0x72, 0xf2, 0xe6, 0x10, 0xeb, 0xe9,
    };
    uint64_t *pd = (uint64_t *)(memory + PD);

    *(uint64_t *)(memory + PML4) = PDPT | 7;
    for (int i = 0; i < 4; i++) {
        ((uint64_t *)(memory + PDPT))[i] = (PD + i * 4096) | 7;
    }
    for (uint64_t at = 0; at < 2048; at++) {
        pd[at] = at << 21 | 0x87;
    }
    memcpy(memory + CODE, code, sizeof(code));
}

static uint8_t *reserve(void)
{
    uint8_t *at = mmap(NULL, size + (2 << 20), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (at == MAP_FAILED) {
        err(1, "%zu bytes", (size_t)size);
    }
    return (uint8_t *)(((uintptr_t)at + (2 << 20) - 1) & ~((2ul << 20) - 1));
}

int main(int argc, char **argv)
{
    uint8_t *memory, *other;
    struct vm vm;

    size = argc < 3 ? 0 : strtoull(argv[1], NULL, 0) << 20;
    if (size <= FIRST || size >= 4ul << 30) {
        errx(2, "usage: memory MIB ROUNDS [4k], with 3 to 4095 MIB");
    }
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        err(UNSUPPORTED, "/dev/kvm");
    }
    memory = reserve();
    other = reserve();
    madvise(memory, size, argc > 3 ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    fill(memory);
    memset(memory + FIRST, 1, size - FIRST);
    vm = create(memory);
    pass_ms(&vm);
    printf("ms: warm, after a new VM, the pass after that, after a move, the pass after that, "
           "creating a VM\n");
    for (int round = 0; round < atoi(argv[2]); round++) {
        double warm = pass_ms(&vm), start, made, first, second, moved, again;
        struct vm next;
        uint8_t *was;

        start = now_ms();
        next = create(memory);
        made = now_ms() - start;
        first = pass_ms(&next);
        second = pass_ms(&next);
        destroy(&next);
        pass_ms(&vm);
        if (mremap(memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                   other) == MAP_FAILED) {
            err(1, "mremap");
        }
        was = memory;
        memory = other;
        other = was;
        give(&vm, memory);
        moved = pass_ms(&vm);
        again = pass_ms(&vm);
        printf("%.2f %.2f %.2f %.2f %.2f %.2f\n", warm, first, second, moved, again, made);
    }
    return 0;
}
