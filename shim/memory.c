/*
 * Memory files and the memfds that VMs map. A base that more than one VM maps is a memfd sealed against writing: a VMM maps it
 * privately and may open it read-write, yet neither a write nor a punched hole can reach the pages of its siblings.
 *
 * The daemon takes the memfd by opening /proc/PID/fd/N of this process and then lets it go. Both ways of copying keep holes, and
 * both sum up the pages that are not zero, so that a flipped bit or a lost block of the file is found before anything runs on it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "fail.h"

enum { PAGE = 4096, PAGES = 256 };

static uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

/* Four independent lanes, so that the processor can work on them side by side; the page's number is mixed in. */
static uint64_t sum_page(const uint64_t *words, uint64_t number) {
    const uint64_t a = 0x9E3779B185EBCA87ULL, b = 0xC2B2AE3D27D4EB4FULL;
    uint64_t lane[4] = {number + a, number ^ b, ~number, number * a};
    for (int i = 0; i < PAGE / 8; i += 4)
        for (int k = 0; k < 4; k++) lane[k] = rotate(lane[k] ^ words[i + k] * b, 31) * a;
    uint64_t sum = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
    return (sum ^ sum >> 29) * b;
}

static int is_zero(const uint64_t *words) {
    uint64_t any = 0;
    for (int i = 0; i < PAGE / 8; i++) any |= words[i];
    return any == 0;
}

static void write_all(int fd, const char *data, size_t length, off_t at) {
    while (length > 0) {
        ssize_t wrote = pwrite(fd, data, length, at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) fail_errno("cannot write memory");
        data += wrote;
        at += wrote;
        length -= (size_t)wrote;
    }
}

struct copied {
    uint64_t sum;
    uint64_t pages;
};

/* Copies the pages that are not zero to the same places. `size` is a whole number of pages. */
static struct copied copy_pages(int from, int to, off_t size) {
    static _Alignas(PAGE) char buffer[PAGE * PAGES];
    struct copied copied = {0, 0};
    off_t at = 0;
    while (at < size) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) break;
        if (data < 0) fail_errno("cannot find data in memory");
        at = data & ~(off_t)(PAGE - 1);
        off_t hole = lseek(from, at, SEEK_HOLE);
        if (hole < 0) fail_errno("cannot find holes in memory");
        hole = (hole + PAGE - 1) & ~(off_t)(PAGE - 1);
        if (hole > size) hole = size;
        while (at < hole) {
            size_t want = (size_t)(hole - at) < sizeof buffer ? (size_t)(hole - at) : sizeof buffer;
            for (size_t have = 0; have < want;) {
                ssize_t got = pread(from, buffer + have, want - have, at + (off_t)have);
                if (got < 0 && errno == EINTR) continue;
                if (got < 0) fail_errno("cannot read memory");
                if (got == 0) fail("memory ended early");
                have += (size_t)got;
            }
            for (size_t page = 0; page < want / PAGE;) {
                if (is_zero((uint64_t *)(buffer + page * PAGE))) {
                    page++;
                    continue;
                }
                size_t end = page;
                while (end < want / PAGE && !is_zero((uint64_t *)(buffer + end * PAGE))) {
                    copied.sum += sum_page((uint64_t *)(buffer + end * PAGE), (uint64_t)at / PAGE + end);
                    end++;
                }
                write_all(to, buffer + page * PAGE, (end - page) * PAGE, at + (off_t)(page * PAGE));
                copied.pages += end - page;
                page = end;
            }
            at += (off_t)want;
        }
    }
    return copied;
}

static int new_memfd(off_t size) {
    int fd = memfd_create("dormouse-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) fail_errno("cannot make a memfd");
    if (size <= 0 || size % PAGE != 0) fail("a memory has a whole number of pages");
    if (ftruncate(fd, size) < 0) fail_errno("cannot size a memfd");
    // VMMs of other users open it through /proc/self/fd; only who has been handed the descriptor gets that far.
    if (fchmod(fd, 0666) < 0) fail_errno("cannot open a memfd to its users");
    return fd;
}

static void seal(int fd) {
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0) fail_errno("cannot seal memory");
}

/* Until the daemon has opened what is offered, or is gone. */
static int hold(int fd, struct copied copied) {
    printf("held %d %016llx %llu\n", fd, (unsigned long long)copied.sum, (unsigned long long)copied.pages);
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR) continue;
    return 0;
}

int command_base(const char *file) {
    int from = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (from < 0) fail_errno("cannot open %s", file);
    struct stat facts;
    if (fstat(from, &facts) < 0) fail_errno("cannot look at %s", file);
    int to = new_memfd(facts.st_size);
    struct copied copied = copy_pages(from, to, facts.st_size);
    close(from);
    seal(to);
    return hold(to, copied);
}

int command_blank(const char *bytes) {
    int fd = new_memfd(strtoll(bytes, NULL, 10));
    return hold(fd, (struct copied){0, 0});
}

int command_store(const char *file) {
    const int from = 3;
    struct stat facts;
    if (fstat(from, &facts) < 0) fail_errno("no memory was handed over");
    seal(from);
    int to = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (to < 0) fail_errno("cannot make %s", file);
    if (ftruncate(to, facts.st_size) < 0) fail_errno("cannot size %s", file);
    struct copied copied = copy_pages(from, to, facts.st_size);
    if (fsync(to) < 0 || close(to) < 0) fail_errno("cannot flush %s", file);
    printf("stored %016llx %llu\n", (unsigned long long)copied.sum, (unsigned long long)copied.pages);
    return 0;
}
