/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "recipient.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "remote.h"

static int say_ended(struct recipient *recipient, int status, struct error *error)
{
    recipient->ended = true;
    recipient->traced = false;
    recipient->status = status;
    if (WIFSIGNALED(status)) {
        return fail(error, "the new QEMU was killed by signal %d", WTERMSIG(status));
    }
    return fail(error, "the new QEMU ended by itself: exit status %d", WEXITSTATUS(status));
}

int recipient_attend(struct recipient *recipient, struct error *error)
{
    int status;

    if (!recipient->pid || recipient->ended) {
        return recipient->ended ? say_ended(recipient, recipient->status, error) : 0;
    }
    while (recipient->traced && waitpid(recipient->pid, &status, __WALL | WNOHANG) > 0) {
        int signal = WSTOPSIG(status), event = status >> 16;

        if (!WIFSTOPPED(status)) {
            return say_ended(recipient, status, error);
        }
        /* A stop of the whole group (SIGSTOP) goes on until SIGCONT. */
        if (event == PTRACE_EVENT_STOP && signal != SIGTRAP) {
            ptrace(PTRACE_LISTEN, recipient->pid, 0, 0);
        } else {
            ptrace(PTRACE_CONT, recipient->pid, 0, event ? 0 : signal);
        }
    }
    return 0;
}

static const struct block *named(const struct block *blocks, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(blocks[i].name, name)) {
            return &blocks[i];
        }
    }
    return NULL;
}

/* Whether the old QEMU's shared memory can take the place of the new one's, a file of its own. */
static bool alike(const struct mapping *new, const struct mapping *old)
{
    return new->offset == old->offset && !strncmp(new->name, "/memfd:", 7) &&
           (new->inode != old->inode || new->device != old->device);
}

/* Puts the new blocks into the order of the old ones, which have to be the same. */
static int match(struct recipient *recipient, const struct donor *donor, const struct maps *maps,
                 const struct block *blocks, size_t count, struct error *error)
{
    for (size_t i = 0; i < donor->count; i++) {
        const struct block *found = named(blocks, count, donor->blocks[i].name);

        if (!found) {
            return fail(error, "the new QEMU has no RAM block %s", donor->blocks[i].name);
        }
        if (found->most != donor->blocks[i].most) {
            return fail(error, "RAM block %s is %#lx bytes long in the new QEMU, not %#lx",
                        found->name, (unsigned long)found->most,
                        (unsigned long)donor->blocks[i].most);
        }
        if (!found->file != !donor->blocks[i].file || !found->file != !found->place) {
            return fail(error, "RAM block %s is shared memory in one QEMU, and not in the other",
                        found->name);
        }
        if (found->file && !alike(maps_begin(maps, found->address),
                                  maps_begin(&donor->maps, donor->blocks[i].address))) {
            return fail(error, "RAM block %s is not the whole of a memfd of the new QEMU's own",
                        found->name);
        }
        recipient->blocks[i] = *found;
    }
    for (size_t i = 0; i < count; i++) {
        if (!named(donor->blocks, donor->count, blocks[i].name)) {
            return fail(error, "the old QEMU has no RAM block %s", blocks[i].name);
        }
    }
    return 0;
}

/* Gives memory the properties that the new QEMU has given to its own, which it replaces. */
static void advise(struct remote *remote, uint64_t start, uint64_t size, unsigned flags)
{
    remote_call(remote, "the new QEMU's memory would be inherited", SYS_madvise, start, size,
                MADV_DONTFORK, 0, 0, 0);
    if (flags & MAPPING_NODUMP) {
        remote_call(remote, NULL, SYS_madvise, start, size, MADV_DONTDUMP, 0, 0, 0);
    }
    if (flags & MAPPING_MERGEABLE) {
        remote_call(remote, NULL, SYS_madvise, start, size, MADV_MERGEABLE, 0, 0, 0);
    }
    if (flags & MAPPING_HUGEPAGE) {
        remote_call(remote, NULL, SYS_madvise, start, size, MADV_HUGEPAGE, 0, 0, 0);
    }
}

/* Moves a block; it may be in several mappings, each of which has to be moved by itself. */
static int move_block(struct remote *remote, const struct maps *maps, uint64_t from, uint64_t to,
                      uint64_t size)
{
    unsigned flags = maps_begin(maps, to)->flags;

    for (size_t i = 0; i < maps->count && !remote->error->set; i++) {
        const struct mapping *mapping = &maps->list[i];
        uint64_t start = mapping->start > from ? mapping->start : from;
        uint64_t end = mapping->end < from + size ? mapping->end : from + size;

        if (start < end) {
            remote_call(remote, "the new QEMU cannot take its memory", SYS_mremap, start,
                        end - start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED,
                        to + (start - from), 0);
        }
    }
    advise(remote, to, size, flags);
    return remote->error->set ? -1 : 0;
}

/* Maps the old QEMU's file where the new one has its own: privately, or for good. */
static int map_file(struct remote *remote, const struct maps *maps, const struct donor *donor,
                    size_t i, const struct block *block, int how)
{
    const struct mapping *mapping = maps_begin(maps, block->address);
    uint64_t size = PAGE_UP(block->most);

    if (!mapping) {
        return fail(remote->error, "RAM block %s is not where it was", block->name);
    }
    remote_call(remote, "the new QEMU cannot map shared memory", SYS_mmap, block->address, size,
                PROT_READ | PROT_WRITE, how | MAP_FIXED | MAP_NORESERVE, block->place,
                maps_begin(&donor->maps, donor->blocks[i].address)->offset);
    advise(remote, block->address, size, mapping->flags);
    return remote->error->set ? -1 : 0;
}

/* Makes the new QEMU's main thread, which is stopped, ready for calls. */
static int begin_calls(struct remote *remote, const struct recipient *recipient,
                       const struct maps *maps, struct error *error)
{
    const struct mapping *vdso = maps_named(maps, "[vdso]");

    *remote = (struct remote){ .pid = recipient->pid, .tid = recipient->pid, .error = error };
    if (!vdso) {
        return fail(error, "the new QEMU has no vdso");
    }
    remote->instruction = remote_instruction(recipient->pid, vdso->start,
                                             vdso->end - vdso->start, error);
    return remote->instruction ? remote_begin(remote) : -1;
}

static int move_all(struct recipient *recipient, const struct donor *donor,
                    const struct maps *maps, struct error *error)
{
    struct remote remote;

    if (begin_calls(&remote, recipient, maps, error)) {
        return -1;
    }
    for (size_t i = 0; i < donor->count; i++) {
        uint64_t from = donor->blocks[i].address, size = PAGE_UP(donor->blocks[i].most);

        if (recipient->blocks[i].file) {
            if (map_file(&remote, maps, donor, i, &recipient->blocks[i], MAP_PRIVATE)) {
                return -1;
            }
        } else if (move_block(&remote, maps, from, recipient->blocks[i].address, size)) {
            return -1;
        }
    }
    return remote_end(&remote);
}

int recipient_adopt(struct recipient *recipient, const struct donor *donor,
                    const struct block *blocks, size_t count, struct error *error)
{
    static struct block found[BLOCKS];
    struct hold hold = { 0 };
    struct maps maps = { 0 };
    uint64_t begun = now_us();

    memcpy(found, blocks, count * sizeof(*blocks));
    if (maps_read(&maps, recipient->pid, error) ||
        ramblock_find(recipient->pid, found, count, &maps, error) ||
        match(recipient, donor, &maps, found, count, error)) {
        maps_free(&maps);
        return -1;
    }
    /* While a block moves there is nothing at its address: nobody may look there. */
    if (!hold_all(&hold, recipient->pid, recipient->pid, error)) {
        move_all(recipient, donor, &maps, error);
        hold_release(&hold, recipient->pid);
        if (ptrace(PTRACE_CONT, recipient->pid, 0, 0)) {
            fail_errno(error, "the new QEMU does not go on");
        }
    }
    maps_free(&maps);
    recipient->adopt_us = now_us() - begun;
    return error->set ? -1 : 0;
}

struct shared_block recipient_shared(const struct recipient *recipient, const struct donor *donor,
                                     size_t i)
{
    const struct block *old = &donor->blocks[i];

    return (struct shared_block){
        .number = i,
        .old = donor->pid,
        .old_fd = old->file,
        .new = recipient->pid,
        .address = recipient->blocks[i].address,
        .offset = maps_begin(&donor->maps, old->address)->offset,
        .size = PAGE_UP(old->most),
    };
}

/* All threads are stopped: puts what was written to the file, and maps that for good. */
static int share_all(struct recipient *recipient, const struct donor *donor,
                     const struct maps *maps, struct shared_undo *undo, struct error *error)
{
    struct remote remote;

    for (size_t i = 0; i < donor->count && !error->set; i++) {
        struct shared_block block = recipient_shared(recipient, donor, i);

        if (recipient->blocks[i].file) {
            shared_write(undo, &block, error);
        }
    }
    if (error->set || begin_calls(&remote, recipient, maps, error)) {
        return -1;
    }
    for (size_t i = 0; i < donor->count; i++) {
        const struct block *block = &recipient->blocks[i];

        if (block->file && !map_file(&remote, maps, donor, i, block, MAP_SHARED)) {
            remote_call(&remote, "the new QEMU cannot take the descriptor of shared memory",
                        SYS_dup3, block->place, block->file, O_CLOEXEC, 0, 0, 0);
            remote_call(&remote, NULL, SYS_close, block->place, 0, 0, 0, 0, 0);
        }
    }
    return remote_end(&remote);
}

int recipient_share(struct recipient *recipient, const struct donor *donor,
                    struct shared_undo *undo, struct error *error)
{
    struct hold hold = { 0 };
    struct maps maps = { 0 };
    bool any = false;

    for (size_t i = 0; i < donor->count; i++) {
        any |= recipient->blocks[i].file;
    }
    if (!any) {
        return 0;
    }
    if (!hold_all(&hold, recipient->pid, recipient->pid, error)) {
        if (!maps_read(&maps, recipient->pid, error)) {
            share_all(recipient, donor, &maps, undo, error);
        }
        hold_release(&hold, recipient->pid);
        if (ptrace(PTRACE_CONT, recipient->pid, 0, 0)) {
            fail_errno(error, "the new QEMU does not go on");
        }
    }
    maps_free(&maps);
    return error->set ? -1 : 0;
}

static int replace_all(const struct recipient *recipient, const struct maps *maps,
                       const struct replacement *replacements, size_t count, struct error *error)
{
    struct remote remote;

    if (begin_calls(&remote, recipient, maps, error)) {
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        remote_call(&remote, "the new QEMU cannot take a descriptor", SYS_dup3,
                    replacements[i].from, replacements[i].to,
                    replacements[i].to > STDERR_FILENO ? O_CLOEXEC : 0, 0, 0, 0);
        remote_call(&remote, NULL, SYS_close, replacements[i].from, 0, 0, 0, 0, 0);
    }
    return remote_end(&remote);
}

int recipient_replace(struct recipient *recipient, const struct replacement *replacements,
                      size_t count, struct error *error)
{
    struct maps maps = { 0 };

    if (!count) {
        return 0;
    }
    if (!maps_read(&maps, recipient->pid, error) && !remote_interrupt(recipient->pid, error)) {
        replace_all(recipient, &maps, replacements, count, error);
        if (ptrace(PTRACE_CONT, recipient->pid, 0, 0)) {
            fail_errno(error, "the new QEMU does not go on");
        }
    }
    maps_free(&maps);
    return error->set ? -1 : 0;
}

int recipient_let_go(struct recipient *recipient, struct error *error)
{
    if (recipient_attend(recipient, error)) {
        return -1;
    }
    if (recipient->traced) {
        if (remote_interrupt(recipient->pid, error) || remote_detach(recipient->pid, error)) {
            return -1;
        }
        recipient->traced = false;
    }
    return 0;
}

void recipient_end(struct recipient *recipient)
{
    int status;

    if (!recipient->pid || recipient->ended) {
        return;
    }
    kill(recipient->pid, SIGKILL);
    while (recipient->traced) {
        if (waitpid(recipient->pid, &status, __WALL) < 0 ? errno != EINTR
                                                         : !WIFSTOPPED(status)) {
            recipient->traced = false;
            recipient->status = SIGKILL;
        }
    }
    while (!remote_has_ended(recipient->pid)) {
        usleep(200); /* another process's child: there is nothing to wait for */
    }
    recipient->ended = true;
}
