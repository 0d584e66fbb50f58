/*
 * Reads a memory at rest from end to end and makes nothing of it. What a base should sum up to is known to the daemon; a delta carries its
 * own checksum.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "delta.h"
#include "fail.h"
#include "pages.h"

static int open_file(const char *file) {
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) fail_errno("cannot open %s", file);
    return fd;
}

static void only_read(void *context, const char *pages, uint64_t first, size_t count) { (void)context, (void)pages, (void)first, (void)count; }

static void say(const char *what, uint64_t sum, uint64_t pages) {
    printf("%s %016llx %llu\n", what, (unsigned long long)sum, (unsigned long long)pages);
}

/* BASE|- DELTA|-: a line for each, with its sum and its pages that are not zero; `damaged` and why for a delta that contradicts itself. */
int command_verify(const char *base, const char *delta_file) {
    if (strcmp(base, "-") != 0) {
        int fd = open_file(base);
        struct stat facts;
        if (fstat(fd, &facts) < 0) fail_errno("cannot look at %s", base);
        struct copied found = copy_memory(fd, -1, facts.st_size);
        say("base", found.sum, found.pages);
    }
    if (strcmp(delta_file, "-") != 0) {
        int fd = open_file(delta_file);
        // Written a moment ago, it may be right in the host's memory and wrong on its disk.
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        struct delta delta;
        const char *wrong = open_delta(&delta, fd);
        if (wrong == NULL) wrong = read_delta(&delta, 1, only_read, NULL);
        if (wrong == NULL) say("delta", delta.header.sum, delta.header.stored_pages);
        else printf("damaged %s\n", wrong);
    }
    return 0;
}
