/*
 * A delta as VMMs load memory that they read themselves: the pages one after the other in a file, zero ones as holes, and which they are
 * as lines.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "delta.h"
#include "fail.h"
#include "output.h"
#include "pages.h"

struct ranges {
    int out;
    off_t at;
};

static int is_zero(const char *page) {
    static const char zero[PAGE];
    return memcmp(page, zero, PAGE) == 0;
}

static void write_on(void *context, const char *pages, uint64_t first, size_t count) {
    struct ranges *ranges = context;
    (void)first;
    for (size_t page = 0; page < count;) {
        size_t from = page;
        while (page < count && !is_zero(pages + page * PAGE)) page++;
        for (size_t done = from * PAGE; done < page * PAGE;) {
            ssize_t wrote = pwrite(ranges->out, pages + done, page * PAGE - done, ranges->at + (off_t)(done - from * PAGE));
            if (wrote <= 0) fail_errno("cannot write the VM's memory");
            done += (size_t)wrote;
        }
        ranges->at += (off_t)((page - from) * PAGE);
        for (; page < count && is_zero(pages + page * PAGE); page++) ranges->at += PAGE;
    }
}

/* A line `range FIRST COUNT` for each run of pages, in order, then `sum SUM PAGES MEMORY-BYTES`. */
int command_ranges(const char *file, const char *out) {
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) fail_errno("cannot open %s", file);
    struct delta delta;
    struct ranges ranges = {create_output(out), 0};
    const char *wrong = open_delta(&delta, fd);
    if (wrong == NULL) wrong = read_delta(&delta, 1, write_on, &ranges);
    if (wrong != NULL) fail("the delta %s cannot be used: %s", file, wrong);
    if (ftruncate(ranges.out, ranges.at) < 0) fail_errno("cannot write the VM's memory");
    for (uint64_t i = 0; i < delta.header.run_count; i++)
        printf("range %llu %llu\n", (unsigned long long)delta.runs[i].first, (unsigned long long)(delta.runs[i].count & ~DELTA_ZERO));
    printf("sum %016llx %llu %llu\n", (unsigned long long)delta.header.sum, (unsigned long long)delta_pages(&delta),
           (unsigned long long)delta.header.memory_bytes);
    keep_outputs();
    return 0;
}
