/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "elf.h"

#include <elf.h>
#include <string.h>
#include <sys/mman.h>

/* Addresses beyond this are no program's (the canonical lower half, with 4-level paging). */
#define HIGHEST 0x7ffffffff000ull

static const Elf64_Phdr *headers_of(const uint8_t *head, size_t size, Elf64_Ehdr *header,
                                    struct error *error)
{
    if (size < sizeof(*header)) {
        fail(error, "a file of %zu bytes is no program", size);
        return NULL;
    }
    memcpy(header, head, sizeof(*header));
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64 ||
        header->e_ident[EI_DATA] != ELFDATA2LSB || header->e_machine != EM_X86_64) {
        fail(error, "it is not an ELF file for x86-64 (a script, perhaps)");
        return NULL;
    }
    if (header->e_phentsize != sizeof(Elf64_Phdr) || !header->e_phnum ||
        header->e_phoff % sizeof(uint64_t) || header->e_phoff > size ||
        header->e_phnum > (size - header->e_phoff) / sizeof(Elf64_Phdr)) {
        fail(error, "its program headers are not where they usually are");
        return NULL;
    }
    return (const Elf64_Phdr *)(head + header->e_phoff);
}

static int plan_segment(const Elf64_Phdr *from, struct elf_plan *plan, struct error *error)
{
    struct elf_segment *to = &plan->segments[plan->count];
    uint64_t file_end, end;

    if (plan->count == ELF_SEGMENTS) {
        return fail(error, "it has more than %d segments", ELF_SEGMENTS);
    }
    if (from->p_filesz > from->p_memsz || from->p_memsz > HIGHEST ||
        from->p_vaddr > HIGHEST - from->p_memsz || from->p_offset > HIGHEST ||
        from->p_vaddr % PAGE != from->p_offset % PAGE) {
        return fail(error, "segment %zu is where none can be", plan->count);
    }
    if (plan->count && from->p_vaddr < plan->segments[plan->count - 1].end) {
        return fail(error, "segment %zu begins within the one before", plan->count);
    }
    file_end = from->p_vaddr + from->p_filesz;
    end = from->p_vaddr + from->p_memsz;
    to->protection = (from->p_flags & PF_R ? PROT_READ : 0) |
                     (from->p_flags & PF_W ? PROT_WRITE : 0) |
                     (from->p_flags & PF_X ? PROT_EXEC : 0);
    to->start = PAGE_DOWN(from->p_vaddr);
    to->file_offset = PAGE_DOWN(from->p_offset);
    to->file_end = from->p_filesz ? PAGE_UP(file_end) : to->start;
    to->end = PAGE_UP(end) > to->file_end ? PAGE_UP(end) : to->file_end;
    /*
     * The rest of the last page of the file is cleared to its end, not just up to p_memsz: the
     * dynamic linker's first allocator takes it as free and clear.
     */
    to->zero_from = 0;
    if (from->p_memsz > from->p_filesz && file_end < to->file_end && from->p_filesz) {
        if (!(to->protection & PROT_WRITE)) {
            return fail(error, "segment %zu has to be cleared and cannot be written", plan->count);
        }
        to->zero_from = file_end;
    }
    if (!plan->count) {
        plan->low = to->start;
    }
    plan->high = to->end;
    plan->data_end = end;
    plan->count++;
    return 0;
}

static int plan_interpreter(const uint8_t *head, size_t size, const Elf64_Phdr *from,
                            struct elf_plan *plan, struct error *error)
{
    if (from->p_filesz < 2 || from->p_filesz > sizeof(plan->interpreter) ||
        from->p_offset > size || from->p_filesz > size - from->p_offset ||
        head[from->p_offset] != '/' || head[from->p_offset + from->p_filesz - 1]) {
        return fail(error, "the name of its interpreter is not where it usually is");
    }
    memcpy(plan->interpreter, head + from->p_offset, from->p_filesz);
    return 0;
}

static int plan_one(const uint8_t *head, size_t size, const Elf64_Phdr *from,
                    struct elf_plan *plan, struct error *error)
{
    switch (from->p_type) {
    case PT_LOAD:
        return plan_segment(from, plan, error);
    case PT_INTERP:
        return plan_interpreter(head, size, from, plan, error);
    case PT_PHDR:
        plan->headers = from->p_vaddr;
        return 0;
    case PT_GNU_STACK:
        if (from->p_flags & PF_X) {
            return fail(error, "it asks for a stack with code on it");
        }
        return 0;
    default:
        return 0; /* for the dynamic linker */
    }
}

int elf_plan(const uint8_t *head, size_t size, struct elf_plan *plan, struct error *error)
{
    Elf64_Ehdr header;
    const Elf64_Phdr *from = headers_of(head, size, &header, error);

    memset(plan, 0, sizeof(*plan));
    if (!from) {
        return -1;
    }
    if (header.e_type != ET_DYN && header.e_type != ET_EXEC) {
        return fail(error, "it is an ELF file, but no program (type %d)", header.e_type);
    }
    for (unsigned i = 0; i < header.e_phnum; i++) {
        if (plan_one(head, size, &from[i], plan, error)) {
            return -1;
        }
    }
    if (!plan->count) {
        return fail(error, "there is nothing in it to be mapped");
    }
    plan->position_independent = header.e_type == ET_DYN;
    plan->header_count = header.e_phnum;
    plan->entry = header.e_entry;
    if (!plan->headers) {
        plan->headers = plan->low + header.e_phoff;
    }
    if (plan->entry < plan->low || plan->entry >= plan->high) {
        return fail(error, "it would begin outside of itself");
    }
    return 0;
}

uint64_t elf_code_end(const uint8_t *head, size_t size, uint64_t offset)
{
    struct error error = { 0 };
    Elf64_Ehdr header;
    const Elf64_Phdr *from = headers_of(head, size, &header, &error);

    for (unsigned i = 0; from && i < header.e_phnum; i++) {
        if (from[i].p_type == PT_LOAD && from[i].p_flags & PF_X &&
            from[i].p_filesz == from[i].p_memsz && PAGE_DOWN(from[i].p_offset) <= offset &&
            offset - PAGE_DOWN(from[i].p_offset) <= from[i].p_filesz) {
            return from[i].p_offset + from[i].p_filesz;
        }
    }
    return 0;
}
