/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * execve(2) by hand: a child of the old QEMU becomes the new one.
 *
 * execve(2) would take its memory away.  So everything that it does is done here, by system calls
 * that the child makes one by one under ptrace(2): it keeps the RAM blocks, the vdso and some
 * descriptors, and nothing else of what the old QEMU was.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "recipient.h"
#include "remote.h"
#include "stack.h"

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#define RSEQ_FLAG_UNREGISTER 1

/* The end of the addresses that a process may have without asking for more. */
#define ADDRESS_END 0x7ffffffff000ull
#define STACK_SIZE (8ull << 20)
/* The part of it that is filled: arguments and environment. */
#define STACK_IMAGE (1u << 20)
/* Where the child finds what is passed by address. */
#define SCRATCH_SIZE (16 * PAGE)
#define SCRATCH_AUXILIARY (8 * PAGE)
/* Where programs are, with random bits added: below mmap's area, above everything else. */
#define PROGRAM_BASE 0x555500000000ull
#define SIGNALS 64

/* struct rseq_configuration of ptrace(2). */
struct rseq_configuration {
    uint64_t address;
    uint32_t size;
    uint32_t signature;
    uint32_t flags;
    uint32_t padding;
};

/* Everything about the child while it is neither the one nor the other. */
struct becoming {
    struct remote remote;
    const struct donor *donor;
    const struct program *program;
    uint64_t scratch;
    long file_fd;
    long linker_fd;
    uint64_t file_bias;
    uint64_t linker_bias;
    uint64_t stack;
    struct stack_layout layout;
    unsigned calls;
};

#define CALL(b, what, ...) ((b)->calls++, remote_call(&(b)->remote, what, __VA_ARGS__))

static int by_start(const void *a, const void *b)
{
    const struct elf_segment *one = a, *other = b;

    return one->start < other->start ? -1 : one->start > other->start;
}

/* The kernel must not write to an area of restartable sequences that is about to be unmapped. */
static void forget_sequences(struct becoming *becoming)
{
    struct rseq_configuration rseq = { 0 };

    if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, becoming->remote.tid, sizeof(rseq), &rseq) > 0 &&
        rseq.address) {
        CALL(becoming, "the child keeps its area of restartable sequences", SYS_rseq, rseq.address,
             rseq.size, RSEQ_FLAG_UNREGISTER, rseq.signature, 0, 0);
    }
}

/* Unmaps everything but the RAM blocks and the vdso with its data. */
static void forget_memory(struct becoming *becoming)
{
    struct elf_segment kept[BLOCKS + 8];
    const struct donor *donor = becoming->donor;
    uint64_t at = 0;
    size_t count = 0;

    for (size_t i = 0; i < donor->count; i++) {
        const struct block *block = &donor->blocks[i];

        if (!block->file) { /* that would be by its descriptor */
            kept[count++] = (struct elf_segment){ .start = block->address,
                                                  .end = block->address + PAGE_UP(block->most) };
        }
    }
    for (size_t i = 0; i < donor->maps.count; i++) {
        const struct mapping *mapping = &donor->maps.list[i];

        if (!strcmp(mapping->name, "[vdso]") || !strncmp(mapping->name, "[vvar", 5)) {
            if (count == BLOCKS + 8) {
                fail(becoming->remote.error, "a vdso in many parts");
                return;
            }
            kept[count++] = (struct elf_segment){ .start = mapping->start, .end = mapping->end };
        }
    }
    qsort(kept, count, sizeof(kept[0]), by_start);
    for (size_t i = 0; i <= count; i++) {
        uint64_t to = i < count ? kept[i].start : ADDRESS_END;

        if (to > at) {
            CALL(becoming, "the child keeps memory of the old QEMU", SYS_munmap, at, to - at, 0, 0,
                 0, 0);
        }
        at = i < count ? kept[i].end : at;
    }
    /* To move memory that KSM looks at takes up to a hundred times as long. */
    for (size_t i = 0; i < donor->count; i++) {
        CALL(becoming, NULL, SYS_madvise, donor->blocks[i].address,
             PAGE_UP(donor->blocks[i].most), MADV_UNMERGEABLE, 0, 0, 0);
    }
}

static int put_text(struct becoming *becoming, const char *text)
{
    return remote_write(becoming->remote.pid, becoming->scratch, text, strlen(text) + 1,
                        becoming->remote.error);
}

/* The child opens it by itself: with its own rights, in its own file system. */
static long open_file(struct becoming *becoming, const char *path)
{
    char what[300];

    if (put_text(becoming, path)) {
        return -1;
    }
    snprintf(what, sizeof(what), "the child cannot open %.200s", path);
    return CALL(becoming, what, SYS_openat, AT_FDCWD, becoming->scratch, O_RDONLY | O_CLOEXEC, 0, 0,
                0);
}

/* Clears the rest of the last page that comes from the file. */
static void clear_rest(struct becoming *becoming, uint64_t from, uint64_t to)
{
    static const uint8_t zeroes[PAGE];

    if (!becoming->remote.error->set) {
        remote_write(becoming->remote.pid, from, zeroes, to - from, becoming->remote.error);
    }
}

/* Maps a program where there is room for it; `hint` is tried, 0 lets the kernel choose. */
static uint64_t map_program(struct becoming *becoming, const struct elf_plan *plan, long fd,
                            uint64_t hint)
{
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (hint ? MAP_FIXED_NOREPLACE : 0);
    uint64_t base = CALL(becoming, "no room for the new program", SYS_mmap, hint,
                         plan->high - plan->low, PROT_NONE, how, -1, 0);
    uint64_t bias = base - plan->low;

    for (size_t i = 0; i < plan->count && !becoming->remote.error->set; i++) {
        const struct elf_segment *segment = &plan->segments[i];

        if (segment->file_end > segment->start) {
            CALL(becoming, "the child cannot map the new program", SYS_mmap, bias + segment->start,
                 segment->file_end - segment->start, segment->protection, MAP_PRIVATE | MAP_FIXED,
                 fd, segment->file_offset);
        }
        if (segment->end > segment->file_end) {
            CALL(becoming, "the child cannot map the new program's data", SYS_mmap,
                 bias + segment->file_end, segment->end - segment->file_end, segment->protection,
                 MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
        }
        if (segment->zero_from) {
            clear_rest(becoming, bias + segment->zero_from, bias + segment->file_end);
        }
    }
    return bias;
}

static uint64_t random_bits(void)
{
    uint64_t bits = 0;

    /* Before the pool is ready it is as good as nothing; a QEMU runs long after that. */
    return getrandom(&bits, sizeof(bits), GRND_NONBLOCK) == sizeof(bits) ? bits : 0;
}

static void map_files(struct becoming *becoming)
{
    const struct program *program = becoming->program;
    const struct elf_plan *file = &program->file;
    uint64_t hint = PROGRAM_BASE + ((random_bits() & 0xfffffff) << 12);

    becoming->scratch = CALL(becoming, "no memory for the child", SYS_mmap, 0, SCRATCH_SIZE,
                             PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    becoming->file_fd = open_file(becoming, program->arguments[0]);
    becoming->linker_fd = file->interpreter[0] ? open_file(becoming, file->interpreter) : -1;
    becoming->file_bias = map_program(becoming, file, becoming->file_fd,
                                      file->position_independent ? hint : file->low);
    if (file->interpreter[0]) {
        becoming->linker_bias = map_program(becoming, &program->linker, becoming->linker_fd, 0);
    }
    becoming->stack = CALL(becoming, "no memory for the child's stack", SYS_mmap, 0, STACK_SIZE,
                           PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
}

static void fill_stack(struct becoming *becoming)
{
    const struct program *program = becoming->program;
    static uint8_t image[STACK_IMAGE];
    uint64_t top = becoming->stack + STACK_SIZE, used;
    struct stack_input input = {
        .arguments = program->arguments,
        .argument_count = program->argument_count,
        .environment = program->environment,
        .environment_size = program->environment_size,
        .auxiliary = program->auxiliary,
        .program_headers = becoming->file_bias + program->file.headers,
        .header_count = program->file.header_count,
        .interpreter_base = program->file.interpreter[0]
                                ? becoming->linker_bias + program->linker.low : 0,
        .entry = becoming->file_bias + program->file.entry,
    };

    if (becoming->remote.error->set) {
        return;
    }
    memcpy(input.ids, becoming->donor->ids, sizeof(input.ids));
    if (getrandom(input.random, sizeof(input.random), GRND_NONBLOCK) != sizeof(input.random)) {
        fail_errno(becoming->remote.error, "no random bytes");
        return;
    }
    if (!stack_build(&input, image, sizeof(image), top, &becoming->layout,
                     becoming->remote.error)) {
        used = top - becoming->layout.pointer;
        remote_write(becoming->remote.pid, becoming->layout.pointer, image + sizeof(image) - used,
                     used, becoming->remote.error);
    }
}

/* What ps(1) and /proc say of the process, as far as it may say so itself. */
static void correct_appearance(struct becoming *becoming)
{
    const char *path = becoming->program->arguments[0], *name = strrchr(path, '/') + 1;
    const struct elf_plan *file = &becoming->program->file;
    const struct stack_layout *layout = &becoming->layout;
    uint64_t bias = becoming->file_bias, auxiliary = becoming->scratch + SCRATCH_AUXILIARY;
    struct prctl_mm_map map = {
        .start_code = bias + file->low,
        .end_code = bias + file->high - 1,
        .start_data = bias + file->low,
        .end_data = bias + file->data_end - 1,
        .start_brk = bias + file->high + PAGE,
        .brk = bias + file->high + PAGE,
        .start_stack = layout->pointer,
        .arg_start = layout->arguments_start,
        .arg_end = layout->arguments_end,
        .env_start = layout->arguments_end,
        .env_end = layout->environment_end,
        .auxv = (void *)auxiliary,
        .auxv_size = layout->auxiliary_count * sizeof(struct auxiliary),
        .exe_fd = becoming->file_fd,
    };
    pid_t pid = becoming->remote.pid;

    if (becoming->remote.error->set || put_text(becoming, name)) {
        return;
    }
    CALL(becoming, NULL, SYS_prctl, PR_SET_NAME, becoming->scratch, 0, 0, 0, 0);
    remote_write(pid, auxiliary, layout->auxiliary, map.auxv_size, becoming->remote.error);
    remote_write(pid, becoming->scratch, &map, sizeof(map), becoming->remote.error);
    if (CALL(becoming, NULL, SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, becoming->scratch, sizeof(map), 0,
             0) < 0) {
        /* Without privileges it cannot change which file /proc/PID/exe is. */
        map.exe_fd = -1;
        remote_write(pid, becoming->scratch, &map, sizeof(map), becoming->remote.error);
        CALL(becoming, NULL, SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, becoming->scratch, sizeof(map), 0,
             0);
    }
}

/* Signals as they are after execve(2); timers and pending signals no child has. */
static void forget_signals(struct becoming *becoming)
{
    const uint64_t action[4] = { 0 }; /* struct kernel_sigaction: SIG_DFL */
    const stack_t none = { .ss_flags = SS_DISABLE };
    pid_t pid = becoming->remote.pid;

    remote_write(pid, becoming->scratch, action, sizeof(action), becoming->remote.error);
    for (int number = 1; number <= SIGNALS; number++) {
        if (becoming->donor->caught >> (number - 1) & 1) {
            CALL(becoming, "the child keeps a signal's handler", SYS_rt_sigaction, number,
                 becoming->scratch, 0, sizeof(uint64_t), 0, 0);
        }
    }
    remote_write(pid, becoming->scratch, &none, sizeof(none), becoming->remote.error);
    CALL(becoming, "the child keeps its signal stack", SYS_sigaltstack, becoming->scratch, 0, 0, 0,
         0, 0);
}

/*
 * Closes every descriptor that is not kept, and gives the others their numbers: by way of numbers
 * that nobody has, for one's old number may be another one's new one.
 */
static void forget_descriptors(struct becoming *becoming)
{
    const struct program *program = becoming->program;
    static const char what[] = "a descriptor for the new QEMU";
    long between[DESCRIPTORS];
    unsigned from = 3;

    for (size_t i = 0; i < program->descriptor_count; i++) {
        between[i] = CALL(becoming, what, SYS_fcntl, program->descriptors[i].from, F_DUPFD,
                          program->descriptors[program->descriptor_count - 1].to + 1, 0, 0, 0);
    }
    for (size_t i = 0; i < program->descriptor_count; i++) {
        CALL(becoming, what, SYS_dup3, between[i], program->descriptors[i].to, 0, 0, 0, 0);
    }
    for (size_t i = 0; i <= program->descriptor_count; i++) {
        unsigned to = i < program->descriptor_count ? (unsigned)program->descriptors[i].to - 1
                                                    : ~0u;

        if (to + 1 > from || to == ~0u) {
            CALL(becoming, "the child keeps descriptors of the old QEMU", SYS_close_range, from, to,
                 0, 0, 0, 0);
        }
        from = to + 2;
    }
}

/* The registers as a program finds them at its entry (x86-64 psABI, 3.4.1). */
static int enter(struct becoming *becoming)
{
    const struct elf_plan *file = &becoming->program->file;
    struct user_fpregs_struct floats = { .cwd = 0x37f, .mxcsr = 0x1f80 };
    struct user_regs_struct regs = {
        .rip = file->interpreter[0] ? becoming->linker_bias + becoming->program->linker.entry
                                    : becoming->file_bias + file->entry,
        .rsp = becoming->layout.pointer,
        .cs = becoming->remote.regs.cs,
        .ss = becoming->remote.regs.ss,
        .eflags = 0x202,
        .orig_rax = -1,
    };
    pid_t tid = becoming->remote.tid;
    uint64_t none = 0;

    CALL(becoming, "the child keeps memory of ours", SYS_munmap, becoming->scratch, SCRATCH_SIZE, 0,
         0, 0, 0);
    if (becoming->remote.error->set) {
        return -1;
    }
    /* From here on its filter holds again; signals to it are passed on by recipient_attend(). */
    if (ptrace(PTRACE_SETFPREGS, tid, 0, &floats) || ptrace(PTRACE_SETREGS, tid, 0, &regs) ||
        ptrace(PTRACE_SETSIGMASK, tid, sizeof(none), &none) ||
        ptrace(PTRACE_SETOPTIONS, tid, 0, PTRACE_O_EXITKILL) || ptrace(PTRACE_CONT, tid, 0, 0)) {
        return fail_errno(becoming->remote.error, "the child does not enter the new program");
    }
    return 0;
}

int recipient_become(struct recipient *recipient, const struct donor *donor,
                     const struct program *program, struct error *error)
{
    struct becoming becoming = {
        .remote = { .pid = recipient->pid, .tid = recipient->pid, .error = error },
        .donor = donor,
        .program = program,
    };
    const struct mapping *vdso = maps_named(&donor->maps, "[vdso]");
    uint64_t begun = now_us();

    /* The vdso stays where it is. */
    becoming.remote.instruction = remote_instruction(recipient->pid, vdso->start,
                                                     vdso->end - vdso->start, error);
    if (!becoming.remote.instruction || remote_begin(&becoming.remote)) {
        return -1;
    }
    forget_sequences(&becoming);
    forget_memory(&becoming);
    map_files(&becoming);
    fill_stack(&becoming);
    correct_appearance(&becoming);
    forget_signals(&becoming);
    forget_descriptors(&becoming);
    enter(&becoming);
    recipient->calls = becoming.calls;
    recipient->become_us = now_us() - begun;
    return error->set ? -1 : 0;
}
