/*
 * A delta as VMMs load memory that they read themselves: the pages one after the other in a file, and which they are as lines.
 */
#include <fcntl.h>
#include <stdio.h>
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

/* Zero ones are written, too: a hole is passed over by who reads it, and what the memory stands on would be seen there. */
static void write_on(void *context, const char *pages, uint64_t first, size_t count) {
    struct ranges *ranges = context;
    (void)first;
    for (size_t done = 0; done < count * PAGE;) {
        ssize_t wrote = pwrite(ranges->out, pages + done, count * PAGE - done, ranges->at + (off_t)done);
        if (wrote <= 0) fail_errno("cannot write the VM's memory");
        done += (size_t)wrote;
    }
    ranges->at += (off_t)(count * PAGE);
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
    for (uint64_t i = 0; i < delta.header.run_count; i++)
        printf("range %llu %llu\n", (unsigned long long)delta.runs[i].first, (unsigned long long)(delta.runs[i].count & ~DELTA_ZERO));
    printf("sum %016llx %llu %llu\n", (unsigned long long)delta.header.sum, (unsigned long long)delta_pages(&delta),
           (unsigned long long)delta.header.memory_bytes);
    keep_outputs();
    return 0;
}
