/*
 * A paused VM's changed pages and device state, into DIR/delta and DIR/state. The VM waits until we say `read`, and no disk is waited
 * for before that, unless there is more to be read than may be held in memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "fail.h"
#include "job.h"
#include "output.h"

enum { HELD_PAGES = (64 << 20) / PAGE, STREAMED_PAGES = (4 << 20) / PAGE, HUGE_PAGE = 2 << 20, MOST_STATE_BYTES = 64 << 20 };

struct bytes {
    char *data;
    size_t length;
};

/* What was saved is used up, so that no later capture can take it for its own. */
static struct bytes take_state(int fd) {
    struct stat facts;
    if (fd < 0 || fstat(fd, &facts) < 0) fail("this VM was started without a place to save device state to");
    if (facts.st_size == 0) fail("no device state has been saved since the last capture");
    if (facts.st_size > MOST_STATE_BYTES) fail("the device state has %lld bytes, more than any machine's", (long long)facts.st_size);
    struct bytes state = {malloc((size_t)facts.st_size), (size_t)facts.st_size};
    if (state.data == NULL || pread(fd, state.data, state.length, 0) != (ssize_t)state.length) fail_errno("cannot read the device state");
    if (ftruncate(fd, 0) < 0) fail_errno("cannot empty the device state");
    return state;
}

/* In huge pages where they are to be had: they are there, and zeroed, three times sooner. */
static char *make_room(size_t bytes) {
    size_t length = (bytes + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1);
    char *room = mmap(NULL, length + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) fail_errno("no memory to read the VM's into");
    char *start = (char *)(((uintptr_t)room + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    madvise(start, length, MADV_HUGEPAGE);
    madvise(start, length, MADV_POPULATE_WRITE);
    return start;
}

static int create_in(const char *dir, const char *name) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path) fail("the name of the directory is too long");
    return create_output(path);
}

/* Adds the `count` pages in `pages`, which are those that follow on `place`. */
static void add_pages(struct delta *delta, const struct stretches *changed, struct place *place, const char *pages, size_t count) {
    while (count > 0) {
        const struct stretch *stretch = &changed->list[place->index];
        uint64_t left = stretch->count - place->done;
        size_t part = left < count ? (size_t)left : count;
        add_to_delta(delta, pages, stretch->first + place->done, part);
        pages += part * PAGE;
        count -= part;
        place->done += part;
        if (place->done == stretch->count) *place = (struct place){place->index + 1, 0};
    }
}

/* Reads what follows on `place`, as much of it as there is room for. */
static size_t read_on(struct vmm_memory *memory, const struct stretches *changed, struct place *place, char *room, size_t most) {
    size_t pages = 0;
    for (ssize_t got; pages < most && (got = read_stretches(memory, changed, place, room + pages * PAGE, most - pages)) != 0;) {
        if (got < 0) fail_errno("cannot read the VM's memory");
        pages += (size_t)got;
    }
    return pages;
}

static void let_vm_run(const struct vmm_memory *memory, const struct stretches *changed) {
    if (has_ended(memory)) fail("the VM ended while its memory was read");
    say("read %llu %llu", (unsigned long long)changed->pages, (unsigned long long)changed->pages * PAGE);
}

void capture(const struct job *job) {
    struct vmm_memory memory;
    struct stretches changed;
    const char *wrong = find_job_memory(&memory, job);
    if (wrong != NULL) fail("%s", wrong);
    wrong = find_changed(&memory, &changed);
    if (wrong != NULL) fail("cannot tell which pages the VM has written: %s", wrong);
    struct bytes state = take_state(job->vmm->state_fd);

    size_t most = changed.pages <= HELD_PAGES ? (size_t)changed.pages : STREAMED_PAGES;
    char *room = make_room(most * PAGE);
    struct place read = {0, 0}, added = {0, 0};
    size_t pages = read_on(&memory, &changed, &read, room, most);
    int is_all = pages == changed.pages;
    if (is_all) let_vm_run(&memory, &changed);

    struct delta delta;
    begin_delta(&delta, create_in(job->words, "delta"), memory.bytes, changed.pages);
    while (pages > 0) {
        add_pages(&delta, &changed, &added, room, pages);
        flush_delta(&delta);
        pages = read_on(&memory, &changed, &read, room, most);
    }
    if (!is_all) let_vm_run(&memory, &changed);
    finish_delta(&delta);
    write_all(create_in(job->words, "state"), state.data, state.length, 0);
    keep_outputs();
    say("stored %016llx %llu %llu %lld %zu", (unsigned long long)delta.header.sum, (unsigned long long)delta_pages(&delta),
        (unsigned long long)delta.header.zero_pages, (long long)delta.end, state.length);
}
