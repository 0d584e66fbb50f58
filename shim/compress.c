/*
 * What a capture holds of a memory, written anew as one packed delta. Without a BASE that is DELTA itself. With one it is all that BASE and
 * DELTA together hold otherwise than GROUND: the capture then stands on GROUND, and BASE is not needed for it any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "delta.h"
#include "fail.h"
#include "output.h"
#include "pages.h"

/* A memory file, read from the beginning to the end, and what has been seen of it. fd -1: nothing but zeros. */
struct layer {
    int fd;
    struct copied seen;
};

struct fold {
    struct layer base, ground;
    uint64_t at; /* the first page that has not been looked at */
    struct delta *out;
};

static uint64_t next_data(const struct layer *layer, uint64_t page) {
    if (layer->fd < 0) return UINT64_MAX;
    off_t at = lseek(layer->fd, (off_t)(page * PAGE), SEEK_DATA);
    if (at < 0 && errno == ENXIO) return UINT64_MAX;
    if (at < 0) fail_errno("cannot find data in memory");
    return (uint64_t)at / PAGE;
}

static void read_layer(struct layer *layer, char *buffer, uint64_t first, size_t count) {
    if (layer->fd < 0) {
        memset(buffer, 0, count * PAGE);
        return;
    }
    for (size_t have = 0; have < count * PAGE;) {
        ssize_t got = pread(layer->fd, buffer + have, count * PAGE - have, (off_t)(first * PAGE + have));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail_errno("cannot read memory");
        if (got == 0) fail("memory ended early");
        have += (size_t)got;
    }
    copy_pages(&layer->seen, -1, buffer, first, count);
}

/* At most PIECE_PAGES. `laid` are the delta's in place of the base's own. */
static void fold_pages(struct fold *fold, const char *laid, uint64_t first, size_t count) {
    static _Alignas(PAGE) char own[PAGE * PIECE_PAGES], ground[PAGE * PIECE_PAGES];
    read_layer(&fold->base, own, first, count);
    read_layer(&fold->ground, ground, first, count);
    const char *pages = laid != NULL ? laid : own;
    for (size_t i = 0; i < count; i++)
        if (memcmp(pages + i * PAGE, ground + i * PAGE, PAGE) != 0) add_to_delta(fold->out, pages + i * PAGE, first + i, 1);
    fold->at = first + count;
}

/* Where both are holes there is nothing to be said. */
static void fold_up_to(struct fold *fold, uint64_t end) {
    while (fold->at < end) {
        uint64_t base = next_data(&fold->base, fold->at), ground = next_data(&fold->ground, fold->at);
        uint64_t from = base < ground ? base : ground;
        if (from < fold->at) from = fold->at;
        if (from >= end) break;
        fold_pages(fold, NULL, from, end - from < PIECE_PAGES ? (size_t)(end - from) : PIECE_PAGES);
    }
    fold->at = end;
}

static void lay_over(void *context, const char *pages, uint64_t first, size_t count) {
    fold_up_to(context, first);
    fold_pages(context, pages, first, count);
}

static void take_over(void *context, const char *pages, uint64_t first, size_t count) { add_to_delta(context, pages, first, count); }

static struct layer open_layer(const char *file, uint64_t *bytes) {
    int fd = strcmp(file, "-") == 0 ? -1 : open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && strcmp(file, "-") != 0) fail_errno("cannot open %s", file);
    struct stat facts;
    if (fd >= 0 && fstat(fd, &facts) < 0) fail_errno("cannot look at %s", file);
    if (fd >= 0 && *bytes == 0) *bytes = (uint64_t)facts.st_size;
    if (fd >= 0 && (uint64_t)facts.st_size != *bytes) fail("%s has another size than the rest of the memory", file);
    return (struct layer){fd, {0, 0}};
}

static void assert_seen(const struct layer *layer, const char *file, const char *sum, const char *pages) {
    if (layer->fd >= 0 && (layer->seen.sum != strtoull(sum, NULL, 16) || layer->seen.pages != strtoull(pages, NULL, 10)))
        fail("the memory %s has another checksum", file);
}

/* ALGORITHM LEVEL DELTA|- OUT [BASE SUM PAGES GROUND|- SUM PAGES]: the sums and pages that they are said to have. */
int command_compress(int argc, char **argv) {
    const char *from = argv[2], *out = argv[3];
    int has_base = argc > 9;
    // Nothing waits for it, and when the daemon dies the next one begins anew.
    setpriority(PRIO_PROCESS, 0, 19);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct packer *packer = new_packer(argv[0], atoi(argv[1]));
    struct delta delta = {.fd = -1}, packed;
    if (strcmp(from, "-") != 0) {
        int fd = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0) fail_errno("cannot open %s", from);
        const char *wrong = open_delta(&delta, fd);
        if (wrong != NULL) fail("the delta %s cannot be used: %s", from, wrong);
    } else if (!has_base) {
        fail("neither a delta nor a base was given");
    }
    uint64_t bytes = delta.header.memory_bytes;
    struct fold fold = {.out = &packed, .base.fd = -1, .ground.fd = -1};
    if (has_base) {
        fold.base = open_layer(argv[4], &bytes);
        fold.ground = open_layer(argv[7], &bytes);
    }
    begin_packed_delta(&packed, create_output(out), bytes, packer);
    const char *wrong = NULL;
    if (delta.fd >= 0) wrong = read_delta(&delta, 1, has_base ? lay_over : take_over, has_base ? (void *)&fold : (void *)&packed);
    if (wrong != NULL) fail("the delta %s cannot be used: %s", from, wrong);
    if (has_base) {
        fold_up_to(&fold, bytes / PAGE);
        assert_seen(&fold.base, argv[4], argv[5], argv[6]);
        assert_seen(&fold.ground, argv[7], argv[8], argv[9]);
    }
    finish_delta(&packed);
    keep_outputs();
    printf("packed %016llx %llu %lld %llu\n", (unsigned long long)packed.header.sum, (unsigned long long)delta_pages(&packed),
           (long long)packed.end, (unsigned long long)plain_delta_bytes(&packed));
    return 0;
}
