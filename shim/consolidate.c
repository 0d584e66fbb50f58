/*
 * Base and delta become one base, so that what a VM has written once is not written again with each nap. What is not in the delta is
 * shared with the base where the file system can, else copied; holes stay holes.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"
#include "delta.h"
#include "fail.h"
#include "output.h"
#include "pages.h"

struct pace {
    long long bytes_per_second; /* 0: as fast as it goes */
    long long bytes;
    struct timespec from;
};

struct merge {
    int out;
    int is_shared; /* `out` has the base's content already */
    const struct delta *delta;
    size_t run; /* the first of the delta's that may still lie ahead */
    struct copied kept, replaced, laid;
    struct pace pace;
};

/* Every byte that passes counts, and the disk is set to work as we go: no burst at the end that others' flushes would wait behind. */
static void keep_pace(struct merge *merge, size_t bytes) {
    struct pace *pace = &merge->pace;
    if (pace->bytes_per_second == 0) return;
    if (pace->bytes == 0) clock_gettime(CLOCK_MONOTONIC, &pace->from);
    pace->bytes += (long long)bytes;
    sync_file_range(merge->out, 0, 0, SYNC_FILE_RANGE_WRITE);
    long long due_ns = (long long)((double)pace->bytes / (double)pace->bytes_per_second * 1e9);
    struct timespec until = {pace->from.tv_sec + due_ns / 1000000000, pace->from.tv_nsec + due_ns % 1000000000};
    if (until.tv_nsec >= 1000000000) until = (struct timespec){until.tv_sec + 1, until.tv_nsec - 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) continue;
}

/* The base's pages: those that the delta replaces are only summed up. */
static void take_base(void *context, const char *pages, uint64_t first, size_t count) {
    struct merge *merge = context;
    const struct delta *delta = merge->delta;
    keep_pace(merge, count * PAGE);
    for (uint64_t at = first, end = first + count; at < end;) {
        const struct delta_run *run = merge->run < delta->header.run_count ? &delta->runs[merge->run] : NULL;
        uint64_t run_end = run == NULL ? 0 : run->first + (run->count & ~DELTA_ZERO);
        if (run != NULL && run_end <= at) {
            merge->run++;
            continue;
        }
        int is_replaced = run != NULL && run->first <= at;
        uint64_t until = run == NULL ? end : is_replaced ? run_end : run->first;
        if (until > end) until = end;
        copy_pages(is_replaced ? &merge->replaced : &merge->kept, is_replaced || merge->is_shared ? -1 : merge->out,
                   pages + (at - first) * PAGE, at, (size_t)(until - at));
        at = until;
    }
}

static void take_delta(void *context, const char *pages, uint64_t first, size_t count) {
    struct merge *merge = context;
    keep_pace(merge, count * PAGE);
    if (!is_zero_page(pages)) {
        copy_pages(&merge->laid, merge->out, pages, first, count);
    } else if (merge->is_shared) {
        off_t at = (off_t)(first * PAGE), length = (off_t)(count * PAGE);
        if (fallocate(merge->out, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length) < 0) write_all(merge->out, pages, count * PAGE, at);
    }
}

static void lay_base(struct merge *merge, const char *file) {
    int base = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat facts;
    if (base < 0 || fstat(base, &facts) < 0) fail_errno("cannot open %s", file);
    if ((uint64_t)facts.st_size != merge->delta->header.memory_bytes) fail("the delta belongs to a memory of another size than %s", file);
    merge->is_shared = ioctl(merge->out, FICLONE, base) == 0;
    read_pages(base, facts.st_size, take_base, merge);
    close(base);
}

/* BASE|- DELTA OUT [MAX_BYTES_PER_SECOND [SUM PAGES]]: the sum and pages that the base is said to have. */
int command_consolidate(int argc, char **argv) {
    const char *base = argv[0], *out = argv[2];
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) fail_errno("cannot open %s", argv[1]);
    struct delta delta;
    const char *wrong = open_delta(&delta, fd);
    if (wrong != NULL) fail("the delta %s cannot be used: %s", argv[1], wrong);
    struct merge merge = {.out = create_output(out), .delta = &delta};
    merge.pace.bytes_per_second = argc > 3 ? atoll(argv[3]) : 0;

    if (strcmp(base, "-") != 0) lay_base(&merge, base);
    struct copied whole = {merge.kept.sum + merge.replaced.sum, merge.kept.pages + merge.replaced.pages};
    if (argc > 5 && (whole.sum != strtoull(argv[4], NULL, 16) || whole.pages != strtoull(argv[5], NULL, 10)))
        fail("the base %s has another checksum", base);
    if (ftruncate(merge.out, (off_t)delta.header.memory_bytes) < 0) fail_errno("cannot size %s", out);
    wrong = read_delta(&delta, 1, take_delta, &merge);
    if (wrong != NULL) fail("the delta %s cannot be used: %s", argv[1], wrong);
    // VMMs of other users map it; who may get that far is the directory's affair, as it is with a memfd.
    if (fchmod(merge.out, 0666) < 0) fail_errno("cannot open %s to its users", out);
    keep_outputs();
    printf("stored %016llx %llu\n", (unsigned long long)(merge.kept.sum + merge.laid.sum), (unsigned long long)(merge.kept.pages + merge.laid.pages));
    return 0;
}
