/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "session.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "delta.h"

#define WORD_MOST (128u << 10) /* execve(2)'s own limit for an argument */
#define WORDS 1024
#define HIGHEST_FD 65536
#define OOM_FIRST 1000

/* Reads RAM blocks as the monitor of a QEMU has them. */
static size_t read_blocks(struct reader *reader, struct block *blocks, struct error *error)
{
    uint64_t count = read_number(reader);

    if (!count || count > BLOCKS) {
        fail(error, "%lu RAM blocks; from 1 to %d are possible", (unsigned long)count, BLOCKS);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        snprintf(blocks[i].name, sizeof(blocks[i].name), "%s", read_text(reader, BLOCK_NAME));
        blocks[i].offset = read_number(reader);
        blocks[i].used = read_number(reader);
        blocks[i].most = read_number(reader);
        blocks[i].address = read_number(reader);
        blocks[i].place = read_number(reader);
        if (!blocks[i].most || blocks[i].used > blocks[i].most || blocks[i].most >> 46) {
            fail(error, "RAM block %s has a length that none can have", blocks[i].name);
        }
    }
    return count;
}

static int need_end(const struct reader *reader, struct error *error)
{
    return reader->bad || reader->at != reader->end ? fail(error, "a request that is cut off")
                                                    : error->set ? -1 : 0;
}

static void do_hello(struct session *session, struct reader *reader, struct writer *writer)
{
    struct utsname name;

    if (need_end(reader, session->error) || uname(&name)) {
        return;
    }
    if (strcmp(name.machine, "x86_64")) {
        fail(session->error, "this is for x86-64, and not for %s", name.machine);
        return;
    }
    write_number(writer, PROTOCOL_VERSION);
    write_text(writer, name.release);
}

static uint64_t huge_bytes(const struct donor *donor, const struct block *block)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < donor->maps.count; i++) {
        const struct mapping *mapping = &donor->maps.list[i];

        if (mapping->start >= block->address && mapping->end <= block->address + block->most) {
            sum += mapping->huge_bytes;
        }
    }
    return sum;
}

static void do_examine(struct session *session, struct reader *reader, struct writer *writer)
{
    struct donor *donor = &session->donor;

    if (session->recipient.pid) {
        fail(session->error, "there is a new QEMU already");
        return;
    }
    donor->pid = read_number(reader);
    donor->count = read_blocks(reader, donor->blocks, session->error);
    if (need_end(reader, session->error) || donor_examine(donor, session->error)) {
        donor->count = 0; /* nothing is known of it */
        return;
    }
    session->oom_score = get_oom_score(donor->pid);
    write_number(writer, donor->filtered);
    write_number(writer, donor->cave_size);
    for (size_t i = 0; i < donor->count; i++) {
        write_number(writer, donor->blocks[i].address);
        write_number(writer, huge_bytes(donor, &donor->blocks[i]));
        write_number(writer, donor->blocks[i].file);
    }
}

/* Reads a command line and descriptors, in place. */
static int read_program(struct reader *reader, struct program *program, const char **words,
                        struct error *error)
{
    uint64_t count = read_number(reader);
    int last = 1; /* it may have another standard error */

    if (!count || count > WORDS) {
        return fail(error, "a command line of %lu words", (unsigned long)count);
    }
    for (size_t i = 0; i < count; i++) {
        words[i] = read_text(reader, WORD_MOST);
    }
    program->arguments = words;
    program->argument_count = count;
    count = read_number(reader);
    if (count > DESCRIPTORS) {
        return fail(error, "%lu descriptors", (unsigned long)count);
    }
    for (size_t i = 0; i < count; i++) {
        program->descriptors[i].from = read_number(reader);
        program->descriptors[i].to = read_number(reader);
        if (program->descriptors[i].to <= last || program->descriptors[i].to >= HIGHEST_FD) {
            return fail(error, "descriptors that are not in order, or too many");
        }
        last = program->descriptors[i].to;
    }
    program->descriptor_count = count;
    return need_end(reader, error);
}

static void do_start(struct session *session, struct reader *reader, struct writer *writer)
{
    static const char *words[WORDS];
    struct recipient *recipient = &session->recipient;
    struct donor *donor = &session->donor;
    struct program program = { 0 };
    uint64_t dry = read_number(reader);
    pid_t child;

    if (read_program(reader, &program, words, session->error)) {
        return;
    }
    if (!donor->count || (recipient->pid && !recipient->ended)) {
        fail(session->error, "nothing was examined, or there is a new QEMU already");
        return;
    }
    /* Mappings may have come and gone since it was examined. */
    if (donor_examine(donor, session->error) || program_read(&program, donor, session->error)) {
        program_free(&program);
        return;
    }
    memset(recipient, 0, sizeof(*recipient));
    child = donor_fork(donor, session->error);
    if (child > 0) {
        recipient->pid = child;
        recipient->traced = true;
        set_oom_score(child, OOM_FIRST);
        if (recipient_become(recipient, donor, &program, session->error) || dry) {
            recipient_end(recipient);
        }
    }
    program_free(&program);
    write_number(writer, child);
    write_number(writer, donor->held_us);
    write_number(writer, donor->fork_us);
    write_number(writer, recipient->become_us);
    write_number(writer, recipient->calls);
}

/* Sets the error unless there is a new QEMU, alive and traced. */
static int need_recipient(struct session *session)
{
    if (!session->recipient.pid) {
        return fail(session->error, "there is no new QEMU");
    }
    return recipient_attend(&session->recipient, session->error);
}

static void do_adopt(struct session *session, struct reader *reader, struct writer *writer)
{
    static struct block blocks[BLOCKS];
    size_t count = read_blocks(reader, blocks, session->error);

    if (need_end(reader, session->error) || need_recipient(session) ||
        recipient_adopt(&session->recipient, &session->donor, blocks, count, session->error)) {
        return;
    }
    write_number(writer, session->recipient.adopt_us);
}

/* What `delta` does; the values are the protocol's. */
enum { DELTA_COUNT, DELTA_COPY, DELTA_VERIFY };

static void do_delta(struct session *session, struct reader *reader, struct writer *writer)
{
    const struct donor *donor = &session->donor;
    struct recipient *recipient = &session->recipient;
    struct range ranges[BLOCKS];
    struct delta delta[BLOCKS];
    uint64_t mode = read_number(reader), begun = now_us();

    memset(delta, 0, sizeof(delta));
    if (need_end(reader, session->error) || need_recipient(session)) {
        return;
    }
    for (size_t i = 0; i < donor->count; i++) {
        /* Shared memory is the same, but for what the new QEMU has written. */
        ranges[i] = (struct range){ donor->blocks[i].address, recipient->blocks[i].address,
                                    donor->blocks[i].file ? 0
                                                          : PAGE_UP(donor->blocks[i].most) };
    }
    if (mode == DELTA_VERIFY) {
        delta_verify(donor->pid, recipient->pid, ranges, donor->count, delta, session->error);
    } else {
        delta_run(donor->pid, recipient->pid, ranges, donor->count, mode == DELTA_COPY, delta,
                  session->error);
    }
    for (size_t i = 0; i < donor->count && !session->error->set; i++) {
        struct shared_block block = recipient_shared(recipient, donor, i);

        if (donor->blocks[i].file) {
            delta[i].pages = block.size / PAGE;
            delta[i].different = shared_count(&block, session->error);
        }
    }
    write_number(writer, now_us() - begun);
    for (size_t i = 0; i < donor->count; i++) {
        write_number(writer, delta[i].pages);
        write_number(writer, delta[i].absent);
        write_number(writer, delta[i].different);
        write_number(writer, delta[i].mismatched);
    }
}

static void do_hold(struct session *session, struct reader *reader, struct writer *writer)
{
    struct replacement taps[DESCRIPTORS];
    uint64_t begun = now_us(), count = read_number(reader);

    if (count > DESCRIPTORS) {
        fail(session->error, "%lu descriptors", (unsigned long)count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        taps[i].from = read_number(reader);
        taps[i].to = read_number(reader);
    }
    if (need_end(reader, session->error) || need_recipient(session)) {
        return;
    }
    /*
     * First the old QEMU, which must not run again: with us it would go on, and the new one would
     * end.  After that nothing more of the new one's would end with us.
     */
    if (hold_all(&session->hold, session->donor.pid, 0, session->error) ||
        recipient_share(&session->recipient, &session->donor, &session->shared,
                        session->error) ||
        recipient_replace(&session->recipient, taps, count, session->error) ||
        recipient_let_go(&session->recipient, session->error)) {
        return;
    }
    set_oom_score(session->recipient.pid, session->oom_score);
    write_number(writer, now_us() - begun);
    write_number(writer, session->hold.count);
}

/* Waits until a thread that is traced has ended. */
static void wait_ended(pid_t tid)
{
    pid_t got;
    int status;

    do {
        got = waitpid(tid, &status, __WALL);
    } while (got == tid ? WIFSTOPPED(status) : got < 0 && errno == EINTR);
}

static void do_finish(struct session *session, struct reader *reader, struct writer *writer)
{
    pid_t pid = session->donor.pid;
    uint64_t begun = now_us();

    if (need_end(reader, session->error)) {
        return;
    }
    if (!session->hold.count) {
        fail(session->error, "the old QEMU is not held");
        return;
    }
    kill(pid, SIGKILL);
    /* Its first thread has only ended when the others have been waited for. */
    for (size_t i = 0; i < session->hold.count; i++) {
        if (session->hold.tids[i] != pid) {
            wait_ended(session->hold.tids[i]);
        }
    }
    wait_ended(pid);
    session->hold.count = 0;
    shared_end(&session->shared, false);
    write_number(writer, now_us() - begun);
}

static void do_abandon(struct session *session, struct reader *reader, struct writer *writer)
{
    struct recipient *recipient = &session->recipient;
    struct error how = { 0 };
    bool had = recipient->pid;

    if (need_end(reader, session->error)) {
        return;
    }
    if (had) {
        recipient_attend(recipient, &how); /* if it ended by itself, that is worth knowing */
    }
    recipient_end(recipient);
    shared_end(&session->shared, true);
    hold_release(&session->hold, 0);
    if (session->donor.count) {
        donor_reap(&session->donor, session->error);
    }
    memset(recipient, 0, sizeof(*recipient));
    write_text(writer, how.text);
}

void session_end(struct session *session)
{
    if (session->shared.count) {
        recipient_end(&session->recipient);
        shared_end(&session->shared, true);
    }
}

static void do_collapse(struct session *session, struct reader *reader, struct writer *writer)
{
    const struct donor *donor = &session->donor;
    uint64_t new = read_number(reader), begun = now_us(), done = 0;

    if (need_end(reader, session->error)) {
        return;
    }
    for (size_t i = 0; i < donor->count; i++) {
        /* Only where there were huge pages before: it may be on purpose that there were none. */
        if (huge_bytes(donor, &donor->blocks[i])) {
            done += delta_collapse(new ? session->recipient.pid : donor->pid,
                                   new ? session->recipient.blocks[i].address
                                       : donor->blocks[i].address,
                                   donor->blocks[i].most);
        }
    }
    write_number(writer, done);
    write_number(writer, now_us() - begun);
}

static void (*const requests[])(struct session *, struct reader *, struct writer *) = {
    [REQUEST_HELLO] = do_hello,     [REQUEST_EXAMINE] = do_examine,
    [REQUEST_START] = do_start,     [REQUEST_ADOPT] = do_adopt,
    [REQUEST_DELTA] = do_delta,     [REQUEST_HOLD] = do_hold,
    [REQUEST_FINISH] = do_finish,   [REQUEST_ABANDON] = do_abandon,
    [REQUEST_COLLAPSE] = do_collapse,
};

/*
 * If the new QEMU has ended, that is why something went wrong.  Its memory is gone a moment before
 * there is anything to be waited for.
 */
static void add_how_it_ended(struct session *session)
{
    struct error how = { 0 };
    size_t used = strlen(session->error->text);

    for (int looks = 0; looks < 40 && !how.set; looks++) {
        if (recipient_attend(&session->recipient, &how)) {
            break;
        }
        usleep(2500);
    }
    if (how.set && !strstr(session->error->text, how.text)) {
        snprintf(session->error->text + used, sizeof(session->error->text) - used, "; %s",
                 how.text);
    }
}

void session_request(struct session *session, enum request request, struct reader *reader,
                     struct writer *writer)
{
    if ((size_t)request >= sizeof(requests) / sizeof(requests[0]) || !requests[request]) {
        fail(session->error, "an unknown request (%d)", request);
        return;
    }
    requests[request](session, reader, writer);
    if (session->error->set && session->recipient.pid && request != REQUEST_ABANDON) {
        add_how_it_ended(session);
    }
}
