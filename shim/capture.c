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

/* A part of the VM's memory, and the file that its changed pages go to. */
struct region {
    char file[16];
    struct vmm_memory memory;
    struct stretches changed;
    struct place read, added;
    struct delta delta;
};

enum { MAX_REGIONS = 1 + MAX_ADDED };

static void let_vm_run(const struct region *regions, size_t count) {
    uint64_t pages = 0;
    for (size_t i = 0; i < count; i++) {
        if (has_ended(&regions[i].memory)) fail("the VM ended while its memory was read");
        pages += regions[i].changed.pages;
    }
    say("read %llu %llu", (unsigned long long)pages, (unsigned long long)pages * PAGE);
}

static size_t find_regions(struct region *regions, const struct job *job, const struct added *added) {
    const char *wrong = find_job_memory(&regions[0].memory, job);
    strcpy(regions[0].file, "delta");
    for (size_t i = 0; wrong == NULL && i < added->count; i++) {
        struct region *region = &regions[i + 1];
        snprintf(region->file, sizeof region->file, "dimm-%zu", i);
        wrong = find_job_added(&region->memory, job, added->list[i].number, added->list[i].bytes);
    }
    if (wrong != NULL) fail("%s", wrong);
    for (size_t i = 0; i <= added->count; i++) {
        wrong = find_changed(&regions[i].memory, &regions[i].changed);
        if (wrong != NULL) fail("cannot tell which pages the VM has written: %s", wrong);
    }
    return added->count + 1;
}

/* What is in `room` belongs to the region, and all that is still to be read of it. */
static void write_region(struct region *region, char *room, size_t pages, size_t most) {
    while (pages > 0) {
        add_pages(&region->delta, &region->changed, &region->added, room, pages);
        flush_delta(&region->delta);
        pages = read_on(&region->memory, &region->changed, &region->read, room, most);
    }
}

static void capture_all(const struct job *job, const char *dir, const struct added *added) {
    static struct region regions[MAX_REGIONS];
    size_t count = find_regions(regions, job, added);
    struct bytes state = take_state(job->vmm->state_fd);

    uint64_t all = 0;
    for (size_t i = 0; i < count; i++) all += regions[i].changed.pages;
    int is_held = all <= HELD_PAGES;
    size_t most = is_held ? (size_t)all : STREAMED_PAGES;
    char *room = make_room(most * PAGE);
    size_t pages[MAX_REGIONS] = {0}, used = 0;
    for (size_t i = 0; is_held && i < count; i++) {
        struct region *region = &regions[i];
        pages[i] = read_on(&region->memory, &region->changed, &region->read, room + used * PAGE, (size_t)region->changed.pages);
        if (pages[i] != region->changed.pages) fail("the VM's memory could not be read as a whole");
        used += pages[i];
    }
    if (is_held) let_vm_run(regions, count);

    for (size_t i = 0, from = 0; i < count; i++) {
        struct region *region = &regions[i];
        begin_delta(&region->delta, create_in(dir, region->file), region->memory.bytes, region->changed.pages);
        if (!is_held) pages[i] = read_on(&region->memory, &region->changed, &region->read, room, most);
        // What is held has been read to its end, so no more of it is read over what is held of the next.
        write_region(region, room + from * PAGE, pages[i], most);
        from += is_held ? pages[i] : 0;
    }
    if (!is_held) let_vm_run(regions, count);
    for (size_t i = 0; i < count; i++) finish_delta(&regions[i].delta);
    write_all(create_in(dir, "state"), state.data, state.length, 0);
    keep_outputs();
    for (size_t i = 1; i < count; i++) {
        const struct delta *delta = &regions[i].delta;
        say("added %016llx %llu %lld", (unsigned long long)delta->header.sum, (unsigned long long)delta_pages(delta), (long long)delta->end);
    }
    const struct delta *delta = &regions[0].delta;
    say("stored %016llx %llu %llu %lld %zu", (unsigned long long)delta->header.sum, (unsigned long long)delta_pages(delta),
        (unsigned long long)delta->header.zero_pages, (long long)delta->end, state.length);
}

void capture(const struct job *job) { capture_all(job, job->words, &(struct added){0}); }

void capture_with(const struct job *job) {
    struct added added;
    const char *dir = read_added(&added, job->words);
    capture_all(job, dir, &added);
}
