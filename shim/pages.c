#include "pages.h"

#include <errno.h>
#include <unistd.h>

#include "fail.h"

static uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

/* Four independent lanes, so that the processor can work on them side by side. */
uint64_t sum_page(const char *page, uint64_t number) {
    const uint64_t *words = (const uint64_t *)page;
    const uint64_t a = 0x9E3779B185EBCA87ULL, b = 0xC2B2AE3D27D4EB4FULL;
    uint64_t lane[4] = {number + a, number ^ b, ~number, number * a};
    for (int i = 0; i < PAGE / 8; i += 4)
        for (int k = 0; k < 4; k++) lane[k] = rotate(lane[k] ^ words[i + k] * b, 31) * a;
    uint64_t sum = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
    return (sum ^ sum >> 29) * b;
}

/* Most pages differ in their first words, and those that do not are worth reading to the end. */
int is_zero_page(const char *page) {
    const uint64_t *words = (const uint64_t *)page;
    for (int i = 0; i < PAGE / 8; i += 32) {
        uint64_t any = 0;
        for (int k = 0; k < 32; k++) any |= words[i + k];
        if (any != 0) return 0;
    }
    return 1;
}

void write_all(int fd, const void *data, size_t length, off_t at) {
    const char *rest = data;
    while (length > 0) {
        ssize_t wrote = pwrite(fd, rest, length, at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) fail_errno("cannot write memory");
        rest += wrote;
        at += wrote;
        length -= (size_t)wrote;
    }
}

void read_pages(int from, off_t size, take_pages *take, void *context) {
    static _Alignas(PAGE) char buffer[PAGE * PIECE_PAGES];
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
            take(context, buffer, (uint64_t)at / PAGE, want / PAGE);
            at += (off_t)want;
        }
    }
}

void copy_pages(struct copied *copied, int to, const char *pages, uint64_t first, size_t count) {
    for (size_t page = 0; page < count;) {
        if (is_zero_page(pages + page * PAGE)) {
            page++;
            continue;
        }
        size_t end = page;
        while (end < count && !is_zero_page(pages + end * PAGE)) {
            copied->sum += sum_page(pages + end * PAGE, first + end);
            end++;
        }
        if (to >= 0) write_all(to, pages + page * PAGE, (end - page) * PAGE, (off_t)((first + page) * PAGE));
        copied->pages += end - page;
        page = end;
    }
}

struct memory_copy {
    struct copied copied;
    int to;
};

static void copy_piece(void *context, const char *pages, uint64_t first, size_t count) {
    struct memory_copy *copy = context;
    copy_pages(&copy->copied, copy->to, pages, first, count);
}

struct copied copy_memory(int from, int to, off_t size) {
    struct memory_copy copy = {{0, 0}, to};
    read_pages(from, size, copy_piece, &copy);
    return copy.copied;
}
